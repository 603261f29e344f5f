"""A slide at the resolution of a study: any square of it, with the very pixels that a tile of the study has."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.slides.source import SlideSource
from stages.tiles.dataset import ImageRecord
from stages.tiles.tiling import Tile
from stages.tiles.views import Draw, render
from store.errors import InputError

_STRIP_PIXELS = 1 << 22  # of a level that are decoded at a time for a small picture of the slide
_AS_FINE = 1 + 1e-6
# Pixels of level 0 a map pixel; below it would be magnified beyond all sense, and all memory.
SMALLEST_STEP = 1 / 32
_REACH = 3  # pixels beyond a square that its resampling touches, at most


class ScaledSlide:
    """A slide seen through pixels that span ``step`` pixels of its level 0 a side: map pixels.

    The map begins at the slide's top left corner and is ``height`` × ``width`` map pixels: those whose centre lies on
    the slide. Squares are resampled by :func:`stages.tiles.views.render` from the coarsest level that is at least as
    fine, as tiles are from their images. Beyond the slide it goes on by reflection. Raises :class:`InputError` for a
    ``step`` at which the whole slide would be less than a pixel, or one of its pixels more than 32 a side.
    """

    def __init__(self, source: SlideSource, step: float) -> None:
        full = source.levels[0]
        if not SMALLEST_STEP <= step <= max(full.height, full.width):
            raise InputError(
                f"a pixel of the study would span {step:g} pixels of the slide, which is {full.width} × {full.height}",
                where=source.path,
                remedy="Correct the µm a pixel that is said of the slide, or of the study's tiles.",
            )
        self.source, self.step = source, step
        self.height, self.width = (max(1, math.ceil(side / step - 0.5)) for side in (full.height, full.width))
        self.level = _level(source, step)

    def square(self, top: int, left: int, px: int) -> NDArray[np.uint8]:
        """Return (px, px, 3) uint8 RGB of the square whose corner is at map pixel (top, left); it may lie off the map.

        Raises :class:`InputError` where the slide cannot be read.
        """
        level = self.source.levels[self.level]
        step = self.step / level.downsample
        centre = ((top + px / 2) * step, (left + px / 2) * step)
        reach = math.ceil(px / 2 * step) + _REACH
        start = [math.floor(middle) - reach for middle in centre]
        rows, columns = (
            _reflected(begin, 2 * reach + 1, length)
            for begin, length in zip(start, (level.height, level.width), strict=True)
        )
        first_row, first_column = int(rows.min()), int(columns.min())
        region = self.source.read(
            self.level,
            first_row,
            first_column,
            int(rows.max()) - first_row + 1,
            int(columns.max()) - first_column + 1,
        )
        if (
            rows[0] != first_row
            or columns[0] != first_column
            or region.shape[:2] != (len(rows), len(columns))
        ):
            region = region[(rows - first_row)[:, None], (columns - first_column)[None, :]]
        tile = Tile(
            name="",
            record=ImageRecord("", None, None),
            centre=(centre[0] - start[0], centre[1] - start[1]),
            step=step,
            px=px,
            key="",
            mask_key="",
        )
        return render(region, None, tile, Draw())[0]

    def nearest(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return of a mask of level 0 what lies under the centre of each map pixel, (height, width)."""
        rows, columns = (
            np.minimum(((np.arange(count) + 0.5) * self.step).astype(np.intp), side - 1)
            for count, side in zip((self.height, self.width), mask.shape, strict=True)
        )
        return np.asarray(mask[rows[:, None], columns[None, :]])

    def thumbnail(self, factor: int) -> NDArray[np.uint8]:
        """Return the whole slide as (ceil(height / factor), ceil(width / factor), 3) uint8, averaged over areas.

        One of its pixels spans ``factor`` map pixels. Strips of a level are read one at a time.
        """
        number = _level(self.source, self.step * factor)
        level = self.source.levels[number]
        span = self.step * factor / level.downsample
        height, width = -(-self.height // factor), -(-self.width // factor)
        out = np.empty((height, width, 3), np.uint8)
        at_a_time = max(1, int(_STRIP_PIXELS / level.width / span))
        right = math.ceil(width * span)
        for row in range(0, height, at_a_time):
            rows = min(at_a_time, height - row)
            top = min(math.floor(row * span), level.height - 1)
            bottom = math.ceil((row + rows) * span)
            strip = self.source.read(number, top, 0, min(bottom, level.height) - top, level.width)
            beyond = ((0, max(0, bottom - level.height)), (0, max(0, right - level.width)), (0, 0))
            strip = np.pad(strip, beyond, mode="edge")
            box = (0.0, row * span - top, width * span, (row + rows) * span - top)
            small = Image.fromarray(strip).resize((width, rows), Image.Resampling.BOX, box=box)
            out[row : row + rows] = np.asarray(small)
        return out


def _level(source: SlideSource, step: float) -> int:
    """Return the number of the coarsest level whose pixels are no larger than ``step`` pixels of level 0."""
    fine = [i for i, level in enumerate(source.levels) if level.downsample <= step * _AS_FINE]
    return max(fine, key=lambda i: source.levels[i].downsample, default=0)


def _reflected(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Return where ``count`` positions from ``start`` on lie on an axis of ``length`` that is mirrored at its ends."""
    folded = np.arange(start, start + count) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)
