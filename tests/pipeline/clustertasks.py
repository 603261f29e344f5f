"""What the tests have workers do; a module of its own, so that workers can import it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from uuid import uuid4

import torch

from pipeline.cluster.here import here
from store.errors import InputError, StorageError


def nothing(_number: int) -> None:
    """Do nothing."""


def note(folder: Path, name: str, seconds: float = 0.0) -> str:
    """Leave a line that says who did ``name``, before and after taking ``seconds``; return ``name``."""
    with (folder / f"{os.getpid()}.log").open("a") as file:
        file.write(f"begin {name}\n")
        file.flush()
        time.sleep(seconds)
        file.write(f"end {name}\n")
    return name


def fail(folder: Path, name: str, kind: str) -> None:
    """Leave a line and raise."""
    note(folder, name)
    if kind == "input":
        raise InputError("The image is empty", where="a.png", remedy="Remove it.")
    if kind == "storage":
        raise StorageError("The disk is full", where="/data", remedy="Free some space.")
    raise ZeroDivisionError("by zero")


def die(folder: Path, name: str) -> None:
    """Leave a line and end the process."""
    note(folder, name)
    os.kill(os.getpid(), 9)


def around() -> tuple[int, int, str, bool]:
    """Return the threads here, those of torch, the device and whether there is a scratch folder."""
    return here().threads, torch.get_num_threads(), str(here().device), here().scratch.is_dir()


def kept(key: str) -> tuple[int, str]:
    """Return the process and what it keeps for ``key``, another text whenever it is made anew."""
    return os.getpid(), here().kept("slot", key, lambda: uuid4().hex)
