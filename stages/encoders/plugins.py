"""Encoders that installed packages bring along through the entry point group ``frostgrid.encoders``.

For an encoder that is not a timm vision transformer. The entry point's name is the encoder's name; it points to an
object with the two functions of :class:`EncoderFactory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final, Protocol

import torch

from stages.encoders.base import AskedDtype, Description, Encoder, Fit
from stages.encoders.table import spelling, spellings
from store.errors import InputError

GROUP: Final = "frostgrid.encoders"


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
    """An installed encoder that is imported only when it is used."""

    name: str
    entry: EntryPoint

    def factory(self) -> EncoderFactory:
        """Import the package that brings the encoder. Raises ``InputError`` where that fails."""
        try:
            factory: EncoderFactory = self.entry.load()
        except Exception as error:
            raise InputError(
                f"the installed encoder {self.name!r} cannot be imported: {type(error).__name__}: {error}",
                where=self.entry.value,
                remedy="Repair or uninstall the package that brings it.",
            ) from error
        return factory


def plugins() -> dict[str, Plugin]:
    """Return the installed encoders by name. Raises ``InputError`` for one that takes a name of the table."""
    found = {entry.name: Plugin(entry.name, entry) for entry in entry_points(group=GROUP)}
    for name in (name for name in found if spelling(name) in spellings()):
        raise InputError(
            f"an installed package calls its encoder {name!r}, which is an encoder of the table",
            where=found[name].entry.value,
            remedy="Rename its entry point, so that results cannot be confused.",
        )
    return found
