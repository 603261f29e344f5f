"""Which workers of a cluster may have tasks of a command: those that see what it needs, and are still there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.cluster.equipping import Needs, equip, probed
from pipeline.cluster.line import Line
from pipeline.cluster.machines import Found
from pipeline.console import Talk
from stages.tiles.dataset import raise_all
from store.errors import InputError

LOOK_S = 2.0  # between looks at which workers there are


class Roster:
    """The workers that were made ready, by address, and those that cannot be; ``device``: where they are to compute.

    What needs the scheduler is told by which ``line``, and raises what that raises.
    """

    def __init__(self, device: str | None, talk: Talk) -> None:
        self._device, self._talk = device, talk
        self._needs = Needs(device=device)
        self._probes = ExitStack()
        self._ready: dict[str, Found] = {}
        self._unfit: dict[str, list[str]] = {}
        self._said_waiting = False

    @property
    def ready(self) -> Mapping[str, Found]:
        """The workers that tasks go to, by address."""
        return self._ready

    @property
    def resources(self) -> dict[str, int]:
        """What a task takes of a worker, so that it runs on one of these and on no other."""
        return self._needs.resources

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
        raise_all([InputError(fault, where="--scheduler") for fault in faults], "Nothing was computed.")

    def refresh(self, line: Line) -> None:
        """Make workers ready that have come, and forget those that have gone."""
        workers = line.workers()
        offering = {
            address
            for address, about in workers.items()
            if self.resources.keys() <= about["resources"].keys()
        }
        for gone in self._ready.keys() - offering:
            del self._ready[gone]
        for gone in self._unfit.keys() - workers.keys():
            del self._unfit[gone]
        if new := workers.keys() - self._ready.keys() - self._unfit.keys():
            for fault in self._equip(line, list(new)):
                self._talk.say(f"A worker that has joined gets no tasks: {fault}")
        if not self._ready:
            self._say_waiting()

    def _equip(self, line: Line, addresses: Sequence[str]) -> list[str]:
        faults = line.asked(lambda client: equip(client, addresses, self._needs, self._ready))
        self._unfit |= faults
        return [fault for one in faults.values() for fault in one]

    def _say_waiting(self) -> None:
        if not self._said_waiting:
            self._said_waiting = True
            unfit = "".join(f"\n  - {fault}" for faults in self._unfit.values() for fault in faults)
            but = f"; these cannot do the tasks:{unfit}" if unfit else ""
            self._talk.say(f"waiting for a worker to join the cluster (Ctrl-C ends this){but}")
