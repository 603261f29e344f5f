"""How people name an encoder: ``name``, an alias of it, ``name@LAYER``, or a TOML file of their own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from stages.encoders.plugins import Plugin, plugins
from stages.encoders.table import EncoderRow, TimmRow, read_row, spelling, spellings, table
from store.errors import InputError


@dataclass(frozen=True)
class Reference:
    """An encoder and the block (1-based) whose final-normed output is its token grid; None where it has no blocks."""

    encoder: EncoderRow | Plugin
    layer: int | None

    @property
    def canonical(self) -> str:
        """The one name of this choice: the bare name for the encoder's default block, else ``name@layer``."""
        encoder = self.encoder
        if isinstance(encoder, TimmRow) and self.layer != encoder.default_layer:
            return f"{encoder.name}@{self.layer}"
        return encoder.name


def known_encoders() -> tuple[str, ...]:
    """Return the names of all encoders: the table's in its order, then those of installed plug-ins."""
    return (*table(), *(plugin.name for plugin in plugins().values() if not plugin.takes_a_name))


def parse_reference(text: str) -> Reference:
    """Return the encoder that ``text`` names.

    ``name`` is a row of the table or an alias of one, an installed plug-in (case, and ``_`` for ``-``, do not matter),
    or a path that ends in ``.toml``; ``@LAYER`` may follow.
    Raises ``InputError`` for an unknown name (naming the nearest known), a layer that is not a whole number or that
    the encoder does not have, and whatever is wrong with the TOML file.
    """
    name, at, layer = text.rpartition("@")
    if not at or layer.endswith(".toml"):
        name, at, layer = text, "", ""
    encoder = _find(name)
    if not at:
        return Reference(encoder, encoder.default_layer if isinstance(encoder, TimmRow) else None)
    if not isinstance(encoder, TimmRow):
        raise InputError(
            f"{encoder.name!r} has no blocks to choose from",
            where=text,
            remedy=f"Write {name!r} without @{layer}.",
        )
    if not (layer.isascii() and layer.isdigit() and 1 <= int(layer) <= encoder.depth):
        raise InputError(
            f"{encoder.name!r} has no block {layer!r}",
            where=text,
            remedy=f"Write {name}@LAYER with a LAYER from 1 to {encoder.depth}, or {name!r} alone.",
        )
    return Reference(encoder, int(layer))


def _find(name: str) -> EncoderRow | Plugin:
    if name.endswith(".toml"):
        return read_row(Path(name))
    installed = plugins()
    # one that takes a name of the table comes first, to be refused as soon as it is asked anything
    plugin = installed.get(spelling(name))
    if plugin is not None:
        return plugin
    listed = spellings().get(spelling(name))
    if listed is not None:
        return table()[listed]
    near = difflib.get_close_matches(spelling(name), [*spellings(), *installed], n=3, cutoff=0.5)
    meant = dict.fromkeys(spellings().get(guess, guess) for guess in near)
    hint = f"Did you mean {' or '.join(meant)}? " if meant else ""
    raise InputError(
        f"no encoder is called {name!r}",
        where="encoder",
        remedy=f"{hint}Known: {', '.join(known_encoders())}; or the path of a .toml file.",
    )
