"""One run of stage two: one decoder trained with one seed on the cached tokens of one encoder (section 2.4)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.metrics import counts, mean_dice, pooled_dice
from stages.tiles.dataset import IGNORE
from stages.training.data import SplitData
from stages.training.loss import cross_entropy_dice
from stages.training.schedule import epoch_order, initial_seed, learning_rate, view_order
from stages.training.settings import TrainSettings
from store.errors import FrostgridError, InputError, InputErrors

_initialising = threading.Lock()


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
    ``validated`` (V,) the epochs, from 1, that ended with a validation; ``val_counts`` and ``test_counts``
    (V, tiles, C, 3) int64 of (intersection, prediction, truth), tiles in the order of ``val_names`` and
    ``test_names``. ``best_epoch`` has the highest mean pooled Dice on the validation split (the earliest of equals);
    ``weights`` are the decoder's of that epoch, on the CPU. ``seconds`` by phase: "train", "validate", "total".
    """

    seed: int
    classes: tuple[str, ...]
    losses: NDArray[np.float64]
    lrs: NDArray[np.float64]
    validated: NDArray[np.int64]
    val_counts: NDArray[np.int64]
    test_counts: NDArray[np.int64]
    val_names: tuple[str, ...]
    test_names: tuple[str, ...]
    best_epoch: int
    weights: Mapping[str, torch.Tensor]
    parameters: int
    seconds: Mapping[str, float]

    def best_counts(self, split: Literal["val", "test"]) -> NDArray[np.int64]:
        """Return the counts (tiles, C, 3) of ``split`` at the selected epoch."""
        counted = self.val_counts if split == "val" else self.test_counts
        return np.asarray(counted[int(np.flatnonzero(self.validated == self.best_epoch)[0])])


def train_run(
    settings: TrainSettings,
    seed: int,
    train: SplitData,
    val: SplitData,
    test: SplitData,
    *,
    encoder: str,
    classes: Sequence[str],
    geometry: Geometry,
    device: torch.device,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> RunResult:
    """Train a decoder on ``train``, select its epoch on ``val``, and count on ``val`` and ``test``.

    NAdam on cross-entropy plus Dice; the learning rate is set for each step. Epoch e shows each tile once, in an
    order of its own, under the e-th view of the tile's own order; the last, incomplete batch is kept. The
    result is a function of the arguments alone: no global random state is used or changed. ``encoder`` is named in
    errors. Raises ``InputErrors`` for unusable masks and for a class that the training split lacks, ``Diverged`` when
    a loss is no longer finite.
    """
    started = time.perf_counter()
    if seed < 0:
        raise InputError(f"the seed is {seed}", where="seeds", remedy="Seeds are whole numbers from 0.")
    _check_masks({"train": train, "val": val, "test": test}, classes, geometry.target_px)
    decoder = initial_decoder(settings, seed, geometry)
    decoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=settings.lr)
    views = np.stack([view_order(seed, tile, train.rows.shape[1]) for tile in range(len(train))])
    steps = -(-len(train) // settings.batch)
    seconds = {"train": 0.0, "validate": 0.0}
    losses, lrs, validated, val_counts, test_counts = [], [], [], [], []
    best, best_epoch, weights = -1.0, 0, dict[str, torch.Tensor]()

    for epoch in range(settings.epochs):
        mark = time.perf_counter()
        order = epoch_order(seed, epoch, len(train))
        batches = [order[at : at + settings.batch] for at in range(0, len(order), settings.batch)]
        chosen = [(tiles, views[tiles, epoch % views.shape[1]]) for tiles in batches]
        rates = [
            learning_rate(epoch * steps + step, settings.lr, settings.restart_epochs * steps)
            for step in range(steps)
        ]
        with _reproducible(device):
            loss = _train_epoch(decoder, optimiser, settings, train, chosen, rates, device)
        if not np.isfinite(loss):
            raise Diverged(
                f"the loss of {settings.decoder} on {encoder} is {loss} in epoch {epoch + 1} of seed {seed}",
                where="train",
                remedy=f"Lower lr (it is {settings.lr}).",
            )
        losses.append(loss)
        lrs.append(rates[0])
        seconds["train"] += time.perf_counter() - mark

        dice = None
        if settings.validates_after(epoch + 1):
            mark = time.perf_counter()
            validated.append(epoch + 1)
            val_counts.append(evaluate(decoder, settings, val, len(classes), device))
            test_counts.append(evaluate(decoder, settings, test, len(classes), device))
            dice = pooled_dice(val_counts[-1])
            if not weights or mean_dice(val_counts[-1]) > best:
                best, best_epoch = mean_dice(val_counts[-1]), epoch + 1
                weights = {n: w.detach().cpu().clone() for n, w in decoder.state_dict().items()}
            seconds["validate"] += time.perf_counter() - mark
        if on_epoch is not None:
            on_epoch(EpochReport(epoch + 1, settings.epochs, loss, rates[0], dice))

    return RunResult(
        seed=seed,
        classes=tuple(classes),
        losses=np.array(losses),
        lrs=np.array(lrs),
        validated=np.array(validated, dtype=np.int64),
        val_counts=np.stack(val_counts),
        test_counts=np.stack(test_counts),
        val_names=val.names,
        test_names=test.names,
        best_epoch=best_epoch,
        weights=weights,
        parameters=sum(p.numel() for p in decoder.parameters()),
        seconds={**seconds, "total": time.perf_counter() - started},
    )


def initial_decoder(settings: TrainSettings, seed: int, geometry: Geometry) -> nn.Module:
    """Build the decoder of ``settings`` on the CPU with PyTorch's default initialisation drawn from ``seed``."""
    # Modules draw from the global generator; it is set aside meanwhile, and only one run may do so at a time.
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(initial_seed(seed))
        decoder = build_decoder(settings.decoder, geometry, **settings.options)
    set_upconv_mode(decoder, settings.upconv)
    return decoder


def evaluate(
    decoder: nn.Module, settings: TrainSettings, split: SplitData, classes: int, device: torch.device
) -> NDArray[np.int64]:
    """Predict view 0 of every tile of ``split``; returns the counts (tiles, classes, 3), see ``metrics.counts``."""
    decoder.eval()
    tiles = np.arange(len(split))
    chosen = [
        (tiles[at : at + settings.batch], np.zeros(len(tiles[at : at + settings.batch]), dtype=np.intp))
        for at in range(0, len(tiles), settings.batch)
    ]
    found = []
    with torch.inference_mode():
        for tokens, truth in split.examples(chosen, device):
            with _precision(settings, device):
                logits = decoder(tokens)
            labels = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            found.append(counts(labels, truth.cpu().numpy(), classes))
    decoder.train()
    return np.concatenate(found)


def _train_epoch(
    decoder: nn.Module,
    optimiser: torch.optim.Optimizer,
    settings: TrainSettings,
    train: SplitData,
    chosen: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    rates: Sequence[float],
    device: torch.device,
) -> float:
    """Take one step for each batch of ``chosen``; returns the mean loss of its tiles."""
    losses = []
    with closing(train.examples(chosen, device)) as examples:
        for (tokens, truth), rate in zip(examples, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate
            with _precision(settings, device):
                logits = decoder(tokens)
            loss = cross_entropy_dice(logits, truth)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.detach() * len(truth))
    return float(torch.stack(losses).double().sum()) / sum(len(tiles) for tiles, _ in chosen)


def _precision(settings: TrainSettings, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """On a GPU, let torch prefer the kernels that sum in a fixed order, and put its settings back afterwards."""
    if device.type == "cpu":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _check_masks(splits: Mapping[str, SplitData], classes: Sequence[str], target_px: int) -> None:
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
