"""What work costs, counted and measured: the arithmetic of a decoder, and the rate of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.decoders import Geometry, build_decoder, set_upconv_mode


def decoder_step_flop(name: str, geometry: Geometry, options: Mapping[str, Any]) -> int:
    """Return the FLOP of one training step on one tile, textbook form: forward once, backward twice as much.

    A multiplication and an addition are two FLOP. Counted on the meta device: nothing is computed.
    """
    with torch.device("meta"):
        decoder = build_decoder(name, geometry, **options)
        set_upconv_mode(decoder, "textbook")
        tokens = torch.empty(1, geometry.width_in, *geometry.grid)
    with FlopCounterMode(display=False) as counter:
        decoder(tokens)
    return 3 * int(counter.get_total_flops())


def gemm_rate(
    device: torch.device, side: int = 2048, seconds: float = 0.3, dtype: torch.dtype = torch.float32
) -> float:
    """Measure matrix products on ``device`` for about ``seconds``; returns FLOP a second, best of the runs."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    left @ right
    best, ends = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < ends:
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best
