"""What handing out a task costs: ours, a few pending at a time, against all tasks given to dask at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import Result, Setting, benchmark

WORKERS = 2
TASKS = 10_000
ROUNDS = 3
PAYLOAD = 6_000  # bytes of arguments, about what a shard of an extraction has: its tiles and its rows
COMMON = 4_000_000  # bytes that all tasks have in common, about what runs on 20,000 tiles have


def nothing(_common: bytes, _number: int, _payload: bytes) -> int:
    """Do nothing, as an empty encoder would; return the process that did."""
    return os.getpid()


@benchmark("cluster/empty-tasks")
def empty_tasks(setting: Setting) -> Result:
    """Tasks that do nothing, to a scheduler and workers in processes of their own on this machine."""
    tasks = 50 if setting.small else TASKS
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "dask": []}
    for _ in range(min(setting.rounds, ROUNDS)):
        for side, measured in sides.items():
            measured.append(_measured(setting, side, tasks))
    ours, dask = sides["ours"], sides["dask"]

    def middle(side: list[dict[str, Any]], name: str) -> float:
        return float(median(one[name] for one in side))

    return Result(
        middle(dask, "seconds") / middle(ours, "seconds"),
        f"{tasks} tasks that do nothing with {PAYLOAD} bytes of arguments each and {COMMON} in common, on a scheduler "
        f"and {WORKERS} workers of one thread, all processes of their own on this machine: Crew.perform, against "
        "Client.map of all tasks at once and gathering their results; seconds a task, the most tasks that the "
        "scheduler knew at a time, the part of them that the busiest worker did, and how far the memory of scheduler "
        "and client grew",
        "none: shown",
        {
            "ours_s": middle(ours, "seconds") / tasks,
            "reference_s": middle(dask, "seconds") / tasks,
            "rounds": len(ours),
            "pending": max(one["pending"] for one in ours),
            "reference_pending": max(one["pending"] for one in dask),
            "busiest": middle(ours, "busiest"),
            "reference_busiest": middle(dask, "busiest"),
            "scheduler_mb": middle(ours, "scheduler_mb"),
            "reference_scheduler_mb": middle(dask, "scheduler_mb"),
            "client_mb": middle(ours, "client_mb"),
            "reference_client_mb": middle(dask, "client_mb"),
        },
    )


def _measured(setting: Setting, side: str, tasks: int) -> dict[str, Any]:
    """Run one side in a process of its own, on a cluster of its own, and return its numbers."""
    with TemporaryDirectory(dir=setting.folder) as folder, _cluster(Path(folder)) as address:
        command = [
            sys.executable,
            "-c",
            f"from bench.cluster import run; run({side!r}, {address!r}, {tasks})",
        ]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True
        )
        numbers: dict[str, Any] = json.loads(done.stdout)
        return numbers


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """Yield the address of a scheduler with its workers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    host = ("--host", "127.0.0.1", "--no-dashboard")
    worker = (
        *("worker", address, *host, "--nthreads", "1", "--no-nanny", "--memory-limit", "0"),
        *("--local-directory", str(folder)),
    )
    processes = []
    try:
        for name, *arguments in (("scheduler", *host, "--port", str(port)), *([worker] * WORKERS)):
            command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(side: str, address: str, tasks: int) -> None:
    """Print what one side has needed, as JSON."""
    from distributed import Client

    from pipeline.cluster.connecting import connected
    from pipeline.cluster.tasks import Common, Task
    from pipeline.console import Talk

    # Nested, so that the scheduler is sent them whole.
    def known(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    def memory(name: str) -> float:
        from pathlib import Path

        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))

    payload, pending, did = bytes(PAYLOAD), [0], Counter[int]()
    with connected(None, address, "cpu", Talk(quiet=True)) as crew, Client(address) as client:
        assert crew is not None
        client.wait_for_workers(WORKERS)
        warm = Task("warm", "warm", nothing, (b"", 0, payload))
        crew.perform([warm], on_done=_ignore, on_failure=_raise)
        # For which the scheduler loads this module.
        client.submit(nothing, b"", 0, payload, key="warm").result()
        before = memory("VmRSS"), client.run_on_scheduler(memory, "VmRSS")
        start = time.perf_counter()
        if side == "ours":

            def count(_task: Task, process: int) -> None:
                did[process] += 1
                if did.total() % 500 == 1:
                    pending.append(client.run_on_scheduler(known))

            common = Common("common", bytes(COMMON))
            made = (Task(f"empty-{n}", f"empty {n}", nothing, (n, payload), common) for n in range(tasks))
            crew.perform(made, on_done=count, on_failure=_raise)
        else:
            shared = client.submit(bytes, bytes(COMMON), key="common")
            futures = client.map(nothing, [shared] * tasks, range(tasks), [payload] * tasks, pure=False)
            did.update(client.gather(futures))
            # It forgets none of them while their results are wanted.
            pending.append(client.run_on_scheduler(known))
        seconds = time.perf_counter() - start
        after = memory("VmHWM"), client.run_on_scheduler(memory, "VmHWM")
    grown = [max(0.0, late - early) for early, late in zip(before, after, strict=True)]
    numbers = {"seconds": seconds, "pending": max(pending), "busiest": max(did.values()) / tasks}
    sys.stdout.write(json.dumps({**numbers, "client_mb": grown[0], "scheduler_mb": grown[1]}))


def _ignore(_task: Any, _result: Any) -> None:
    pass


def _raise(_task: Any, error: BaseException) -> None:
    raise error
