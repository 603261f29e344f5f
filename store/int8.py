"""The int8 form of a grid: one byte a value, and a scale and a zero for each channel of each view.

Stored is uint8 of shape (d, n + 8) for a grid (d, ...) with n values a channel: n steps, then the little-endian
float32 ``scale`` and ``zero`` of the channel. The value is ``float16(float32(step * scale) + zero)``: the product is
rounded to float32, then the sum, then the result to float16, each to the nearest, ties to even. Whoever computes it
in this order gets the same bits.

``zero`` is the end of the channel's range that is nearer to 0 and ``scale`` 1/255 of the way to the other end, so it is
negative where all steps go down, and 0 where the channel is constant. Therefore smallest and largest value of a
channel come back exactly, no value comes back outside of them, and none is further from what it was than half a step
and half a unit in the last place of float16: ``|x - x'| <= |scale| / 2 + ulp(x') / 2``, where the float32 arithmetic
adds less than a thousandth of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TAIL = 8  # bytes of scale and zero after the steps of a channel
META = "int8"  # where the error of a view is kept among its metadata
MAX_ERROR = 0.03  # of a standard deviation: the error of bfloat16 in its worst channel
_STEPS = np.float32(255)
_BLOCK = 1 << 18  # values worked on at a time, so that the working arrays stay in the processor's cache


class Int8Error(NamedTuple):
    """By how much int8 changed a grid.

    Of each channel that is not constant, the root mean square of the changes is divided by the channel's standard
    deviation; ``rms`` is the root mean square of these ratios, ``worst`` the largest. Both are 0 where every channel
    is constant. Four significant digits.
    """

    rms: float
    worst: float


class EncodingError(NamedTuple):
    """The :class:`Int8Error` of ``views`` views: mean and largest ``rms``, and the worst channel of all."""

    views: int
    mean_rms: float
    max_rms: float
    worst_channel: float


def encode(grid: NDArray[np.float16]) -> tuple[NDArray[np.uint8], Int8Error]:
    """Return the int8 form of ``grid``, float16 (d, ...), as uint8 (d, n + 8), and what that costs.

    Raises ``ValueError`` for an array of another dtype, with one axis only, or with a value that is not finite.
    """
    if grid.dtype != np.float16 or grid.ndim < 2:
        raise ValueError(f"int8 is made of float16 grids of two axes or more, not {grid.dtype} {grid.shape}")
    flat = grid.reshape(len(grid), -1)
    channels, values = flat.shape
    stored = np.empty((channels, values + TAIL), np.uint8)
    error, spread = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for at in _blocks(channels, values):
        x = flat[at].astype(np.float32)
        low, high = x.min(axis=1), x.max(axis=1)
        upwards = np.abs(low) <= np.abs(high)
        zero = np.where(upwards, low, high)[:, None]
        scale = (np.where(upwards, high, low)[:, None] - zero) / _STEPS
        if not np.isfinite(scale).all():
            raise ValueError("int8 is made of finite values only")
        y = x - zero
        y /= np.where(scale == 0, 1, scale)
        np.rint(y, out=y)
        stored[at, :values] = y
        stored[at, values:] = np.hstack([scale, zero]).astype("<f4").view(np.uint8)
        y *= scale
        y += zero
        y = y.astype(np.float16).astype(np.float32)
        y -= x
        error[at] = np.einsum("cv,cv->c", y, y)
        x -= x.mean(axis=1, keepdims=True)
        spread[at] = np.einsum("cv,cv->c", x, x)
    ratios = error[spread > 0].astype(np.float64) / spread[spread > 0]
    rms, worst = (float(f"{number**0.5:.4g}") for number in (_mean(ratios), ratios.max(initial=0.0)))
    return stored, Int8Error(rms, worst)


def decode(stored: NDArray[np.uint8], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
    """Return the values of ``stored``, uint8 (..., d, n + 8), as float16 (..., d, n), or in ``out`` if that is given.

    ``out``: C-contiguous float16 of as many values, of any shape; ``ValueError`` otherwise.
    """
    rows = stored.reshape(-1, stored.shape[-1])
    channels, values = len(rows), rows.shape[1] - TAIL
    target = np.empty((*stored.shape[:-1], values), np.float16) if out is None else out
    if target.dtype != np.float16 or target.size != channels * values or not target.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous float16 of {channels * values} values")
    flat = target.reshape(channels, values)
    with np.errstate(over="ignore", invalid="ignore"):  # a hole has a scale that is not a number
        for at in _blocks(channels, values):
            tail = rows[at, values:].copy().view("<f4")
            y = rows[at, :values].astype(np.float32)
            y *= tail[:, :1]
            y += tail[:, 1:]
            flat[at] = y
    return target


def encoding_error(metas: Iterable[Mapping[str, Any] | None]) -> EncodingError | None:
    """Return what int8 cost the views of these metadata; ``None`` where none of them was stored as int8."""
    found = [meta[META] for meta in metas if meta and META in meta]
    if not found:
        return None
    rms = [float(error["rms"]) for error in found]
    return EncodingError(
        len(found), sum(rms) / len(rms), max(rms), max(float(error["worst"]) for error in found)
    )


def _blocks(channels: int, values: int) -> Iterable[slice]:
    step = max(1, _BLOCK // values)
    return (slice(start, start + step) for start in range(0, channels, step))


def _mean(ratios: NDArray[np.float64]) -> float:
    return float(ratios.mean()) if ratios.size else 0.0
