"""Joining the cluster that a command is to use, or starting one for it on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from pipeline.cluster.crew import Crew
from pipeline.console import Talk
from pipeline.parallel import places
from stages.encoders import usable_device
from store.errors import InputError, StorageError

if TYPE_CHECKING:
    from distributed import SpecCluster

PATIENCE = "10s"  # for a scheduler to answer


@contextmanager
def connected(
    workers: int | None, scheduler: str | None, device: str | None, talk: Talk
) -> Iterator[Crew | None]:
    """Yield the workers that a command is to use: ``workers`` of its own, or those of the cluster at ``scheduler``.

    None where neither is given: then everything is done in this process. ``device``: where tasks compute. However the
    block ends, no worker of its own is left. Raises :class:`InputError` for both at once, for more workers than cores
    or GPUs, where the extra is not installed, and for an address that is none; :class:`StorageError` where nobody
    answers.
    """
    if workers is None and scheduler is None:
        yield None
        return
    if workers is not None and scheduler is not None:
        raise InputError(
            "--workers starts a cluster and --scheduler joins one",
            where="--workers",
            remedy="Give one of them.",
        )
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise InputError(
            "dask.distributed is not installed",
            where="--workers" if workers else "--scheduler",
            remedy="Install it: pip install 'frostgrid[cluster]'.",
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said in our words
    with ExitStack() as stack:
        if workers is not None:
            target = usable_device(device)
            scheduler = stack.enter_context(_own_cluster(workers, target)).scheduler_address
            device = target.type  # each worker sees one GPU only
        try:
            client = stack.enter_context(Client(scheduler, timeout=PATIENCE, set_as_default=False))
        except ValueError as error:
            raise InputError(
                f"This is no address of a scheduler: {error}",
                where=f"--scheduler {scheduler}",
                remedy="Give the one it prints when it starts, such as tcp://host:8786.",
            ) from None
        except OSError as error:
            raise StorageError(
                f"No scheduler answers there: {error}",
                where=f"--scheduler {scheduler}",
                remedy="Start it (dask scheduler), or give the address it printed.",
            ) from None
        crew = Crew(client, device, talk)
        stack.callback(crew.close)
        yield crew


@contextmanager
def _own_cluster(workers: int, device: torch.device) -> Iterator[SpecCluster]:
    """Yield a cluster on this machine: a process a worker, which share the cores or have a GPU each."""
    from distributed import Nanny, Scheduler, SpecCluster

    devices, threads = places(workers, device, where="--workers")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    options = {
        "nthreads": threads,
        "memory_limit": 0,
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,
    }
    specs = {}
    for number, one in enumerate(devices):
        env = {}
        if one.type == "cuda":
            env["CUDA_VISIBLE_DEVICES"] = visible[one.index or 0] if visible else str(one.index or 0)
        specs[number] = {"cls": Nanny, "options": {**options, "env": env}}
    with SpecCluster(
        workers=specs,
        scheduler={
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"},
        },
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster
