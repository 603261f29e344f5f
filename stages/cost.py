"""What work costs, counted and measured: the arithmetic of a decoder, and the rates of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.decoders.upconv import UpConvMode


def decoder_step_flop(
    name: str, geometry: Geometry, options: Mapping[str, Any], mode: UpConvMode = "textbook"
) -> int:
    """Return the FLOP of one training step on one tile, computed by ``mode``: forward once, backward twice as much.

    A multiplication and an addition are two FLOP. Counted on the meta device: nothing is computed.
    """
    with torch.device("meta"):
        decoder = build_decoder(name, geometry, **options)
        set_upconv_mode(decoder, mode)
        tokens = torch.empty(1, geometry.width_in, *geometry.grid)
    with FlopCounterMode(display=False) as counter:
        decoder(tokens)
    return 3 * int(counter.get_total_flops())


def gemm_rate(
    device: torch.device, side: int = 2048, seconds: float = 0.3, dtype: torch.dtype = torch.float32
) -> float:
    """Measure products of matrices of ``side``² on ``device`` for about ``seconds``; returns FLOP a second, at best.

    An encoder is made of these.
    """
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _least_seconds(lambda: left @ right, seconds)


def conv_rate(
    device: torch.device, side: int = 128, seconds: float = 0.3, dtype: torch.dtype = torch.float32
) -> float:
    """Measure 3×3 convolutions of maps of ``side``² pixels and as many channels; returns FLOP a second, at best.

    A decoder is made of these. Another library computes them on CPUs, which may be much faster than that of matrices.
    """
    maps = torch.randn(1, side, side, side, device=device, dtype=dtype)
    weight = torch.randn(side, side, 3, 3, device=device, dtype=dtype)
    maps, weight = (one.contiguous(memory_format=torch.channels_last) for one in (maps, weight))
    with torch.inference_mode():
        return 2 * 9 * side**4 / _least_seconds(lambda: F.conv2d(maps, weight, padding=1), seconds)


def _least_seconds(product: Callable[[], torch.Tensor], seconds: float) -> float:
    """Return how long it takes at best, run for about so many ``seconds``."""
    product()
    best, ends = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < ends:
        started = time.perf_counter()
        made = product()
        made[(0,) * made.ndim].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best
