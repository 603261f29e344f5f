"""Tiles: where they lie in their source images, and the content hashes they are known by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from stages.tiles.dataset import Dataset, ImageRecord, flatten, raise_all
from store.errors import InputError
from store.identity import array_sha256, fingerprint

Tiling = Literal["center", "grid"]


@dataclass(frozen=True)
class Tile:
    """One square piece of an image, as a place in it: no pixels are kept.

    ``name``: the image's id, with ``@r0c1`` for row 0, column 1 of a grid. ``centre``: (y, x) in source pixels, whose
    edges are the integers, so that the image spans [0, H] × [0, W]. ``step``: source pixels a tile pixel spans (2.0:
    the tile has half the source's resolution). ``px``: the tile's side in tile pixels; its rim may lie off the image.
    ``key``: fingerprint of the image's decoded pixels and the geometry. ``mask_key``: of ``key`` and the class mask.
    """

    name: str
    record: ImageRecord
    centre: tuple[float, float]
    step: float
    px: int
    key: str
    mask_key: str


def tiles_of(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    *,
    px: int,
    step_of: Callable[[ImageRecord], float],
    tiling: Tiling,
    threads: int = 2,
) -> list[Tile]:
    """Return the tiles of ``records``, in their order, rows before columns; every image and mask is read once.

    ``center``: one tile in the middle of each image. ``grid``: tiles side by side from the top left corner that cover
    the image; the last ones reach beyond it. ``step_of`` gives the source pixels a tile pixel spans. At most
    ``threads`` images are in memory. Raises ``InputErrors`` with every image or mask that cannot be read and every
    pair of images with the same pixels, which could end on both sides of a split.
    """
    with ThreadPoolExecutor(max_workers=threads) as pool:
        found = list(pool.map(lambda record: _tiles(dataset, record, px, step_of, tiling), records))
    faults = [fault for result in found if isinstance(result, InputError) for fault in flatten(result)]
    tiles = [tile for result in found if not isinstance(result, InputError) for tile in result]
    first: dict[str, Tile] = {}
    for tile in tiles:
        earlier = first.setdefault(tile.key, tile)
        if earlier is not tile and earlier.record.id != tile.record.id:
            faults.append(
                InputError(
                    f"images {earlier.record.id} and {tile.record.id} have the same pixels",
                    where=tile.record.path or tile.record.id,
                    remedy="Take one of them out.",
                )
            )
    raise_all(faults, remedy="Mend these files; `frostgrid data check` looks at the whole data set.")
    return tiles


def centres(
    height: int, width: int, *, px: int, step: float, tiling: Tiling
) -> Iterator[tuple[str, float, float]]:
    """Yield (suffix of the name, y, x) of each tile of an H × W image, in source pixels.

    A grid has as many rows as hold a tile pixel whose centre lies on the image, so none is all rim.
    """
    if tiling == "center":
        yield "", height / 2, width / 2
        return
    side = px * step
    rows, columns = (max(1, math.ceil(math.ceil(length / step - 0.5) / px)) for length in (height, width))
    for row in range(rows):
        for column in range(columns):
            yield f"@r{row}c{column}", (row + 0.5) * side, (column + 0.5) * side


def _tiles(
    dataset: Dataset, record: ImageRecord, px: int, step_of: Callable[[ImageRecord], float], tiling: Tiling
) -> list[Tile] | InputError:
    try:
        step = float(step_of(record))
        if not (math.isfinite(step) and step > 0):
            raise InputError(
                f"a tile pixel cannot span {step} source pixels", where=record.id, remedy="Give a scale."
            )
        image = dataset.read_image(record)
        height, width = image.shape[:2]
        source = array_sha256(image)
        del image
        mask = array_sha256(dataset.read_mask(record))
    except InputError as error:
        return error
    tiles = []
    for suffix, y, x in centres(height, width, px=px, step=step, tiling=tiling):
        key = fingerprint({"source": source, "centre": [y, x], "step": step, "px": px})
        mask_key = fingerprint({"tile": key, "mask": mask})
        tiles.append(Tile(record.id + suffix, record, (y, x), step, px, key, mask_key))
    return tiles
