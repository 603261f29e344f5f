"""A real dask cluster on loopback: a scheduler and workers, each a process of its own that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

START_S = 120.0  # a loaded machine takes its time to import torch


class RealCluster:
    """A scheduler and ``workers`` worker processes with ``threads`` threads each; use as a context.

    ``environment`` is added to that of all, ``folder`` takes their logs and local files.
    """

    def __init__(
        self, folder: Path, workers: int = 2, threads: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self._number, self._threads = workers, threads
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        self.scheduler: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"

    def __enter__(self) -> RealCluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start_scheduler()
        for _ in range(self._number):
            self.start_worker()
        self.wait(self._number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_scheduler(self) -> None:
        """Start the scheduler, at the same address again after it was killed."""
        self.scheduler = self._started(
            "scheduler", "--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard"
        )

    def start_worker(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start one more worker, without anything that would start it again, and return its process.

        ``prefix`` goes before its command.
        """
        worker = self._started(
            "worker",
            self.address,
            *("--host", "127.0.0.1", "--nthreads", str(self._threads), "--no-nanny", "--no-dashboard"),
            *("--memory-limit", "0", "--local-directory", str(self.folder)),
            prefix=prefix,
        )
        self.workers.append(worker)
        return worker

    def wait(self, workers: int) -> None:
        """Wait until so many workers have joined."""
        from distributed import Client

        until = time.monotonic() + START_S
        while True:
            with suppress(OSError), Client(self.address, timeout="10s", set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=START_S)
                return
            assert time.monotonic() < until, self.log()
            time.sleep(0.2)

    def kill_worker(self, number: int = 0) -> None:
        """Kill a worker so that it can do nothing more."""
        self.workers[number].send_signal(signal.SIGKILL)
        self.workers[number].wait()

    def kill_scheduler(self) -> None:
        """Kill the scheduler so that it can do nothing more."""
        assert self.scheduler is not None
        self.scheduler.send_signal(signal.SIGKILL)
        self.scheduler.wait()

    def stop(self) -> None:
        """End what still runs."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            process.kill()
            process.wait()
        self.workers.clear()

    def log(self) -> str:
        """Return what all processes have printed."""
        return (self.folder / "log").read_text()

    def _started(self, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
                stdout=log,
                stderr=log,
                env=self._environment,
            )
