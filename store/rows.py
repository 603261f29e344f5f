"""What a store holds and how it is addressed: grids of one shape, each the grid of one view of one tile."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class GridSpec:
    """What one view holds: array ``name``, ``shape``, ``dtype`` (float16 or uint8) and a name for each axis.

    Token grids are ``GridSpec("tokens", (d, h, w), "float16", ("d", "h", "w"))``, masks
    ``GridSpec("masks", (H, W), "uint8", ("y", "x"))``. Raises ``ValueError`` for anything a store cannot hold.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "uint8"):
            raise ValueError(f"a store holds float16 or uint8 grids, not {self.dtype}")
        if not self.shape or len(self.shape) != len(self.dims) or min(self.shape) < 1:
            raise ValueError(
                f"shape {self.shape} needs one axis or more, none empty, named by dims {self.dims}"
            )
        taken = {"view", "tile", "aug"}
        if not all(_NAME.fullmatch(name) for name in (self.name, *self.dims)) or taken & {
            self.name,
            *self.dims,
        }:
            raise ValueError(f"array name {self.name!r} or axis names {self.dims} cannot be used")

    @property
    def nbytes(self) -> int:
        """Bytes of one decoded grid."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def empty(self, *leading: int) -> NDArray[Any]:
        """Return an uninitialised array of shape ``(*leading, *shape)``."""
        return np.empty((*leading, *self.shape), dtype=self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Return the four fields as JSON has them."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "dims": list(self.dims)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GridSpec:
        """Return the spec that ``to_json`` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        shape = tuple(int(side) for side in value["shape"])
        return cls(str(value["name"]), shape, str(value["dtype"]), tuple(str(name) for name in value["dims"]))


class ViewKey(NamedTuple):
    """One view of one tile: the tile's content key (sha256 hex) and the view's index, 0 = unaugmented."""

    tile: str
    view: int


@dataclass(frozen=True, slots=True)
class ViewRow:
    """One row of a part's table: a view, what people call its tile, and what its grid is made from.

    ``pixels`` is the sha256 of the content the grid is made from, or ``""`` where that is only known afterwards.
    """

    tile: str
    view: int
    name: str
    pixels: str

    @property
    def key(self) -> ViewKey:
        """The key this row answers to."""
        return ViewKey(self.tile, self.view)

    def __str__(self) -> str:
        return f"tile {self.name}, view {self.view}"


@dataclass(frozen=True)
class ShardTask:
    """One shard that is still to be written: its part, its number in it, and its rows in order."""

    part: str
    shard: int
    rows: tuple[ViewRow, ...]


@dataclass(frozen=True)
class StoreStatus:
    """How much of a store is there: parts, views and shards planned and done, bytes of the finished shards."""

    parts: int
    views_planned: int
    views_done: int
    shards_planned: int
    shards_done: int
    bytes: int
