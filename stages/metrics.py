"""Scores from counts: the confusion matrix of each tile is stored, and every figure is made of it.

Counts are arrays (…, N, C, 3): intersection, prediction and truth, in pixels, of each of N tiles and C classes. Any
axes before these (seeds, resamples) are kept. The rules for absent classes are gathered in docs/statistics.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import IGNORE
from store.errors import InputError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

PUMA_EPS = 1e-5


def confusions(prediction: NDArray[Any], truth: NDArray[np.uint8], classes: int) -> Counts:
    """Count, for each tile, the pixels of each true class (row) that were given each class (column).

    ``prediction`` (B, H, W) integers below ``classes``, ``truth`` (B, H, W) uint8, class index or 255. Ignored pixels
    count nowhere. Returns int64 (B, classes, classes). ``InputError`` for unequal shapes or a value that is no class.
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
    found = np.bincount(pair, minlength=len(truth) * classes * classes)
    return found.reshape(len(truth), classes, classes).astype(np.int64)


def counts_of(confusion: Counts) -> Counts:
    """Return the counts (…, C, 3) of confusion matrices (…, C, C)."""
    agreed = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([agreed, confusion.sum(axis=-2), confusion.sum(axis=-1)], axis=-1)


def counts(prediction: NDArray[Any], truth: NDArray[np.uint8], classes: int) -> Counts:
    """Return the counts (B, classes, 3) of predicted tiles; arguments and errors as of :func:`confusions`."""
    return counts_of(confusions(prediction, truth, classes))


def dice_of(counted: NDArray[Any]) -> Floats:
    """Return 2I / (P + T) of counts (…, 3), float64 of shape (…).

    NaN where neither prediction nor truth holds a pixel: there is nothing to be right or wrong about. 0 where only one
    of them does.
    """
    return _ratio(2 * counted[..., 0], counted[..., 1] + counted[..., 2])


def pooled_dice(counted: Counts) -> Floats:
    """Return :func:`dice_of` all pixels of all tiles, (…, C), of counts (…, N, C, 3)."""
    return dice_of(counted.sum(axis=-3))


def held(counted: Counts) -> NDArray[np.bool_]:
    """Return which classes (…, C) the truth of counts (…, N, C, 3) holds in any tile."""
    pixels: Counts = counted[..., 2].sum(axis=-2)
    return pixels > 0


def mean_over_classes(values: Floats, held: NDArray[np.bool_]) -> Floats:
    """Return the mean over the last axis of the ``values`` (…, C) of classes that are ``held`` (…, C), NaN left out.

    Which classes these are follows from the truth alone, so that the means of all who predict it are over the same. A
    class that the truth lacks needs no 0 of its own: whoever predicts it misses pixels of another class.
    """
    return mean_of_present(np.where(held, values, np.nan), axis=-1)


def mean_of_present(values: Floats, axis: int) -> Floats:
    """Return the mean along ``axis`` of the values that are not NaN; NaN where all are."""
    present = ~np.isnan(values)
    return _ratio(np.where(present, values, 0.0).sum(axis=axis), present.sum(axis=axis))


def mean_dice(counted: Counts) -> Floats:
    """Return the headline (…) of counts (…, N, C, 3): :func:`pooled_dice`, averaged over the classes of the truth."""
    return mean_over_classes(pooled_dice(counted), held(counted))


def tile_dice(counted: Counts) -> Floats:
    """Return the Dice (…, N) of each tile of counts (…, N, C, 3): the mean over the classes of its truth."""
    return mean_over_classes(dice_of(counted), counted[..., 2] > 0)


def per_tile_dice(counted: Counts) -> Floats:
    """Return the Dice (…, C) of each class in each tile, averaged over tiles, of counts (…, N, C, 3).

    A tile in which neither truth nor prediction holds the class is left out of that class's mean.
    """
    return mean_of_present(dice_of(counted), axis=-2)


def iou(counted: Counts) -> Floats:
    """Return I / (P + T − I) (…, C) over all pixels of counts (…, N, C, 3); NaN for a class that is nowhere."""
    total = counted.sum(axis=-3)
    return _ratio(total[..., 0], total[..., 1] + total[..., 2] - total[..., 0])


def precision(counted: Counts) -> Floats:
    """Return I / P (…, C) over all pixels of counts (…, N, C, 3); NaN for a class that is nowhere.

    0 for a class of the truth that was never predicted, so that no one's mean gains by leaving classes out.
    """
    total = counted.sum(axis=-3)
    never = (total[..., 1] == 0) & (total[..., 2] > 0)
    return np.where(never, 0.0, _ratio(total[..., 0], total[..., 1]))


def recall(counted: Counts) -> Floats:
    """Return I / T (…, C) over all pixels of counts (…, N, C, 3); NaN for a class that the truth lacks."""
    total = counted.sum(axis=-3)
    return _ratio(total[..., 0], total[..., 2])


def puma_micro_dice(counted: Counts) -> Floats:
    """Return the Dice (…, C) by the PUMA challenge's rule for ``micro_dice_tissue``, of counts (…, N, C, 3).

    (2I + ε) / (P + T + ε) over all pixels, ε = 1e-5, and 0 wherever the intersection is 0, so also for a class that is
    nowhere. ``average_micro_dice`` is the plain mean over the classes. Source: the challenge's public evaluator.
    """
    total = counted.sum(axis=-3)
    return np.where(total[..., 0] == 0, 0.0, _softened(total))


def puma_image_dice(counted: Counts) -> Floats:
    """Return the Dice (…, N, C) of each image by the PUMA challenge's rule for ``dice_tissue``, of counts (…, N, C, 3).

    (2I + ε) / (P + T + ε) with ε = 1e-5, which is 1 where neither truth nor prediction holds the class. The challenge
    averages it over the images. Source: the challenge's public evaluator.
    """
    return _softened(counted)


def _softened(counted: Counts) -> Floats:
    size = counted[..., 1] + counted[..., 2]
    return np.asarray((2 * counted[..., 0] + PUMA_EPS) / (size + PUMA_EPS))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    empty = whole == 0
    return np.where(empty, np.nan, part / np.where(empty, 1, whole))
