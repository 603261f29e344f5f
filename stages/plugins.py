"""What installed packages bring along through entry points: found by name, imported when used, refused with a reason.

The kinds of plug-ins (encoders, decoders) are subclasses of :class:`Plugin`, each with its own group of entry points.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Final, Self, TypeVar

import torch

from store.errors import FrostgridError, InputError

_NAME: Final = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """Something that is imported only when it is used; ``entries`` of several packages under one name are a fault."""

    name: str
    entries: tuple[EntryPoint, ...]

    group: ClassVar[str]  # of entry points
    kind: ClassVar[str]  # what people call it
    functions: ClassVar[tuple[str, ...]]  # that the object which an entry point names has to have

    @classmethod
    def installed(cls, known_as: Callable[[str], str] = str) -> Mapping[str, Self]:
        """Return all of this kind, those with faults too, by what ``known_as`` makes of their names.

        Reading the metadata of all installed packages takes a hundredth of a second.
        """
        found: dict[str, list[EntryPoint]] = {}
        for entry in sorted(entry_points(group=cls.group), key=lambda entry: (entry.name, entry.value)):
            found.setdefault(known_as(entry.name), []).append(entry)
        return {name: cls(entries[0].name, tuple(entries)) for name, entries in found.items()}

    @property
    def where(self) -> str:
        """The objects that its entry points name."""
        return ", ".join(entry.value for entry in self.entries)

    @property
    def source(self) -> str:
        """The package that brings it, with its version: another version may be another thing."""
        packages = (entry.dist for entry in self.entries)
        return ", ".join(f"{package.name} {package.version}" for package in packages if package is not None)

    def taken(self, by: str) -> InputError:
        """Return the error for a name that ``by`` (as people call it) has already."""
        return self._misnamed(f"an installed package calls its {self.kind} {self.name!r}, which is {by}")

    def imported(self) -> Any:
        """Return the object that the entry point names, which has all ``functions``.

        Raises ``InputError`` for a name that several packages use or that cannot name a folder, for a package that
        cannot be imported and for an object that is something else.
        """
        if len(self.entries) > 1:
            raise self._misnamed(
                f"{len(self.entries)} installed packages call their {self.kind} {self.name!r}"
            )
        if not _NAME.fullmatch(self.name):
            raise self._misnamed(
                f"an installed package calls its {self.kind} {self.name!r}, which cannot name a folder everywhere"
            )
        try:
            found = self.entries[0].load()
        except Exception as error:
            raise self.fault(f"cannot be imported: {type(error).__name__}: {error}") from error
        missing = [name for name in self.functions if not callable(getattr(found, name, None))]
        if missing:
            raise self.fault(f"has no function {' and no function '.join(missing)}")
        return found

    def called(self, doing: str, call: Callable[[], T]) -> T:
        """Return what ``call`` returns. What the package raises in ``doing`` is an ``InputError`` that names it.

        Our own errors, and a lack of memory, pass through.
        """
        try:
            return call()
        except (FrostgridError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise self.fault(f"failed in {doing}: {type(error).__name__}: {error}") from error

    def fault(self, what: str) -> InputError:
        """Return the error for what is wrong with it, a phrase that goes on after its name."""
        return InputError(
            f"the installed {self.kind} {self.name!r} {what}",
            where=self.where,
            remedy="Repair or uninstall the package that brings it; README.md says what is asked of it.",
        )

    def _misnamed(self, what: str) -> InputError:
        return InputError(
            what, where=self.where, remedy="Rename its entry point, so that results cannot be confused."
        )
