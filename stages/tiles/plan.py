"""Which views a study needs, in which order, and the views store that keeps their masks and hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import Dataset
from stages.tiles.tiling import Tile
from stages.tiles.views import Draw, Recipe, draw, render, view_sha256
from store import GridReader, GridSpec, ViewKey, ViewRow


@dataclass(frozen=True)
class PlannedView:
    """One view of one tile."""

    tile: Tile
    view: int

    @property
    def key(self) -> ViewKey:
        """Where the view's token grid is kept, in any encoder's cache."""
        return ViewKey(self.tile.key, self.view)

    @property
    def mask_key(self) -> ViewKey:
        """Where the view's mask is kept: another mask over the same pixels is another key."""
        return ViewKey(self.tile.mask_key, self.view)

    def __str__(self) -> str:
        return f"tile {self.tile.name}, view {self.view}"


def planned_views(train: Sequence[Tile], held_out: Sequence[Tile], per_tile: int) -> list[PlannedView]:
    """Return every view of a study, augmentation-major: view 0 of all tiles, then view 1 of the training tiles, …

    So that fewer views are a prefix of more, and held-out tiles have only their unaugmented view.
    """
    first = [PlannedView(tile, 0) for tile in (*train, *held_out)]
    return first + [PlannedView(tile, view) for view in range(1, per_tile) for tile in train]


class ViewSource:
    """Renders views; keeps the first decoded sources that fit ``memory`` bytes. Safe to call from many threads.

    Views come augmentation-major, so sources are asked for in rounds: keeping the last ones would never meet one again.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, memory: int = 1 << 30) -> None:
        self._dataset = dataset
        self._recipe = recipe
        self._memory = memory
        self._kept: dict[tuple[str, str], NDArray[np.uint8]] = {}
        self._lock = Lock()

    def pixels(self, planned: PlannedView) -> NDArray[np.uint8]:
        """Return the view's (px, px, 3) uint8 RGB pixels."""
        return render(self._source("image", planned.tile), None, planned.tile, self.draw(planned))[0]

    def pixels_and_mask(self, planned: PlannedView) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the view's (px, px, 3) uint8 pixels and (px, px) uint8 mask."""
        tile = planned.tile
        pixels, mask = render(
            self._source("image", tile), self._source("mask", tile), tile, self.draw(planned)
        )
        assert mask is not None  # render returns a mask whenever it is given one
        return pixels, mask

    def draw(self, planned: PlannedView) -> Draw:
        """Return the view's draw of the augmentation."""
        return draw(self._recipe, planned.tile.key, planned.view)

    def _source(self, what: str, tile: Tile) -> NDArray[np.uint8]:
        key = (what, tile.record.id)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        read = self._dataset.read_image if what == "image" else self._dataset.read_mask
        array = read(tile.record)
        with self._lock:
            if sum(kept.nbytes for kept in self._kept.values()) + array.nbytes <= self._memory:
                self._kept[key] = array
        return array


def mask_spec(tile_px: int) -> GridSpec:
    """Return what the views store keeps of one view: its (px, px) uint8 mask."""
    return GridSpec("masks", (tile_px, tile_px), "uint8", ("y", "x"))


def masks_identity(recipe: Recipe, classes: Sequence[str], tile_px: int) -> dict[str, Any]:
    """Return what decides a mask beside its tile: the recipe, the names of the classes in order, the tile's size.

    How labels map to classes is in the tile's own key, which is made from the decoded mask.
    """
    return {"recipe": recipe.identity(), "classes": list(classes), "tile_px": tile_px}


def mask_rows(views: Sequence[PlannedView]) -> list[ViewRow]:
    """Return the rows of the views store, in plan order."""
    return [ViewRow(v.mask_key.tile, v.view, v.tile.name, "") for v in views]


def token_rows(views: Sequence[PlannedView], masks: GridReader) -> list[ViewRow]:
    """Return the rows of a feature cache, in plan order, each with the hash of the pixels it must be made from."""
    return [ViewRow(v.tile.key, v.view, v.tile.name, str(masks.meta(v.mask_key)["pixels"])) for v in views]


def rendered_masks(
    views: Sequence[PlannedView], source: ViewSource
) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any]]]:
    """Yield each view's mask with the hash of its pixels, the parameters it was drawn with, and where its tile lies.

    The tile's place is its image's id, its centre (y, x) and the length of its pixels in source pixels, and its side in
    its own pixels: whoever has the views store but no images can put its features on the map.
    """
    for planned in views:
        pixels, mask = source.pixels_and_mask(planned)
        tile = planned.tile
        place = {"image": tile.record.id, "centre": list(tile.centre), "step": tile.step, "px": tile.px}
        yield mask, {"pixels": view_sha256(pixels), "draw": asdict(source.draw(planned)), "tile": place}
