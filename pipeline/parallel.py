"""Runs of stage two in several processes at once, all on one copy of the token grids."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from pipeline.loading import Loaded
from pipeline.runs import Failure, RunTask
from stages.training.device import on_device
from stages.training.memory import keep_large_blocks
from store.errors import FrostgridError, InputError, StorageError

PATIENCE_S = 5.0  # for a process that was asked to end


def cores() -> int:
    """Return how many cores this process may use."""
    return len(core_numbers())


def core_numbers() -> tuple[int, ...]:
    """Return which cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def places(count: int, device: torch.device, where: str = "--parallel") -> tuple[list[torch.device], int]:
    """Return the device of each of ``count`` processes, and the threads that each may use.

    A GPU without a number stands for all of them. Raises :class:`InputError` for more processes than cores, or than
    GPUs where ``device`` is one; ``where`` is the option that asks for them.
    """
    if device.type == "cpu":
        most, what, all_of = cores(), "cores", [device] * count
    else:
        gpus = torch.cuda.device_count() if device.index is None else 1
        most, what = gpus, "GPUs"
        all_of = [device] if device.index is not None else [torch.device("cuda", i) for i in range(count)]
    if count > most:
        raise InputError(
            f"{count} processes are more than the {most} {what} there are to use",
            where=where,
            remedy=f"Give {most} or less.",
        )
    return all_of, max(1, cores() // count)


def explained(title: str, error: BaseException) -> Failure:
    """Return why a task failed, with the trace of an error that does not explain itself."""
    if isinstance(error, FrostgridError):
        return Failure(title, str(error))
    trace = "".join(traceback.format_exception(error))
    return Failure(title, f"{type(error).__name__}: {error}", trace)


def perform_in_parallel(
    tasks: Sequence[RunTask],
    loaded: Loaded,
    devices: Sequence[torch.device],
    threads: int,
    *,
    on_epoch: Callable[[int, int], None],
    on_failure: Callable[[int, Failure], None],
    on_start: Callable[[int], None] = lambda task: None,
    on_done: Callable[[int], None] = lambda task: None,
) -> None:
    """Train ``tasks`` in one process a device of ``devices``, with ``threads`` threads each.

    ``loaded`` has to be loaded as shared. ``on_epoch`` is told the task (its position) and the epoch it has finished,
    ``on_start`` and ``on_done`` the task that begins and that has been finished, ``on_failure`` the one that failed,
    also where its process died; the others go on. What a run gives depends on the number of threads and on nothing
    beside it. Raises :class:`StorageError` when a finished run cannot be written, since no other could be. However this
    ends, no process is left.
    """
    _Processes(tasks, loaded, threads, on_epoch, on_failure, on_start, on_done).work(devices)


@dataclass(eq=False)
class _Worker:
    """A process, and the position of the task that it has; ``ready`` once it has come as far as asking for one."""

    process: BaseProcess
    pipe: Connection
    device: torch.device
    task: int | None = None
    ready: bool = False

    def receive(self) -> tuple[Any, ...] | None:
        """Return its next message; None where it has died."""
        try:
            if self.pipe.poll():
                message: tuple[Any, ...] = self.pipe.recv()
                return message
        except (EOFError, OSError):
            pass
        self.process.join()
        return None

    def end(self, patience: float) -> None:
        """Wait for it to end by itself, then make it."""
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()

    def cause(self) -> str:
        """Return how it died."""
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"its process ended with status {code}"
        why = ", as happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{why}"


class _Processes:
    """The processes, the tasks that none of them has yet, and whom to tell."""

    def __init__(
        self,
        tasks: Sequence[RunTask],
        loaded: Loaded,
        threads: int,
        on_epoch: Callable[[int, int], None],
        on_failure: Callable[[int, Failure], None],
        on_start: Callable[[int], None],
        on_done: Callable[[int], None],
    ) -> None:
        self._tasks, self._loaded, self._threads = tasks, loaded, threads
        self._on_epoch, self._on_failure = on_epoch, on_failure
        self._on_start, self._on_done = on_start, on_done
        self._waiting = deque(range(len(tasks)))
        self._workers: list[_Worker] = []

    def work(self, devices: Sequence[torch.device]) -> None:
        try:
            for device in devices[: len(self._tasks)]:
                self._start(device)
            while self._workers:
                signs = [sign for worker in self._workers for sign in (worker.pipe, worker.process.sentinel)]
                seen = wait(signs)
                for worker in list(self._workers):
                    if worker.pipe in seen or worker.process.sentinel in seen:
                        message = worker.receive()
                        if message is None:
                            self._lost(worker)
                        else:
                            self._heard(worker, *message)
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.end(PATIENCE_S)

    def _start(self, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._loaded, device, self._threads), daemon=True
        )
        with _interrupts_for_us_only():
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, device))

    def _heard(self, worker: _Worker, what: str, *more: Any) -> None:
        if what == "epoch" and worker.task is not None:
            self._on_epoch(worker.task, *more)
            return
        if what == "refused":
            refusal, where, remedy = more
            raise StorageError(refusal, where=where, remedy=remedy)
        if what == "failed" and worker.task is not None:
            self._on_failure(worker.task, *more)
        if what == "done" and worker.task is not None:
            self._on_done(worker.task)
        worker.ready, worker.task = True, self._waiting.popleft() if self._waiting else None
        if worker.task is not None:
            self._on_start(worker.task)
        with suppress(OSError):  # one that has died meanwhile is seen in the next round
            worker.pipe.send(None if worker.task is None else self._tasks[worker.task])
        if worker.task is None:
            self._workers.remove(worker)
            worker.end(PATIENCE_S)

    def _lost(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        given_up = [] if worker.task is None else [worker.task]
        if worker.ready and self._waiting:
            self._start(worker.device)
        elif not self._workers:  # not one process can be started
            given_up += self._waiting
            self._waiting.clear()
        for task in given_up:
            self._on_failure(task, Failure(self._tasks[task].title, worker.cause()))


@contextmanager
def _interrupts_for_us_only() -> Iterator[None]:
    """A process that is started here ignores Ctrl-C, which a terminal sends to all: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, loaded: Loaded, device: torch.device, threads: int) -> None:
    """Train the tasks that come through ``pipe`` until there are no more; the body of a process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_large_blocks()
    with on_device(device):  # no context is opened on another GPU
        features = loaded.features(device, threads)
        pipe.send(("ready",))
        while (task := pipe.recv()) is not None:
            try:
                task.perform(loaded, features, device, lambda report: pipe.send(("epoch", report.epoch)))
            except StorageError as error:
                pipe.send(("refused", error.what, error.where, error.remedy))
            except Exception as error:
                pipe.send(("failed", explained(task.title, error)))
            else:
                pipe.send(("done",))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
