"""The table of a part: its views in order, kept as columns, because a part may have millions of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from store.rows import ViewRow

MAX_VIEW = 1 << 31


@dataclass(frozen=True)
class RowTable(Sequence[ViewRow]):
    """The rows of a part. ``tiles`` are (content key, name); the columns give a row's tile number, view and pixels."""

    tiles: tuple[tuple[str, str], ...]
    tile: tuple[int, ...]
    view: tuple[int, ...]
    pixels: tuple[str, ...]

    @classmethod
    def of(cls, rows: Iterable[ViewRow]) -> RowTable:
        """Return the table of ``rows`` in their order."""
        tiles: dict[tuple[str, str], int] = {}
        columns = [(tiles.setdefault((row.tile, row.name), len(tiles)), row.view, row.pixels) for row in rows]
        tile, view, pixels = zip(*columns, strict=True) if columns else ((), (), ())
        return cls(tuple(tiles), tile, view, pixels)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON has it."""
        return {
            "tiles": [{"tile": tile, "name": name} for tile, name in self.tiles],
            "tile": list(self.tile),
            "view": list(self.view),
            "pixels": list(self.pixels),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RowTable:
        """Return the table that ``to_json`` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        tiles = tuple((str(entry["tile"]), str(entry["name"])) for entry in value["tiles"])
        table = cls(tiles, tuple(value["tile"]), tuple(value["view"]), tuple(value["pixels"]))
        if not len(table.tile) == len(table.view) == len(table.pixels):
            raise ValueError("the columns are of different lengths")
        for column, kind in ((table.tile, int), (table.view, int), (table.pixels, str)):
            if not set(map(type, column)) <= {kind}:
                raise TypeError(f"a column holds something else than {kind.__name__}")
        for column, limit in ((table.tile, len(tiles)), (table.view, MAX_VIEW)):
            if column and not 0 <= min(column) <= max(column) < limit:
                raise ValueError("a row is of a tile that is not listed, or of a view that cannot be")
        return table

    def __len__(self) -> int:
        return len(self.tile)

    @overload
    def __getitem__(self, at: int) -> ViewRow: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[ViewRow, ...]: ...

    def __getitem__(self, at: int | slice) -> ViewRow | tuple[ViewRow, ...]:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(*at.indices(len(self))))
        tile, name = self.tiles[self.tile[at]]
        return ViewRow(tile, self.view[at], name, self.pixels[at])

    def __iter__(self) -> Iterator[ViewRow]:
        return map(self.__getitem__, range(len(self)))

    def keys(self) -> Iterator[tuple[str, int]]:
        """Return the (tile, view) of every row in order; each equals the row's ``ViewKey`` and is ten times cheaper."""
        tiles = [tile for tile, _ in self.tiles]
        return zip(map(tiles.__getitem__, self.tile), self.view, strict=True)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tile number and the view of every row."""
        return np.array(self.tile, np.int64), np.array(self.view, np.int64)
