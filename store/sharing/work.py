"""Shards that several threads bring from one side to the other, and how far they are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from store.errors import FrostgridError, VerificationError
from store.grids import GridStore

Job = TypeVar("Job")
Progress = Callable[[int, int], None]
WAIT_S = 0.5  # between looks at a shard that another process is bringing


@dataclass(frozen=True)
class Copied:
    """What a copy came to: the ``store`` on this machine, ``shards`` copied with their ``bytes``, and ``kept``.

    ``kept`` counts those that were not, since they lay whole on the other side, or came there meanwhile.
    """

    store: GridStore
    shards: int
    bytes: int
    kept: int


class Stopped(Exception):
    """Another thread has met an error that ends the whole copy."""


class Work:
    """Runs jobs in ``threads`` threads and tells ``on_progress`` the bytes done and the bytes to do."""

    def __init__(self, threads: int, total: int, on_progress: Progress | None) -> None:
        self.shards = 0
        self.bytes = 0
        self._threads = max(1, threads)
        self._total = total
        self._shown = 0
        self._on_progress = on_progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.advance(0)

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes as done; raises ``Stopped`` where the copy is to end."""
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            self._shown += count
            if self._on_progress is not None:
                self._on_progress(self._shown, self._total)

    def copied(self, size: int) -> None:
        """Count one more shard, of ``size`` bytes, as copied."""
        with self._lock:
            self.shards += 1
            self.bytes += size

    def pause(self, seconds: float) -> None:
        """Wait; raises ``Stopped`` as soon as the copy is to end."""
        if self._stopped.wait(seconds):
            raise Stopped

    def run(self, jobs: Iterable[Job], act: Callable[[Job], bool]) -> list[FrostgridError]:
        """Call ``act`` with every job, again later with those for which it returns ``False``.

        A job that ends in a ``VerificationError`` (something is damaged) does not keep the others from being done;
        those errors are returned. Any other error ends the work and is raised.
        """
        waiting = deque(jobs)
        faults: list[FrostgridError] = []

        def work() -> None:
            while not self._stopped.is_set():
                try:
                    job = waiting.popleft()
                except IndexError:
                    return
                try:
                    if not act(job):
                        waiting.append(job)
                        self.pause(WAIT_S)
                except VerificationError as fault:
                    faults.append(fault)

        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for done in as_completed(
                    [pool.submit(work) for _ in range(min(self._threads, len(waiting)))]
                ):
                    done.result()
            except BaseException:
                self._stopped.set()
                raise
        return faults


def raise_faults(faults: Sequence[FrostgridError]) -> None:
    """Raise the first of ``faults``, if there is any, with the number of the others."""
    if not faults:
        return
    first = faults[0]
    more = f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""
    raise type(first)(f"{first.what}{more}", where=first.where, remedy=first.remedy) from first
