"""A slide and its map at a glance: the tissue that was found, and the classes laid over it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from stages.slides.areas import Area
from stages.slides.tissue import Tissue
from stages.tiles.dataset import IGNORE

OPACITY = 0.45
_OUTLINE = (0, 0, 0)
_GAP = 16
_LINE = 26


def overlay(
    thumbnail: NDArray[np.uint8], labels: NDArray[np.uint8], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return a thumbnail (h, w, 3) uint8 with ``labels`` (h, w) in ``colours`` (256, 3) over it, but for ``IGNORE``."""
    mixed = np.float32(1 - OPACITY) * thumbnail + (np.float32(OPACITY) * colours)[labels]
    return np.where((labels == IGNORE)[..., None], thumbnail, np.rint(mixed)).astype(np.uint8)


def picture(
    thumbnail: NDArray[np.uint8],
    tissue: Tissue,
    labels: NDArray[np.uint8],
    found: Sequence[Area],
    colours: NDArray[np.uint8],
    title: str,
) -> bytes:
    """Return a PNG: the slide with the outline of its tissue beside the slide with its classes, and a legend.

    ``labels`` (h, w) has the thumbnail's size; ``found``: area of each class, then of the tissue.
    """
    height, width = thumbnail.shape[:2]
    bare = thumbnail.copy()
    thick = max(1, round(max(height, width) / 500))
    inside = ndimage.binary_erosion(tissue.mask, iterations=thick, border_value=1)
    bare[tissue.mask & ~inside] = _OUTLINE
    both = [bare, overlay(thumbnail, labels, colours)]
    lines = [title, *(_words(area) for area in found)]
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 17)
    needed = int(max(font.getlength(line) for line in lines)) + 2 * _GAP + _LINE
    canvas = Image.new(
        "RGB", (max(2 * width + 3 * _GAP, needed), height + 2 * _GAP + _LINE * (len(lines) + 1)), "white"
    )
    for number, part in enumerate(both):
        canvas.paste(Image.fromarray(part), (_GAP + number * (width + _GAP), _GAP))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        top = height + 2 * _GAP + number * _LINE
        if 0 < number < len(lines) - 1:
            fill = tuple(colours[number - 1].tolist())
            draw.rectangle((_GAP, top + 3, _GAP + 16, top + 19), fill=fill, outline=_OUTLINE)
        draw.text((_GAP + (_LINE if number else 0), top), line, fill="black", font=font)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _words(area: Area) -> str:
    share = "" if area.share != area.share else f" ({100 * area.share:.1f} %)"
    return f"{area.name}: {area.mm2:.3f} mm²{share}"
