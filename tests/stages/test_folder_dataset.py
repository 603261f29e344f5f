from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.tiles.dataset import IGNORE, Dataset
from stages.tiles.folder import FolderDataset
from store.errors import InputError, InputErrors

CLASSES = {"Background": [0], "Gland": [1]}


def picture(path: Path, size: tuple[int, int] = (6, 8), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def labels(path: Path, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 2, size, dtype=np.uint8)).save(path)


def make(root: Path, *ids: str) -> Path:
    for seed, id in enumerate(ids):
        picture(root / "images" / f"{id}.png", seed=seed)
        labels(root / "masks" / f"{id}.png")
    return root


def table(root: Path, text: str) -> FolderDataset:
    (root / "meta.csv").write_text(text, encoding="utf-8")
    return FolderDataset(root, CLASSES, table="meta.csv")


def said(error: InputError) -> list[str]:
    return [str(fault) for fault in error.faults] if isinstance(error, InputErrors) else [str(error)]


def test_images_are_matched_with_masks_by_stem_and_sorted(tmp_path: Path) -> None:
    make(tmp_path, "b", "a")
    picture(tmp_path / "images/c.JPG")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "masks/c.tif")
    dataset: Dataset = FolderDataset(tmp_path, CLASSES)
    assert dataset.name == "folder"
    assert dataset.classes == ("Background", "Gland")
    records = dataset.records()
    assert [record.id for record in records] == ["a", "b", "c"]
    assert all(record.patient is record.split is record.mpp is None for record in records)
    for record in records:
        assert dataset.read_image(record).shape == (6, 8, 3)
        assert dataset.read_mask(record).shape == (6, 8)


def test_geojson_masks_are_drawn_at_the_size_of_their_image(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    ring = [[0, 0], [3, 0], [3, 6], [0, 6], [0, 0]]
    content = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    content["properties"] = {"classification": {"name": "gland"}}
    (tmp_path / "masks/a.geojson").write_text(json.dumps([content]))
    dataset = FolderDataset(tmp_path, {"Gland": ["gland"], "Rest": []}, unlabelled="Rest")
    mask = dataset.read_mask(dataset.records()[0])
    assert mask.shape == (6, 8)
    assert (mask[:, :3] == 0).all()
    assert (mask[:, 3:] == 1).all()


def test_a_mask_suffix_lets_images_and_masks_share_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    labels(tmp_path / "a_mask.png")
    dataset = FolderDataset(tmp_path, CLASSES, images=".", masks=".", mask_suffix="_mask")
    assert [record.id for record in dataset.records()] == ["a"]
    assert dataset.records()[0].mask_path == tmp_path / "a_mask.png"


def test_an_ome_tiff_and_its_mask_share_a_stem(tmp_path: Path) -> None:
    import tifffile

    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.ome.tif", np.zeros((6, 8, 3), np.uint8), photometric="rgb")
    labels(tmp_path / "masks/a.png")
    dataset = FolderDataset(tmp_path, CLASSES)
    assert [record.id for record in dataset.records()] == ["a"]
    assert dataset.read_image(dataset.records()[0]).shape == (6, 8, 3)


def test_every_fault_of_the_folders_is_told_at_once_and_the_rest_is_listed(tmp_path: Path) -> None:
    make(tmp_path, "good", "lonely", "twice", "lossy")
    (tmp_path / "masks/lonely.png").unlink()
    (tmp_path / "masks/lossy.png").rename(tmp_path / "masks/lossy.jpg")
    labels(tmp_path / "masks/orphan.png")
    picture(tmp_path / "images/twice.tif")
    dataset = FolderDataset(tmp_path, CLASSES)
    with pytest.raises(InputErrors) as caught:
        dataset.records()
    text = said(caught.value)
    assert len(text) == 4
    assert any("2 images share the name 'twice': twice.png, twice.tif" in line for line in text)
    assert any("no mask lonely.*" in line and "lonely.png" in line for line in text)
    assert any("lossy.jpg is of a kind that is not read as a mask" in line for line in text)
    assert any("no image orphan.*" in line and "orphan.png" in line for line in text)
    assert [record.id for record in dataset.listing().records] == ["good"]


def test_nested_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a")
    picture(tmp_path / "images/nested/b.png")
    picture(tmp_path / "images/.hidden.png")
    (tmp_path / "images/notes.txt").write_text("x")
    assert [record.id for record in FolderDataset(tmp_path, CLASSES).records()] == ["a"]


def test_a_missing_or_empty_folder_says_which_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data folder does not exist .*Correct data\.root"):
        FolderDataset(tmp_path / "nowhere", CLASSES).records()
    with pytest.raises(InputError, match="folder of images does not exist"):
        FolderDataset(tmp_path, CLASSES).records()
    picture(tmp_path / "images/nested/b.png")
    with pytest.raises(InputError, match="folder of masks does not exist"):
        FolderDataset(tmp_path, CLASSES).records()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"no image in the folder \(nested folders are not searched\)"):
        FolderDataset(tmp_path, CLASSES).records()


def test_a_mask_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png", (6, 8))
    labels(tmp_path / "masks/a.png", (8, 6))
    dataset = FolderDataset(tmp_path, CLASSES)
    with pytest.raises(InputError, match=r"mask is 6 × 8 px, its image 8 × 6 px .*masks/a\.png"):
        dataset.read_mask(dataset.records()[0])


def test_ignored_labels_become_ignored_pixels(tmp_path: Path) -> None:
    make(tmp_path, "a")
    dataset = FolderDataset(tmp_path, {"A": [0], "B": [7]}, ignore=[1])
    mask = dataset.read_mask(dataset.records()[0])
    assert set(np.unique(mask)) == {0, IGNORE}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_gives_patient_split_and_resolution(tmp_path: Path, delimiter: str) -> None:
    make(tmp_path, "a", "b", "c")
    lines = ["image,patient,note,split,mpp", "b.png,P2,x,val,0.5", "a,P1,y,train,", "", "c,,z,test,0.25"]
    dataset = FolderDataset(tmp_path, CLASSES, table="meta.csv", image_mpp=0.4)
    text = "\n".join(lines).replace(",", delimiter)
    (tmp_path / "meta.csv").write_text(text, encoding="utf-8-sig")
    found = [(r.id, r.patient, r.split, r.mpp) for r in dataset.records()]
    assert found == [("a", "P1", "train", 0.4), ("b", "P2", "val", 0.5), ("c", None, "test", 0.25)]


def test_the_columns_of_names_and_patients_can_be_given(tmp_path: Path) -> None:
    make(tmp_path, "a")
    (tmp_path / "t.csv").write_text("image,name,case\nx,a,C7\n")
    dataset = FolderDataset(tmp_path, CLASSES, table="t.csv", name_column="name", patient_column="case")
    assert dataset.records()[0].patient == "C7"


def test_every_fault_of_the_table_is_told_with_its_line(tmp_path: Path) -> None:
    make(tmp_path, "a", "b", "c", "d")
    dataset = table(tmp_path, "name,split,mpp\na,train,-1\na,val,1\nnone,test,1\nb,training,x\nc,train\n")
    with pytest.raises(InputErrors) as caught:
        dataset.records()
    text = said(caught.value)
    for wanted in (
        ("mpp '-1' is not a positive number of image 'a'", "line 2"),
        ("image 'a' has a second row", "line 3"),
        ("there is no image 'none'", "line 4"),
        ("split 'training' is none of train, val, test", "line 5"),
        ("mpp 'x' is not a positive number", "line 5"),
        ("the row has 2 cells, the header 3", "line 6"),
        ("image 'c' has no row", "meta.csv"),
        ("image 'd' has no row", "meta.csv"),
    ):
        assert any(all(part in line for part in wanted) for line in text), wanted
    assert len(text) == 8


@pytest.mark.parametrize(
    ("text", "said_"),
    [
        ("", "the table is empty"),
        ("file,patient\na,1\n", "no column 'name' or 'image'; its columns are file, patient"),
        ("name,image\na,a\n", "both name and image"),
        ("name,x,x\na,1,2\n", "column 'x' twice"),
        ('name,patient\n"a,1\n', "truncated or damaged"),
    ],
)
def test_a_file_that_is_no_such_table_is_explained(tmp_path: Path, text: str, said_: str) -> None:
    make(tmp_path, "a")
    with pytest.raises(InputError, match=said_):
        table(tmp_path, text).records()


def test_a_misspelt_patient_column_is_an_error_not_a_table_without_patients(tmp_path: Path) -> None:
    make(tmp_path, "a")
    (tmp_path / "t.csv").write_text("name,patient\na,1\n")
    with pytest.raises(InputError, match="no column 'Patient'"):
        FolderDataset(tmp_path, CLASSES, table="t.csv", patient_column="Patient").records()
    with pytest.raises(InputError, match="does not exist"):
        FolderDataset(tmp_path, CLASSES, table="none.csv").records()


def test_real_glands_are_listed_with_their_patients(shared: Path) -> None:
    classes = {"Stroma": [0], "Benign": [1], "Malignant": [2]}
    dataset = FolderDataset(shared / "data/he_glas", classes, table="meta.csv")
    records = dataset.records()
    assert len(records) == 48
    assert len({record.patient for record in records}) == 11
    lines = (shared / "data/he_glas/meta.csv").read_text().splitlines()[1:4]
    by_id = {record.id: record for record in records}
    for line in lines:
        cells = line.split(",")
        mask = dataset.read_mask(by_id[cells[0]])
        assert mask.shape == dataset.read_image(by_id[cells[0]]).shape[:2]
        for index in range(3):
            assert (mask == index).mean() == pytest.approx(float(cells[7 + index]), abs=1e-4)


def test_real_annotations_with_a_suffix_are_matched(shared: Path) -> None:
    dataset = FolderDataset(
        shared / "data/ihc_glomeruli",
        {"Rest": [], "Glomerulus": ["tissue_glomerulus"]},
        masks="geojson",
        mask_suffix="_tissue",
        unlabelled="Rest",
    )
    assert [record.id for record in dataset.records()] == ["R22_VEGF_C1", "R22_VEGF_C2", "R22_VEGF_C3"]
    record = dataset.records()[0]
    assert dataset.read_mask(record).shape == dataset.read_image(record).shape[:2] == (1018, 1920)
