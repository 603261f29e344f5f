"""What the tests have workers do; a module of its own, so that workers can import it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from distributed import get_worker

from pipeline.cluster import here as worker
from pipeline.cluster.doubts import Doubt
from pipeline.cluster.here import here
from store.errors import InputError, StorageError


def dask_setup(_worker: object) -> None:
    """Let a worker that loads this module at its start be quick to find that it does not see a file.

    And let it have a single core where there is ``ONE_CORE`` in its environment.
    """
    worker.LATE_S = 1.0
    if "ONE_CORE" in os.environ:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def nothing() -> None:
    """Do nothing."""


def same(value: object) -> object:
    """Return what it is given."""
    return value


def note(folder: Path, name: str, seconds: float = 0.0) -> str:
    """Leave a line that says who did ``name``, before and after taking ``seconds``; return ``name``."""
    return _between(folder, name, lambda: time.sleep(seconds))


def held(folder: Path, name: str) -> str:
    """As ``note``, but take until there is a file ``go``."""

    def wait() -> None:
        while not (folder / "go").exists():
            time.sleep(0.02)

    return _between(folder, name, wait)


def _between(folder: Path, name: str, work: Callable[[], None]) -> str:
    with (folder / f"{os.getpid()}.log").open("a") as file:
        file.write(f"begin {name}\n")
        file.flush()
        work()
        file.write(f"end {name}\n")
    return name


def fail(folder: Path, name: str, kind: str) -> None:
    """Leave a line and raise."""
    note(folder, name)
    if kind == "input":
        raise InputError("The image is empty", where="a.png", remedy="Remove it.")
    if kind == "storage":
        raise StorageError("The disk is full", where="/data", remedy="Free some space.")
    if kind == "timeout":
        raise TimeoutError("nobody answers")  # of somebody else, not of the scheduler
    raise ZeroDivisionError("by zero")


def die(folder: Path, name: str) -> None:
    """Leave a line and end the process."""
    note(folder, name)
    os.kill(os.getpid(), 9)


def die_once(folder: Path, name: str) -> str:
    """End the process in the middle of the task, but let another one do it."""
    died = folder / f"{name}.died"
    if not died.exists():
        died.touch()
        die(folder, name)
    return note(folder, name)


def around() -> tuple[int, int, str, bool]:
    """Return the threads here, those of torch, the device and whether there is a scratch folder."""
    return here().threads, torch.get_num_threads(), str(here().device), here().scratch.is_dir()


def kept(key: str) -> tuple[int, str]:
    """Return the process and what it keeps for ``key``, another text whenever it is made anew."""
    return os.getpid(), here().kept("slot", key, lambda: uuid4().hex)


def doubt(folder: Path, name: str, sick: int) -> str:
    """As ``note``, but the first ``sick`` workers that come find fault with the shelf each time.

    Where there are several, others take their time: then these are heard first.
    """
    if _is_sick(folder, sick):
        note(folder, name)
        raise Doubt("shelf", InputError("The shelf is empty", where="shelf"), get_worker().address)
    return note(folder, name, 2.0 if sick > 1 else 0)


def sick(folder: Path, name: str) -> str:
    """As ``note`` for half a second, but the first worker that comes raises each time, at once."""
    if _is_sick(folder, 1):
        note(folder, name)
        raise StorageError("The disk is full", where="/scratch")
    return note(folder, name, 0.5)


def _is_sick(folder: Path, sick: int) -> bool:
    for number in range(sick):
        claim = folder / f"{number}.sick"
        with suppress(FileExistsError):
            claim.touch(exist_ok=False)
            _mine.add(claim)
        if claim in _mine:
            return True
    return False


_mine: set[Path] = set()
