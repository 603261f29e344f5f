"""Regions traced strip by strip are the regions of the map; outlines stay within their tolerance."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy import ndimage
from shapely import Polygon, hausdorff_distance
from shapely.geometry import shape

from stages.slides.geojson import outline, write_annotations
from stages.slides.regions import Region, regions
from stages.tiles.dataset import IGNORE
from stages.tiles.geojson import read_annotations

MAPS = arrays(
    np.uint8,
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    elements=st.sampled_from([0, 1, 1, 2, IGNORE]),
)
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:3] = [[200, 0, 0], [0, 150, 0], [0, 0, 255]]


def strips(labels: NDArray[np.uint8], rows: int) -> list[NDArray[np.uint8]]:
    return [labels[top : top + rows] for top in range(0, len(labels), rows)]


def drawn(found: list[Region], size: tuple[int, int]) -> NDArray[np.uint8]:
    if not found:
        return np.full(size, IGNORE, np.uint8)
    return np.asarray(
        rasterize([(r.polygon, r.label) for r in found], out_shape=size, fill=IGNORE, dtype="uint8")
    )


def blotches(side: int = 160) -> NDArray[np.uint8]:
    rng = np.random.default_rng(4)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=(side, side)), 6) for _ in range(3)])
    return smooth.argmax(axis=0).astype(np.uint8)


@given(MAPS, st.integers(1, 30))
def test_regions_drawn_again_are_the_map(labels: NDArray[np.uint8], rows: int) -> None:
    found = list(regions(iter(strips(labels, rows))))
    np.testing.assert_array_equal(drawn(found, labels.shape), labels)
    assert all(region.polygon.is_valid for region in found)
    numbers = Counter(region.label for region in found)
    assert dict(numbers) == {
        label: ndimage.label(labels == label)[1] for label in np.unique(labels).tolist() if label != IGNORE
    }


@given(MAPS, st.integers(1, 12), st.integers(0, 8))
def test_strips_do_not_matter(labels: NDArray[np.uint8], rows: int, least: int) -> None:
    def told(height: int) -> Counter[tuple[int, bytes]]:
        found = regions(iter(strips(labels, height)), least_pixels=least)
        return Counter((r.label, shapely.to_wkb(r.polygon.simplify(0).normalize())) for r in found)

    assert told(rows) == told(len(labels))


@given(MAPS, st.integers(1, 9))
def test_specks_are_dropped_and_holes_filled(labels: NDArray[np.uint8], least: int) -> None:
    found = list(regions(iter(strips(labels, 5)), least_pixels=least))
    wanted = Counter()
    for label in (0, 1, 2):
        areas, count = ndimage.label(labels == label)
        wanted[label] = sum((areas == number).sum() >= least for number in range(1, count + 1))
    assert Counter(region.label for region in found) == +wanted
    for region in found:
        assert region.polygon.area >= least
        assert all(Polygon(ring).area >= least for ring in region.polygon.interiors)


@pytest.mark.parametrize("tolerance", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("step", [1.0, 2.0, 2.4849])
def test_outlines_are_valid_and_move_no_farther_than_their_tolerance(tolerance: float, step: float) -> None:
    labels = blotches()
    size = (round(160 * step), round(160 * step))
    points = Counter[str]()
    for region in regions(iter([labels]), least_pixels=20):
        area = outline(region.polygon, step=step, tolerance=tolerance, size=size)
        exact = shapely.transform(region.polygon, lambda at: at * step)
        assert area.is_valid and not area.is_empty
        assert hausdorff_distance(area.boundary, exact.boundary) <= tolerance * step + 0.02
        assert len(area.interiors) == len(region.polygon.interiors)
        points["smooth"] += shapely.count_coordinates(area)
        points["exact"] += shapely.count_coordinates(exact)
    if tolerance:
        assert points["smooth"] < points["exact"] / 3


def test_outlines_end_where_the_slide_ends() -> None:
    found = next(iter(regions(iter([np.zeros((10, 10), np.uint8)]))))
    area = outline(found.polygon, step=2.0, tolerance=0.5, size=(19, 20))
    assert area.bounds == (0, 0, 20, 19)


def test_annotations_have_the_shape_that_qupath_reads_and_come_back_through_our_own_reader(
    tmp_path: Path,
) -> None:
    labels = np.full((60, 60), IGNORE, np.uint8)
    labels[5:50, 5:50] = 1
    labels[20:30, 20:30] = 2
    labels[40:42, 40:42] = 0
    path = tmp_path / "a.geojson"
    count = write_annotations(
        path,
        regions(iter(strips(labels, 7)), least_pixels=10),
        step=2.0,
        tolerance=0.5,
        size=(120, 120),
        classes=["A", "B", "Ç"],
        colours=COLOURS,
    )
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["type"] == "FeatureCollection" and count == len(told["features"]) == 2
    by_name = {f["properties"]["classification"]["name"]: f for f in told["features"]}
    assert set(by_name) == {"B", "Ç"}
    for feature in told["features"]:
        assert feature["type"] == "Feature"
        assert feature["properties"]["objectType"] == "annotation"
        assert shape(feature["geometry"]).is_valid
    assert by_name["B"]["properties"]["classification"]["color"] == [0, 150, 0]
    assert shape(by_name["B"]["geometry"]).area == 4 * (45 * 45 - 100)
    assert len(by_name["B"]["geometry"]["coordinates"]) == 2
    assert shape(by_name["Ç"]["geometry"]).bounds == (40, 40, 60, 60)
    assert [a.label for a in read_annotations(path)] == [
        f["properties"]["classification"]["name"] for f in told["features"]
    ]


def test_a_map_without_tissue_gives_an_empty_collection(tmp_path: Path) -> None:
    empty = regions(iter([np.full((9, 9), IGNORE, np.uint8)]))
    write_annotations(
        tmp_path / "a.geojson", empty, step=1, tolerance=1, size=(9, 9), classes=["A"], colours=COLOURS
    )
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
