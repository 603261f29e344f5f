"""Joining the cluster that a command is to use, or starting one for it on this machine."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import resource_tracker

import torch

from pipeline.cluster.crew import Crew
from pipeline.cluster.equipping import VERSION
from pipeline.cluster.line import Line
from pipeline.console import Talk
from pipeline.parallel import places
from stages.encoders import usable_device
from store.errors import FrostgridError, InputError, StorageError

PATIENCE = "10s"  # for a scheduler to answer
_LOGS = (
    "distributed",
    "distributed.client",
    "tornado.application",
)  # to which dask gives levels of their own


@contextmanager
def connected(
    workers: int | None, scheduler: str | None, device: str | None, talk: Talk
) -> Iterator[Crew | None]:
    """Yield the workers that a command is to use: ``workers`` of its own, or those of the cluster at ``scheduler``.

    None where neither is given: then everything is done in this process. Workers of its own are started when they are
    first asked for something, and none is left, however the block ends. ``device``: where tasks compute. Raises
    :class:`InputError` for both at once, for more workers than cores or GPUs, where the extra is not installed, and for
    an address that is none, and for a scheduler without the same frostgrid; :class:`StorageError` where nobody answers.
    """
    if workers is not None and scheduler is not None:
        raise InputError(
            "--workers starts a cluster and --scheduler joins one",
            where="--workers",
            remedy="Give one of them.",
        )
    with ExitStack() as stack:
        if workers is not None:
            _check_installed("--workers")
            target = usable_device(device)
            at = places(workers, target, where="--workers")
            crew = Crew(lambda: stack.enter_context(_own_cluster(*at)), target.type, talk, "--workers")
        elif scheduler is not None:
            _check_installed("--scheduler")
            line = stack.enter_context(_line_to(scheduler))
            crew = Crew(lambda: line, device, talk, "--scheduler")
        else:
            yield None
            return
        stack.callback(crew.close)
        yield crew


def _check_installed(option: str) -> None:
    if find_spec("distributed") is None:
        raise InputError(
            "dask.distributed is not installed",
            where=option,
            remedy="Install it: pip install 'frostgrid[cluster]'.",
        )


@contextmanager
def _line_to(address: str) -> Iterator[Line]:
    """Yield the line to the scheduler at an address."""
    import dask
    from distributed import Client

    for name in _LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said in our words
    try:
        _check_address(address)
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(
            f"This is no address of a scheduler: {error}",
            where=f"--scheduler {address}",
            remedy="Give the one it prints when it starts, such as tcp://host:8786.",
        ) from None
    except OSError as error:
        raise StorageError(
            f"No scheduler answers there: {error}",
            where=f"--scheduler {address}",
            remedy="Start it (dask scheduler), or give the address it printed.",
        ) from None
    try:
        # What tasks have in common is sent whole, once: dask would advise against it.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
            line = Line(client, address)
            _check_version(line, address)
            yield line
    finally:
        # One that looks for a lost scheduler may trip over itself here, which must not hide what is wrong.
        with suppress(AssertionError, OSError, RuntimeError):
            client.close()


def _check_address(address: str) -> None:
    """Raise ``ValueError``, ``TypeError`` or ``ImportError`` for an address that no client can be made of.

    dask finds out with a client half made, which can hang this process when it is thrown away.
    """
    from distributed.comm.addressing import parse_address, parse_host_port
    from distributed.comm.registry import get_backend
    from distributed.security import Security

    scheme, location = parse_address(address)
    get_backend(scheme).get_connector()
    if scheme == "inproc":
        raise ValueError("inproc is the scheduler of another process")
    if scheme in ("tcp", "tls"):
        parse_host_port(location)
    if scheme == "tls" and Security().get_connection_args("client")["ssl_context"] is None:
        raise ValueError("dask's configuration names no certificates, as tls takes")


def _check_version(line: Line, address: str) -> None:
    """Raise :class:`InputError` unless the scheduler, which has to know what a task is, has the same frostgrid."""

    def installed() -> str:  # nested, so that it is sent whole
        from importlib.metadata import version

        return version("frostgrid")

    try:
        found = line.asked(lambda client: client.run_on_scheduler(installed))
    except FrostgridError:
        raise
    except Exception as error:
        found = f"none that can be used ({type(error).__name__}: {error})"
    if found != VERSION:
        raise InputError(
            f"The frostgrid of the scheduler is {found}, and this is {VERSION}",
            where=f"--scheduler {address}",
            remedy="Install the same where the scheduler runs, and start it again.",
        )


@contextmanager
def _interrupts_not_inherited() -> Iterator[None]:
    """Threads that are started here, and their processes, do not hear Ctrl-C, which a terminal sends to all: we do.

    Threads that there are already, such as those of numpy, may still hear one at once.
    """
    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start the process that removes what killed processes leave, and let it do so without a word.

    Where it is started later, by dask, the thread that does so hears Ctrl-C again.
    """
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _own_cluster(devices: Sequence[torch.device], threads: int) -> Iterator[Line]:
    """Yield the line to a cluster on this machine, with a worker process for each of ``devices``.

    Each has so many ``threads``, and sees no GPU but its own.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

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
    own = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    with ExitStack() as stack:
        # Else one that takes long to start again, as on a busy machine, is given up, and none may be left.
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}))
        try:
            # One that comes meanwhile should be heard when there is something to close.
            with _interrupts_not_inherited():
                cluster = stack.enter_context(
                    SpecCluster(
                        workers=specs,
                        scheduler={"cls": Scheduler, "options": own},
                        silence_logs=logging.CRITICAL,
                    )
                )
        except RuntimeError as error:
            raise FrostgridError(
                f"The cluster on this machine did not start: {error}",
                where="--workers",
                remedy="Leave it out, or start a scheduler and workers by hand and give --scheduler.",
            ) from None
        yield stack.enter_context(_line_to(cluster.scheduler_address))
