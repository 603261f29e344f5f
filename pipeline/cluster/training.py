"""Stage two on a cluster: a task a run, and the list of tiles once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipeline import staging
from pipeline.budget import budget_for
from pipeline.cluster.crew import Crew
from pipeline.cluster.doubts import Doubt
from pipeline.cluster.learning import Address, Failed, Source, train
from pipeline.cluster.tasks import Common, Task
from pipeline.console import Talk
from pipeline.grouping import Group, check_device, complete_here, missing, refuse
from pipeline.job import Job
from pipeline.loading import few
from pipeline.outcome import Following, Outcome, Run
from pipeline.parallel import explained
from pipeline.runs import Failure, RunTask
from pipeline.sharing import views_of
from store import GridStore
from store.errors import FrostgridError, InputError, MissingViews, StorageError
from store.identity import fingerprint
from store.sharing import Offer


def train_on(crew: Crew, jobs: Sequence[Job], talk: Talk, *, memory: int | None = None) -> Outcome:
    """Have the workers of ``crew`` train every run of ``jobs`` that is not finished; see ``trainer.train_jobs``.

    Where the caches lie in a folder, workers read them there and write their runs into the folder of results. Where
    they lie at a URL, each worker copies what it needs of one encoder's, and sends a finished run (about as much as its
    decoder's weights) back to this process, which writes it: then they need no folder of it. So it does where it cannot
    write a run; where this process cannot either, it raises :class:`StorageError`, and no more is trained.

    ``memory`` bytes are what each worker may use on a CPU. Where that is less than any of them could do with, it is
    raised before anything is trained; where one has less than another, its runs fail there.
    """
    offers: dict[str, Offer] = {}

    def bring(job: Job) -> None:
        offers.update(staging.acquaint(job.work, job.reference, job.weights))

    def look(group: Group) -> None:
        if group.first.work.origin is None:
            complete_here(group)
        else:
            _complete_there(group, offers)

    groups = missing(jobs, bring, look)
    outcome = Outcome.of(jobs)
    if groups:
        _require(crew, groups)
        check_device(jobs, torch.device("cuda" if crew.gpus else "cpu"))
        if memory is not None and not crew.gpus:
            _refuse_too_little(groups, memory)
        runs = [run for group in groups for run in group.runs]
        with Following.shown(jobs, runs, talk, outcome) as following:
            _Training(groups, memory, following).on(crew)
    return outcome


def _complete_there(group: Group, offers: dict[str, Offer]) -> None:
    """Raise :class:`MissingViews` for views that a group needs and the place does not have."""
    job, tiles = group.first, group.tiles
    for store, keys in ((job.tokens, tiles.view_keys), (job.masks, tiles.mask_view_keys)):
        offer = offers[store.path.name]
        there = views_of(offer)
        names = [name for name, key in zip(tiles.row_names, keys, strict=True) if key not in there]
        if names:
            raise MissingViews(
                f"{offer.folder} lacks {len(names)} of the {len(keys)} views of this study "
                f"(tiles {few(dict.fromkeys(names))})",
                where=offer.where(""),
                remedy=f"Extract and send what is missing: frostgrid extract STUDY --encoder {job.encoder}.",
            )


def _require(crew: Crew, groups: Sequence[Group]) -> None:
    """Have runs trained only by workers that see the caches, and where these lie in a folder, that of the results."""
    work = groups[0].first.work
    if work.origin is not None:
        crew.require(urls=[work.origin.url])
        return
    stores = {store.path: None for group in groups for store in (group.first.tokens, group.first.masks)}
    crew.require(folders=[work.results], files=[path / "cache.json" for path in stores])


def _refuse_too_little(groups: Sequence[Group], memory: int) -> None:
    """Raise :class:`InputError` for runs that take more on a CPU, even if nothing is held of the features."""
    faults: list[InputError] = []
    for group in groups:
        jobs = dict(zip((position for position, _ in group.runs), group.tasks(), strict=True))
        for task in jobs.values():
            try:
                budget_for(task.settings, task.geometry, [torch.device("cpu")], memory)
            except InputError as error:
                faults.append(error)
    refuse(faults)


@dataclass
class _Training:
    """The runs of ``groups`` as tasks: handed out one by one, and what came of them put down."""

    groups: Sequence[Group]
    memory: int | None
    following: Following
    _given: dict[str, tuple[Group, Run, RunTask]] = field(default_factory=dict)

    def on(self, crew: Crew) -> None:
        crew.perform(self._tasks(), on_done=self._done, on_failure=self._failed, on_start=self._begun)

    def _tasks(self) -> Iterator[Task]:
        for group in self.groups:
            source = self._source(group)
            tiles = Common(f"tiles-{group.tiles.key[:24]}", group.tiles)
            for run, task in zip(group.runs, group.tasks(), strict=True):
                task = replace(task, folder=task.folder.absolute())
                where = source.tokens.url or str(task.folder)
                key = fingerprint([task.identity, where, source.tokens.path, self.memory])
                one = Task(f"run-{key[:24]}", task.title, train, (source, task), tiles, (source.name,))
                self._given[one.key] = group, run, task
                yield one

    def _source(self, group: Group) -> Source:
        job = group.first
        tokens, masks = _address(job, job.tokens), _address(job, job.masks)
        return Source(job.encoder, tokens, masks, self.memory)

    def _begun(self, one: Task) -> None:
        self.following.begun(self._given[one.key][1])

    def _failed(self, one: Task, error: BaseException) -> None:
        group, run, _ = self._given.pop(one.key)
        if isinstance(error, Doubt):  # told once for all of them
            self.following.unread([run], f"all runs on {group.first.encoder}", error.error)
        else:
            self.following.failed(run, explained(one.title, error))

    def _done(self, one: Task, result: Any) -> None:
        _, run, task = self._given.pop(one.key)
        try:
            if isinstance(result, Failed):
                raise result.error
            if result is not None:
                task.keep(result)
        except StorageError:
            raise
        except FrostgridError as error:
            self.following.failed(run, Failure(one.title, str(error)))
        else:
            self.following.trained(run)


def _address(job: Job, store: GridStore) -> Address:
    if job.work.origin is not None:
        return Address(store.key, store.path.name, job.work.origin.url)
    return Address(store.key, str(store.path.absolute()))
