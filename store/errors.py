"""The errors a person may meet: what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class FrostgridError(Exception):
    """Base of every error that is explained to the user instead of traced.

    ``what`` is a sentence without its full stop, ``where`` the file, folder or field concerned, ``remedy`` the
    next step as a sentence. ``exit_status`` is the status of the command that ends with this error.
    """

    exit_status: int = 1

    def __init__(self, what: str, *, where: str | Path | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        place = "" if where is None else f" [{where}]"
        super().__init__(f"{what}{place}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by its arguments, as exceptions are: its text is made of others than it keeps.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[FrostgridError], args: tuple[Any, ...], state: dict[str, Any]) -> FrostgridError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InputError(FrostgridError):
    """Something given by the user (a study, an image, an option) cannot be used."""

    exit_status = 2


class InputErrors(InputError):
    """Several faults of the input, all found before any of them stopped the work."""

    def __init__(self, faults: Sequence[InputError], *, remedy: str) -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''} in the input"
        super().__init__(count, remedy=remedy)
        self.args = ("\n".join([f"{count}:", *(f"  - {fault}" for fault in self.faults), remedy]),)


class IdentityMismatch(InputError):
    """Stored features were made from something else than what is asked for."""


class NoCache(InputError):
    """There is no such cache."""


class OtherCache(IdentityMismatch, NoCache):
    """There is no such cache; the message tells what the nearest one differs in."""


class AccessError(FrostgridError):
    """A file, model or service exists but may not be read with the rights at hand."""

    exit_status = 3


class VerificationError(FrostgridError):
    """Stored data is damaged or incomplete."""

    exit_status = 4


class MissingViews(VerificationError):
    """Grids that are asked for were never written, or not completely."""


class DamagedGrid(VerificationError):
    """A grid was written once and is no longer what was written."""


class StorageError(FrostgridError):
    """The disk is full, read-only or failing."""


class ImpossiblePath(StorageError):
    """Nothing can be written under the path that was given, however good the disk is."""

    exit_status = 2
