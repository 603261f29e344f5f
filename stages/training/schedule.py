"""What a seed fixes, as pure functions: first weights, order of tiles, order of views; and the learning rate."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_INITIALISATION, _TILES, _VIEWS = range(3)


def _permutation(length: int, *stream: int) -> NDArray[np.intp]:
    # The raw words of a bit generator are fixed by numpy's policy for all versions; Generator.permutation is not.
    words = np.random.PCG64(np.random.SeedSequence(stream)).random_raw(length)
    return np.argsort(words, kind="stable")


def initial_seed(seed: int) -> int:
    """Return the 64-bit number that seeds the generator of a run's first weights."""
    return int(np.random.SeedSequence((seed, _INITIALISATION)).generate_state(1, np.uint64)[0])


def epoch_order(seed: int, epoch: int, tiles: int) -> NDArray[np.intp]:
    """Return the order in which ``epoch`` (from 0) visits the training tiles, a permutation of their positions."""
    return _permutation(tiles, seed, _TILES, epoch)


def view_order(seed: int, tile_position: int, views: int) -> NDArray[np.intp]:
    """Return the order of one tile's views, a permutation of 0..views-1.

    Epoch e shows view ``order[e % views]``, so that no view returns before all of them were shown.
    """
    return _permutation(views, seed, _VIEWS, tile_position)


def learning_rate(step: int, lr: float, period: int) -> float:
    """Return the rate of one optimiser step (from 0): a cosine from ``lr`` to 0 over ``period`` steps, restarted."""
    return 0.5 * lr * (1 + math.cos(math.pi * (step % period) / period))
