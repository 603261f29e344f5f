"""Position tables against independent references: timm's own, and the sampling formulas written out in numpy."""

from __future__ import annotations

from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_rows import tiny, write_row
from numpy.typing import NDArray
from timm.layers import resample_abs_pos_embed

from stages.encoders import describe_encoder
from stages.encoders.positions import baked, stored_grid
from store.errors import InputError


def _table(side: int, prefix: int, d: int = 6) -> torch.Tensor:
    return torch.randn((1, prefix + side * side, d), generator=torch.Generator().manual_seed(side))


def _cubic(t: float) -> float:
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def _linear(t: float) -> float:
    return max(0.0, 1 - abs(t))


def _sampling(stored: int, run: int, policy: str) -> NDArray[np.float64]:
    """The (run, stored) weights of one axis: run samples at half-pixel centres, the rim repeated."""
    factor = (run + 0.1) / stored if policy == "offset0.1" else run / stored
    kernel, reach = (_linear, 1) if policy == "bilinear" else (_cubic, 2)
    weights = np.zeros((run, stored))
    for target in range(run):
        at = (target + 0.5) / factor - 0.5
        if policy == "bilinear":
            at = max(at, 0.0)
        for source in range(floor(at) - reach + 1, floor(at) + reach + 1):
            weights[target, min(max(source, 0), stored - 1)] += kernel(at - source)
    return weights


@pytest.mark.parametrize("policy", ["hf", "offset0.1", "bilinear"])
@pytest.mark.parametrize(("stored", "run"), [(14, 32), (37, 16), (16, 37)])
@pytest.mark.parametrize("prefix", [0, 5])
def test_a_baked_table_follows_its_policys_formula(policy: str, stored: int, run: int, prefix: int) -> None:
    table = _table(stored, prefix)
    got = baked(table, prefix_rows=prefix, stored=stored, run=run, policy=policy)  # type: ignore[arg-type]
    axis = _sampling(stored, run, policy)
    patches = table[0, prefix:].double().numpy().reshape(stored, stored, -1)
    expected = np.einsum("ys,xt,std->yxd", axis, axis, patches).reshape(run * run, -1)
    assert torch.equal(got[:, :prefix], table[:, :prefix])
    np.testing.assert_allclose(got[0, prefix:].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("stored", "run"), [(14, 32), (37, 16)])
def test_the_timm_policy_is_timms_own_resampling(stored: int, run: int) -> None:
    table = _table(stored, 5)
    expected = resample_abs_pos_embed(
        table, new_size=[run, run], old_size=[stored, stored], num_prefix_tokens=5
    )
    assert torch.equal(baked(table, prefix_rows=5, stored=stored, run=run, policy="timm"), expected)


def test_the_policies_are_four_different_tables() -> None:
    table = _table(14, 1)
    policies = ("timm", "hf", "offset0.1", "bilinear")
    tables = [baked(table, prefix_rows=1, stored=14, run=32, policy=policy) for policy in policies]
    for index, left in enumerate(tables):
        for right in tables[index + 1 :]:
            assert float((left - right).norm() / left.norm()) > 0.01


def test_a_table_at_its_own_grid_is_untouched_by_every_policy() -> None:
    table = _table(9, 1)
    for policy in ("timm", "hf", "offset0.1", "bilinear", "none"):
        assert torch.equal(baked(table, prefix_rows=1, stored=9, run=9, policy=policy), table)  # type: ignore[arg-type]


def test_the_stored_grid_is_read_from_the_rows() -> None:
    assert stored_grid(197, 1) == 14
    assert stored_grid(261, 5) == 16
    assert stored_grid(1369, 0) == 37
    assert stored_grid(198, 1) is None
    assert stored_grid(1, 1) is None


def test_a_row_that_forbids_resizing_names_the_tile_sizes_it_takes(tmp_path: Path) -> None:
    reference = write_row(tmp_path, tiny(pos_policy="none"))
    assert describe_encoder(reference, tile_px=29).grid.h == 4
    with pytest.raises(InputError, match="Use a tile_px from 25 to 32"):
        describe_encoder(reference, tile_px=64)
