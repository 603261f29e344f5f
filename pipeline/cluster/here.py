"""What a worker process is to the tasks that run in it, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch

from stages.encoders import usable_device

T = TypeVar("T")


@dataclass
class Here:
    """This worker process.

    ``threads``: how many torch may use, so that all workers of a machine together use no more than its cores.
    ``device``: where the task computes that is under way. ``scratch``: a folder of this process, gone with it.
    """

    threads: int
    scratch: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _kept: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def kept(self, slot: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` made for ``key``, which stays in its slot until another key is asked of it.

        What was in the slot before is dropped first, so that there is room for the new.
        """
        if slot not in self._kept or self._kept[slot][0] != key:
            self._kept.pop(slot, None)
            self._kept[slot] = (key, make())
        found: T = self._kept[slot][1]
        return found

    def drop(self, *slots: str) -> None:
        """Let go of what is kept in these slots, for the sake of other work that needs the memory."""
        for slot in slots:
            self._kept.pop(slot, None)

    def perform(self, call: Callable[..., T], args: tuple[Any, ...], device: str | None) -> T:
        """Return ``call(*args)``, computed on ``device`` and with the threads that are due, one call at a time."""
        with self._turn:
            self.device = device_here(device)
            torch.set_num_threads(self.threads)  # it holds for the calling thread only
            return call(*args)


_here: Here | None = None


def here() -> Here:
    """Return this worker process; raises ``RuntimeError`` where it was not made ready."""
    if _here is None:
        raise RuntimeError("this process is no worker that was made ready for frostgrid")
    return _here


def make_ready(threads: int, scratch: Path) -> None:
    """Make this process one that tasks can run in; what it keeps already stays."""
    global _here
    if _here is None:
        scratch.mkdir(parents=True, exist_ok=True)
        _here = Here(threads, scratch)
    _here.threads = threads


def device_here(asked: str | None) -> torch.device:
    """Return the device asked for, or a GPU where there is one, else the CPU.

    Raises :class:`store.errors.InputError` for one that this machine has not.
    """
    return usable_device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
