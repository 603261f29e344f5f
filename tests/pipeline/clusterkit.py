"""A real dask cluster on loopback: a scheduler and workers, each a process of its own that can be killed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

START_S = 120.0  # a loaded machine takes its time
_OWN_MOUNTS = 0x00020000  # CLONE_NEWNS of Linux

# A worker takes seconds to import what tasks need. They are forked from a process that has done so once.
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    ["distributed.cli.dask_worker", "pipeline.cluster.extracting", "pipeline.cluster.learning"]
)


class RealCluster:
    """A scheduler and ``workers`` worker processes with ``threads`` threads each; use as a context.

    ``environment`` is added to that of all, ``folder`` takes their logs and local files.
    """

    def __init__(
        self, folder: Path, workers: int = 2, threads: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.workers: list[BaseProcess] = []
        self._number, self._threads = workers, threads
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        self.scheduler: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self.address = f"tcp://127.0.0.1:{self._port}"

    def __enter__(self) -> RealCluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start_scheduler()
            for _ in range(self._number):
                self.start_worker()
            self.wait(self._number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_scheduler(self) -> None:
        """Start the scheduler, at the same address again after it was killed."""
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
        with (self.folder / "log").open("ab") as log:
            self.scheduler = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self._port)],
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def start_worker(self, hidden: Path | None = None) -> BaseProcess:
        """Start one more worker, without anything that would start it again, and return its process.

        It sees an empty disk where all others see what is in the folder ``hidden``; only root can have that.
        """
        arguments = (
            self.address,
            *("--host", "127.0.0.1", "--nthreads", str(self._threads), "--no-nanny", "--no-dashboard"),
            *("--memory-limit", "0", "--local-directory", str(self.folder)),
        )
        about = self._environment, self.folder / "log", hidden, arguments
        worker = _forking.Process(target=_work, args=about, daemon=True)
        worker.start()
        self.workers.append(worker)
        return worker

    def wait(self, workers: int) -> None:
        """Wait until so many workers have joined."""
        from distributed import Client

        until = time.monotonic() + START_S
        while True:
            with suppress(OSError), Client(self.address, timeout="10s", set_as_default=False) as client:
                if workers:
                    client.wait_for_workers(workers, timeout=START_S)
                return
            assert time.monotonic() < until, self.log()
            time.sleep(0.2)

    def kill_worker(self, number: int = 0) -> None:
        """Kill a worker so that it can do nothing more, and take it off the list."""
        _end(self.workers.pop(number))

    def kill_scheduler(self) -> None:
        """Kill the scheduler so that it can do nothing more."""
        assert self.scheduler is not None
        _end(self.scheduler)

    def stop(self) -> None:
        """End what still runs."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            _end(process)
        self.workers.clear()

    def log(self) -> str:
        """Return what all processes have printed."""
        return (self.folder / "log").read_text()


def _work(environment: Mapping[str, str], log: Path, hidden: Path | None, arguments: Sequence[str]) -> None:
    """Be a worker, as ``dask worker`` with these ``arguments`` is; the body of a process."""
    import dask
    from distributed.cli.dask_worker import main

    os.environ.clear()
    os.environ.update(environment)
    dask.config.refresh()
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if hidden is not None:
        assert ctypes.CDLL(None).unshare(_OWN_MOUNTS) == 0
        for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "none", str(hidden)]):
            subprocess.run(command, check=True)
    main(arguments, standalone_mode=False)


def _end(process: BaseProcess | subprocess.Popen[bytes]) -> None:
    process.kill()
    if isinstance(process, BaseProcess):
        process.join()
    else:
        process.wait()


def _free_port() -> int:
    """Return a port that nobody listens at, and that no system gives to connections of others meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
