"""Orders and learning rates: pure functions of the seed and the step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from stages.training.schedule import epoch_order, initial_seed, learning_rate, view_order


def test_orders_are_permutations() -> None:
    for length in (1, 2, 15, 50):
        assert sorted(epoch_order(3, 7, length)) == list(range(length))
        assert sorted(view_order(3, 7, length)) == list(range(length))


def test_orders_differ_by_seed_epoch_and_tile_and_repeat_otherwise() -> None:
    orders = [epoch_order(seed, epoch, 15).tolist() for seed in range(4) for epoch in range(4)]
    orders += [view_order(seed, tile, 15).tolist() for seed in range(4) for tile in range(4)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert epoch_order(2, 3, 15).tolist() == epoch_order(2, 3, 15).tolist()
    assert len({initial_seed(seed) for seed in range(50)}) == 50


def test_orders_are_the_same_in_every_version() -> None:
    assert epoch_order(0, 0, 8).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]
    assert view_order(1, 2, 8).tolist() == [3, 4, 1, 7, 6, 0, 5, 2]


def test_orders_favour_no_position() -> None:
    first = np.bincount([epoch_order(seed, 0, 5)[0] for seed in range(2000)], minlength=5)
    assert (abs(first - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5).all()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_learning_rate_is_torchs_cosine_with_restarts_stepped_by_batch(steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.NAdam([parameter], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=10 * steps)
    for step in range(25 * steps):
        assert learning_rate(step, 1e-4, 10 * steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-18)
        optimiser.step()
        scheduler.step()


def test_learning_rate_starts_full_and_restarts_full() -> None:
    rates = [learning_rate(step, 1e-4, 20) for step in range(41)]
    assert rates[0] == rates[20] == rates[40] == 1e-4
    assert rates[19] < 1e-6
    assert all(one > other for one, other in pairwise(rates[:20]))
