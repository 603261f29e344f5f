"""Where a slide holds tissue: stained, not glass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Threshold = float | Literal["auto", "all"]

BLUR_UM = 4.0  # standard deviation: cells that lie apart become one area, and its rim a little wider
SPECK_UM2 = 10_000.0  # islands of less are dropped
HOLE_UM2 = 250_000.0  # holes of less are filled, where tissue is all around: lumina and fat belong to it
AUTO_BETWEEN = (0.015, 0.03)  # glass lies below, weakly stained tissue above


@dataclass(frozen=True, eq=False)
class Tissue:
    """``mask`` (h, w) bool of a thumbnail whose pixels span ``factor`` map pixels; ``threshold`` used, None for all."""

    mask: NDArray[np.bool_]
    factor: int
    threshold: float | None

    def rows(self, top: int, bottom: int, width: int) -> NDArray[np.bool_]:
        """Return which pixels of map rows ``top`` to ``bottom`` are tissue, (bottom - top, width) bool."""
        rows = np.arange(top, bottom) // self.factor
        return self.mask[rows][:, np.arange(width) // self.factor]

    def any_in(self, top: int, left: int, px: int) -> bool:
        """Return whether the square at map pixel (top, left) holds tissue."""
        rows, columns = (
            slice(max(0, at) // self.factor, max(0, -(-(at + px) // self.factor))) for at in (top, left)
        )
        return bool(self.mask[rows, columns].any())


def stain(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how strongly pixels (h, w, 3) uint8 are stained, (h, w) float32: the spread of their optical densities.

    Optical density of a channel is -log10((v + 1) / 256); the spread is the largest less the smallest of the three.
    Glass, shadow and dust are grey, so that theirs is 0 however bright the lamp.
    """
    density = -np.log10((rgb.astype(np.float32) + 1) / 256)
    return np.asarray(density.max(axis=-1) - density.min(axis=-1), np.float32)


def otsu(values: NDArray[np.float32]) -> float:
    """Return the threshold that parts ``values`` (any shape, not empty) into two of least variance (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + int(np.argmax(np.nan_to_num(between)))])


def find_tissue(thumbnail: NDArray[np.uint8], mpp: float, factor: int, threshold: Threshold) -> Tissue:
    """Find tissue on a thumbnail (h, w, 3) uint8 of ``mpp`` µm a pixel.

    ``threshold``: of :func:`stain`; "auto" chooses it by Otsu's method within ``AUTO_BETWEEN``, so that a picture of
    tissue alone, or of glass alone, is not cut in two; "all" takes every pixel for tissue.
    """
    if threshold == "all":
        return Tissue(np.ones(thumbnail.shape[:2], np.bool_), factor, None)
    strength = ndimage.gaussian_filter(stain(thumbnail), BLUR_UM / mpp)
    if threshold == "auto":
        low, high = AUTO_BETWEEN
        limit = min(max(otsu(strength), low), high)
    else:
        limit = threshold
    mask = _without_small(strength > limit, SPECK_UM2 / mpp**2)
    glass = _without_small(~mask, HOLE_UM2 / mpp**2, but_rim=True)
    return Tissue(~glass, factor, limit)


def _without_small(mask: NDArray[np.bool_], pixels: float, *, but_rim: bool = False) -> NDArray[np.bool_]:
    """Return ``mask`` without the connected areas of fewer than so many pixels, unless they reach the picture's rim."""
    areas, _ = ndimage.label(mask)
    large = np.bincount(areas.ravel()) >= pixels
    if but_rim:
        for side in (areas[0], areas[-1], areas[:, 0], areas[:, -1]):
            large[side] = True
    large[0] = False
    return np.asarray(large[areas])
