"""Which runs of stage two are missing, by the feature cache they are trained on, and what each group needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from pipeline.job import Job
from pipeline.loading import complete
from pipeline.outcome import Run
from pipeline.runs import RunTask
from pipeline.tilesets import TileSet
from stages.tiles.dataset import flatten, raise_all
from store.errors import InputError


@dataclass(frozen=True)
class Group:
    """The missing runs of all jobs on one feature cache, and the tiles that they need of it together."""

    jobs: Sequence[Job]
    tiles: TileSet
    runs: list[Run] = field(default_factory=list)

    @property
    def first(self) -> Job:
        """A job of the group: encoder and cache are those of all of them."""
        return self.jobs[self.runs[0][0]]

    def tasks(self) -> list[RunTask]:
        """Return the runs as they are handed to whoever trains them."""
        selections = {position: self.jobs[position].selection(self.tiles) for position, _ in self.runs}
        return [self.jobs[position].task(seed, selections[position]) for position, seed in self.runs]


def missing(
    jobs: Sequence[Job], bring: Callable[[Job], object], look: Callable[[Group], object]
) -> list[Group]:
    """Return the runs that are missing, by feature cache, after a look at all that they need.

    ``bring`` is called with a job of each cache before anything is asked of it, ``look`` with each group, to say what
    its cache lacks. Raises :class:`store.errors.InputErrors` with everything that keeps runs from being trained, and
    what ``look`` raises.
    """
    faults: list[InputError] = []
    sound = [(position, job) for position, job in enumerate(jobs) if _collect(faults, job.check)]
    if not faults:  # nothing is copied from elsewhere for what cannot be trained
        for job in {(job.encoder, job.work.study.cache.encoding): job for job in jobs}.values():
            _collect(faults, partial(bring, job))
    found: dict[str, list[tuple[int, list[int]]]] = {}
    seen: set[Path] = set()
    for position, job in sound:
        seeds = [seed for seed in job.seeds if job.finished(seed) is None]
        if not seeds or not _collect(faults, partial(getattr, job, "tokens")):
            continue
        new = [seed for seed in seeds if job.run_folder(seed) not in seen]
        seen.update(job.run_folder(seed) for seed in new)
        if new:
            found.setdefault(str(job.tokens.path), []).append((position, new))
    refuse(faults)
    groups = []
    for members in found.values():
        tiles = TileSet.of(need for position, _ in members for need in jobs[position].needs().values())
        groups.append(Group(jobs, tiles, [(position, seed) for position, seeds in members for seed in seeds]))
        look(groups[-1])
    return groups


def check_jobs(jobs: Iterable[Job]) -> None:
    """Raise :class:`store.errors.InputErrors` with what keeps jobs from being trained, but for what caches lack."""
    faults: list[InputError] = []
    for job in jobs:
        _collect(faults, job.check)
    refuse(faults)


def check_device(jobs: Iterable[Job], device: torch.device) -> None:
    """Raise :class:`store.errors.InputErrors` where runs that are missing ask for what ``device`` cannot do."""
    faults: list[InputError] = []
    for job in jobs:
        asked: list[InputError] = []
        able = _collect(asked, partial(job.settings.check_device, device))
        if not able and any(job.finished(seed) is None for seed in job.seeds):
            faults += asked
    refuse(faults)


def refuse(faults: Iterable[InputError]) -> None:
    """Raise what keeps runs from being trained, each fault once; nothing where there is none."""
    remedy = "Nothing was trained. Correct these and run the same command again."
    raise_all(list({str(fault): fault for fault in faults}.values()), remedy)


def complete_here(group: Group) -> None:
    """Raise :class:`store.errors.MissingViews` for views that a group's caches on this machine lack."""
    job, tiles = group.first, group.tiles
    complete(job.tokens, tiles, tiles.view_keys, job.encoder)
    complete(job.masks, tiles, tiles.mask_view_keys, job.encoder)


def _collect(faults: list[InputError], look: Callable[[], object]) -> bool:
    """Look at something, and keep what is wrong with it; returns whether nothing was."""
    try:
        look()
    except InputError as error:
        faults += flatten(error)
        return False
    return True
