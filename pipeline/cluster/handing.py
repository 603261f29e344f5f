"""Handing out the tasks of a piece of work: each worker has one of them at a time, and what one lost another gets.

Which worker gets a task is decided here. dask would take one that has the value that tasks have in common, which at
first is a single one, so that the others would be idle; and it counts the death of a worker against all tasks that were
waiting there.
"""

from __future__ import annotations

import pickle
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.cluster.doubts import Doubt, Doubts
from pipeline.cluster.line import Line, Outcome
from pipeline.cluster.roster import LOOK_S, Roster
from pipeline.cluster.tasks import Common, Task, perform
from store.errors import FrostgridError, InputError, VerificationError

if TYPE_CHECKING:
    from distributed import Future

TRIES = 3
STRANDED_S = 20.0  # for which no worker has a task that is not done; then another gets it

OnDone = Callable[[Task, Any], None]
OnFailure = Callable[[Task, BaseException], None]
OnStart = Callable[[Task], None]
# Of a task its key, its future, what kept its outcome from being known, and that outcome.
_Ended = tuple[str, "Future[Any]", Exception | None, Outcome]


class Died(FrostgridError):
    """Every worker died that had a task, the last one at ``address``; ``title`` says which, where nothing else does."""

    def __init__(self, address: str, option: str, title: str = "") -> None:
        self.address, self.option = address, option
        super().__init__(
            f"{title}each worker that had it died, as happens when memory runs out (the last one: {address})",
            where=option,
            remedy="Give the workers more memory, or less at a time (--batch, --max-memory).",
        )


@dataclass(eq=False)
class _Piece:
    """A task on its way.

    It was ``handed`` out so often, of which so many ``tries`` came to nothing, on the workers ``failed_on``; now it is
    at ``worker``. ``missed``: since when no worker has had it. ``came``: the future whose result has come.
    """

    task: Task
    handed: int = 0
    tries: int = 0
    failed_on: set[str] = field(default_factory=set)
    worker: str = ""
    future: Future[Any] | None = None
    started: bool = False
    seen: bool = False
    missed: float | None = None
    came: Future[Any] | None = None


class Handing:
    """A piece of work for the workers of a ``roster``; for one :meth:`perform`.

    ``device``: where they are to compute. ``on_error`` hears of a task that came to nothing and why: of a
    :class:`Doubt` once it is believed, of :class:`Died`, or of what it raised.
    """

    def __init__(
        self,
        line: Line,
        roster: Roster,
        device: str | None,
        on_done: OnDone,
        on_error: OnFailure,
        on_start: OnStart | None,
    ) -> None:
        self._line, self._roster, self._device = line, roster, device
        self._on_done, self._on_error, self._on_start = on_done, on_error, on_start
        self._pending: dict[str, _Piece] = {}
        self._waiting: list[_Piece] = []  # for a worker that may have them
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._commons: dict[str, Future[Any]] = {}
        self._doubts = Doubts()
        self._load: Counter[str] = Counter()  # tasks of others that a worker has

    def perform(self, tasks: Iterator[Task]) -> None:
        """Have all of them done; see :meth:`pipeline.cluster.crew.Crew.perform`."""
        try:
            self._look_around()
            while self._hand_out(tasks):
                try:
                    ended = self._ended.get(timeout=LOOK_S)
                except queue.Empty:
                    pass
                else:
                    self._take(*ended)
                self._look_around()
        finally:
            if self._pending:
                self._line.cancel([one.future for one in self._pending.values() if one.future is not None])
            for future in self._commons.values():
                future.release()

    def _hand_out(self, tasks: Iterator[Task]) -> bool:
        """Give free workers what there is to do; return whether anything is left."""
        busy = {one.worker for one in self._pending.values()}
        free = [worker for worker in self._roster.ready if worker not in busy]
        for piece in list(self._waiting):
            self._waiting.remove(piece)
            self._place(piece, free)
        # No more is taken from ``tasks`` than can be handed out, and a task if there is no worker at all.
        while free or not (self._pending or self._waiting):
            # A worker on which all fails would else take task after task, which then wait for the others.
            many = len(self._waiting) >= max(1, len(self._roster.ready))
            if many or any(not one.handed for one in self._waiting) or (task := next(tasks, None)) is None:
                break
            self._place(_Piece(task), free)
        return bool(self._pending or self._waiting)

    def _place(self, piece: _Piece, free: list[str]) -> None:
        """Hand a task to the best of the ``free`` workers, which then is none; it waits where there is none for it."""
        if (doubt := self._doubts.believed(piece.task, self._roster.fit)) is not None:
            self._on_error(piece.task, doubt)
            return
        able = {one for one in self._roster.ready if not self._doubts.has(one, piece.task)}
        able = (able - piece.failed_on or able) & set(free)  # one that has not failed is worth waiting for
        if not able:
            self._waiting.append(piece)
            return
        worker = min(sorted(able), key=lambda one: self._load[one])
        free.remove(worker)
        self._submit(piece, worker)

    def _submit(self, piece: _Piece, worker: str) -> None:
        task = piece.task
        again = f"-again{piece.handed}" if piece.handed else ""
        key = f"{task.key}-{self._device or 'any'}{again}"
        common = () if task.common is None else (self._common(task.common),)
        future = self._line.submit(key, perform, task.packed(), self._device, *common, worker=worker)
        piece.handed += 1
        piece.worker, piece.future = worker, future
        piece.seen, piece.missed = False, None
        self._pending[key] = piece

        def fetch() -> None:
            fault: Exception | None = None
            outcome: Outcome = None, None
            try:
                outcome = self._line.outcome(future)
            except Exception as error:
                fault = error
            piece.came = future
            self._ended.put((key, future, fault, outcome))

        # A result may take long to come; meanwhile the other workers want something to do.
        future.add_done_callback(lambda _: Thread(target=fetch, daemon=True).start())

    def _common(self, common: Common) -> Future[Any]:
        """Return a value as the cluster has it: in bytes, which any worker can keep, until all work is done.

        Those that need it copy it from there; where that worker is lost, the scheduler hands it out again.
        """
        if common.key not in self._commons:
            data = pickle.dumps(common.value)
            self._commons[common.key] = self._line.submit(common.key, bytes, data, priority=1)
        return self._commons[common.key]

    def _take(self, key: str, future: Future[Any], fault: Exception | None, outcome: Outcome) -> None:
        """Take what came of a task, unless it was handed to another worker meanwhile."""
        from distributed import KilledWorker

        piece = self._pending.get(key)
        if piece is None or piece.future is not future:
            return
        if fault is not None:
            raise fault
        error, result = outcome
        if not piece.started and self._on_start is not None:
            self._on_start(piece.task)
        piece.started = True
        if isinstance(error, KilledWorker):  # of a scheduler that gives up sooner than we do
            self._lost(key, piece, counts=True)
            self._roster.looked = float("-inf")  # else the next task may be for the one that died
            return
        self._forget(key, piece)
        if error is None:
            self._on_done(piece.task, result)
        elif isinstance(error, Doubt) and error.what in piece.task.reads:
            self._doubts.add(error)
            self._waiting.append(piece)
        else:
            piece.tries += 1
            piece.failed_on.add(piece.worker)
            if isinstance(error, (InputError, VerificationError)) or piece.tries >= TRIES:
                self._on_error(piece.task, error)
            else:
                self._waiting.append(piece)

    def _lost(self, key: str, piece: _Piece, *, counts: bool) -> None:
        """Have a task done elsewhere; where it ``counts``, its worker died with it."""
        self._forget(key, piece)
        piece.tries += counts
        piece.failed_on.add(piece.worker)
        if piece.tries >= TRIES:
            self._on_error(piece.task, Died(piece.worker, self._roster.option))
        else:
            self._waiting.append(piece)

    def _forget(self, key: str, piece: _Piece) -> None:
        del self._pending[key]
        if piece.future is not None:
            piece.future.release()

    def _look_around(self) -> None:
        """See which workers there are, and where our tasks are, every now and then."""
        if time.monotonic() - self._roster.looked < LOOK_S:
            return
        left = self._roster.refresh(self._line, stuck=bool(self._waiting and not self._pending))
        at = self._line.under_way()
        self._load = Counter(worker for key, worker in at.items() if key not in self._pending)
        for key, piece in list(self._pending.items()):
            if piece.came is not piece.future:
                self._follow(key, piece, at.get(key), left)

    def _follow(self, key: str, piece: _Piece, worker: str | None, left: set[str]) -> None:
        """Note which ``worker`` has a task; one that none has is handed out again, at once if it was lost."""
        # It may be at another worker than ours, if somebody else has asked for the task before.
        if worker is not None:
            piece.worker, piece.seen, piece.missed = worker, True, None
            if not piece.started and self._on_start is not None:
                self._on_start(piece.task)
            piece.started = True
        elif piece.worker in left or not self._roster.has(piece.worker):
            self._lost(key, piece, counts=True)
        elif self._coming(piece):
            piece.missed = None
        elif piece.missed is None:
            piece.missed = time.monotonic()
        elif time.monotonic() - piece.missed >= STRANDED_S:
            self._lost(key, piece, counts=piece.seen)

    def _coming(self, piece: _Piece) -> bool:
        """Whether a task is done, or waits for what it has in common with others: then no worker need have it."""
        common = piece.task.common
        waits = common is not None and not self._commons[common.key].done()
        return waits or (piece.future is not None and piece.future.done())
