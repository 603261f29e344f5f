"""Dice from counts: what is stored for each tile and class, and the headline figure made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import IGNORE
from store.errors import InputError


def counts(prediction: NDArray[Any], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count, for each tile and class, the pixels of (intersection, prediction, truth).

    ``prediction`` (B, H, W) integers below ``classes``, ``truth`` (B, H, W) uint8, class index or 255. Ignored
    pixels are in none of the three. Returns int64 (B, classes, 3). ``InputError`` for unequal shapes or a value that
    is no class.
    """
    if prediction.shape != truth.shape:
        raise InputError(
            f"a prediction of shape {prediction.shape} cannot be compared with a truth of {truth.shape}",
            where="prediction",
            remedy="Predict and annotate the same pixels.",
        )
    kept = truth != IGNORE
    for name, labels in (("prediction", prediction), ("truth", truth)):
        found = labels[kept]
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < classes:
            raise InputError(
                f"the {name} holds labels from {found.min()} to {found.max()}, but there are {classes} classes",
                where=name,
                remedy=f"Labels are 0 to {classes - 1}; 255 marks ignored pixels of the truth.",
            )
    tile = np.broadcast_to(np.arange(len(truth), dtype=np.intp)[:, None, None], truth.shape)[kept]
    pair = (tile * classes + truth[kept]) * classes + prediction[kept]
    confusion = np.bincount(pair, minlength=len(truth) * classes * classes)
    confusion = confusion.reshape(len(truth), classes, classes)
    agreed = np.diagonal(confusion, axis1=1, axis2=2)
    return np.stack([agreed, confusion.sum(axis=1), confusion.sum(axis=2)], axis=-1).astype(np.int64)


def pooled_dice(counted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the Dice of each class over all pixels of all tiles, 2I / (P + T), from counts (N, classes, 3).

    A class that neither truth nor prediction holds is NaN; one that only one of them holds is 0.
    """
    total = counted.sum(axis=0)
    size = total[:, 1] + total[:, 2]
    return np.where(size > 0, 2 * total[:, 0] / np.maximum(size, 1), np.nan)


def mean_dice(counted: NDArray[np.int64]) -> float:
    """Return the mean of :func:`pooled_dice` over the classes present in truth or prediction; NaN if none is."""
    dice = pooled_dice(counted)
    present = dice[~np.isnan(dice)]
    return float(present.mean()) if present.size else float("nan")
