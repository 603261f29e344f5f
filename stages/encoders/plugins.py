"""Encoders that installed packages bring along through the entry point group ``frostgrid.encoders``.

For an encoder that is not a timm vision transformer. The entry point's name is the encoder's name; it points to an
object with the two functions of :class:`EncoderFactory`. What they return is checked, since a cache outlives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final, Protocol, TypeVar

import torch

from stages.encoders.base import AskedDtype, Description, Encoder, Fit
from stages.encoders.installed import InstalledEncoder, checked_description
from stages.encoders.table import spelling, spellings
from store.errors import FrostgridError, InputError

GROUP: Final = "frostgrid.encoders"
_NAME: Final = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
_REPAIR: Final = "Repair or uninstall the package that brings it."

T = TypeVar("T")


class EncoderFactory(Protocol):
    """What an entry point of the group ``frostgrid.encoders`` points to."""

    def describe(self, *, tile_px: int, fit: Fit) -> Description:
        """Say what the encoder is, without its weights."""

    def load(
        self, *, tile_px: int, weights: Path | None, fit: Fit, device: torch.device, dtype: AskedDtype
    ) -> Encoder:
        """Load the encoder, weights and all."""


@dataclass(frozen=True)
class Plugin:
    """An installed encoder that is imported only when it is used; ``entries`` of several packages are a fault."""

    name: str
    entries: tuple[EntryPoint, ...]

    @property
    def where(self) -> str:
        """The objects that its entry points name."""
        return ", ".join(entry.value for entry in self.entries)

    @property
    def takes_a_name(self) -> bool:
        """Whether an encoder of the table has its name."""
        return spelling(self.name) in spellings()

    def describe(self, *, tile_px: int, fit: Fit, input_px: int | None = None) -> Description:
        """Return what the encoder says it is.

        Raises ``InputError`` for a name that is taken or cannot name a folder, a package that cannot be imported, a
        factory that is none or fails, a description that is none, and for ``input_px``, which a factory is not asked.
        """
        self._refuse_input_px(input_px)
        factory = self._factory()
        said = self._called("describe", lambda: factory.describe(tile_px=tile_px, fit=fit))
        return checked_description(said, self.name, tile_px=tile_px, where=self.where)

    def load(
        self,
        *,
        tile_px: int,
        weights: Path | None,
        fit: Fit,
        input_px: int | None,
        device: torch.device,
        dtype: AskedDtype,
    ) -> InstalledEncoder:
        """Return the loaded encoder behind checks of what it gives. Raises ``InputError`` as :meth:`describe` does."""
        about = self.describe(tile_px=tile_px, fit=fit, input_px=input_px)
        if about.float32_only and dtype not in ("auto", "float32"):
            raise InputError(
                f"{self.name} is computed in float32, not in {dtype}",
                where="dtype",
                remedy="Leave the dtype out.",
            )
        factory = self._factory()

        def load() -> InstalledEncoder:
            loaded = factory.load(tile_px=tile_px, weights=weights, fit=fit, device=device, dtype=dtype)
            return InstalledEncoder(loaded, about, dtype, self.where)

        return self._called("load", load)

    def _factory(self) -> EncoderFactory:
        self._refuse_name()
        (entry,) = self.entries
        try:
            factory: EncoderFactory = entry.load()
        except Exception as error:
            raise InputError(
                f"the installed encoder {self.name!r} cannot be imported: {type(error).__name__}: {error}",
                where=self.where,
                remedy=_REPAIR,
            ) from error
        missing = [name for name in ("describe", "load") if not callable(getattr(factory, name, None))]
        if missing:
            raise InputError(
                f"the installed encoder {self.name!r} is no factory of encoders: it has no {' and no '.join(missing)}",
                where=self.where,
                remedy=_REPAIR,
            )
        return factory

    def _called(self, function: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except (FrostgridError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"the installed encoder {self.name!r} failed in {function}: {type(error).__name__}: {error}",
                where=self.where,
                remedy=_REPAIR,
            ) from error

    def _refuse_name(self) -> None:
        if self.takes_a_name:
            what = f"an installed package calls its encoder {self.name!r}, which is an encoder of the table"
        elif len(self.entries) > 1:
            what = f"{len(self.entries)} installed packages call their encoder {self.name!r}"
        elif not _NAME.fullmatch(self.name):
            what = (
                f"an installed package calls its encoder {self.name!r}, which cannot name a folder everywhere"
            )
        else:
            return
        raise InputError(
            what, where=self.where, remedy="Rename its entry point, so that results cannot be confused."
        )

    def _refuse_input_px(self, input_px: int | None) -> None:
        if input_px is not None:
            raise InputError(
                f"{self.name} is an installed encoder, and what it resizes views to is for its package to say",
                where="encoders.input_px",
                remedy="Leave it out of encoders.input_px.",
            )


@cache
def plugins() -> Mapping[str, Plugin]:
    """Return the installed encoders by :func:`stages.encoders.table.spelling` of their names, those with faults too.

    Looked for once: reading the metadata of all installed packages takes a hundredth of a second.
    """
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        found.setdefault(spelling(entry.name), []).append(entry)
    return {name: Plugin(entries[0].name, tuple(entries)) for name, entries in found.items()}


def plugin_faults() -> list[FrostgridError]:
    """Return what is wrong with installed encoders, as far as their entry points and their descriptions tell."""
    faults: list[FrostgridError] = []
    for plugin in plugins().values():
        try:
            plugin.describe(tile_px=512, fit="resize")
        except FrostgridError as error:
            faults.append(error)
    return faults
