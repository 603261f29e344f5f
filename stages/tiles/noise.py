"""Random fields, fibres and nuclei for synthetic tissue, from operations that IEEE 754 rounds the same everywhere.

No exponential, sine, logarithm, matrix product or summation is used: their last bits depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]  # float32 throughout
_F = np.float32


class Fields:
    """A stream of random fields over one square image of ``size`` px; the same key gives the same stream."""

    def __init__(self, size: int, key: Sequence[int]) -> None:
        self.size = size
        self._random = np.random.Generator(np.random.PCG64(list(key)))
        self._y, self._x = np.arange(size, dtype=_F)[:, None], np.arange(size, dtype=_F)[None, :]

    def between(self, low: float, high: float) -> float:
        """Return one number drawn evenly from [low, high)."""
        return low + (high - low) * float(self._random.random())

    def direction(self) -> tuple[float, float]:
        """Return a unit vector (cosine, sine) of a random axis, from the rational points of the circle."""
        t = self.between(-1.0, 1.0)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def blend(self, colours: Float) -> Float:
        """Return a random mixture, with weights that add to 1, of the rows of ``colours`` (N, 3)."""
        weights = [self.between(0.05, 1.0) for _ in colours]
        mixed = np.zeros(3, _F)
        for weight, colour in zip(weights, colours, strict=True):
            mixed = mixed + _F(weight / math.fsum(weights)) * colour
        return mixed

    def smooth(self, cell: float) -> Float:
        """Return a (size, size) field in [0, 1] with bumps ``cell`` px apart: a cubic B-spline of random values."""
        count = int(self.size / cell) + 5
        lattice = self._lattice(count)
        shift_y, shift_x = self.between(0, 1), self.between(0, 1)
        rows = _spline(lattice, self._y[:, 0] / _F(cell) + _F(shift_y))
        spread = _spline(np.ascontiguousarray(rows.T), self._x[0] / _F(cell) + _F(shift_x)).T
        # A B-spline averages 16 random values: stretch what remains of their range to most of [0, 1].
        return unit((spread - _F(0.5)) * _F(1.9) + _F(0.5))

    def fibres(self, direction: tuple[float, float]) -> Float:
        """Return wavy bundles along ``direction``: (size, size) in [0, 1], about 6 px wide and 50 px long."""
        cosine, sine = _F(direction[0]), _F(direction[1])
        bend = (self.smooth(45.0) - _F(0.5)) * _F(46) + (self.smooth(16.0) - _F(0.5)) * _F(9)
        along = self._x * cosine + self._y * sine
        across = self._y * cosine - self._x * sine + bend
        thick = self._gather(across / _F(5.5), along / _F(48))
        thin = self._gather(across / _F(2.6), along / _F(30))
        return unit((thick * _F(0.65) + thin * _F(0.35) - _F(0.18)) * _F(1.5))

    def vacuoles(self, cell: float) -> Float:
        """Return round holes between thin walls: (size, size), 1 in a hole, 0 in a wall about 2 px thick."""
        first, second = self._two_nearest(cell)
        gap = (np.sqrt(second) - np.sqrt(first)) - (self.smooth(6.0) * _F(1.6))
        return unit(gap * _F(0.45))

    def softened(self, values: Float) -> Float:
        """Return ``values`` blurred by the binomial 1-2-1 along both axes: the optics of the scanner."""
        padded = np.pad(values, 1, mode="edge")
        rows = (padded[:-2] + padded[2:]) * _F(0.25) + padded[1:-1] * _F(0.5)
        both: Float = (rows[:, :-2] + rows[:, 2:]) * _F(0.25) + rows[:, 1:-1] * _F(0.5)
        return both

    def sensor(self, strength: float) -> Float:
        """Return the camera's noise: (size, size, 3) in ± ``strength`` of the full range."""
        return (self._random.random((self.size, self.size, 3), dtype=_F) - _F(0.5)) * _F(2 * strength)

    def nuclei(self) -> Nuclei:
        """Return an empty layer of nuclei drawn from this stream."""
        return Nuclei(self.size, self._random)

    def _lattice(self, count: int) -> Float:
        return self._random.random((count, count), dtype=_F)

    def _gather(self, v: Float, u: Float) -> Float:
        """Return value noise at any coordinates, wrapping a 64-value lattice."""
        lattice = self._lattice(64)
        v0, u0 = np.floor(v), np.floor(u)
        fv, fu = ease(v - v0), ease(u - u0)
        vi, ui = v0.astype(np.int64) & 63, u0.astype(np.int64) & 63
        vj, uj = (vi + 1) & 63, (ui + 1) & 63
        low = lattice[vi, ui] + (lattice[vi, uj] - lattice[vi, ui]) * fu
        high = lattice[vj, ui] + (lattice[vj, uj] - lattice[vj, ui]) * fu
        value: Float = low + (high - low) * fv
        return value

    def _two_nearest(self, cell: float) -> tuple[Float, Float]:
        """Return the squared distances (px²) to the nearest and second nearest point of a jittered grid."""
        count = int(self.size / cell) + 3
        jitter = self._random.random((2, count, count), dtype=_F) * _F(0.8) + _F(0.1)
        row = (self._y[:, 0] / _F(cell)).astype(np.int64) + 1
        column = (self._x[0] / _F(cell)).astype(np.int64) + 1
        first = np.full((self.size, self.size), _F(1e9))
        second = first.copy()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                at = np.ix_(row + dy, column + dx)
                dy_px = (jitter[0][at] + (row + dy - 1).astype(_F)[:, None]) * _F(cell) - self._y
                dx_px = (jitter[1][at] + (column + dx - 1).astype(_F)[None, :]) * _F(cell) - self._x
                distance = dy_px * dy_px + dx_px * dx_px
                second = np.minimum(second, np.maximum(first, distance))
                first = np.minimum(first, distance)
        return first, second


class Nuclei:
    """A layer of nuclei; ``amount`` is their (size, size) haematoxylin, about 1 inside a nucleus."""

    def __init__(self, size: int, random: np.random.Generator) -> None:
        self.amount: Float = np.zeros((size, size), _F)
        self._random = random

    def sow(
        self,
        where: NDArray[np.bool_],
        *,
        cell: float,
        keep: float,
        radius: tuple[float, float],
        stretch: tuple[float, float],
        dark: float = 1.0,
        nucleolus: float = 0.0,
        along: tuple[float, float] | None = None,
    ) -> None:
        """Draw nuclei whose centre lies in ``where``, at most one for each ``cell``² px.

        ``keep``: share of the places that get one; ``radius`` in px across, times ``stretch`` lengthwise; ``dark``:
        amount of stain; ``nucleolus``: extra stain of a spot inside; ``along``: axis they lie along, else any.
        """
        size = len(self.amount)
        count = int(size / cell) + 1
        draws: list[list[float]] = self._random.random((count * count, 8)).tolist()
        for place, (y_, x_, kept, radius_, stretch_, turn, stain, spot) in enumerate(draws):
            if kept >= keep:
                continue
            y = (place // count + 0.12 + 0.76 * y_) * cell
            x = (place % count + 0.12 + 0.76 * x_) * cell
            if y >= size or x >= size or not where[int(y), int(x)]:
                continue
            across = radius[0] + (radius[1] - radius[0]) * radius_
            length = across * (stretch[0] + (stretch[1] - stretch[0]) * stretch_)
            amount = dark * (0.75 + 0.4 * stain)
            self._stamp(y, x, across, length, _turned(along, turn), amount, nucleolus * spot)

    def _stamp(
        self,
        y: float,
        x: float,
        across: float,
        length: float,
        axis: tuple[float, float],
        dark: float,
        spot: float,
    ) -> None:
        size, reach = len(self.amount), max(across, length) + 1.5
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        bottom, right = min(size, int(y + reach) + 2), min(size, int(x + reach) + 2)
        dy = np.arange(top, bottom, dtype=_F)[:, None] - _F(y)
        dx = np.arange(left, right, dtype=_F)[None, :] - _F(x)
        cosine, sine = _F(axis[0]), _F(axis[1])
        u = (dx * cosine + dy * sine) * _F(1 / length)
        v = (dy * cosine - dx * sine) * _F(1 / across)
        squared = u * u + v * v
        edge = np.clip((_F(1.12) - squared) * _F(0.55 * across), 0, 1)
        rim = _F(0.72) + _F(0.28) * np.minimum(squared, _F(1))  # chromatin is denser along the membrane
        body = edge * rim * _F(dark)
        if spot:
            body = body + np.clip(_F(1) - squared * _F(9), 0, 1) * _F(spot)
        window = self.amount[top:bottom, left:right]
        np.maximum(window, body, out=window)


def unit(values: Float) -> Float:
    """Return ``values`` cut to [0, 1]."""
    cut: Float = np.clip(values, 0, 1)
    return cut


def pick(mask: NDArray[np.uint8], *values: Float) -> Float:
    """Return, at each pixel, the value of its class: ``values[c]`` where ``mask`` is c."""
    out = np.zeros(mask.shape, _F)
    for index, value in enumerate(values):
        np.copyto(out, value.astype(_F, copy=False), where=mask == index)
    return out


def optical_density_to_rgb(density: Float, noise: Float) -> NDArray[np.uint8]:
    """Return 255 · 10^-density + 255 · noise as uint8; (H, W, 3) in and out.

    10^-d is taken as (1 + t + t²/2 + t³/6)^-16 with t = d · ln 10 / 16, off by less than 0.1 grey levels up to d = 2.
    """
    t = np.maximum(density, 0) * _F(2.302585092994046 / 16)
    root = _F(1) / (_F(1) + t * (_F(1) + t * (_F(0.5) + t * _F(1 / 6))))
    for _ in range(4):
        root = root * root
    return np.clip((root + noise) * _F(255) + _F(0.5), 0, 255).astype(np.uint8)


def _spline(lattice: Float, at: Float) -> Float:
    """Return the cubic B-spline through the rows of ``lattice`` (N, M) at positions ``at`` (P,): (P, M)."""
    base = np.floor(at)
    f = (at - base)[:, None]
    index = base.astype(np.int64)
    g = _F(1) - f
    sixth = _F(1 / 6)
    weights = (
        g * g * g * sixth,
        (_F(3) * f * f * f - _F(6) * f * f + _F(4)) * sixth,
        (_F(3) * g * g * g - _F(6) * g * g + _F(4)) * sixth,
        f * f * f * sixth,
    )
    out: Float = weights[0] * lattice[index]
    for step in (1, 2, 3):
        out = out + weights[step] * lattice[index + step]
    return out


def ease(t: Float) -> Float:
    """Return the smooth step 3t² - 2t³."""
    eased: Float = t * t * (_F(3) - _F(2) * t)
    return eased


def _turned(along: tuple[float, float] | None, turn: float) -> tuple[float, float]:
    """Return a unit axis: any where ``along`` is ``None``, else within about 25 degrees of it."""
    t = (2 * turn - 1) * (1.0 if along is None else 0.22)
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    if along is None:
        return cosine, sine
    return along[0] * cosine - along[1] * sine, along[1] * cosine + along[0] * sine
