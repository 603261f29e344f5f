"""Runs the two stages of a study, in this process or by workers; what is already there is kept and said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import staging
from pipeline.backbones import Backbones
from pipeline.choosing import UnclearCache
from pipeline.console import Talk
from pipeline.extraction import Extraction, InProcess
from pipeline.job import Job, settings_of
from pipeline.naming import is_url
from pipeline.recorded import recorded_runs
from pipeline.study import Study
from pipeline.trainer import train_jobs
from pipeline.workspace import Workspace
from stages.encoders import AskedDtype, canonical_name, usable_device, weights_folder
from store import GridStore
from store.errors import InputError
from store.places import open_place

if TYPE_CHECKING:
    from pipeline.cluster.crew import Crew

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
    crew: Crew | None = None,
) -> None:
    """Stage one for each encoder: the views store first, then the grids that the encoder's cache lacks.

    ``batch`` is the number of views encoded at a time, None for as many as fit; ``compile`` as in
    :func:`stages.encoders.load_encoder`. With a ``crew`` its workers do it, each on its own device. Whatever can be
    known of an encoder to be missing or impossible is raised before the first one runs: :class:`InputError` for
    ``weights`` with more than one encoder, a device that is not here, a precision that an encoder does not have, a
    worker that does not see the caches; what the Hub refuses; and whatever is wrong with the data. Raises
    :class:`pipeline.cluster.extraction.ShardsFailed` at the end, where workers could not make some of the shards.
    """
    names = chosen_encoders(work.study, asked, weights)
    target = usable_device("cpu" if crew else device)  # of a cluster each worker knows its own
    work.keep_split()
    _check_precision(work, names)
    named: dict[str, Path | None] = {}
    for name, reference in names.items():
        if weights is not None or not _complete(work, reference):
            given = weights or work.weights_of(name)
            if crew is not None and given is None:
                named[name] = _in_weights_folder(work, reference)  # else the workers ask the Hub themselves
            else:
                file = _checked_weights(work, reference, given)
                named[name] = given and (file or given)
    extraction: Extraction = InProcess(work, talk, target, batch, compile)
    if crew is not None:
        from pipeline.cluster.extraction import OnCluster

        extraction = OnCluster(work, crew, talk, names, named, batch, compile)
    masks = extraction.masks()
    for name, reference in names.items():
        given = weights or work.weights_of(name)
        if weights is None and _complete(work, reference):
            store = _here(work, reference, given)
            where = store.path if store is not None else work.origin.url if work.origin else work.cache
            talk.say(f"{name}: 0 views encoded, {len(work.views)} kept ({where})")
            if store is not None:
                staging.send(work, store, talk)
        else:
            extraction.tokens(reference, given, masks.reader())
    extraction.finish()


def _check_precision(work: Workspace, names: Mapping[str, str]) -> None:
    computed = [name for name, reference in names.items() if work.describe(reference).float32_only]
    if work.dtype not in ("auto", "float32") and computed:
        raise InputError(
            f"{' and '.join(computed)} are computed in float32 only, not in {work.dtype}",
            where="--dtype",
            remedy="Name the other encoders with --encoder, or leave --dtype out.",
        )


def _checked_weights(work: Workspace, reference: str, given: Path | None) -> Path | None:
    """Return the weights file on this machine; raises what keeps the Hub from giving it where there is none."""
    file = work.backbones.check_weights(reference, given)
    if file is None and (refused := work.backbones.refusal(reference)):
        raise refused
    return file


def _in_weights_folder(work: Workspace, reference: str) -> Path | None:
    """Return an encoder's weights file in this process's own folder of weights, which workers need not know of."""
    folder, file = weights_folder(), work.backbones.weights_at_hand(reference)
    return file if folder and file and file.is_relative_to(folder) else None


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
        return work.tokens_here(reference, weights)
    except UnclearCache:
        return None


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
    crew: Crew | None = None,
) -> None:
    """Stage two for each encoder: train the seeds that have no finished run of the study as it is now.

    Raises as :func:`pipeline.trainer.train_jobs` does, and what went wrong with single runs after all others.
    """
    target = usable_device("cpu" if crew else device)  # of a cluster each worker knows its own
    work.keep_split()
    wanted = list(jobs(work, asked, seeds, weights=weights))
    outcome = train_jobs(wanted, talk, target, processes=processes, memory=memory, crew=crew)
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
