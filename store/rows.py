"""What a store holds and how it is addressed: grids of one shape, each the grid of one view of one tile."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from store.int8 import TAIL

Encoding = Literal["exact", "int8"]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class GridSpec:
    """What one view holds: array ``name``, ``shape``, ``dtype`` (float16 or uint8) and a name for each axis.

    Token grids are ``GridSpec("tokens", (d, h, w), "float16", ("d", "h", "w"))``, masks
    ``GridSpec("masks", (H, W), "uint8", ("y", "x"))``. These are the values that are written and read. They are stored
    as they are (``encoding`` "exact"), or float16 grids of two axes or more in the form of :mod:`store.int8`
    ("int8"). Raises ``ValueError`` for anything a store cannot hold.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    encoding: Encoding = "exact"

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
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"a store knows no encoding {self.encoding!r}")
        if self.encoding == "int8" and (self.dtype != "float16" or len(self.shape) < 2):
            raise ValueError(
                f"int8 is made of float16 grids of two axes or more, not {self.dtype} {self.shape}"
            )
        if self.encoding == "int8" and self.dims[0] == "packed":
            raise ValueError("the first axis cannot be called packed in the int8 form")

    @property
    def nbytes(self) -> int:
        """Bytes of one grid as it is read."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one grid as it is stored, before compression: (d, values a channel + 8) in the int8 form."""
        if self.encoding == "exact":
            return self.shape
        return self.shape[0], math.prod(self.shape[1:]) + TAIL

    @property
    def stored_dtype(self) -> str:
        """The dtype of one grid as it is stored."""
        return self.dtype if self.encoding == "exact" else "uint8"

    @property
    def stored_dims(self) -> tuple[str, ...]:
        """The axes of one grid as it is stored."""
        return self.dims if self.encoding == "exact" else (self.dims[0], "packed")

    @property
    def stored_nbytes(self) -> int:
        """Bytes of one grid as it is stored, before compression."""
        return math.prod(self.stored_shape) * np.dtype(self.stored_dtype).itemsize

    @property
    def content(self) -> str:
        """What the stored bytes are, which decides how they are compressed: "float16", "uint8" or "int8"."""
        return self.dtype if self.encoding == "exact" else self.encoding

    def empty(self, *leading: int) -> NDArray[Any]:
        """Return an uninitialised array of shape ``(*leading, *shape)``, for values that are read."""
        return np.empty((*leading, *self.shape), dtype=self.dtype)

    def empty_stored(self, *leading: int) -> NDArray[Any]:
        """Return an uninitialised array of shape ``(*leading, *stored_shape)``, for the stored form."""
        return np.empty((*leading, *self.stored_shape), dtype=self.stored_dtype)

    def to_json(self) -> dict[str, Any]:
        """Return the five fields as JSON has them."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "dims": list(self.dims),
            "encoding": self.encoding,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GridSpec:
        """Return the spec that ``to_json`` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        return cls(
            str(value["name"]),
            tuple(int(side) for side in value["shape"]),
            str(value["dtype"]),
            tuple(str(name) for name in value["dims"]),
            cast(Encoding, str(value["encoding"])),
        )


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
