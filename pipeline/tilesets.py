"""The tiles that runs of stage two need of one feature cache; each run names its own by their positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.tiling import Tile
from stages.training.data import Rows
from store import ViewKey
from store.identity import fingerprint

Positions = range | NDArray[np.int32]
Selection = Mapping[str, tuple[Positions, int]]
"""By split: the positions of its tiles in a :class:`TileSet`, and how many views of each."""


@dataclass(frozen=True)
class TileSet:
    """Tiles without their pixels: name, key, key of the mask, and the number of views, of which the first count.

    Their views have rows: those of the first tile, those of the second and so on. A hundred bytes a tile when sent.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    mask_keys: tuple[str, ...]
    views: tuple[int, ...]

    @classmethod
    def of(cls, wanted: Iterable[tuple[Sequence[Tile], int]]) -> TileSet:
        """Return the tiles of all that is ``wanted``, tiles and views of each; a tile has as many as any asks for."""
        tiles: dict[str, Tile] = {}
        views: dict[str, int] = {}
        for some, number in wanted:
            for tile in some:
                tiles.setdefault(tile.mask_key, tile)
                views[tile.mask_key] = max(number, views.get(tile.mask_key, 0))
        return cls(
            tuple(tile.name for tile in tiles.values()),
            tuple(tile.key for tile in tiles.values()),
            tuple(tiles),
            tuple(views.values()),
        )

    @cached_property
    def key(self) -> str:
        """The fingerprint of all this."""
        return fingerprint([self.names, self.keys, self.mask_keys, self.views])

    @property
    def total(self) -> int:
        """How many views there are."""
        return sum(self.views)

    @property
    def view_keys(self) -> tuple[ViewKey, ...]:
        """Where the token grid of each view is kept, by row."""
        return self._views(self.keys)

    @property
    def mask_view_keys(self) -> tuple[ViewKey, ...]:
        """Where the mask of each view is kept, by row."""
        return self._views(self.mask_keys)

    @property
    def row_names(self) -> tuple[str, ...]:
        """What people call the tile of each view, by row."""
        named = zip(self.names, self.views, strict=True)
        return tuple(name for name, number in named for _ in range(number))

    def positions(self, tiles: Sequence[Tile]) -> Positions:
        """Return where ``tiles``, which are among these, stand: as a range where that is side by side."""
        found = [self._position[tile.mask_key] for tile in tiles]
        if found and found == list(range(found[0], found[0] + len(found))):
            return range(found[0], found[0] + len(found))
        return np.array(found, dtype=np.int32)

    def rows(self, positions: Positions, views: int) -> Rows:
        """Return the rows (tiles, views) of the first ``views`` views of tiles."""
        starts = np.cumsum([0, *self.views], dtype=np.intp)
        found: Rows = starts[np.asarray(positions, dtype=np.intp)][:, np.newaxis] + np.arange(
            views, dtype=np.intp
        )
        return found

    def names_of(self, positions: Positions) -> tuple[str, ...]:
        """Return what people call tiles."""
        return tuple(self.names[position] for position in positions)

    @cached_property
    def _position(self) -> dict[str, int]:
        return {key: position for position, key in enumerate(self.mask_keys)}

    def _views(self, keys: Sequence[str]) -> tuple[ViewKey, ...]:
        return tuple(
            ViewKey(key, view) for key, number in zip(keys, self.views, strict=True) for view in range(number)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TileSet, (self.names, self.keys, self.mask_keys, self.views)  # nothing that follows from them
