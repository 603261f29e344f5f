"""The workers of a cluster, as a command uses them: what they have to see, and the tasks that they are to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.cluster.handing import Died, Handing, OnDone, OnFailure, OnStart
from pipeline.cluster.line import Line
from pipeline.cluster.roster import Roster
from pipeline.cluster.tasks import Task
from pipeline.console import Talk


class Crew:
    """The workers of a cluster, as long as this process is connected to it.

    Made by :func:`pipeline.cluster.connecting.connected`. ``connect`` is called when something is first asked of them:
    a command that finds nothing to do starts no cluster. ``option`` is what the user has asked for it by. Whatever asks
    the workers raises what that raises, and :class:`store.errors.StorageError` where the scheduler is lost.
    """

    def __init__(self, connect: Callable[[], Line], device: str | None, talk: Talk, option: str) -> None:
        self._connect, self._device = connect, device
        self._roster = Roster(device, talk, option)

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

        And :class:`Died` where the workers died of it.
        """
        results: list[Any] = []
        faults: list[BaseException] = []
        self._handing(
            lambda _, result: results.append(result), lambda _, fault: faults.append(fault), None
        ).perform(iter([task]))
        for fault in faults:
            if isinstance(fault, Died):
                raise Died(fault.address, fault.option, f"{task.title}: ")
            raise fault
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

        The cluster never knows of more of them than it has workers. What was lost with a worker is done by another. A
        task that raises, or whose worker dies, is tried three times in all, by workers on which it has not failed as
        long as there is one; one that finds fault with its input or with stored data once, but for a
        :class:`pipeline.cluster.doubts.Doubt`, which is believed when two workers have it, or the only one. Then
        ``on_failure`` is told the error, and the others go on.
        What ``on_done`` or ``on_failure`` raises ends all. ``on_start`` hears of tasks that a worker has begun with,
        not always at once.
        """
        self._handing(on_done, on_failure, on_start).perform(iter(tasks))

    def _handing(self, on_done: OnDone, on_failure: OnFailure, on_start: OnStart | None) -> Handing:
        return Handing(self._line, self._roster, self._device, on_done, on_failure, on_start)
