"""Whose weights a file holds: encoders of one architecture accept each other's, and only a cache can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.console import Talk
from stages.encoders import Identified
from store import GridStore
from store.errors import InputError


def weights_text(encoder: Identified) -> str:
    """Return the name of an encoder's weights file and the beginning of its sha256, after a comma."""
    file, digest = encoder.provenance.get("weights_file"), encoder.identity.get("weights")
    return f", {file or 'weights'} {str(digest)[:12]}" if digest else ""


def refuse_borrowed(root: Path, encoder: Identified, talk: Talk) -> None:
    """Raise :class:`InputError` if a cache in ``root`` was made from this encoder's weights by another encoder.

    Says so where one of the same encoder was made from others, so that a second cache is no surprise.
    """
    digest = encoder.identity.get("weights")
    if digest is None:
        return
    name = encoder.identity.get("encoder")
    others = set()
    for folder, made in _makers(root):
        if made.get("weights") == digest and made.get("encoder") != name:
            raise InputError(
                f"{encoder.provenance.get('weights_file', 'the weights file')} (sha256 {str(digest)[:12]}), given for "
                f"{name}, are the weights that a cache of {made.get('encoder')} was made from: the two have one "
                "architecture, and each takes the other's file",
                where=folder,
                remedy=f"Give {name} its own weights. If they were {name}'s all along, remove that cache; if both are "
                "meant to have them, give one of them a folder of its own with --cache.",
            )
        if made.get("weights") != digest and _alike(made, encoder.identity):
            others.add(str(made.get("weights"))[:12])
    if others:
        talk.say(
            f"{encoder.name}: there are tokens of other weights, {' and '.join(sorted(others))}; those of "
            f"{str(digest)[:12]} make a cache of their own"
        )


def _makers(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield every readable feature cache in a folder, with the identity of the encoder that made it."""
    for store in GridStore.under(root)[0]:  # of the others frostgrid cache verify tells
        made = store.identity.get("encoder")
        if isinstance(made, Mapping):
            yield store.path, made


def _alike(made: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether two encoders differ in nothing but their weights."""
    return {**made, "weights": None} == {**identity, "weights": None}
