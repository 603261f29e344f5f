"""A smaller training set out of a larger one: always the same tiles, the few among the more."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def training_order(keys: Sequence[str], pixels: NDArray[np.int64], seed: int) -> list[int]:
    """Return the order in which training tiles are taken, as positions; the first N of it are a training set of N.

    ``keys`` are the tiles' fingerprints, ``pixels`` (tiles, C) the pixels of each class in them. Random by ``seed``,
    but that the tiles which bring most of the classes still lacking come first, so that few suffice for all classes.
    A function of the arguments alone, whatever the order of the tiles: a tile keeps its place where it is renamed.
    """
    drawn = sorted(range(len(keys)), key=lambda i: hashlib.sha256(f"{seed}/{keys[i]}".encode()).digest())
    has, order = pixels > 0, list[int]()
    lacking = has.any(axis=0)
    while lacking.any():
        best = max(drawn, key=lambda i: int((has[i] & lacking).sum()))  # the earliest drawn of equals
        order.append(best)
        drawn.remove(best)
        lacking = lacking & ~has[best]
    return order + drawn


def sufficient(order: Sequence[int], pixels: NDArray[np.int64]) -> int:
    """Return how many tiles of ``order`` it takes until every class that any tile has is there."""
    lacking = (pixels > 0).any(axis=0)
    for taken, tile in enumerate(order):
        if not lacking.any():
            return taken
        lacking = lacking & ~(pixels[tile] > 0)
    return len(order)
