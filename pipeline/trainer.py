"""Trains whatever runs of stage two are missing: each cache is read once, and a run that fails stops no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline import staging
from pipeline.budget import Budget, budget_for, room_for
from pipeline.console import Talk
from pipeline.grouping import Group, check_device, complete_here, missing, refuse
from pipeline.job import Job
from pipeline.loading import load
from pipeline.outcome import Following, Outcome
from pipeline.parallel import explained, perform_in_parallel, places
from pipeline.runs import RunTask
from stages.training.memory import give_back_memory, keep_large_blocks
from store.errors import FrostgridError, InputError, StorageError

if TYPE_CHECKING:
    from pipeline.cluster.crew import Crew


def train_jobs(
    jobs: Sequence[Job],
    talk: Talk,
    device: torch.device,
    *,
    processes: int | None = None,
    memory: int | None = None,
    crew: Crew | None = None,
) -> Outcome:
    """Train every run of ``jobs`` that is not finished.

    ``processes`` at once, or in this process where it is None; or by the workers of ``crew``, each on a device of its
    own. ``memory`` bytes are all that may be used, on a cluster by each worker: features are streamed, and batches
    worked on piece by piece, where they take more; see :mod:`stages.training.step`. How large the pieces are decides
    the last bits of the weights; it depends on ``memory`` and on how many ``processes`` share it, not on what is
    missing or free.

    What can be known to be wrong is raised before anything is trained: :class:`InputError` for a decoder that does not
    go with a grid, too few training tiles, a cache that is not there or that a worker does not see, more processes than
    cores or GPUs, CUDA graphs on a CPU, or too little memory (of a cluster's GPUs, only known there);
    :class:`store.errors.MissingViews` for views that a cache lacks. Later only :class:`StorageError` stops the work,
    when a result cannot be written or the cluster is gone; every other failure is in the outcome.
    """
    if crew is not None:
        from pipeline.cluster.training import train_on

        return train_on(crew, jobs, talk, memory=memory)
    check_device(jobs, device)
    where = None if processes is None else places(processes, device)
    groups = missing(
        jobs, lambda job: staging.stage(job.work, job.reference, job.weights, talk), complete_here
    )
    devices = [device] if where is None else where[0]
    faults: list[InputError] = []
    plans = [_planned(group, devices, memory, where is not None, faults) for group in groups]
    refuse(faults)
    outcome = Outcome.of(jobs)
    if not groups:
        return outcome
    if device.type == "cpu" and where is None:
        keep_large_blocks()
    runs = [run for group in groups for run in group.runs]
    with Following.shown(jobs, runs, talk, outcome) as following:
        for group, (tasks, budget) in zip(groups, plans, strict=True):
            _train_group(group, tasks, device, where, budget, following)
    return outcome


def _planned(
    group: Group, devices: Sequence[torch.device], memory: int | None, shared: bool, faults: list[InputError]
) -> tuple[list[RunTask], Budget]:
    """Return the tasks of a group with what fits of a batch, and what all of them leave; adds to ``faults``."""
    found: dict[int, Budget] = {}
    tasks = group.tasks()
    for (position, _), task in zip(group.runs, tasks, strict=True):
        if position not in found:
            found[position] = Budget()
            try:
                found[position] = budget_for(task.settings, task.geometry, devices, memory, shared=shared)
            except InputError as error:
                faults.append(error)
    pieces = [
        replace(task, at_once=found[run[0]].at_once) for run, task in zip(group.runs, tasks, strict=True)
    ]
    return pieces, Budget.of_all(found.values())


def _train_group(
    group: Group,
    tasks: Sequence[RunTask],
    device: torch.device,
    where: tuple[list[torch.device], int] | None,
    budget: Budget,
    following: Following,
) -> None:
    job, runs, shared = group.first, group.runs, where is not None
    give_back_memory()  # that of the group before
    room = room_for(job.tokens.spec, job.masks.spec, group.tiles.total, device, budget, shared=shared)
    try:
        loaded = load(
            job.tokens,
            job.masks,
            group.tiles,
            device,
            room,
            encoder=job.encoder,
            scratch=job.work.results,
            shared=shared,
        )
    except StorageError:
        raise
    except FrostgridError as error:
        following.unread(runs, f"all runs on {job.encoder}", error)
        return
    if where is not None:
        perform_in_parallel(
            tasks,
            loaded,
            *where,
            on_epoch=lambda at, epoch: following.epoch(runs[at], epoch),
            on_failure=lambda at, failure: following.failed(runs[at], failure),
            on_start=lambda at: following.begun(runs[at]),
            on_done=lambda at: following.trained(runs[at]),
        )
        return
    features = loaded.features(device)
    for run, task in zip(runs, tasks, strict=True):
        following.begun(run)
        try:
            task.perform(loaded, features, device, following.reporter(run))
        except StorageError:
            raise
        except Exception as error:
            following.failed(run, explained(task.title, error))
        else:
            following.trained(run)
