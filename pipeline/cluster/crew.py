"""Handing tasks to the workers of a cluster: few at a time, again where one was lost, until all are done."""

from __future__ import annotations

import pickle
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.line import Line, NotThere
from pipeline.cluster.roster import LOOK_S, Roster
from pipeline.cluster.tasks import Common, Task, perform, unpacked
from pipeline.console import Talk
from pipeline.parallel import explained
from pipeline.runs import Failure
from store.errors import FrostgridError, InputError, VerificationError

if TYPE_CHECKING:
    from distributed import Future, KilledWorker

TRIES = 3
AHEAD = 1  # tasks a worker that are pending; one that waits behind another would count as killed with it
LEAST = 1

OnDone = Callable[[Task, Any], None]
OnFailure = Callable[[Task, Failure], None]
OnStart = Callable[[Task], None]


@dataclass
class _Pending:
    """A task on its way, for the ``tries``-th time."""

    task: Task
    tries: int
    future: Future[Any]
    started: bool = False


class Crew:
    """The workers of a cluster, as long as this process is connected to it.

    Made by :func:`pipeline.cluster.connecting.connected`. ``connect`` is called when something is first asked of them:
    a command that finds nothing to do starts no cluster. Whatever asks them raises what that raises, and
    :class:`store.errors.StorageError` where the scheduler is lost.
    """

    def __init__(self, connect: Callable[[], Line], device: str | None, talk: Talk) -> None:
        self._connect, self._device = connect, device
        self._roster = Roster(device, talk)
        self._looked = float("-inf")
        self._commons: dict[str, Future[Any]] = {}

    @cached_property
    def _line(self) -> Line:
        return self._connect()

    @property
    def workers(self) -> int:
        """How many workers there are that can do our tasks; they may come and go."""
        return len(self._roster.ready)

    @property
    def gpus(self) -> bool:
        """Whether one of them computes on a GPU."""
        return any(one.gpu for one in self._roster.ready.values())

    @property
    def cluster(self) -> str:
        """Which cluster this is: a scheduler that is started anew, at the same address, makes another one."""
        return self._line.cluster

    def has(self, worker: str) -> bool:
        """Whether the worker of this address belongs to the cluster now; not if the scheduler has lost it."""
        return worker in self._line.workers()

    def close(self) -> None:
        """Remove what this process has left for the workers to see."""
        self._roster.close()

    def require(
        self, folders: Sequence[Path] = (), files: Sequence[Path] = (), urls: Sequence[str] = ()
    ) -> None:
        """Have tasks done only by workers that see all this, also by those that join later.

        ``folders`` they must be able to write to, ``files`` (or folders) only to read. Raises
        :class:`store.errors.InputErrors` naming everything that a worker of now does not see, and what
        :func:`pipeline.cluster.equipping.probed` raises.
        """
        self._roster.require(self._line, folders, files, urls)

    def ask(self, task: Task) -> Any:
        """Return the result of one task. Raises what it raised, after as many tries as :meth:`perform` makes.

        And :class:`FrostgridError` where the workers died of it.
        """
        from distributed import KilledWorker

        results: list[Any] = []
        faults: list[BaseException] = []
        self._work(
            iter([task]), lambda _, result: results.append(result), lambda _, e: faults.append(e), None
        )
        if faults and isinstance(faults[0], KilledWorker):
            raise FrostgridError(
                f"{task.title}: {_died(faults[0])}",
                where="--scheduler",
                remedy="Give the workers more memory, or views in smaller batches with --batch.",
            )
        if faults:
            raise faults[0]
        return results[0]

    def perform(
        self,
        tasks: Iterable[Task],
        *,
        on_done: OnDone,
        on_failure: OnFailure,
        on_start: OnStart | None = None,
    ) -> None:
        """Have ``tasks`` done, taking them up as workers come free, and hand over each result as it comes.

        Never more than a few a worker are known to the cluster. What was lost with a worker is done by another. A task
        that raises is tried three times in all, one that finds fault with its input or with stored data once; then
        ``on_failure`` hears of it and the others go on. What ``on_done`` or ``on_failure`` raises ends all.
        ``on_start`` hears of tasks that a worker has begun with, not always at once.
        """
        self._work(
            iter(tasks), on_done, lambda task, error: on_failure(task, _failure(task, error)), on_start
        )

    def _work(
        self,
        tasks: Iterator[Task],
        on_done: OnDone,
        on_error: Callable[[Task, BaseException], None],
        on_start: OnStart | None,
    ) -> None:
        ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        pending: dict[str, _Pending] = {}
        line = self._line
        try:
            while True:
                self._look_around(pending, on_start)
                while len(pending) < max(LEAST, AHEAD * self.workers):
                    task = next(tasks, None)
                    if task is None:
                        break
                    self._submit(task, 1, pending, ended)
                if not pending:
                    return
                try:
                    key = ended.get(timeout=LOOK_S)
                except queue.Empty:
                    continue
                one = pending.pop(key)
                if on_start is not None and not one.started:
                    on_start(one.task)
                    one.started = True
                try:
                    error, result = line.outcome(one.future)
                except NotThere:
                    self._follow(one, key, pending, ended)
                    continue
                if error is None:
                    on_done(one.task, result)
                elif one.tries < TRIES and _worth_another_try(error):
                    self._submit(one.task, one.tries + 1, pending, ended)
                else:
                    on_error(one.task, error)
                one.future.release()
        finally:
            if pending:
                line.cancel([one.future for one in pending.values()])
            for future in self._commons.values():
                future.release()
            self._commons.clear()

    def _submit(
        self, task: Task, tries: int, pending: dict[str, _Pending], ended: queue.SimpleQueue[str]
    ) -> None:
        key = f"{task.key}-{self._device or 'any'}" + (f"-again{tries - 1}" if tries > 1 else "")
        common = () if task.common is None else (self._common(task.common),)
        future = self._line.submit(key, self._roster.resources, perform, task.packed(), self._device, *common)
        self._follow(_Pending(task, tries, future), key, pending, ended)

    def _follow(
        self, one: _Pending, key: str, pending: dict[str, _Pending], ended: queue.SimpleQueue[str]
    ) -> None:
        pending[key] = one
        one.future.add_done_callback(lambda _: ended.put(key))

    def _common(self, common: Common) -> Future[Any]:
        """Return a value as the cluster has it: kept by the worker that took it first, until all work is done.

        Others copy it from there; where that worker is lost, the scheduler hands it out again.
        """
        if common.key not in self._commons:
            self._commons[common.key] = self._line.submit(
                common.key, self._roster.resources, unpacked, pickle.dumps(common.value), priority=1
            )
        return self._commons[common.key]

    def _look_around(self, pending: dict[str, _Pending], on_start: OnStart | None) -> None:
        """See which workers there are, and what is under way, every now and then."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._roster.refresh(self._line)
        if on_start is not None and pending:
            for key in self._line.under_way() & pending.keys():
                if not pending[key].started:
                    pending[key].started = True
                    on_start(pending[key].task)
        self._looked = time.monotonic()


def _worth_another_try(error: BaseException) -> bool:
    """Whether another attempt may end otherwise: not where input is at fault, or where workers died of it."""
    from distributed import KilledWorker

    return not isinstance(error, (InputError, VerificationError, KilledWorker))


def _failure(task: Task, error: BaseException) -> Failure:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return Failure(task.title, _died(error))
    return explained(task.title, error)


def _died(error: KilledWorker) -> str:
    why = "each worker that had it died, as happens when memory runs out"
    return f"{why} (the last one: {error.last_worker.address})"
