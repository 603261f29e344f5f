"""Smaller training sets: the few among the more, every class in them, and always the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.tiles.fewer import sufficient, training_order

problems = st.builds(
    lambda tiles, classes, seed: np.random.default_rng(seed).integers(0, 2, (tiles, classes)) * 7,
    st.integers(1, 12),
    st.integers(2, 5),
    st.integers(0, 10_000),
)


def keys_of(pixels: NDArray[np.int64]) -> list[str]:
    return [f"{position:064x}" for position in range(len(pixels))]


@given(problems, st.integers(0, 5))
@settings(deadline=None)
def test_every_tile_comes_once_and_all_classes_come_with_the_first_that_suffice(
    pixels: NDArray[np.int64], seed: int
) -> None:
    order = training_order(keys_of(pixels), pixels, seed)
    assert sorted(order) == list(range(len(pixels)))
    least = sufficient(order, pixels)
    there = (pixels > 0).any(axis=0)
    assert ((pixels[order[:least]] > 0).any(axis=0) == there).all()
    if least:
        assert ((pixels[order[: least - 1]] > 0).any(axis=0) != there).any()


@given(problems, st.integers(0, 5), st.randoms())
@settings(deadline=None)
def test_the_choice_follows_the_tiles_whatever_their_order(
    pixels: NDArray[np.int64], seed: int, draw
) -> None:  # type: ignore[no-untyped-def]
    keys = keys_of(pixels)
    shuffled = list(range(len(keys)))
    draw.shuffle(shuffled)
    order = training_order(keys, pixels, seed)
    other = training_order([keys[i] for i in shuffled], pixels[shuffled], seed)
    assert [shuffled[position] for position in other] == order


def test_another_seed_is_another_choice_and_few_suffice() -> None:
    pixels = np.eye(3, dtype=np.int64).repeat(4, axis=0)
    pixels = np.vstack([pixels, [[1, 1, 0]]])
    orders = {tuple(training_order(keys_of(pixels), pixels, seed)) for seed in range(5)}
    assert len(orders) > 1
    assert all(sufficient(order, pixels) == 2 and order[0] == 12 for order in orders)
