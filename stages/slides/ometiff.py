"""A label map as a pyramidal, tiled OME-TIFF that viewers and libraries of slides open."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from stages.tiles.dataset import IGNORE

TILE = 256
SMALLEST = 1024  # px of the longer side at which the pyramid ends
_NAMESPACE = "frostgrid/classes"


def write_label_map(
    path: Path,
    strips: Iterator[NDArray[np.uint8]],
    size: tuple[int, int],
    *,
    mpp: float,
    classes: Sequence[str],
    colours: NDArray[np.uint8],
    name: str,
    key: str,
) -> None:
    """Write the labels of a map of ``size`` (H, W), given in ``strips`` (rows, W) from the top on, and flush the file.

    uint8 class indices, ``IGNORE`` for what is no tissue, shown in ``colours`` (256, 3) uint8. Each level halves the
    one before: of four pixels the most frequent class. The levels are SubIFDs of the first, as OME has it, and at the
    same time follow it in the file's list of images, where libraries look that know nothing of OME. ``key``, 32 or
    more hex digits, becomes the file's UUID: the same map gives the same bytes. Strips are taken one at a time.
    """
    levels = _levels(size)
    colormap = np.ascontiguousarray(colours.T.astype(np.uint16) * 257)
    metadata = {
        "axes": "YX",
        "Name": name,
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["class"]},
        "UUID": str(uuid.UUID(hex=key[:32])),
        "MapAnnotation": {
            "Namespace": _NAMESPACE,
            **{str(index): text for index, text in enumerate(classes)},
            str(IGNORE): "no tissue",
        },
    }
    rows = [path.with_name(f"{path.name}.level-{number}") for number in range(len(levels))]
    try:
        with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff:
            for number, (height, width) in enumerate(levels):
                source = strips if number == 0 else _read_rows(rows[number], width)
                below = rows[number + 1] if number + 1 < len(levels) else None
                tiff.write(
                    _tiles(source, width, below),
                    shape=(height, width),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="palette",
                    colormap=colormap,
                    compression="deflate",
                    subifds=len(levels) - 1 if number == 0 else None,
                    subfiletype=1 if number else 0,
                    resolution=(1e4 / mpp / 2**number, 1e4 / mpp / 2**number),
                    resolutionunit="CENTIMETER",
                    software="frostgrid",
                    metadata=metadata if number == 0 else None,
                )
    finally:
        for file in rows:
            file.unlink(missing_ok=True)
    _list_levels(path)


def halved(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (ceil(h / 2), ceil(w / 2)) labels: of each four the most frequent, of equals the smallest."""
    if (labels == labels[0, 0]).all():
        return np.full([-(-side // 2) for side in labels.shape], labels[0, 0], np.uint8)
    padded = np.pad(labels, [(0, side % 2) for side in labels.shape], mode="edge")
    four = np.stack([padded[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    four.sort(axis=0)
    a, b, c, d = four
    return np.asarray(np.where(b == c, b, np.where(a == b, a, np.where(c == d, c, a))))


def _levels(size: tuple[int, int]) -> list[tuple[int, int]]:
    levels = [size]
    while max(levels[-1]) > SMALLEST:
        height, width = levels[-1]
        levels.append((-(-height // 2), -(-width // 2)))
    return levels


def _tiles(
    strips: Iterator[NDArray[np.uint8]], width: int, below: Path | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of a level from its strips; append the halved strips to the file of the level ``below``."""
    for strip in _of_rows(strips, TILE):
        if below is not None:
            with below.open("ab") as file:
                file.write(halved(strip).tobytes())
        for left in range(0, width, TILE):
            tile = np.full((TILE, TILE), IGNORE, np.uint8)
            piece = strip[:, left : left + TILE]
            tile[: piece.shape[0], : piece.shape[1]] = piece
            yield tile


def _of_rows(strips: Iterator[NDArray[np.uint8]], rows: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the same map in strips of ``rows`` rows, the last of what is left."""
    held: list[NDArray[np.uint8]] = []
    for strip in strips:
        held.append(strip)
        if sum(map(len, held)) >= rows:
            joined = np.concatenate(held)
            whole = len(joined) // rows * rows
            yield from (joined[at : at + rows] for at in range(0, whole, rows))
            held = [joined[whole:]]
    if sum(map(len, held)):
        yield np.concatenate(held)


def _read_rows(path: Path, width: int) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        while data := file.read(TILE * width):
            yield np.frombuffer(data, np.uint8).reshape(-1, width)


def _list_levels(path: Path) -> None:
    """Let the first image of a BigTIFF, which its SubIFDs follow one another from, name the first of them as the next.

    Source: the layout of BigTIFF, in which an image's table of n tags takes 8 + 20 n bytes before the next one's place.
    """
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        levels, at, order = page.subifds, page.offset, tiff.byteorder
    with path.open("r+b") as file:
        if levels:
            file.seek(at)
            (tags,) = struct.unpack(f"{order}Q", file.read(8))
            file.seek(at + 8 + 20 * tags)
            file.write(struct.pack(f"{order}Q", levels[0]))
            file.flush()
        os.fsync(file.fileno())
