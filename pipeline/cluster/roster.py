"""Which workers of a cluster may have tasks of a command: those that see what it needs, and are still there."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipeline.cluster.equipping import ANSWER_S, Needs, Unfit, equip, probed
from pipeline.cluster.line import RESOURCE, Line
from pipeline.cluster.machines import Found
from pipeline.console import Talk
from stages.tiles.dataset import raise_all
from store.errors import FrostgridError, InputError

LOOK_S = 2.0  # between looks at which workers there are
BRIEF_S = 20.0  # that one which joins may take to answer, while others wait for tasks
GONE_S = 600.0  # in which a worker that has died is started again, if ever


class Roster:
    """The workers that were made ready, by address, and those that cannot be; ``device``: where they are to compute.

    ``option`` is what the user has asked for the cluster by. ``looked``: when :meth:`refresh` last did, by the
    monotonic clock. What needs the scheduler is told by which ``line``, and raises what that raises.
    """

    def __init__(self, device: str | None, talk: Talk, option: str) -> None:
        self.option, self.looked = option, float("-inf")
        self._device, self._talk = device, talk
        self._needs = Needs(device=device)
        self._probes = ExitStack()
        self._there: Collection[str] = ()
        self._paused: set[str] = set()
        self._ready: dict[str, Found] = {}
        self._unfit: dict[str, Unfit] = {}
        self._said: set[str] = set()
        self._said_waiting = False
        self._none_since = float("inf")

    @property
    def ready(self) -> Mapping[str, Found]:
        """The workers that tasks can go to now, by address: a paused one, whose memory is full, ends what it has."""
        return {address: one for address, one in self._ready.items() if address not in self._paused}

    @property
    def fit(self) -> Collection[str]:
        """The addresses of those and of the paused ones."""
        return self._ready.keys()

    def has(self, worker: str) -> bool:
        """Whether the scheduler had the worker of this address at the last look, ready for us or not."""
        return worker in self._there

    def close(self) -> None:
        """Remove what this process has left for the workers to see."""
        self._probes.close()

    def require(
        self, line: Line, folders: Sequence[Path], files: Sequence[Path], urls: Sequence[str]
    ) -> None:
        """See :meth:`pipeline.cluster.crew.Crew.require`."""
        self._probes.close()
        self._needs = self._probes.enter_context(probed(folders, files, urls, self._device))
        self._ready.clear()
        self._unfit.clear()
        while not (workers := line.workers()):
            self._say_waiting()
            time.sleep(LOOK_S)
        faults = self._equip(line, list(workers))
        raise_all([InputError(fault, where=self.option) for fault in faults], "Nothing was computed.")

    def refresh(self, line: Line, *, stuck: bool = False) -> set[str]:
        """Make workers ready that have come, and forget those that have gone, of which it returns the addresses.

        Where there is none for the tasks that are left, or where there is but they are ``stuck`` all the same, that is
        said.

        One that was started again at the same address has gone and come. Raises :class:`FrostgridError` where none is
        left of those that the command has started.
        """
        workers = line.workers()
        self._refuse_none(bool(workers))
        offering = {address for address, about in workers.items() if RESOURCE in about["resources"]}
        left = self._ready.keys() - offering
        for gone in left:
            del self._ready[gone]
        for address, unfit in list(self._unfit.items()):
            room = left and unfit.crowded  # there may be some for it now
            if room or address not in workers or time.monotonic() >= unfit.until:
                del self._unfit[address]
        if new := workers.keys() - self._ready.keys() - self._unfit.keys():
            for fault in self._equip(line, list(new), BRIEF_S):
                if fault not in self._said:
                    self._talk.say(f"A worker that has joined gets no tasks: {fault}")
                self._said.add(fault)
        self._paused = {address for address, about in workers.items() if about["status"] != "running"}
        if stuck or not self.ready:
            self._say_waiting()
        else:
            self._said_waiting = False
        self._there, self.looked = workers.keys(), time.monotonic()
        return left

    def _refuse_none(self, some: bool) -> None:
        """Raise :class:`FrostgridError` where the workers of the command's own cluster are gone for good."""
        if some or self.option != "--workers":
            self._none_since = float("inf")
            return
        self._none_since = min(self._none_since, time.monotonic())
        if time.monotonic() - self._none_since >= GONE_S:
            raise FrostgridError(
                f"All workers have died, and none has started again for {GONE_S / 60:.0f} minutes",
                where=self.option,
                remedy="What is finished is kept. Run the same command again, with fewer workers or more memory.",
            )

    def _equip(self, line: Line, addresses: Sequence[str], patience: float = ANSWER_S) -> list[str]:
        needs = replace(self._needs, patience=patience)
        unfit = line.asked(lambda client: equip(client, addresses, needs, self._ready))
        self._unfit |= unfit
        return [fault for one in unfit.values() for fault in one.faults]

    def _say_waiting(self) -> None:
        if not self._said_waiting:
            self._said_waiting = True
            unfit = "".join(f"\n  - {fault}" for one in self._unfit.values() for fault in one.faults)
            but = f"; these cannot do the tasks:{unfit}" if unfit else ""
            if paused := sorted(self._ready.keys() & self._paused):
                but += f"; dask has paused these, as it does when memory is full: {', '.join(paused)}"
            self._talk.say(f"waiting for a worker that can do the tasks (Ctrl-C ends this){but}")
