"""What work is said to cost: against the arithmetic written out, and rates that are not zero."""

from __future__ import annotations

import pytest
import torch

from stages.cost import conv_rate, decoder_step_flop, gemm_rate
from stages.decoders import Geometry


@pytest.mark.parametrize("grid", [(32, 32), (37, 37)])
def test_the_decoders_flop_are_those_of_its_layers_and_a_quarter_in_the_fast_form(
    grid: tuple[int, int],
) -> None:
    d, width, classes, px = 1024, 256, 3, 512
    tokens = grid[0] * grid[1]
    blocks = 4  # ceil(log2(512 / 32)) and ceil(log2(512 / 37))
    textbook = d * width * tokens + sum(9 * width**2 * tokens * 4**s for s in range(1, blocks + 1))
    textbook += width * classes * tokens * 4**blocks
    geometry = Geometry(d, grid, px, px, classes)
    found = decoder_step_flop("single-scale", geometry, {})
    assert found == 3 * 2 * textbook
    assert 0.24 < decoder_step_flop("single-scale", geometry, {}, "fast") / found < 0.28


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_measured_in_any_precision(dtype: torch.dtype) -> None:
    for rate in (gemm_rate, conv_rate):
        assert 1e6 < rate(torch.device("cpu"), 32, 0.01, dtype) < 1e15
