"""Whether the masks of the splits can be trained and judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.tiles.dataset import IGNORE
from stages.training.data import SplitData
from store.errors import InputError, InputErrors


def check_masks(splits: Mapping[str, SplitData], classes: Sequence[str], target_px: int) -> None:
    """Refuse masks (N, H, W) that a decoder of ``target_px`` cannot be trained and judged on.

    Raises ``InputErrors`` with every fault: another size, labels that are no class, a split without a labelled pixel,
    a class that the training split lacks.
    """
    faults = []
    for split, data in splits.items():
        if data.masks.shape[1:] != (target_px, target_px):
            faults.append(
                InputError(
                    f"the masks of the {split} split are {data.masks.shape[1:]} pixels, not {target_px}",
                    where=split,
                    remedy="Make the masks at the study's tile size.",
                )
            )
        share = np.zeros(256, dtype=np.int64)
        for row in np.unique(data.mask_rows):
            share += np.bincount(data.masks[row].ravel(), minlength=256)
        unknown = [v for v in np.flatnonzero(share).tolist() if v >= len(classes) and v != IGNORE]
        if unknown:
            faults.append(
                InputError(
                    f"the masks of the {split} split hold {unknown}, but there are {len(classes)} classes",
                    where=split,
                    remedy="Map every label to a class or to 255.",
                )
            )
        if split != "train" and not share[: len(classes)].sum():
            faults.append(
                InputError(
                    f"no tile of the {split} split has a labelled pixel",
                    where=split,
                    remedy="Choose images with annotations for it.",
                )
            )
        if split == "train":
            faults += [
                InputError(
                    f"no training tile has a pixel of the class {name}",
                    where=name,
                    remedy="Draw another split, or leave the class out of the study.",
                )
                for name, pixels in zip(classes, share, strict=False)
                if not pixels
            ]
    if faults:
        raise InputErrors(faults, remedy="Correct the data or the split of the study.")
