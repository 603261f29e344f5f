"""The PUMA challenge's tissue scores of predicted label images, by its public evaluator's rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.metrics import counts, puma_image_dice, puma_micro_dice
from stages.tiles.dataset import raise_all
from stages.tiles.images import read_tiff, reading
from store.errors import InputError

LABELS = ("background", "stroma", "blood vessel", "tumour", "epidermis", "necrosis")
"""What the values 0 … 5 of a label image stand for; the background is not scored."""

SIDE = 1024
_MASKS = "output/images/melanoma-tissue-mask-segmentation"


class ScoredPair(NamedTuple):
    """A predicted label image, and the true one of the same region."""

    prediction: Path
    truth: Path


def pairs_of(predictions: Path, truth: Path) -> list[ScoredPair]:
    """Find the truth of every prediction.

    ``predictions`` is a folder as the challenge's evaluator gets it (``predictions.json`` names the jobs), or one of
    TIFF files that are named like those in the folder ``truth``. Raises ``InputErrors`` for predictions without a true
    label image, and jobs without a prediction; for what is true of regions that none predicts, see
    :func:`unpredicted`.
    """
    jobs = predictions / "predictions.json"
    if jobs.is_file():
        found = _jobs(jobs, truth)
    else:
        paths = sorted(path for path in predictions.glob("*.tif*") if path.is_file())
        found = [ScoredPair(path, truth / path.name) for path in paths]
    if not found:
        raise InputError(
            "there is no prediction",
            where=predictions,
            remedy="Give a folder of TIFF files or a predictions.json.",
        )
    faults = [
        InputError(f"the {what} does not exist", where=path, remedy="Put it there, or leave its partner out.")
        for pair in found
        for what, path in zip(("prediction", "true label image"), pair, strict=True)
        if not path.is_file()
    ]
    raise_all(faults, "Nothing was scored: both sides need the same regions.")
    return found


def unpredicted(pairs: Sequence[ScoredPair], truth: Path) -> list[str]:
    """Return the names of the true label images in ``truth`` that none of ``pairs`` has, which are not scored."""
    scored = {pair.truth.name for pair in pairs}
    return sorted(path.name for path in truth.glob("*.tif*") if path.is_file() and path.name not in scored)


def _jobs(path: Path, truth: Path) -> list[ScoredPair]:
    with reading(path):
        jobs = json.loads(path.read_text(encoding="utf-8"))
        found = []
        for job in jobs:
            (mask,) = (
                one
                for one in job["outputs"]
                if one["interface"]["slug"] == "melanoma-tissue-mask-segmentation"
            )
            (image,) = (
                one for one in job["inputs"] if one["interface"]["slug"] == "melanoma-whole-slide-image"
            )
            predicted = path.parent / job["pk"] / _MASKS / f"{mask['image']['pk']}.tif"
            found.append(ScoredPair(predicted, truth / image["image"]["name"]))
    return found


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return a label image as (1024, 1024) uint8 values 0 … 5, resized with nearest neighbour where it is not so large.

    Raises ``InputError`` for a file that cannot be read, has colours, or holds other values.
    """
    with reading(path):
        labels = read_tiff(path).array
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"this is no label image but {labels.dtype} of shape {labels.shape}",
            where=path,
            remedy="Give one whole number a pixel.",
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(LABELS):
        raise InputError(
            f"the labels go from {labels.min()} to {labels.max()}",
            where=path,
            remedy=f"Labels are 0 to {len(LABELS) - 1}: {', '.join(LABELS)}.",
        )
    image = Image.fromarray(labels.astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def scores(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return both tissue scores of the challenge, as JSON-able values.

    ``micro``: pooled over all images, by class and their ``average`` (``average_micro_dice``); ``image``: the mean over
    images, likewise (``dice_tissue``); ``images``: the average of each. See :mod:`stages.metrics` for the rules.
    """
    counted = np.concatenate(
        [
            counts(read_labels(one.prediction)[None], read_labels(one.truth)[None], len(LABELS))
            for one in pairs
        ]
    )[:, 1:]
    each = puma_image_dice(counted)
    return {
        "micro": _by_class(puma_micro_dice(counted)),
        "image": _by_class(each.mean(axis=0)),
        "images": {one.truth.name: float(dice.mean()) for one, dice in zip(pairs, each, strict=True)},
    }


def _by_class(dice: NDArray[np.float64]) -> dict[str, float]:
    return {**dict(zip(LABELS[1:], dice.tolist(), strict=True)), "average": float(dice.mean())}
