"""The connected regions of a label map as polygons, traced strip by strip and joined across the seams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine
from scipy import ndimage
from shapely import Polygon, unary_union
from shapely.geometry import shape

from stages.tiles.dataset import IGNORE


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels of class ``label`` that hang together by their sides: the polygon of their edges, in map pixels."""

    label: int
    polygon: Polygon


def regions(strips: Iterable[NDArray[np.uint8]], *, least_pixels: float = 0.0) -> Iterator[Region]:
    """Yield the regions of a map given in ``strips`` (rows, W) uint8 from the top on, ``IGNORE`` being none.

    Regions of fewer than ``least_pixels`` are left out, and holes of fewer are filled: where one class lies in another
    the hole goes with the speck. In the order in which they end downwards. Memory holds one strip, and the edges of the
    regions that reach it.
    """
    tracer = _Tracer(least_pixels)
    waiting: NDArray[np.uint8] | None = None
    for strip in strips:
        if waiting is not None:
            yield from tracer.add(waiting, last=False)
        waiting = strip
    if waiting is not None:
        yield from tracer.add(waiting, last=True)


@dataclass
class _Open:
    """A region that may go on below: its pieces so far."""

    label: int
    pieces: list[Polygon]
    pixels: int


class _Tracer:
    def __init__(self, least_pixels: float) -> None:
        self._least = least_pixels
        self._top = 0
        self._edge: NDArray[np.int64] | None = None  # the number of the region of each pixel above the seam
        self._open: dict[int, _Open] = {}
        self._next = 1

    def add(self, strip: NDArray[np.uint8], *, last: bool) -> Iterator[Region]:
        areas, labels = _connected(strip)
        pixels = np.bincount(areas.ravel(), minlength=len(labels))
        above = areas[0] if self._edge is not None else areas[0] * 0
        below = areas[-1] * 0 if last else areas[-1]
        on_seam = np.zeros(len(labels), np.bool_)
        on_seam[above] = on_seam[below] = True
        kept = on_seam | (pixels >= self._least)
        kept[0] = False
        areas = np.where(kept[areas], areas, 0)
        found = self._pieces(areas)
        number = self._numbers(areas, labels, pixels, found)
        self._top += len(strip)
        going_on = set() if last else set(number[np.unique(below)].tolist())
        self._edge = None if last else number[areas[-1]]
        for name in sorted(set(self._open) - going_on):
            ended = self._open.pop(name)
            if ended.pixels >= self._least:
                yield Region(ended.label, self._whole(ended))

    def _pieces(self, areas: NDArray[np.int32]) -> dict[int, list[Polygon]]:
        found: dict[int, list[Polygon]] = defaultdict(list)
        if not areas.any():
            return found
        place = Affine.translation(0, self._top)
        for geometry, area in shapes(areas, mask=areas > 0, connectivity=4, transform=place):
            found[int(area)].append(cast(Polygon, shape(geometry)))
        return found

    def _numbers(
        self,
        areas: NDArray[np.int32],
        labels: NDArray[np.int64],
        pixels: NDArray[np.int64],
        found: dict[int, list[Polygon]],
    ) -> NDArray[np.int64]:
        """Enter the areas of a strip among the open regions; return the number of the region of each area, 0 of none.

        An area that touches several open regions of its class across the seam joins them into one.
        """
        joined: dict[int, set[int]] = defaultdict(set)
        if self._edge is not None:
            pairs = np.unique(np.stack([self._edge, areas[0]]), axis=1)
            for region, area in pairs.T.tolist():
                if region and area and self._open[region].label == labels[area]:
                    joined[area].add(region)
        number = np.zeros(len(labels), np.int64)
        moved: dict[int, int] = {}
        for area, pieces in sorted(found.items()):
            region = _Open(int(labels[area]), list(pieces), int(pixels[area]))
            for other in sorted({_followed(moved, name) for name in joined[area]}):
                former = self._open.pop(other)
                region.pieces += former.pieces
                region.pixels += former.pixels
                moved[other] = self._next
            self._open[self._next] = region
            number[area] = self._next
            self._next += 1
        named = np.flatnonzero(number)  # few of many areas where most are specks
        number[named] = [_followed(moved, name) for name in number[named].tolist()]
        return number

    def _whole(self, region: _Open) -> Polygon:
        whole = cast(Polygon, unary_union(region.pieces))  # they hang together, so that it is one
        holes = [ring for ring in whole.interiors if Polygon(ring).area >= self._least]
        return Polygon(whole.exterior, holes)


def _followed(moved: dict[int, int], name: int) -> int:
    while name in moved:
        name = moved[name]
    return name


def _connected(strip: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the areas of equal class that hang together by their sides; return them, and the class of each number."""
    areas = np.zeros(strip.shape, np.int32)
    labels = [np.array([IGNORE])]
    count = 0
    for label in np.flatnonzero(np.bincount(strip.ravel())).tolist():
        if label != IGNORE:
            here = strip == label
            found = np.empty(strip.shape, np.int32)
            number = ndimage.label(here, output=found)
            areas[here] = found[here] + count
            count += number
            labels.append(np.full(number, label))
    return areas, np.concatenate(labels)
