"""Class masks from the polygons of a GeoJSON file, as QuPath exports them: holes, draw order, nothing passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely import MultiPolygon, Polygon, box, get_coordinates, make_valid
from shapely.geometry import shape
from shapely.validation import explain_validity

from stages.tiles.dataset import raise_all
from stages.tiles.images import reading
from stages.tiles.labels import ClassMap
from store.errors import InputError

GEOJSON_SUFFIXES = frozenset({".geojson", ".json"})

_AREA_TOLERANCE = 1e-3  # share of a polygon's area that mending may change …
_AREA_SLACK_PX = 1.0  # … beside this many pixels
_MEND = "Mend the annotation in QuPath and export it again."


class Annotation(NamedTuple):
    """One drawn area: its label and its valid polygons, in pixels with x to the right and y down."""

    label: str
    area: Polygon | MultiPolygon


def read_geojson_mask(path: Path, size: tuple[int, int], classes: ClassMap) -> NDArray[np.uint8]:
    """Return the annotations of ``path`` drawn as a mask of ``size`` (H, W): uint8 class ids or ``IGNORE``.

    A pixel belongs to the topmost annotation that covers its centre; pixel (row r, column c) spans y in [r, r + 1],
    x in [c, c + 1]. Holes show what lies beneath; pixels that nothing covers get ``classes.unlabelled``. Later
    annotations lie on top, in the order of the file or of ``classes.draw_order``. Raises ``InputError`` naming the
    file and the annotation for a label of no class, a geometry that is no area, one that cannot be mended without
    changing it, and a file whose annotations all lie off the image.
    """
    annotations = read_annotations(path)
    unknown = dict.fromkeys(a.label for a in annotations if a.label not in classes.names)
    if unknown:
        raise InputError(
            f"annotations have a class that no class of the study maps: {', '.join(unknown)}; "
            f"known are {', '.join(classes.names) or 'none'}",
            where=path,
            remedy='Give each a class in "classes", or list it under "ignore".',
        )
    height, width = size
    if annotations and not any(a.area.intersects(box(0, 0, width, height)) for a in annotations):
        corner = annotations[0].area.bounds
        raise InputError(
            f"no annotation lies on the image of {width} × {height} px: the first starts at "
            f"x = {corner[0]:.0f}, y = {corner[1]:.0f}",
            where=path,
            remedy="Export the annotations in the pixel coordinates of this image.",
        )
    if classes.draw_order is not None:
        annotations.sort(key=lambda a: _place(classes, a.label))
    if not annotations:
        return np.full(size, classes.unlabelled, np.uint8)
    mask: NDArray[np.uint8] = rasterize(
        [(a.area, classes.names[a.label]) for a in annotations],
        out_shape=size,
        fill=classes.unlabelled,
        dtype="uint8",
    )
    return mask


def read_annotations(path: Path) -> list[Annotation]:
    """Return the annotations of a GeoJSON file, in its order.

    The file holds a FeatureCollection or a bare list of features; an annotation's label is
    ``properties.classification``, as text or as an object with ``name`` or ``names``. Raises ``InputError`` (all of a
    file's faults at once) for anything that is not an area with a label.
    """
    annotations, faults = [], []
    for position, feature in enumerate(_features(path), start=1):
        try:
            label = _label(feature)
            annotations.append(Annotation(label, _area(feature.get("geometry"))))
        except _Fault as fault:
            identity = feature.get("id") if isinstance(feature, dict) else None
            name = f"annotation {position}" + (f" (id {identity})" if identity else "")
            faults.append(InputError(f"{name} {fault}", where=path, remedy=_MEND))
    raise_all(faults, remedy=_MEND)
    return annotations


class _Fault(Exception):
    """What is wrong with one annotation, as the end of a sentence that starts with its name."""


def _features(path: Path) -> Iterator[Any]:
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    if not isinstance(content, list):
        raise InputError(
            "the file is neither a FeatureCollection nor a list of features",
            where=path,
            remedy='Export from QuPath with "Export as FeatureCollection".',
        )
    yield from content


def _label(feature: Any) -> str:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise _Fault("is not a GeoJSON feature")
    properties = feature.get("properties")
    given = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(given, dict):
        names = given.get("names")
        given = ": ".join(map(str, names)) if isinstance(names, list) else given.get("name")
    if not isinstance(given, str) or not given:
        raise _Fault("has no classification")
    return given


def _area(geometry: Any) -> Polygon | MultiPolygon:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise _Fault(f"is a {kind}, not a Polygon or MultiPolygon" if kind else "has no geometry")
    try:
        with np.errstate(invalid="ignore"):
            area = shape(geometry)
    # shapely raises whatever malformed coordinates lead to: ValueError, TypeError, IndexError, GEOSException, …
    except Exception as error:
        raise _Fault(f"has malformed coordinates ({error})") from error
    if not np.isfinite(get_coordinates(area)).all():
        raise _Fault("has coordinates that are not finite")
    if area.is_empty:
        raise _Fault("is empty")
    if not area.is_valid:
        area = _mended(area)
    if not isinstance(area, Polygon | MultiPolygon):
        raise _Fault(f"is a {area.geom_type}, not an area")
    return area


def _mended(area: Any) -> Polygon | MultiPolygon:
    """Return a valid polygon of the same area, or refuse: a crossing outline has two readings."""
    mended = make_valid(area)
    parts = getattr(mended, "geoms", [mended])
    polygons = [
        piece for part in parts for piece in getattr(part, "geoms", [part]) if isinstance(piece, Polygon)
    ]
    result = MultiPolygon(polygons)
    if not math.isclose(result.area, area.area, rel_tol=_AREA_TOLERANCE, abs_tol=_AREA_SLACK_PX):
        raise _Fault(
            f"is not a valid area ({explain_validity(area)}): mending it would change {area.area:,.1f} to "
            f"{result.area:,.1f} square pixels"
        )
    return result


def _place(classes: ClassMap, label: str) -> int:
    return classes.draw_order.index(label) if classes.draw_order is not None else 0
