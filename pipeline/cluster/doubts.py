"""What single workers find fault with: it may be their own view of a disk, so one of them alone is not believed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from pipeline.cluster.tasks import Task
from store.errors import FrostgridError

ENOUGH = 2  # workers that find fault with the same thing: then it is believed


class Doubt(Exception):
    """What a task raises where its ``worker``, an address, finds fault with something that it reads.

    ``what``: which of :attr:`Task.reads` that is. ``error``: the fault.
    """

    def __init__(self, what: str, error: FrostgridError, worker: str) -> None:
        super().__init__(what, error, worker)
        self.what, self.error, self.worker = what, error, worker


class Doubts:
    """The doubts that were raised so far."""

    def __init__(self) -> None:
        # By what they are about, and by worker.
        self._said: defaultdict[str, dict[str, Doubt]] = defaultdict(dict)

    def add(self, doubt: Doubt) -> None:
        """Take one up."""
        self._said[doubt.what].setdefault(doubt.worker, doubt)

    def has(self, worker: str, task: Task) -> bool:
        """Whether a worker has found fault with something that a task reads, so that it should not get it."""
        return any(worker in self._said[what] for what in task.reads)

    def believed(self, task: Task, workers: Collection[str]) -> Doubt | None:
        """Return what is wrong with what a task reads, if enough workers say so, or all the ``workers`` there are."""
        for what in task.reads:
            said = self._said[what]
            if said and (len(said) >= ENOUGH or (workers and not set(workers) - said.keys())):
                return next(iter(said.values()))
        return None
