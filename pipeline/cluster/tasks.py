"""A piece of work as it travels to a worker.

A scheduler unpacks what it is handed, and loads the modules of all that is in it. It is handed bytes, therefore, and
functions of this module, which loads nothing: else each scheduler would spend seconds and memory on torch.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Common:
    """A value that many tasks need and that is too large to travel with each: it goes to each worker once.

    ``key`` is equal for equal values, whoever has them.
    """

    key: str
    value: Any


@dataclass(frozen=True)
class Task:
    """One piece of work: ``call(*args)`` on some worker, again on another one if that is lost.

    ``key`` is equal for equal work, whoever asks for it: two people on one scheduler then share its result. ``title``
    is what people call it. ``call`` is a function of a module; ``args`` are values of kilobytes, never arrays. Where
    there is something ``common``, its value goes before them. ``reads`` names what a worker may find fault with by a
    :class:`pipeline.cluster.doubts.Doubt`, in the same words for all tasks that read it.
    """

    key: str
    title: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    common: Common | None = None
    reads: tuple[str, ...] = ()

    def packed(self) -> bytes:
        """Return what travels of it, for :func:`perform`."""
        return pickle.dumps((self.call, self.args))


def perform(packed: bytes, device: str | None, common: bytes | None = None) -> Any:
    """Do a task on this worker, with what it has in common with others; raises what it raises."""
    from pipeline.cluster.here import here

    call, args = pickle.loads(packed)
    if common is not None:  # unpacked once for all of them
        args = (here().kept("common", common, partial(pickle.loads, common)), *args)
    return here().perform(call, args, device)


def digest_of(*texts: str) -> str:
    """Return a few digits that stand for texts in the key of a task."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
