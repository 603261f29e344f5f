"""What a worker process is to the tasks that run in it, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch

from stages.encoders import usable_device

T = TypeVar("T")
LATE_S = 10.0  # that a network disk may take to show everywhere what was written somewhere


@dataclass
class Here:
    """This worker process.

    ``threads``: how many torch may use, so that all workers of a machine together use no more than its cores.
    ``device``: where the task computes that is under way. ``scratch``: a folder of this process, gone with it.
    ``session``: the command that last made it ready.
    """

    threads: int
    scratch: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    session: str = ""
    _kept: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def kept(self, slot: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` made for ``key``, which stays in its slot until another key is asked of it.

        What was in the slot before is dropped first, so that there is room for the new. What ends being made when
        the worker belongs to another command already does not stay.
        """
        standing = self._kept.get(slot)
        if standing is not None and standing[0] == key:
            found: T = standing[1]
            return found
        del standing
        self.drop(slot)
        session = self.session
        made = make()
        if self.session == session:
            self._kept[slot] = (key, made)
        return made

    def drop(self, *slots: str) -> None:
        """Let go of what is kept in these slots, for the sake of other work that needs the memory."""
        for slot in slots:
            self._kept.pop(slot, None)

    def perform(self, call: Callable[..., T], args: tuple[Any, ...], device: str | None) -> T:
        """Return ``call(*args)``, computed on ``device`` and with the threads that are due, one call at a time."""
        with self._turn:
            self.device = usable_device(device)
            torch.set_num_threads(self.threads)  # it holds for the calling thread only
            return call(*args)


_here: Here | None = None


def here() -> Here:
    """Return this worker process; raises ``RuntimeError`` where it was not made ready."""
    if _here is None:
        raise RuntimeError("this process is no worker that was made ready for frostgrid")
    return _here


def make_ready(threads: int, scratch: Path, session: str) -> None:
    """Make this process one that the tasks of a command can run in.

    What it keeps of another ``session`` goes: since then the files may have changed that it was made from.
    """
    global _here
    if _here is None:
        scratch.mkdir(parents=True, exist_ok=True)
        _here = Here(threads, scratch)
    if _here.session != session:
        _here.drop(*tuple(_here._kept))
    _here.threads, _here.session = threads, session


def seen(look: Callable[[], bool]) -> bool:
    """Return whether something can be seen here, after a while at the latest; see ``LATE_S``."""
    until = time.monotonic() + LATE_S
    while not look():
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
    return True
