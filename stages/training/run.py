"""One run of stage two: one decoder trained with one seed on the cached tokens of one encoder (section 2.4)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.metrics import Counts, confusions, counts_of, mean_dice, pooled_dice
from stages.training.data import SplitData
from stages.training.graphs import Backward, RecordedBackward, cuda_graph
from stages.training.loss import LOSSES
from stages.training.masks import check_masks
from stages.training.result import Diverged, EpochReport, RunResult
from stages.training.schedule import epoch_order, initial_seed, learning_rate, view_order
from stages.training.settings import TrainSettings
from stages.training.step import autocast, backward
from store.errors import InputError

_initialising = threading.Lock()


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
    at_once: int | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> RunResult:
    """Train a decoder on ``train``, select its epoch on ``val``, and count on ``val`` and ``test``.

    NAdam on the loss of the settings; the learning rate is set for each step. Epoch e shows each tile once, in an
    order of its own, under the e-th view of the tile's own order; the last, incomplete batch is kept. The
    result is a function of the arguments alone: no global random state is used or changed. ``at_once`` bounds the
    tiles that are in memory at a time (default: the batch) and changes nothing but the rounding of sums, see
    :mod:`stages.training.step`. ``encoder`` is named in errors. Raises ``InputErrors`` for unusable masks and for a
    class that the training split lacks, ``InputError`` for CUDA graphs where there can be none, ``Diverged`` when a
    loss is no longer finite.
    """
    started = time.perf_counter()
    at_once = settings.batch if at_once is None else at_once
    if seed < 0:
        raise InputError(f"the seed is {seed}", where="seeds", remedy="Seeds are whole numbers from 0.")
    settings.check_device(device)
    check_masks({"train": train, "val": val, "test": test}, classes, geometry.target_px)
    decoder = initial_decoder(settings, seed, geometry)
    decoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=settings.lr)
    step_back: Backward = partial(
        backward, decoder, LOSSES[settings.loss], at_once=at_once, precision=settings.precision
    )
    if settings.cuda_graphs:
        record = partial(cuda_graph, device=device)
        step_back = RecordedBackward(step_back, decoder.parameters(), settings.batch, record)
    views = np.stack([view_order(seed, tile, train.rows.shape[1]) for tile in range(len(train))])
    steps = -(-len(train) // settings.batch)
    seconds = {"train": 0.0, "validate": 0.0}
    losses, lrs, validated, val_confusions, test_confusions = [], [], [], [], []
    best, best_epoch, weights = -1.0, 0, dict[str, torch.Tensor]()

    untouched = _random_states(device)
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
            loss = _train_epoch(step_back, optimiser, train, chosen, rates, device)
        if not np.isfinite(loss):
            raise _diverged(settings, encoder, "the loss", str(loss), epoch + 1, seed)
        if epoch == 0 and not all(map(torch.equal, untouched, _random_states(device))):
            raise InputError(
                f"the decoder {settings.decoder} draws random numbers in training, which no seed fixes",
                where="train.decoder",
                remedy="Take dropout and the like out of it: the same seed must give the same weights.",
            )
        losses.append(loss)
        lrs.append(rates[0])
        seconds["train"] += time.perf_counter() - mark

        dice = None
        if settings.validates_after(epoch + 1):
            if not all(bool(torch.isfinite(parameter).all()) for parameter in decoder.parameters()):
                raise _diverged(settings, encoder, "the weights", "not finite", epoch + 1, seed)
            mark = time.perf_counter()
            validated.append(epoch + 1)
            with _reproducible(device):
                val_confusions.append(evaluate(decoder, settings, val, len(classes), device, at_once))
                test_confusions.append(evaluate(decoder, settings, test, len(classes), device, at_once))
            counted = counts_of(val_confusions[-1])
            dice = pooled_dice(counted)
            if not weights or mean_dice(counted) > best:
                best, best_epoch = float(mean_dice(counted)), epoch + 1
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
        val_confusions=np.stack(val_confusions),
        test_confusions=np.stack(test_confusions),
        val_names=val.names,
        test_names=test.names,
        best_epoch=best_epoch,
        weights=weights,
        parameters=sum(p.numel() for p in decoder.parameters()),
        seconds={**seconds, "total": time.perf_counter() - started},
    )


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's global generators that a decoder on ``device`` could draw from."""
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _diverged(
    settings: TrainSettings, encoder: str, what: str, value: str, epoch: int, seed: int
) -> Diverged:
    verb = "is" if what == "the loss" else "are"
    return Diverged(
        f"{what} of {settings.decoder} on {encoder} {verb} {value} in epoch {epoch} of seed {seed}",
        where="train",
        remedy=f"Lower lr (it is {settings.lr}).",
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
    decoder: nn.Module,
    settings: TrainSettings,
    split: SplitData,
    classes: int,
    device: torch.device,
    at_once: int,
) -> Counts:
    """Predict view 0 of every tile of ``split``; returns (tiles, classes, classes), see ``metrics.confusions``."""
    decoder.eval()
    tiles = np.arange(len(split))
    chosen = [
        (tiles[at : at + at_once], np.zeros(len(tiles[at : at + at_once]), dtype=np.intp))
        for at in range(0, len(tiles), at_once)
    ]
    found = []
    with torch.inference_mode():
        for tokens, truth in split.examples(chosen, device):
            with autocast(settings.precision, device):
                logits = decoder(tokens)
            labels = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            found.append(confusions(labels, truth.cpu().numpy(), classes))
    decoder.train()
    return np.concatenate(found)


def _train_epoch(
    step_back: Backward,
    optimiser: torch.optim.Optimizer,
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
            optimiser.zero_grad()
            losses.append(step_back(tokens, truth) * len(truth))
            optimiser.step()
    return float(torch.stack(losses).double().sum()) / sum(len(tiles) for tiles, _ in chosen)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """On a GPU, let torch prefer the kernels that sum in a fixed order, and put its settings back afterwards.

    New memory is not filled, which that mode does by default: nothing reads it before it is written.
    """
    if device.type == "cpu":
        yield
        return
    filling: Any = torch.utils.deterministic  # a property of the module, which type checkers do not see
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filling.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory = before[2]
