"""Rules that turn the tensor names of a published file into timm's; one rule serves many encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from stages.encoders.checkpoint import StateDict


def identity(state: StateDict) -> StateDict:
    """Return the tensors as they are: the file is written in timm's names."""
    return state


KEY_MAPS: Final[Mapping[str, Callable[[StateDict], StateDict]]] = {"identity": identity}
