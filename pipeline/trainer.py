"""Trains whatever runs of stage two are missing: each cache is read once, and a run that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from pipeline import staging
from pipeline.console import Talk, Update
from pipeline.job import Job
from pipeline.loading import complete, load, room_for
from pipeline.parallel import explained, perform_in_parallel, places
from pipeline.runs import Failure, RunsFailed
from stages.tiles.dataset import flatten, raise_all
from stages.tiles.plan import PlannedView
from stages.training.footprint import tiles_at_once
from stages.training.memory import keep_large_blocks
from stages.training.run import EpochReport
from store.errors import FrostgridError, InputError, StorageError

STREAMED_BATCHES = 3  # of token grids that wait to be trained on
PROCESS_BYTES = 400 << 20  # what a process takes that has loaded torch and trains nothing yet
_REMEDY = "Nothing was trained. Correct these and run the same command again."


@dataclass
class Outcome:
    """What became of the runs that were asked for.

    ``runs``: how many there are. ``trained`` and ``failed``: for each job, the seeds of which that holds now; all
    others were there already. ``failures`` says why; ``unread`` what kept whole caches from being read.
    """

    runs: int
    trained: list[list[int]]
    failed: list[list[int]]
    failures: list[Failure] = field(default_factory=list)
    unread: list[tuple[str, FrostgridError]] = field(default_factory=list)

    def raise_failures(self, folder: Path) -> None:
        """Raise what went wrong, if anything did: the fault of the one cache that could not be read, else all of it.

        ``folder`` is where the results lie. Raises :class:`RunsFailed`, or the fault itself.
        """
        if len(self.unread) == 1 and not self.failures:
            raise self.unread[0][1]
        failures = [*self.failures, *(Failure(title, str(error)) for title, error in self.unread)]
        if failures:
            raise RunsFailed(failures, sum(map(len, self.failed)), self.runs, folder)


@dataclass
class _Group:
    """The missing runs of all jobs on one feature cache: (job's position, seed), and every view that they need.

    ``at_once`` is, by the job's position, how many tiles of a batch fit into memory, where that is limited.
    """

    runs: list[tuple[int, int]] = field(default_factory=list)
    planned: dict[PlannedView, None] = field(default_factory=dict)
    at_once: dict[int, int] = field(default_factory=dict)


def train_jobs(
    jobs: Sequence[Job],
    talk: Talk,
    device: torch.device,
    *,
    processes: int | None = None,
    memory: int | None = None,
) -> Outcome:
    """Train every run of ``jobs`` that is not finished; ``processes`` at once, or in this process where it is None.

    ``memory`` bytes are all that may be used: features are streamed, and batches worked on piece by piece, where they
    take more; see :mod:`stages.training.step`.

    What can be known to be wrong is raised before anything is trained: :class:`InputError` for a decoder that does not
    go with a grid, too few training tiles, a cache that is not there, more processes than cores or GPUs, or too little
    memory; :class:`store.errors.MissingViews` for views that a cache lacks. Later only :class:`StorageError` stops the
    work, when a result cannot be written; every other failure is in the outcome.
    """
    where = None if processes is None else places(processes, device)
    outcome = Outcome(sum(len(job.seeds) for job in jobs), [[] for _ in jobs], [[] for _ in jobs])
    groups = _missing(jobs, talk)
    if memory is not None and device.type == "cpu":  # a GPU has its own memory, and a step of its own size
        for group in groups:
            group.at_once = _pieces(group, jobs, device, memory, processes)
    number = sum(len(group.runs) for group in groups)
    if not number:
        return outcome
    if device.type == "cpu" and where is None:
        keep_large_blocks()
    with talk.bar(f"Training {number} run{'s' if number > 1 else ''}", "epochs") as update:
        progress = _Progress(update, [jobs[position] for group in groups for position, _ in group.runs])
        for group in groups:
            _train_group(group, jobs, device, where, memory, progress, outcome)
    for failure in outcome.failures:
        if failure.trace:
            talk.say(f"{failure.title}:\n{failure.trace}")
    return outcome


def _missing(jobs: Sequence[Job], talk: Talk) -> list[_Group]:
    """Return the runs that are missing, by feature cache, after a look at all that they need."""
    faults: list[InputError] = []
    sound = [(position, job) for position, job in enumerate(jobs) if _collect(faults, job.check)]
    if not faults:  # nothing is copied from elsewhere for what cannot be trained
        for job in {(job.encoder, job.work.study.cache.encoding): job for job in jobs}.values():
            _collect(faults, partial(staging.stage, job.work, job.reference, job.weights, talk))
    groups: dict[str, _Group] = {}
    seen = set()
    for position, job in sound:
        seeds = [seed for seed in job.seeds if job.finished(seed) is None]
        if not seeds or not _collect(faults, partial(getattr, job, "tokens")):
            continue
        group = groups.setdefault(str(job.tokens.path), _Group())
        for seed in seeds:
            if job.run_folder(seed) not in seen:
                seen.add(job.run_folder(seed))
                group.runs.append((position, seed))
        group.planned.update(dict.fromkeys(job.planned()))
    raise_all(list({str(fault): fault for fault in faults}.values()), _REMEDY)
    for group in groups.values():
        job = jobs[group.runs[0][0]]
        views = list(group.planned)
        complete(job.tokens, views, [view.key for view in views], job.encoder)
        complete(job.masks, views, [view.mask_key for view in views], job.encoder)
    return list(groups.values())


def _pieces(
    group: _Group, jobs: Sequence[Job], device: torch.device, memory: int, processes: int | None
) -> dict[int, int]:
    """Return how many tiles at a time each job of a group can take; raises :class:`InputError` where not even one."""
    first = jobs[group.runs[0][0]]
    spec, shared = first.tokens.spec, processes is not None
    room = room_for(spec, first.masks.spec, len(group.planned), device, memory, shared=shared)
    others = PROCESS_BYTES if shared else 0  # this process, which trains nothing itself then
    left = (memory - room.nbytes - others) // (processes or 1) - PROCESS_BYTES
    if room.residency == "stream":
        left -= STREAMED_BATCHES * max(job.settings.batch for job in jobs) * spec.stored_nbytes
    found: dict[int, int] = {}
    faults: list[InputError] = []
    for position in dict.fromkeys(position for position, _ in group.runs):
        try:
            found[position] = tiles_at_once(jobs[position].settings, jobs[position].geometry, left)
        except InputError as error:
            faults.append(error)
    raise_all(list({str(fault): fault for fault in faults}.values()), _REMEDY)
    return found


def _collect(faults: list[InputError], look: Callable[[], object]) -> bool:
    """Look at something, and keep what is wrong with it; returns whether nothing was."""
    try:
        look()
    except InputError as error:
        faults += flatten(error)
        return False
    return True


def _train_group(
    group: _Group,
    jobs: Sequence[Job],
    device: torch.device,
    where: tuple[list[torch.device], int] | None,
    memory: int | None,
    progress: _Progress,
    outcome: Outcome,
) -> None:
    job = jobs[group.runs[0][0]]
    planned = list(group.planned)
    number = {view: row for row, view in enumerate(planned)}
    tasks = [
        replace(jobs[position].task(seed, number), at_once=group.at_once.get(position))
        for position, seed in group.runs
    ]
    failed: set[int] = set()

    def fail(at: int, failure: Failure) -> None:
        failed.add(at)
        outcome.failures.append(failure)
        progress.end(at)

    try:
        loaded = load(
            job.tokens,
            job.masks,
            planned,
            device,
            encoder=job.encoder,
            scratch=job.work.results,
            shared=where is not None,
            limit=memory,
        )
    except StorageError:
        raise
    except FrostgridError as error:
        outcome.unread.append((f"all runs on {job.encoder}", error))
        for at in range(len(tasks)):
            failed.add(at)
            progress.end(at)
    else:
        if where is not None:
            perform_in_parallel(tasks, loaded, *where, on_epoch=progress.epoch, on_failure=fail)
        else:
            features = loaded.features(device)
            for at, task in enumerate(tasks):
                try:
                    task.perform(loaded, features, device, progress.reporter(at))
                except StorageError:
                    raise
                except Exception as error:
                    fail(at, explained(task, error))
    for at, (position, seed) in enumerate(group.runs):
        (outcome.failed if at in failed else outcome.trained)[position].append(seed)
    progress.next_group(len(tasks))


class _Progress:
    """How far all runs are together, in epochs, of which one of a costly run counts for more than one of a cheap one.

    So that the time left is right for a sweep over decoders and training sets. Tasks are numbered within their group.
    """

    def __init__(self, update: Update, runs: Sequence[Job]) -> None:
        self._update = update
        self._epochs = [job.settings.epochs for job in runs]
        self._total = sum(self._epochs)
        work = sum(job.cost * epochs for job, epochs in zip(runs, self._epochs, strict=True))
        self._weights = [job.cost * self._total / work for job in runs]
        self._done = [0] * len(runs)
        self._sum, self._offset = 0.0, 0
        self._update(0, self._total)

    def epoch(self, task: int, epoch: int) -> None:
        """Note that a task has finished ``epoch``."""
        run = self._offset + task
        self._sum += self._weights[run] * (epoch - self._done[run])
        self._done[run] = epoch
        self._update(round(self._sum), self._total)

    def end(self, task: int) -> None:
        """Note that nothing more comes of a task."""
        self.epoch(task, self._epochs[self._offset + task])

    def reporter(self, task: int) -> Callable[[EpochReport], None]:
        """Return whom a run tells of its epochs."""
        return lambda report: self.epoch(task, report.epoch)

    def next_group(self, tasks: int) -> None:
        """Go on to the tasks after ``tasks`` of this group."""
        self._offset += tasks
