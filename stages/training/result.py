"""What a run of stage two tells while it trains, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stages.metrics import Counts, counts_of
from store.errors import FrostgridError


class Diverged(FrostgridError):
    """A loss stopped being a finite number; there is nothing to select from such a run."""


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch (from 1 to ``epochs``); ``val_dice`` (C,) only where it ended with a validation."""

    epoch: int
    epochs: int
    loss: float
    lr: float
    val_dice: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a finished run leaves.

    ``losses`` and ``lrs`` (epochs,) float64: mean loss of an epoch's tiles, learning rate of its first step.
    ``validated`` (V,) the epochs, from 1, that ended with a validation; ``val_confusions`` and ``test_confusions``
    (V, tiles, C, C) int64, pixels of each true class (row) that were given each class (column), tiles in the order of
    ``val_names`` and ``test_names``. ``best_epoch`` has the highest mean pooled Dice on the validation split (the
    earliest of equals); ``weights`` are the decoder's of that epoch, on the CPU. ``seconds`` by phase: "train",
    "validate", "total".
    """

    seed: int
    classes: tuple[str, ...]
    losses: NDArray[np.float64]
    lrs: NDArray[np.float64]
    validated: NDArray[np.int64]
    val_confusions: Counts
    test_confusions: Counts
    val_names: tuple[str, ...]
    test_names: tuple[str, ...]
    best_epoch: int
    weights: Mapping[str, torch.Tensor]
    parameters: int
    seconds: Mapping[str, float]

    @property
    def val_counts(self) -> Counts:
        """The counts (V, tiles, C, 3) of the validation split; see :mod:`stages.metrics`."""
        return counts_of(self.val_confusions)

    @property
    def test_counts(self) -> Counts:
        """The counts (V, tiles, C, 3) of the test split."""
        return counts_of(self.test_confusions)

    def best_confusions(self, split: Literal["val", "test"]) -> Counts:
        """Return the confusion matrices (tiles, C, C) of ``split`` at the selected epoch."""
        found = self.val_confusions if split == "val" else self.test_confusions
        return np.asarray(found[int(np.flatnonzero(self.validated == self.best_epoch)[0])])

    def best_counts(self, split: Literal["val", "test"]) -> Counts:
        """Return the counts (tiles, C, 3) of ``split`` at the selected epoch."""
        return counts_of(self.best_confusions(split))
