"""A piece of work as it travels to a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    there is something ``common``, its value goes before them.
    """

    key: str
    title: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    common: Common | None = None
