"""The options of a decoder: their types, limits and defaults, so that a wrong value is refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``; a ``default`` of None stands for "left to the decoder"."""

    default: int | None
    low: int = 1
    high: int = 4096

    def takes(self, value: object) -> bool:
        """Return whether ``value`` can be given."""
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Choice:
    """One of the names ``known``."""

    default: str
    known: tuple[str, ...]

    def takes(self, value: object) -> bool:
        """Return whether ``value`` can be given."""
        return value in self.known

    def __str__(self) -> str:
        return f"one of {', '.join(self.known)}"


Option = Whole | Choice


def defaults(options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the value of each option that is not given."""
    return {name: option.default for name, option in options.items()}
