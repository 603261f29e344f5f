"""Slides for tests: stained discs on glass, written tile by tile as the tiled, pyramidal TIFF that scanners write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

GLASS = (244, 243, 245)
PURPLE, PINK = (120, 60, 150), (215, 130, 175)
Colour = tuple[int, int, int]
Disc = tuple[float, float, float]  # y, x, radius, in pixels of level 0

_NOISE = np.random.default_rng(0).integers(-12, 13, (512, 512, 3))


def pixels(
    top: int,
    left: int,
    px: int,
    scale: int,
    discs: Sequence[Disc],
    colours: Sequence[Colour] = (PURPLE, PINK),
) -> NDArray[np.uint8]:
    """Return (px, px, 3) pixels of the level that is ``scale`` times smaller; discs are of two colours."""
    out = np.empty((px, px, 3), np.int64)
    out[:] = GLASS
    y, x = ((np.arange(start, start + px) + 0.5) * scale for start in (top, left))
    for middle_y, middle_x, radius in discs:
        if abs(middle_y - y.mean()) < radius + px * scale and abs(middle_x - x.mean()) < radius + px * scale:
            inside = (y[:, None] - middle_y) ** 2 + (x[None] - middle_x) ** 2 < radius**2
            upper = np.broadcast_to(y[:, None] < middle_y, inside.shape)
            out[inside & upper], out[inside & ~upper] = colours
            rows, columns = np.arange(top, top + px) % 512, np.arange(left, left + px) % 512
            out += np.where(inside[..., None], _NOISE[rows[:, None], columns], 0)
    return out.clip(0, 255).astype(np.uint8)


def write_slide(
    path: Path,
    size: tuple[int, int],
    discs: Sequence[Disc],
    *,
    mpp: float | None = 0.5,
    levels: Sequence[int] = (1, 4, 16),
    colours: Sequence[Colour] = (PURPLE, PINK),
    compression: Any = ("jpeg", 85),
    tile: int = 256,
) -> Path:
    """Write a slide of ``size`` (H, W)."""

    def tiles(scale: int) -> Iterator[NDArray[np.uint8]]:
        for top in range(0, size[0] // scale, tile):
            for left in range(0, size[1] // scale, tile):
                yield pixels(top, left, tile, scale, discs, colours)

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, scale in enumerate(levels):
            tiff.write(
                tiles(scale),
                shape=(size[0] // scale, size[1] // scale, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression[0] if isinstance(compression, tuple) else compression,
                compressionargs={"level": compression[1]} if isinstance(compression, tuple) else None,
                subfiletype=1 if number else 0,
                resolution=(1e4 / mpp / scale,) * 2 if mpp else None,
                resolutionunit="CENTIMETER" if mpp else None,
                metadata=None,
            )
    return path
