"""A segmentation problem that a decoder solves in a second: tokens that name the class of their patch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.decoders import Geometry
from stages.training.data import Features, ResidentFeatures, SplitData
from stages.training.result import RunResult
from stages.training.run import train_run
from stages.training.settings import TrainSettings
from store import GridSpec

CPU = torch.device("cpu")
CLASSES = ("tumour", "stroma", "other")
PATCH, SIDE, BLOCK = 4, 8, 2  # pixels a token, tokens a tile, tokens a side of a block of one class
PX = PATCH * SIDE
GEOMETRY = Geometry(width_in=3, grid=(SIDE, SIDE), target_px=PX, frame_px=PX, classes=3)
SPEC = GridSpec("tokens", (3, SIDE, SIDE), "float16", ("d", "h", "w"))
QUICK = TrainSettings(options={"width": 8}, epochs=4, validate_every=2, batch=4, lr=1e-2, restart_epochs=2)


def blocks(tiles: int, views: int, seed: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Token grids (tiles * views, 3, 8, 8) and masks (tiles * views, 32, 32), tile-major."""
    draw = np.random.default_rng(seed)
    number = tiles * views
    labels = draw.integers(0, 3, size=(number, SIDE // BLOCK, SIDE // BLOCK))
    labels = labels.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    tokens = np.eye(3)[labels].transpose(0, 3, 1, 2) + draw.normal(0, 0.1, size=(number, 3, SIDE, SIDE))
    masks = labels.repeat(PATCH, axis=1).repeat(PATCH, axis=2).astype(np.uint8)
    return tokens.astype(np.float16), masks


def resident(tokens: NDArray[np.float16]) -> Features:
    return ResidentFeatures(torch.from_numpy(tokens), SPEC, CPU)


def split(
    tiles: int, views: int, seed: int, held: Callable[[NDArray[np.float16]], Features] = resident
) -> SplitData:
    tokens, masks = blocks(tiles, views, seed)
    rows = np.arange(tiles * views, dtype=np.intp).reshape(tiles, views)
    return SplitData(held(tokens), rows, masks, rows, tuple(f"{seed}_{tile}" for tile in range(tiles)))


def run(settings: TrainSettings = QUICK, seed: int = 0, **changes: Any) -> RunResult:
    arguments: dict[str, Any] = {
        "train": split(10, 3, 1),
        "val": split(3, 1, 2),
        "test": split(5, 1, 3),
        "encoder": "one-hot",
        "classes": CLASSES,
        "geometry": GEOMETRY,
        "device": CPU,
        **changes,
    }
    return train_run(settings, seed, **arguments)


def equal(one: RunResult, other: RunResult) -> bool:
    """Whether two runs agree in every bit that is not a time."""
    arrays = ("losses", "lrs", "validated", "val_confusions", "test_confusions")
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
        and one.best_epoch == other.best_epoch
        and one.weights.keys() == other.weights.keys()
        and all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    )
