"""The workers of a cluster, and handing tasks to them: few at a time, again where one was lost, until all are done."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.cluster.equipping import Found, Needs, equip, probed
from pipeline.cluster.here import here
from pipeline.cluster.tasks import Common, Task
from pipeline.console import Talk
from pipeline.parallel import explained
from pipeline.runs import Failure
from stages.tiles.dataset import raise_all
from store.errors import FrostgridError, InputError, StorageError, VerificationError

if TYPE_CHECKING:
    from distributed import Client, Future, KilledWorker

TRIES = 3
AHEAD = 1  # tasks a worker that are pending; one that waits behind another would count as killed with it
LEAST = 1
LOOK_S = 2.0  # between looks at which workers there are
FETCH_S = 60.0  # for a result to come from its worker; then it may have been lost, and be made again

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

    Made by :func:`pipeline.cluster.connecting.connected`.
    """

    def __init__(self, client: Client, device: str | None, talk: Talk) -> None:
        self._client, self._device, self._talk = client, device, talk
        self._needs = Needs(device=device)
        self._ready: dict[str, Found] = {}
        self._unfit: dict[str, list[str]] = {}
        self._looked = 0.0
        self._said_waiting = False
        self._cluster: str | None = None
        self._probes = ExitStack()
        self._commons: dict[str, Future[Any]] = {}

    @property
    def workers(self) -> int:
        """How many workers there are that can do our tasks; they may come and go."""
        return len(self._ready)

    @property
    def cluster(self) -> str:
        """Which cluster this is: a scheduler that is started anew, at the same address, makes another one."""
        if self._cluster is None:
            self._cluster = str(self._identity()["id"])
        return self._cluster

    def has(self, worker: str) -> bool:
        """Whether the worker of this address belongs to the cluster now; not if the scheduler has lost it."""
        return worker in self._workers()

    def close(self) -> None:
        """Remove what this process has left for the workers to see."""
        self._probes.close()

    def require(
        self, folders: Sequence[Path] = (), files: Sequence[Path] = (), urls: Sequence[str] = ()
    ) -> None:
        """Have tasks done only by workers that see all this, also by those that join later.

        ``folders`` they must be able to write to, ``files`` (or folders) only to read. Raises
        :class:`store.errors.InputErrors` naming everything that a worker of now does not see, and what
        :func:`pipeline.cluster.equipping.probed` raises.
        """
        self._probes.close()
        self._needs = self._probes.enter_context(probed(folders, files, urls, self._device))
        self._ready.clear()
        self._unfit.clear()
        self._await_workers()
        faults = self._equip(list(self._workers()))
        raise_all([InputError(fault, where="--scheduler") for fault in faults], "Nothing was computed.")

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

        Raises :class:`StorageError` where the scheduler is gone.
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
                    error, result = self._outcome(one.future)
                except _NotThere:
                    self._follow(one, key, pending, ended)
                    continue
                if error is None:
                    on_done(one.task, result)
                elif one.tries < TRIES and _worth_another_try(error):
                    one.future.release()
                    self._submit(one.task, one.tries + 1, pending, ended)
                else:
                    on_error(one.task, error)
                one.future.release()
        finally:
            with suppress(Exception):  # of a cluster that is gone
                for one in pending.values():
                    one.future.cancel()  # unless somebody else has asked for the same
                for future in self._commons.values():
                    future.release()
            self._commons.clear()

    def _submit(
        self, task: Task, tries: int, pending: dict[str, _Pending], ended: queue.SimpleQueue[str]
    ) -> None:
        key = f"frostgrid-{task.key}-{self._device or 'any'}" + (f"-again{tries - 1}" if tries > 1 else "")
        common = () if task.common is None else (self._common(task.common),)
        future: Future[Any] = self._asked(
            lambda: self._client.submit(
                _on_worker,
                replace(task, common=None),
                self._device,
                *common,
                key=key,
                resources=self._needs.resources,
                pure=False,
            )
        )
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
            self._commons[common.key] = self._asked(
                lambda: self._client.submit(
                    _itself,
                    common.value,
                    key=f"frostgrid-{common.key}",
                    resources=self._needs.resources,
                    priority=1,
                    pure=False,
                )
            )
        return self._commons[common.key]

    def _outcome(self, future: Future[Any]) -> tuple[BaseException | None, Any]:
        """Return what a task raised, or None and its result; raises ``_NotThere`` where that was lost meanwhile."""
        if future.cancelled():
            self._refuse_lost()
        try:
            return None, future.result(timeout=FETCH_S)
        except CancelledError:
            self._refuse_lost()
        except Exception as error:
            if future.status == "error":
                return error, None
            if isinstance(error, TimeoutError):
                raise _NotThere from None
            if isinstance(error, OSError) or self._left():
                self._refuse_lost()
            raise

    def _look_around(self, pending: dict[str, _Pending], on_start: OnStart | None) -> None:
        """Make workers ready that have come, forget those that have gone, and see what is under way."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        workers = self._workers()
        addresses, wanted = workers.keys(), self._needs.resources.keys()
        offering = {address for address, about in workers.items() if wanted <= about["resources"].keys()}
        for gone in self._ready.keys() - offering:
            del self._ready[gone]
        for gone in self._unfit.keys() - addresses:
            del self._unfit[gone]
        if new := addresses - self._ready.keys() - self._unfit.keys():
            for fault in self._equip(list(new)):
                self._talk.say(f"A worker that has joined gets no tasks: {fault}")
        if not self._ready:
            self._say_waiting()
        if on_start is not None and pending:
            for key in {key for keys in self._asked(self._client.processing).values() for key in keys}:
                if key in pending and not pending[key].started:
                    pending[key].started = True
                    on_start(pending[key].task)
        self._looked = time.monotonic()

    def _equip(self, addresses: list[str]) -> list[str]:
        faults = self._asked(lambda: equip(self._client, addresses, self._needs, self._ready))
        self._unfit |= faults
        return [fault for one in faults.values() for fault in one]

    def _workers(self) -> dict[str, Any]:
        """Return what the scheduler says of each worker there is, by address."""
        found: dict[str, Any] = self._identity()["workers"]
        return found

    def _identity(self) -> dict[str, Any]:
        """Return what the scheduler says of itself and of its workers now.

        dask's ``scheduler_info`` would do, but answers with what it knew before, or with nothing, where it hears none.
        """
        found: dict[str, Any] = self._asked(
            lambda: self._client.sync(self._scheduler().identity, n_workers=-1)
        )
        return found

    def _scheduler(self) -> Any:
        if self._client.scheduler is None:
            self._refuse_lost()
        return self._client.scheduler

    def _await_workers(self) -> None:
        while not self._workers():
            self._say_waiting()
            time.sleep(LOOK_S)

    def _say_waiting(self) -> None:
        if not self._said_waiting:
            self._said_waiting = True
            unfit = "".join(f"\n  - {fault}" for faults in self._unfit.values() for fault in faults)
            but = f"; these cannot do the tasks:{unfit}" if unfit else ""
            self._talk.say(f"waiting for a worker to join the cluster (Ctrl-C ends this){but}")

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Return what the scheduler answers."""
        if self._left():
            self._refuse_lost()
        try:
            return question()
        except (OSError, TimeoutError, CancelledError):
            self._refuse_lost()
        except Exception:
            if self._left():  # meanwhile: what it then raises is of any kind
                self._refuse_lost()
            raise

    def _left(self) -> bool:
        """Whether the scheduler is lost: should the client find it again, it has forgotten our tasks all the same."""
        return self._client.scheduler is None or self._client.status != "running"

    def _refuse_lost(self) -> NoReturn:
        raise StorageError(
            "The scheduler of the cluster is gone",
            where=self._client.scheduler.address if self._client.scheduler else "--scheduler",
            remedy="What is finished is kept. Start it again, and run the same command again to go on.",
        ) from None


class _NotThere(Exception):
    """The result of a task that was done cannot be had; it may have been lost with its worker."""


def _on_worker(task: Task, device: str | None, *common: Any) -> Any:
    return here().perform(task.call, (*common, *task.args), device)


def _itself(value: Any) -> Any:
    return value


def _worth_another_try(error: BaseException) -> bool:
    """Whether another attempt may end otherwise: not where input is at fault, or where workers died of it."""
    from distributed import KilledWorker

    return not isinstance(error, (InputError, VerificationError, KilledWorker))


def _failure(task: Task, error: BaseException) -> Failure:
    from distributed import KilledWorker

    return (
        Failure(task.title, _died(error)) if isinstance(error, KilledWorker) else explained(task.title, error)
    )


def _died(error: KilledWorker) -> str:
    why = "each worker that had it died, as happens when memory runs out"
    return f"{why} (the last one: {error.last_worker.address})"
