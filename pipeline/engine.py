"""Runs the two stages of a study in this process; what is already there is kept and said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path

import torch

from pipeline import staging
from pipeline.backbones import Backbones
from pipeline.choosing import UnclearCache
from pipeline.console import Talk, bytes_text
from pipeline.job import Job, settings_of
from pipeline.naming import is_url
from pipeline.recorded import recorded_runs
from pipeline.study import Study
from pipeline.trainer import train_jobs
from pipeline.whose import refuse_borrowed, weights_text
from pipeline.workspace import VIEWS, Workspace, slug_of
from stages.batching import Batches, batches_for
from stages.encoders import (
    AskedDtype,
    canonical_name,
    download_progress,
    usable_device,
)
from stages.extract import extract, write_views
from store import GridReader, GridStore
from store.errors import InputError, NoCache
from store.places import open_place

STAGE_TO = Path("cache")


def workspace(
    study: Study,
    cache: str | None,
    runs: Path,
    threads: int,
    dtype: AskedDtype = "auto",
    stage_to: Path | None = None,
) -> Workspace:
    """Return the study at work; ``cache`` is a folder or a URL (default: the study's).

    Where it is a URL, ``stage_to`` (default: the folder ``cache``) takes the copies that are worked on. Raises
    :class:`InputError` for a URL that cannot be used, and for ``stage_to`` without one.
    """
    root = str(cache or study.cache.root)
    settings_of(study)  # a decoder that is not known is refused before anything is computed
    Backbones(study).check()
    if is_url(root):
        return Workspace(study, stage_to or STAGE_TO, runs, threads, dtype, open_place(root))
    if stage_to is not None:
        raise InputError(
            "--stage-to is for caches at a URL, and these lie in a folder already",
            where=root,
            remedy="Leave it out, or give the URL with --cache.",
        )
    return Workspace(study, Path(root), runs, threads, dtype)


def chosen_device(device: str | None) -> torch.device:
    """Return the device asked for, or a GPU where there is one, else the CPU.

    Raises :class:`InputError` for one that this machine has not.
    """
    return usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def chosen_encoders(study: Study, asked: Sequence[str], weights: Path | None) -> dict[str, str]:
    """Return the encoders asked for, or all of the study: canonical name → what was written; doubles once.

    Raises :class:`InputError` where ``weights``, a file or folder of one encoder, is given for several.
    """
    names = {canonical_name(reference): reference for reference in (asked or study.encoders.names)}
    if weights is not None and len(names) > 1:
        raise InputError("--weights belongs to one encoder", remedy="Name it with --encoder.")
    return names


def given_weights(work: Workspace, asked: Sequence[str], weights: Path | None) -> Workspace:
    """Return ``work`` in which ``weights`` go before the study's for the encoder asked for, or its only one.

    Raises as :func:`chosen_encoders`.
    """
    names = chosen_encoders(work.study, asked, weights)
    if weights is None:
        return work
    given = copy(work)  # with everything that is known already
    given.weights = dict.fromkeys(names, weights)
    return given


def trained_encoders(work: Workspace) -> list[str]:
    """Return the references of all encoders that have a run in the study's results, whatever its settings."""
    return list(dict.fromkeys(run.encoder for run in recorded_runs(work)))


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
    names = chosen_encoders(work.study, asked, weights)
    target = chosen_device(device)
    work.keep_split()
    _check_precision(work, names)
    _check_weights(work, names, weights)
    waiting = _Waiting(talk)
    masks = _masks(work, waiting, talk)
    for name, reference in names.items():
        given = weights or work.weights_of(name)
        if weights is None and _complete(work, reference):
            store = _here(work, reference, given)
            where = store.path if store is not None else work.origin.url if work.origin else work.cache
            talk.say(f"{name}: 0 views encoded, {len(work.views)} kept ({where})")
        else:
            with talk.bar(f"Loading {name}", "bytes") as update, download_progress(update):
                encoder = work.backbones.load(
                    reference, weights=given, device=target, dtype=work.dtype, compile=compile
                )
            batches = batches_for(encoder, work.study.data.tile_px, target, batch)
            store = _extracted(work, masks.reader(), batches, waiting, talk)
        if store is not None:
            staging.send(work, store, talk)


def _masks(work: Workspace, waiting: _Waiting, talk: Talk) -> GridStore:
    """Return the views store with every view of the study in it."""
    staging.refuse_unlicensed_place(work, VIEWS, {})
    staging.stage_masks(work, talk)
    masks = work.masks_store(create=True)
    with talk.bar("Drawing views", "views") as update:
        done = write_views(
            work.views, work.source, masks, threads=work.threads, on_progress=update, on_wait=waiting
        )
    talk.say(f"views: {done.computed} drawn, {done.kept} kept ({masks.path})")
    staging.send(work, masks, talk)
    return masks


def _extracted(
    work: Workspace, masks: GridReader, batches: Batches, waiting: _Waiting, talk: Talk
) -> GridStore:
    """Return the cache of an encoder after every view was encoded that is neither in it nor at the place elsewhere."""
    encoder = batches.encoder
    refuse_borrowed(work.cache, encoder, talk)
    staging.refuse_unlicensed_place(work, slug_of(encoder.name), encoder.provenance)
    store = work.tokens_store(encoder, create=True)
    there = staging.elsewhere(work, store)
    views = [view for view in work.views if view.key not in there]
    size = bytes_text(store.spec.stored_nbytes * len(views))
    with talk.bar(f"Extracting {encoder.name}", "views", f"{size} before compression") as update:
        done = extract(
            views,
            work.source,
            masks,
            batches,
            store,
            threads=work.threads,
            max_int8_error=work.study.cache.max_int8_error,
            on_progress=update,
            on_wait=waiting,
        )
    kept = done.kept + len(work.views) - len(views)
    stored = bytes_text(store.status().bytes)
    talk.say(
        f"{encoder.name}: {done.computed} views encoded, {kept} kept, {stored} ({store.path}); {_how(batches)}"
    )
    return store


def _check_precision(work: Workspace, names: Mapping[str, str]) -> None:
    computed = [name for name, reference in names.items() if work.describe(reference).float32_only]
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
        if work.backbones.check_weights(reference, given) is None and (
            refused := work.backbones.refusal(reference)
        ):
            raise refused


def _complete(work: Workspace, reference: str) -> bool:
    """Whether every view of the study is in an encoder's cache, here or at the place, so that no weights are needed."""
    weights = work.weights_of(canonical_name(reference))
    store = _here(work, reference, weights)
    keys = [view.key for view in work.views]
    missing = keys if store is None else store.reader().missing(keys)
    return not missing or not set(missing) - staging.found_elsewhere(work, reference, weights)


def _here(work: Workspace, reference: str, weights: Path | None) -> GridStore | None:
    """Return an encoder's cache on this machine; None where there is none, or more than one: loading decides."""
    try:
        return work.find_tokens(reference, weights)
    except (NoCache, UnclearCache):
        return None


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
    return f"batches of {batches.size}{lowered}, {precision}{compiled}{weights_text(batches.encoder)}"


def train_all(
    work: Workspace,
    asked: Sequence[str],
    talk: Talk,
    *,
    weights: Path | None = None,
    seeds: int | None = None,
    device: str | None = None,
    processes: int | None = None,
    memory: int | None = None,
) -> None:
    """Stage two for each encoder: train the seeds that have no finished run of the study as it is now.

    Raises as :func:`pipeline.trainer.train_jobs` does, and what went wrong with single runs after all others.
    """
    target = chosen_device(device)
    work.keep_split()
    wanted = list(jobs(work, asked, seeds, weights=weights))
    outcome = train_jobs(wanted, talk, target, processes=processes, memory=memory)
    for job, trained, failed in zip(wanted, outcome.trained, outcome.failed, strict=True):
        kept = len(job.seeds) - len(trained) - len(failed)
        if trained or kept:
            talk.say(f"{job.encoder}: {len(trained)} seed(s) trained, {kept} kept ({job.folder})")
    outcome.raise_failures(work.results)


def jobs(
    work: Workspace, asked: Sequence[str], seeds: int | None, *, weights: Path | None = None
) -> Iterator[Job]:
    """Yield one job an encoder, seeds 0 … ``seeds`` − 1 (default: the study's number)."""
    for name, reference in chosen_encoders(work.study, asked, weights).items():
        count = seeds or work.study.train.seeds
        yield Job(work, name, reference, tuple(range(count)), weights or work.weights_of(name))
