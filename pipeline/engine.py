"""Runs the two stages of a study in this process; what is already there is kept and said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.console import Talk, Update, bytes_text
from pipeline.job import Job, settings_of
from pipeline.study import Study
from pipeline.workspace import Workspace
from stages.batching import Batches, batches_for
from stages.cost import decoder_step_flop, gemm_rate
from stages.encoders import (
    AskedDtype,
    canonical_name,
    download_progress,
    encoder_flop,
    hub_refusal,
    load_encoder,
    usable_device,
    weights_at_hand,
)
from stages.extract import extract, write_views
from stages.tiles.dataset import SPLITS
from stages.training.memory import keep_large_blocks
from stages.training.run import EpochReport
from store import ViewKey
from store.errors import InputError


def workspace(
    study: Study, cache: str | None, runs: Path, threads: int, dtype: AskedDtype = "auto"
) -> Workspace:
    """Return the study at work. Raises :class:`InputError` for a cache that is a URL."""
    root = str(cache or study.cache.root)
    if "://" in root:
        raise InputError(
            "Caches are read and written on a mounted file system only",
            where=root,
            remedy="Give a folder, or mount the bucket.",
        )
    settings_of(study)  # a decoder that is not known is refused before anything is computed
    return Workspace(study, Path(root), runs, threads, dtype)


def chosen_device(device: str | None) -> torch.device:
    """Return the device asked for, or a GPU where there is one, else the CPU.

    Raises :class:`InputError` for one that this machine has not.
    """
    return usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def chosen_encoders(study: Study, asked: Sequence[str]) -> dict[str, str]:
    """Return the encoders asked for, or all of the study: canonical name → what was written; doubles once."""
    return {canonical_name(reference): reference for reference in (asked or study.encoders.names)}


def trained_encoders(work: Workspace) -> list[str]:
    """Return the references of all encoders that have a run in the study's results, whatever its settings."""
    found: dict[str, None] = {}
    for path in sorted(work.results.glob("*/*/seed-*/run.json")):
        with suppress(OSError, ValueError, KeyError):  # a damaged run is named when it is asked for
            found[json.loads(path.read_bytes())["identity"]["encoder"]] = None
    return list(found)


def extract_all(
    work: Workspace,
    asked: Sequence[str],
    talk: Talk,
    *,
    weights: Path | None = None,
    device: str | None = None,
    batch: int | None = None,
    compile: bool = False,
) -> None:
    """Stage one for each encoder: the views store first, then the grids that the encoder's cache lacks.

    ``batch`` is the number of views encoded at a time, None for as many as fit; ``compile`` as in
    :func:`stages.encoders.load_encoder`. Whatever can be known of an encoder to be missing or impossible is raised
    before the first one runs: :class:`InputError` for ``weights`` with more than one encoder, a device that is not
    here, a precision that an encoder does not have; what the Hub refuses; and whatever is wrong with the data.
    """
    names = chosen_encoders(work.study, asked)
    if weights is not None and len(names) > 1:
        raise InputError("--weights belongs to one encoder", remedy="Name it with --encoder.")
    target = chosen_device(device)
    work.keep_split()
    _check_precision(work, names)
    _check_weights(work, names, weights)
    masks = work.masks_store(create=True)
    waiting = _Waiting(talk)
    with talk.bar("Drawing views", "views") as update:
        done = write_views(
            work.views, work.source, masks, threads=work.threads, on_progress=update, on_wait=waiting
        )
    talk.say(f"views: {done.computed} drawn, {done.kept} kept ({masks.path})")
    reader = masks.reader()
    for name, reference in names.items():
        if weights is None and _complete(work, reference):
            talk.say(
                f"{name}: 0 views encoded, {len(work.views)} kept ({work.find_tokens(reference, None).path})"
            )
            continue
        with talk.bar(f"Loading {name}", "bytes") as update, download_progress(update):
            encoder = load_encoder(
                reference,
                tile_px=work.study.data.tile_px,
                weights=weights or work.weights_of(name),
                fit=work.study.encoders.fit,
                device=target,
                dtype=work.dtype,
                compile=compile,
            )
        store = work.tokens_store(encoder, create=True)
        batches = batches_for(encoder, work.study.data.tile_px, target, batch)
        size = bytes_text(2 * encoder.grid.d * encoder.grid.h * encoder.grid.w * len(work.views))
        with talk.bar(f"Extracting {name}", "views", f"{size} before compression") as update:
            done = extract(
                work.views,
                work.source,
                reader,
                batches,
                store,
                threads=work.threads,
                on_progress=update,
                on_wait=waiting,
            )
        stored = bytes_text(store.status().bytes)
        talk.say(
            f"{name}: {done.computed} views encoded, {done.kept} kept, {stored} ({store.path}); {_how(batches)}"
        )


def _check_precision(work: Workspace, names: Mapping[str, str]) -> None:
    computed = [name for name, reference in names.items() if work.describe(reference).parameters == 0]
    if work.dtype not in ("auto", "float32") and computed:
        raise InputError(
            f"{' and '.join(computed)} are computed in float32 only, not in {work.dtype}",
            where="--dtype",
            remedy="Name the other encoders with --encoder, or leave --dtype out.",
        )


def _check_weights(work: Workspace, names: Mapping[str, str], weights: Path | None) -> None:
    for name, reference in names.items():
        if _complete(work, reference) and weights is None:
            continue
        given = weights or work.weights_of(name)
        if weights_at_hand(reference, given) is None and (refused := hub_refusal(reference)):
            raise refused


def _complete(work: Workspace, reference: str) -> bool:
    """Whether an encoder's cache holds every view of the study, so that its weights are not needed at all."""
    try:
        store = work.find_tokens(reference, work.weights_of(canonical_name(reference)))
    except InputError:  # none, or more than one: loading the encoder decides
        return False
    return not store.reader().missing([view.key for view in work.views])


class _Waiting:
    """Says once that another process holds what is left."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self._said = talk, False

    def __call__(self, shards: int) -> None:
        if not self._said:
            self._said = True
            self._talk.say(
                f"waiting for {shards} shard(s) that another process is writing; if it has died, they are taken over"
            )


def _how(batches: Batches) -> str:
    """Return with which batches and in which precision views are encoded."""
    lowered = f", lowered from {batches.started} for want of memory" if batches.size < batches.started else ""
    precision = batches.encoder.identity.get("compute_dtype", "its own precision")
    compiled = ", compiled" if batches.encoder.provenance.get("compiled") else ""
    return f"batches of {batches.size}{lowered}, {precision}{compiled}"


def train_all(
    work: Workspace,
    asked: Sequence[str],
    talk: Talk,
    *,
    weights: Path | None = None,
    seeds: int | None = None,
    device: str | None = None,
) -> None:
    """Stage two for each encoder: train the seeds that have no finished run of the study as it is now."""
    target = chosen_device(device)
    work.keep_split()
    if target.type == "cpu":
        keep_large_blocks()
    for job in jobs(work, asked, seeds, weights=weights):
        pending = [seed for seed in job.seeds if job.finished(seed) is None]
        kept = len(job.seeds) - len(pending)
        if pending:
            data = job.load(target)
            for seed in pending:
                with talk.bar(f"Training on {job.encoder}, seed {seed}", "epochs") as update:

                    def report(epoch: EpochReport, update: Update = update) -> None:
                        update(epoch.epoch, epoch.epochs)

                    job.train(seed, data, target, report)
            del data  # before the next encoder's is read
        talk.say(f"{job.encoder}: {len(pending)} seed(s) trained, {kept} kept ({job.folder})")


def jobs(
    work: Workspace, asked: Sequence[str], seeds: int | None, *, weights: Path | None = None
) -> Iterator[Job]:
    """Yield one job an encoder, seeds 0 … ``seeds`` − 1 (default: the study's number)."""
    for name, reference in chosen_encoders(work.study, asked).items():
        count = seeds or work.study.train.seeds
        yield Job(work, name, reference, tuple(range(count)), weights or work.weights_of(name))


def plan(work: Workspace, seeds: int | None) -> dict[str, Any]:
    """Return what a study needs: tiles, views, bytes and arithmetic of each encoder, and an estimate of the time.

    FLOP count a multiplication and an addition as two; times are FLOP over the matrix-product rate measured on this
    machine now, and for the textbook
    form of the decoder: estimates, made before anything runs.
    """
    device = chosen_device(None)
    rate = gemm_rate(device)
    count = seeds or work.study.train.seeds
    train = work.study.train
    tiles = {split: len(work.tiles[split]) for split in SPLITS}
    rows = []
    for job in jobs(work, (), seeds):
        encoder = encoder_flop(job.reference, tile_px=work.study.data.tile_px) * len(work.views)
        step = decoder_step_flop(job.settings.decoder, job.geometry, job.settings.options)
        decoder = step * tiles["train"] * train.epochs * count
        rows.append(
            {
                "encoder": job.encoder,
                "grid": list(asdict(job.about.grid).values()),
                "bytes_a_view": job.about.bytes_a_view,
                "bytes": job.about.bytes_a_view * len(work.views),
                "views_cached": len(work.views) - len(_missing(job)),
                "encoder_flop": encoder,
                "encoder_seconds": encoder / rate,
                "decoder_flop": decoder,
                "decoder_seconds": decoder / rate,
            }
        )
    folder = next(path for path in (work.cache.absolute(), *work.cache.absolute().parents) if path.is_dir())
    return {
        "study": work.study.name,
        "tile_px": work.study.data.tile_px,
        "tiles": tiles,
        "views": len(work.views),
        "seeds": count,
        "steps": -(-tiles["train"] // train.batch) * train.epochs,
        "cache": str(work.cache),
        "free": shutil.disk_usage(folder).free,
        "bytes": sum(row["bytes"] for row in rows),
        "device": device.type,
        "gflop_per_second": rate / 1e9,
        "encoders": rows,
    }


def _missing(job: Job) -> list[ViewKey]:
    keys = [view.key for view in job.work.views]
    try:
        return job.tokens.reader().missing(keys)
    except InputError:  # there is no such cache yet
        return keys
