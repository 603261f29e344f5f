from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stages.tiles.dataset import IGNORE
from stages.tiles.geojson import read_annotations, read_geojson_mask
from stages.tiles.labels import ClassMap, read_label_mask
from store.errors import InputError, InputErrors

CLASSES = ClassMap.of({"Tumour": ["tumour"], "Stroma": ["stroma"], "Rest": ["rest"]})
T, S, R = 0, 1, 2


def square(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(label, *rings, kind: str = "Polygon", coordinates=None) -> dict:
    return {
        "type": "Feature",
        "id": "f00d",
        "geometry": {"type": kind, "coordinates": list(rings) if coordinates is None else coordinates},
        "properties": {"objectType": "annotation", "classification": label},
    }


def named(label: str, *rings, **more) -> dict:
    return feature({"name": label, "color": [1, 2, 3]}, *rings, **more)


def write(path: Path, *features, bare: bool = False) -> Path:
    path.write_text(
        json.dumps(list(features) if bare else {"type": "FeatureCollection", "features": features})
    )
    return path


def test_a_pixel_is_labelled_where_its_centre_is_covered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", named("tumour", square(1, 2, 4, 6)))
    mask = read_geojson_mask(path, (8, 10), CLASSES)
    wanted = np.full((8, 10), IGNORE, np.uint8)
    wanted[2:6, 1:4] = T
    np.testing.assert_array_equal(mask, wanted)
    assert mask.dtype == np.uint8


def test_a_hole_shows_what_lies_beneath_and_nothing_where_nothing_does(tmp_path: Path) -> None:
    ring = named("tumour", square(1, 1, 9, 9), square(3, 3, 6, 6))
    alone = read_geojson_mask(write(tmp_path / "a.geojson", ring), (10, 10), CLASSES)
    assert (alone[3:6, 3:6] == IGNORE).all()
    assert (alone == T).sum() == 64 - 9
    below = read_geojson_mask(
        write(tmp_path / "b.geojson", named("stroma", square(0, 0, 10, 10)), ring), (10, 10), CLASSES
    )
    assert (below[3:6, 3:6] == S).all()
    assert (below == T).sum() == 64 - 9


def test_a_multipolygon_with_holes_is_drawn_whole(tmp_path: Path) -> None:
    parts = [[square(0, 0, 4, 4), square(1, 1, 3, 3)], [square(6, 6, 9, 9)]]
    path = write(tmp_path / "a.geojson", named("rest", kind="MultiPolygon", coordinates=parts))
    mask = read_geojson_mask(path, (10, 10), CLASSES)
    assert (mask == R).sum() == 16 - 4 + 9
    assert mask[2, 2] == IGNORE
    assert mask[7, 7] == R


def test_later_annotations_lie_on_top_unless_an_order_is_given(tmp_path: Path) -> None:
    tumour, stroma = named("tumour", square(0, 0, 6, 6)), named("stroma", square(3, 3, 9, 9))
    path = write(tmp_path / "a.geojson", tumour, stroma)
    assert read_geojson_mask(path, (9, 9), CLASSES)[4, 4] == S
    ordered = ClassMap.of({"Tumour": ["tumour"], "Stroma": ["stroma"]}, draw_order=["stroma", "tumour"])
    assert read_geojson_mask(path, (9, 9), ordered)[4, 4] == T


def test_unlabelled_pixels_are_ignored_or_of_the_class_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", named("tumour", square(0, 0, 2, 2)))
    rest = ClassMap.of({"Tumour": ["tumour"], "Rest": []}, unlabelled="Rest")
    assert read_geojson_mask(path, (4, 4), CLASSES)[3, 3] == IGNORE
    assert read_geojson_mask(path, (4, 4), rest)[3, 3] == 1
    empty = write(tmp_path / "b.geojson")
    assert (read_geojson_mask(empty, (4, 4), rest) == 1).all()


def test_an_ignored_class_covers_what_lies_beneath(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.geojson", named("tumour", square(0, 0, 4, 4)), named("fold", square(0, 0, 2, 4))
    )
    mask = read_geojson_mask(path, (4, 4), ClassMap.of({"T": ["tumour"], "S": ["stroma"]}, ignore=["fold"]))
    assert (mask[:, :2] == IGNORE).all()
    assert (mask[:, 2:] == T).all()


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    "label", ["tumour", {"name": "tumour"}, {"names": ["tumour"]}, {"name": "tumour", "colorRGB": -3}]
)
def test_the_forms_in_which_qupath_writes_a_class_are_read(tmp_path: Path, bare: bool, label) -> None:
    path = write(tmp_path / "a.geojson", feature(label, square(0, 0, 2, 2)), bare=bare)
    assert (read_geojson_mask(path, (4, 4), CLASSES) == T).sum() == 4


def test_a_derived_class_of_several_names_is_joined_as_qupath_shows_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", feature({"names": ["Tumor", "Positive"]}, square(0, 0, 2, 2)))
    assert [a.label for a in read_annotations(path)] == ["Tumor: Positive"]


def test_an_annotation_that_reaches_over_the_rim_is_cut_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", named("tumour", square(-5, -5, 3, 30)))
    mask = read_geojson_mask(path, (4, 6), CLASSES)
    assert (mask == T).sum() == 4 * 3


def test_an_unknown_class_is_named_with_the_file_and_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", named("tumor", square(0, 0, 2, 2)), named("fat", square(0, 0, 2, 2)))
    with pytest.raises(InputError) as caught:
        read_geojson_mask(path, (4, 4), CLASSES)
    assert "tumor, fat; known are tumour, stroma, rest" in str(caught.value)
    assert caught.value.where == str(path)


def test_annotations_in_the_coordinates_of_a_whole_slide_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", named("tumour", square(20000, 31000, 21000, 32000)))
    with pytest.raises(
        InputError, match=r"no annotation lies on the image of 4 × 6 px.*x = 20000, y = 31000"
    ):
        read_geojson_mask(path, (6, 4), CLASSES)


def test_a_self_touching_outline_is_mended_because_its_area_stays(tmp_path: Path) -> None:
    touching = [[0, 0], [4, 0], [4, 4], [8, 4], [8, 8], [4, 8], [4, 4], [0, 4], [0, 0]]
    path = write(tmp_path / "a.geojson", named("tumour", touching))
    assert (read_geojson_mask(path, (8, 8), CLASSES) == T).sum() == 32


def test_an_outline_that_crosses_itself_is_refused_because_it_has_two_readings(tmp_path: Path) -> None:
    bow_tie = [[0, 0], [8, 8], [8, 0], [0, 8], [0, 0]]
    path = write(tmp_path / "a.geojson", named("stroma", square(0, 0, 2, 2)), named("tumour", bow_tie))
    with pytest.raises(InputError, match=r"annotation 2 \(id f00d\) is not a valid area \(Self-intersection"):
        read_geojson_mask(path, (8, 8), CLASSES)


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    features = [
        named("tumour", kind="LineString", coordinates=[[0, 0], [1, 1]]),
        named("tumour", kind="Point", coordinates=[1, 1]),
        {"type": "Feature", "geometry": None, "properties": {"classification": "tumour"}},
        feature(None, square(0, 0, 2, 2)),
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square(0, 0, 1, 1)]}},
        named("tumour", [[0, 0], [1, 1]]),
        named("tumour", [[0, 0], [float("nan"), 1], [3, 3], [0, 0]]),
        named("tumour", "no coordinates"),
        "no feature",
        named("tumour"),
    ]
    with pytest.raises(InputErrors) as caught:
        read_annotations(write(tmp_path / "a.geojson", *features))
    said = [fault.what for fault in caught.value.faults]
    assert len(said) == len(features)
    for position, part in enumerate(
        [
            "is a LineString",
            "is a Point",
            "has no geometry",
            "has no classification",
            "has no classification",
            "malformed",
            "",
            "malformed",
            "is not a GeoJSON feature",
            "is empty",
        ]
    ):
        assert f"annotation {position + 1}" in said[position]
        assert part in said[position]


@pytest.mark.parametrize("text", ['{"type": "FeatureCollection", "feat', "", "\xff\xfe"])
def test_a_truncated_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.geojson").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="Re-download or re-export"):
        read_geojson_mask(tmp_path / "a.geojson", (4, 4), CLASSES)


@pytest.mark.parametrize("content", ["{}", '{"type": "Feature"}', "3", '{"type": "FeatureCollection"}'])
def test_json_that_is_no_collection_of_features_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(InputError, match="neither a FeatureCollection nor a list"):
        read_geojson_mask(tmp_path / "a.geojson", (4, 4), CLASSES)


def test_real_annotations_agree_with_the_mask_drawn_from_the_same_outlines(shared: Path) -> None:
    folder = shared / "data/ihc_glomeruli"
    files = sorted((folder / "geojson").iterdir())
    assert len(files) == 3
    for path in files:
        label = read_annotations(path)[0].label
        drawn = ClassMap.of({"Rest": [0], "Glomerulus": [1, label]}, unlabelled="Rest")
        wanted = read_label_mask(folder / "masks" / f"{path.stem.removesuffix('_tissue')}.png", drawn)
        mask = read_geojson_mask(path, wanted.shape, drawn)
        assert 0.01 < (wanted == 1).mean() < 0.5
        assert (mask == wanted).mean() > 0.995
