from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from stages.tiles.dataset import IGNORE
from stages.tiles.puma import ROI_FOLDER, TISSUE_FOLDER, PumaDataset
from store.errors import InputError, InputErrors

CLASSES = {
    "Tumour": ["tissue_tumor"],
    "Stroma": ["tissue_stroma"],
    "Other": ["tissue_epidermis", "tissue_necrosis", "tissue_blood_vessel", "tissue_white_background"],
}


def ring(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def tissue(label: str, kind: str, coordinates: list) -> dict:
    return {
        "type": "Feature",
        "id": f"id-of-{label}",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": label, "color": [150, 200, 150]},
        },
    }


def write_region(root: Path, id: str, *, channels: int = 4, side: int = 64) -> np.ndarray:
    """Write a region in the real layout: stroma with a hole, a vessel in the hole, tumour in two pieces."""
    pixels = np.random.default_rng(int(id[-3:])).integers(0, 256, (side, side, channels), np.uint8)
    (root / ROI_FOLDER).mkdir(parents=True, exist_ok=True)
    (root / TISSUE_FOLDER).mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        root / ROI_FOLDER / f"{id}.tif",
        pixels,
        photometric="rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="lzw",
    )
    features = [
        tissue("tissue_stroma", "Polygon", [ring(0, 0, side, 32), ring(8, 8, 24, 24)]),
        tissue("tissue_blood_vessel", "Polygon", [ring(10, 10, 20, 20)]),
        tissue(
            "tissue_tumor",
            "MultiPolygon",
            [[ring(0, 32, 20, 64), ring(4, 40, 12, 48)], [ring(40, 40, 60, 60)]],
        ),
    ]
    content = {"type": "FeatureCollection", "features": features}
    (root / TISSUE_FOLDER / f"{id}_tissue.geojson").write_text(json.dumps(content))
    return pixels[..., :3]


def test_the_real_layout_is_read_with_holes_and_pieces(tmp_path: Path) -> None:
    pixels = write_region(tmp_path, "training_set_metastatic_roi_007")
    write_region(tmp_path, "training_set_primary_roi_001", channels=3)
    dataset = PumaDataset(tmp_path, CLASSES)
    assert (dataset.name, dataset.classes) == ("puma", ("Tumour", "Stroma", "Other"))
    first, second = dataset.records()
    assert first.id == first.patient == "training_set_metastatic_roi_007"
    assert second.id == second.patient == "training_set_primary_roi_001"
    assert first.mpp == 0.23
    np.testing.assert_array_equal(dataset.read_image(first), pixels)
    mask = dataset.read_mask(first)
    wanted = np.full((64, 64), IGNORE, np.uint8)
    wanted[:32] = 1
    wanted[8:24, 8:24] = IGNORE
    wanted[10:20, 10:20] = 2
    wanted[32:64, 0:20] = 0
    wanted[40:48, 4:12] = IGNORE
    wanted[40:60, 40:60] = 0
    np.testing.assert_array_equal(mask, wanted)


def test_unlabelled_tissue_and_draw_order_are_the_users_choice(tmp_path: Path) -> None:
    write_region(tmp_path, "training_set_primary_roi_001")
    order = ["tissue_blood_vessel", *(n for n in PumaDataset.labels if n != "tissue_blood_vessel")]
    dataset = PumaDataset(tmp_path, CLASSES, unlabelled="Other", draw_order=order)
    mask = dataset.read_mask(dataset.records()[0])
    assert IGNORE not in mask
    assert mask[9, 9] == 2


def test_partners_that_are_missing_and_odd_names_are_told_at_once(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_region(tmp_path, f"training_set_primary_roi_{number:03d}")
    (tmp_path / TISSUE_FOLDER / "training_set_primary_roi_002_tissue.geojson").unlink()
    (tmp_path / ROI_FOLDER / "training_set_primary_roi_003.tif").unlink()
    (tmp_path / ROI_FOLDER / "copy of roi 1.tif").write_bytes(b"")
    dataset = PumaDataset(tmp_path, CLASSES)
    with pytest.raises(InputErrors) as caught:
        dataset.records()
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    assert "no tissue annotations" in text and "roi_002.tif" in text
    assert "no image" in text and "roi_003_tissue.geojson" in text
    assert "copy of roi 1.tif" in text
    assert [record.id for record in dataset.listing().records] == ["training_set_primary_roi_001"]


def test_a_missing_or_empty_download_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{ROI_FOLDER}.*frostgrid data get puma"):
        PumaDataset(tmp_path, CLASSES).records()
    (tmp_path / ROI_FOLDER).mkdir()
    with pytest.raises(InputError, match=f"{TISSUE_FOLDER}.*frostgrid data get puma"):
        PumaDataset(tmp_path, CLASSES).records()
    (tmp_path / TISSUE_FOLDER).mkdir()
    with pytest.raises(InputError, match="no PUMA region"):
        PumaDataset(tmp_path, CLASSES).records()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"Tumour": ["tissue_tumour"]}, "'tissue_tumour' is no tissue label; 'tissue_tumor' is in no class"),
        ({"Other": ["tissue_necrosis"]}, "'tissue_epidermis' is in no class"),
    ],
)
def test_classes_that_do_not_fit_the_labels_are_refused_before_anything_is_read(
    tmp_path: Path, changed: dict, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        PumaDataset(tmp_path, {**CLASSES, **changed})


def test_a_label_can_be_left_out_on_purpose(tmp_path: Path) -> None:
    write_region(tmp_path, "training_set_primary_roi_001")
    others = [name for name in CLASSES["Other"] if name != "tissue_blood_vessel"]
    dataset = PumaDataset(tmp_path, {**CLASSES, "Other": others}, ignore=["tissue_blood_vessel"])
    assert dataset.read_mask(dataset.records()[0])[15, 15] == IGNORE


def test_a_truncated_region_is_named(tmp_path: Path) -> None:
    write_region(tmp_path, "training_set_primary_roi_001")
    path = tmp_path / ROI_FOLDER / "training_set_primary_roi_001.tif"
    path.write_bytes(path.read_bytes()[:5000])
    dataset = PumaDataset(tmp_path, CLASSES)
    with pytest.raises(InputError, match=r"training_set_primary_roi_001\.tif"):
        dataset.read_image(dataset.records()[0])


def test_a_real_region_is_read_beside_annotations_in_the_real_layout(tmp_path: Path, shared: Path) -> None:
    id = "training_set_metastatic_roi_094"
    write_region(tmp_path, id)
    shutil.copy(shared / "data/puma_format" / ROI_FOLDER / f"{id}.tif", tmp_path / ROI_FOLDER / f"{id}.tif")
    dataset = PumaDataset(tmp_path, CLASSES)
    record = dataset.records()[0]
    assert dataset.read_image(record).shape == (1024, 1024, 3)
    assert dataset.read_mask(record).shape == (1024, 1024)
