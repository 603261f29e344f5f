"""One vector a tile, in the files that CLAM and TRIDENT write and MIL tools read: one HDF5 file an image.

As TRIDENT's ``save_h5``: data sets ``features`` (N, d) float32 and ``coords`` (N, 2) int64, the x and y of each tile's
top left corner in pixels of the image as it was given (level 0), in chunks of one tile, growable. Attributes of
``features``: ``encoder`` and ``name`` (of the image); of ``coords``: ``patch_size`` (a tile's side in its own pixels),
``patch_size_level0`` (in pixels of the image, rounded) and ``name``. Magnifications are not known and not written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from store.errors import InputError
from store.exchange.beside import Chosen, drawn_beside, finished, require_all
from store.exchange.outgoing import Exported, new_folder, new_hdf5
from store.grids import GridStore
from store.identity import canonical_json
from store.reader import GridReader
from store.rows import ViewRow

Progress = Callable[[int, int], None]  # tiles done, tiles to do
_LONGEST_NAME = 200


@dataclass(frozen=True)
class _Place:
    """Where a tile lies: its image, its corner (x, y) and its side in pixels of the image, its side in its own."""

    image: str
    x: int
    y: int
    side: int
    px: int

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> _Place:
        """Return the place kept beside a mask; raises ``KeyError``, ``TypeError`` or ``ValueError`` for none."""
        tile = meta["tile"]
        (y, x), step, px = tile["centre"], float(tile["step"]), int(tile["px"])
        left, top = (math.floor(float(centre) - step * px / 2 + 0.5) for centre in (x, y))
        return cls(str(tile["image"]), left, top, math.floor(step * px + 0.5), px)


def export_pooled(
    store: GridStore,
    folder: Path,
    *,
    masks: GridStore,
    views: Chosen | None = None,
    on_progress: Progress | None = None,
) -> Exported:
    """Write the mean token of view 0 of every tile to the new folder ``folder``, one file ``<image>.h5`` an image.

    ``masks``: the views store, which knows where the tiles lie. ``views``: only these, each with the key of its mask.
    The mean is taken in float64. The folder appears with all files or not at all.

    Raises ``InputError`` if ``folder`` has something in it, if the views store does not know a tile or tells no place
    for it, or if an image has tiles of several sizes; ``DamagedGrid`` or ``MissingViews`` if a grid cannot be read;
    ``StorageError`` if the disk does not take the files.
    """
    if store.spec.dtype != "float16" or len(store.spec.shape) != 3:
        raise InputError(
            "Only token grids (d, h, w) are pooled",
            where=store.path,
            remedy="Give a feature cache, and the views store as its masks.",
        )
    chosen = None if views is None else {key: mask for key, mask in views.items() if key.view == 0}
    reader, rows = finished(store, chosen)
    images: dict[str, list[tuple[ViewRow, _Place]]] = defaultdict(list)
    first = [row for row in rows if row.view == 0]
    if not first:
        raise InputError("The cache has no unaugmented view", where=store.path, remedy="Extract first.")
    for row, place in zip(first, _places(first, masks.reader(), chosen), strict=True):
        images[place.image].append((row, place))
    for image, tiles in images.items():
        _check(image, [place for _, place in tiles], masks.path)
    done = 0
    with new_folder(folder) as partial:
        for image, tiles in images.items():
            with new_hdf5(partial / f"{image}.h5") as (file, _):
                _write(file, store, reader, image, tiles)
            done += len(tiles)
            if on_progress is not None:
                on_progress(done, len(first))
        size = sum(path.stat().st_size for path in partial.iterdir())
    return Exported(folder, len(first), 0, size)


def _places(rows: Sequence[ViewRow], masks: GridReader, chosen: Chosen | None) -> list[_Place]:
    candidates = drawn_beside(rows, masks, chosen)
    require_all(rows, candidates, masks)
    found: list[_Place] = []
    for row, keys in zip(rows, candidates, strict=True):
        try:
            places = {_Place.of(masks.meta(key)) for key in keys}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"The views store does not say where {row} lies in its image",
                where=masks.folder,
                remedy="It was made by an earlier version: move it to another folder and extract again, which draws "
                "the masks anew and keeps every token.",
            ) from error
        if len(places) > 1:
            raise InputError(
                f"{row} lies in several places with the same pixels",
                where=masks.folder,
                remedy="Export for one study: it says which of them is meant.",
            )
        found += places
    return found


def _check(image: str, places: Sequence[_Place], where: Path) -> None:
    if len({(place.side, place.px) for place in places}) > 1:
        raise InputError(
            f"Image {image} has tiles of several sizes",
            where=where,
            remedy="Export for one study: all its tiles of one image have one size.",
        )
    if (
        not image.isprintable()
        or "/" in image
        or image.startswith(".")
        or not 0 < len(image) <= _LONGEST_NAME
    ):
        raise InputError(
            f"The name of image {image[:_LONGEST_NAME]!r} cannot be that of a file",
            where=where,
            remedy="Rename the image in the data set and extract again.",
        )


def _write(
    file: h5py.File,
    store: GridStore,
    reader: GridReader,
    image: str,
    tiles: Sequence[tuple[ViewRow, _Place]],
) -> None:
    width = store.spec.shape[0]
    features: NDArray[np.float32] = np.empty((len(tiles), width), np.float32)
    grid = store.spec.empty()
    for number, (row, _) in enumerate(tiles):
        reader.read(row.key, grid)
        features[number] = grid.reshape(width, -1).mean(axis=1, dtype=np.float64)
    coords = np.array([(place.x, place.y) for _, place in tiles], np.int64)
    for name, array in (("features", features), ("coords", coords)):
        chunks = (1, array.shape[1])
        file.create_dataset(name, data=array, chunks=chunks, maxshape=(None, array.shape[1]))
    file["features"].attrs.update({"name": image, "encoder": store.slug})
    size = tiles[0][1]
    file["coords"].attrs.update({"name": image, "patch_size": size.px, "patch_size_level0": size.side})
    for name in ("identity", "provenance"):
        file.attrs[name] = canonical_json(getattr(store, name)).decode()
    file.attrs["key"] = store.key
