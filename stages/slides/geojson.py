"""Regions as annotations that QuPath reads: GeoJSON polygons with their class, in pixels of level 0."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from stages.slides.regions import Region
from stages.slides.writing import flushed

GRID = 0.01  # of coordinates, in pixels of level 0


def outline(
    polygon: Polygon, *, step: float, tolerance: float, size: tuple[int, int]
) -> Polygon | MultiPolygon:
    """Return a region's polygon, given in map pixels, in pixels of level 0: valid, and smoothed.

    ``step``: pixels of level 0 a map pixel spans; ``tolerance``, in map pixels: nothing of the edge moves farther
    (Douglas and Peucker 1973, with holes and rings kept apart); ``size`` (H, W) of level 0, which it is cut to. Empty
    where nothing is left.
    """
    height, width = size
    # half of it, since GEOS drops the first point of a ring, too, after the others, at up to twice what it is given
    smooth = polygon.simplify(tolerance / 2, preserve_topology=True)
    placed = shapely.transform(smooth, lambda at: np.minimum(at * step, [width, height]))
    return cast("Polygon | MultiPolygon", shapely.set_precision(placed, GRID))


def write_annotations(
    path: Path,
    found: Iterable[Region],
    *,
    step: float,
    tolerance: float,
    size: tuple[int, int],
    classes: Sequence[str],
    colours: NDArray[np.uint8],
) -> int:
    """Write regions as a FeatureCollection, one annotation each, and flush the file; return how many there are.

    ``step``, ``tolerance`` and ``size`` as for :func:`outline`; ``colours`` (256, 3) uint8. They are taken one at a
    time.
    """
    count = 0
    with flushed(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for region in found:
            area = outline(region.polygon, step=step, tolerance=tolerance, size=size)
            if area.is_empty:
                continue
            feature = _feature(area, classes[region.label], colours[region.label].tolist())
            file.write(b",\n" if count else b"\n")
            file.write(json.dumps(feature, ensure_ascii=False, allow_nan=False).encode())
            count += 1
        file.write(b"\n]}\n")
    return count


def _feature(area: Polygon | MultiPolygon, name: str, colour: list[int]) -> dict[str, Any]:
    polygons = area.geoms if isinstance(area, MultiPolygon) else [area]
    rings = [[_ring(ring) for ring in (p.exterior, *p.interiors)] for p in map(shapely.normalize, polygons)]
    geometry = (
        {"type": "MultiPolygon", "coordinates": rings}
        if isinstance(area, MultiPolygon)
        else {"type": "Polygon", "coordinates": rings[0]}
    )
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": colour}},
    }


def _ring(ring: Any) -> list[list[float]]:
    return [[round(x, 2), round(y, 2)] for x, y in shapely.get_coordinates(ring).tolist()]
