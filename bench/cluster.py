"""What handing out a task costs: ours, a few pending at a time, against all tasks given to dask at once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
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


def nothing(_number: int, _payload: bytes) -> None:
    """Do nothing, as an empty encoder would."""


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
        f"{tasks} tasks that do nothing with {PAYLOAD} bytes of arguments each, on a scheduler and {WORKERS} workers "
        "of one thread, all processes of their own on this machine: Crew.perform, against Client.map of all tasks at "
        "once and gathering their results; seconds a task, the most tasks that the scheduler knew at a time, and how "
        "far the memory of scheduler and client grew",
        "none: shown",
        {
            "ours_s": middle(ours, "seconds") / tasks,
            "reference_s": middle(dask, "seconds") / tasks,
            "rounds": len(ours),
            "pending": max(one["pending"] for one in ours),
            "reference_pending": max(one["pending"] for one in dask),
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
    from pipeline.cluster.tasks import Task
    from pipeline.console import Talk

    # Nested, so that the scheduler is sent them whole.
    def known(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    def memory(name: str) -> float:
        from pathlib import Path

        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))

    payload, pending, done = bytes(PAYLOAD), [0], 0
    with connected(None, address, "cpu", Talk(quiet=True)) as crew, Client(address) as client:
        assert crew is not None
        client.wait_for_workers(WORKERS)
        crew.perform([Task("warm", "warm", nothing, (0, payload))], on_done=_ignore, on_failure=_raise)
        client.submit(nothing, 0, payload, key="warm").result()  # for which the scheduler loads this module
        before = memory("VmRSS"), client.run_on_scheduler(memory, "VmRSS")
        start = time.perf_counter()
        if side == "ours":

            def count(_task: Task, _result: Any) -> None:
                nonlocal done
                done += 1
                if done % 500 == 1:
                    pending.append(client.run_on_scheduler(known))

            made = (Task(f"empty-{n}", f"empty {n}", nothing, (n, payload)) for n in range(tasks))
            crew.perform(made, on_done=count, on_failure=_raise)
        else:
            futures = client.map(nothing, range(tasks), [payload] * tasks, pure=False)
            while max(pending) < tasks and futures[-1].status == "pending":  # they are on their way to it
                pending.append(client.run_on_scheduler(known))
            client.gather(futures)
        seconds = time.perf_counter() - start
        after = memory("VmHWM"), client.run_on_scheduler(memory, "VmHWM")
    grown = [max(0.0, late - early) for early, late in zip(before, after, strict=True)]
    numbers = {"seconds": seconds, "pending": max(pending), "client_mb": grown[0], "scheduler_mb": grown[1]}
    sys.stdout.write(json.dumps(numbers))


def _ignore(_task: Any, _result: Any) -> None:
    pass


def _raise(_task: Any, failure: Any) -> None:
    raise RuntimeError(failure.why)
