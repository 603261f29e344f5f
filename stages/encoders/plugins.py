"""Encoders that installed packages bring along through the entry point group ``frostgrid.encoders``.

For an encoder that is not a timm vision transformer. The entry point's name is the encoder's name; it points to an
object with the two functions of :class:`EncoderFactory`. What they return is checked, since a cache outlives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from stages import plugins as installed
from stages.encoders.base import AskedDtype, Description, Encoder, Fit
from stages.encoders.installed import InstalledEncoder, checked_description
from stages.encoders.table import spelling, spellings
from store.errors import FrostgridError, InputError


class EncoderFactory(Protocol):
    """What an entry point of the group ``frostgrid.encoders`` points to."""

    def describe(self, *, tile_px: int, fit: Fit) -> Description:
        """Say what the encoder is, without its weights."""

    def load(
        self, *, tile_px: int, weights: Path | None, fit: Fit, device: torch.device, dtype: AskedDtype
    ) -> Encoder:
        """Load the encoder, weights and all."""


@dataclass(frozen=True)
class Plugin(installed.Plugin):
    """An installed encoder."""

    group: ClassVar[str] = "frostgrid.encoders"
    kind: ClassVar[str] = "encoder"
    functions: ClassVar[tuple[str, ...]] = ("describe", "load")

    @property
    def takes_a_name(self) -> bool:
        """Whether an encoder of the table has its name."""
        return spelling(self.name) in spellings()

    def describe(self, *, tile_px: int, fit: Fit, input_px: int | None = None) -> Description:
        """Return what the encoder says it is.

        Raises ``InputError`` for a name that is taken or cannot name a folder, a package that cannot be imported, a
        factory that is none or fails, a description that is none, and for ``input_px``, which a factory is not asked.
        """
        if input_px is not None:
            raise InputError(
                f"{self.name} is an installed encoder, and what it resizes views to is for its package to say",
                where="encoders.input_px",
                remedy="Leave it out of encoders.input_px.",
            )
        factory = self._factory()
        said = self.called("describe", lambda: factory.describe(tile_px=tile_px, fit=fit))
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

        return self.called("load", load)

    def _factory(self) -> EncoderFactory:
        if self.takes_a_name:
            raise self.taken("an encoder of the table")
        factory: EncoderFactory = self.imported()
        return factory


@cache
def plugins() -> Mapping[str, Plugin]:
    """Return the installed encoders by :func:`stages.encoders.table.spelling` of their names, those with faults too."""
    return Plugin.installed(spelling)


def plugin_faults() -> list[FrostgridError]:
    """Return what is wrong with installed encoders, as far as their entry points and their descriptions tell."""
    faults: list[FrostgridError] = []
    for plugin in plugins().values():
        try:
            plugin.describe(tile_px=512, fit="resize")
        except FrostgridError as error:
            faults.append(error)
    return faults
