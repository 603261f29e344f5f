"""Where the views of a store lie: which row of which part. For millions of views, so of numbers and not of rows."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from store.parts import Part
from store.rows import ViewKey
from store.table import MAX_VIEW

_PART_BITS = 40  # a place is (part << 40) + row, a view is tile number * MAX_VIEW + its index


class Whereabouts:
    """Part number and row of every view in chosen shards of ``parts``; the first part that has a view counts.

    ``shards`` gives the chosen shards of each part.
    """

    def __init__(self, parts: Sequence[Part], shards: Sequence[Container[int]]) -> None:
        self._tiles: dict[str, int] = {}
        self._places: dict[int, int] = {}
        found = [_views(part, chosen, self._tiles) for part, chosen in zip(parts, shards, strict=True)]
        for number in reversed(range(len(parts))):
            # Backwards, so that the first to have a view is the last to say so.
            views, rows = (column[::-1] for column in found[number])
            places = rows + (number << _PART_BITS)
            self._places.update(zip(views.tolist(), places.tolist(), strict=True))

    def __contains__(self, key: ViewKey) -> bool:
        return self._view(key) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: ViewKey) -> tuple[int, int] | None:
        """Return part number and row of a view, or ``None`` where it is in no chosen shard."""
        place = self._places.get(self._view(key))
        return None if place is None else divmod(place, 1 << _PART_BITS)

    def keys(self) -> list[ViewKey]:
        """Return every view, in the order of parts and of their rows."""
        tiles = list(self._tiles)
        numbers = (divmod(view, MAX_VIEW) for view in sorted(self._places, key=self._places.__getitem__))
        return [ViewKey(tiles[tile], view) for tile, view in numbers]

    def places(self) -> list[tuple[int, int]]:
        """Return part number and row of every view, ascending."""
        return [divmod(place, 1 << _PART_BITS) for place in sorted(self._places.values())]

    def _view(self, key: ViewKey) -> int:
        tile, view = key
        return self._tiles.get(tile, -1) * MAX_VIEW + view if 0 <= view < MAX_VIEW else -1


def count_views(parts: Sequence[Part], shards: Sequence[Container[int]]) -> int:
    """Return how many different views the given shards of each of ``parts`` hold."""
    tiles: dict[str, int] = {}
    found = [_views(part, chosen, tiles)[0] for part, chosen in zip(parts, shards, strict=True)]
    views = np.sort(np.concatenate([np.empty(0, np.int64), *found]))
    return len(views) - int(np.count_nonzero(views[1:] == views[:-1]))


def _views(
    part: Part, shards: Container[int], tiles: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return number and row of every view in the given shards; tiles that ``tiles`` lacks get their numbers there."""
    numbers = np.array([tiles.setdefault(tile, len(tiles)) for tile, _ in part.rows.tiles], np.int64)
    chosen = np.array([shard in shards for shard in range(part.shards)], bool)
    rows = np.flatnonzero(np.repeat(chosen, part.slots)[: len(part.rows)])
    tile, view = part.rows.columns()
    return numbers[tile[rows]] * MAX_VIEW + view[rows], rows
