"""The colours of classes, the same in every picture."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import IGNORE

# Okabe and Ito's palette: told apart with every kind of colour vision
_PALETTE = ("#D55E00", "#009E73", "#0072B2", "#F0E442", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
IGNORED = "#FFFFFF"


def colour_of(index: int) -> str:
    """Return the colour ``#rrggbb`` of a class.

    The palette first, then hues a golden angle apart, so that no two of many classes look alike.
    """
    if index < len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55, 0.75))
    return f"#{red:02x}{green:02x}{blue:02x}"


def colours(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Paint a (H, W) class mask as (H, W, 3) uint8 RGB; ignored pixels are white."""
    table = np.array([_rgb(colour_of(index)) for index in range(256)], np.uint8)
    table[IGNORE] = _rgb(IGNORED)
    return np.asarray(table[mask])


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
