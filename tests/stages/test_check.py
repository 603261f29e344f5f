from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.tiles.check import CheckReport, check, class_counts
from stages.tiles.demo import DemoDataset
from stages.tiles.folder import FolderDataset

CLASSES = {"Background": [0], "Gland": [1]}


def add(root: Path, id: str, *, seed: int, size: tuple[int, int] = (12, 10), label: int = 1) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[:4] = label
    Image.fromarray(pixels).save(root / f"images/{id}.png")
    Image.fromarray(mask).save(root / f"masks/{id}.png")


def about(report: CheckReport, name: str) -> list[str]:
    return [fault.what for fault in report.faults if name in str(fault.where)]


def test_a_sound_data_set_is_described(tmp_path: Path) -> None:
    add(tmp_path, "a", seed=0)
    add(tmp_path, "b", seed=1, size=(8, 10))
    (tmp_path / "t.csv").write_text("name,patient,mpp\na,P1,0.5\nb,P1,0.5\n")
    report = check(FolderDataset(tmp_path, CLASSES, table="t.csv"), needs_mpp=True)
    assert report.ok
    assert report.classes == ("Background", "Gland")
    assert report.pixels == (80 + 40, 40 + 40)
    assert report.shares == pytest.approx((0.6, 0.4))
    assert report.patients == {"P1": 2}
    assert report.sizes == {(8, 10): 1, (12, 10): 1}
    assert [(image.id, image.height, image.width, image.pixels) for image in report.images] == [
        ("a", 12, 10, (80, 40)),
        ("b", 8, 10, (40, 40)),
    ]


def test_every_fault_is_reported_at_once_with_its_file(tmp_path: Path) -> None:
    for seed, id in enumerate(["cut", "double", "good", "nomask", "odd", "size", "twin", "void"]):
        add(tmp_path, id, seed=seed)
    content = (tmp_path / "images/cut.png").read_bytes()
    (tmp_path / "images/cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "images/double.png").write_bytes((tmp_path / "images/twin.png").read_bytes())
    (tmp_path / "masks/nomask.png").unlink()
    Image.fromarray(np.full((12, 10), 9, np.uint8)).save(tmp_path / "masks/odd.png")
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "masks/size.png")
    Image.fromarray(np.full((12, 10), 7, np.uint8)).save(tmp_path / "masks/void.png")
    dataset = FolderDataset(tmp_path, {**CLASSES, "Fat": [3]}, ignore=[7])
    report = check(dataset, needs_mpp=True)
    assert not report.ok
    assert "no mask nomask" in about(report, "images/nomask.png")[0]
    assert "truncated" in about(report, "images/cut.png")[0]
    assert "9 (120 pixels)" in about(report, "masks/odd.png")[0]
    assert "mask is 12 × 10 px, its image 10 × 12 px" in about(report, "masks/size.png")[0]
    assert "no pixel of any class" in about(report, "masks/void.png")[0]
    assert report.duplicates == (("double", "twin"),)
    assert "images have identical pixels: double, twin" in about(report, "twin")
    assert about(report, "data.classes") == ["no mask that can be read has a pixel of class Fat"]
    assert sum("no µm per pixel" in fault.what for fault in report.faults) == 7
    assert all(fault.remedy for fault in report.faults)
    assert [image.id for image in report.images] == ["double", "good", "twin", "void"]


def test_a_truncated_image_is_one_fault_and_its_mask_is_still_looked_at(tmp_path: Path) -> None:
    add(tmp_path, "a", seed=0)
    add(tmp_path, "b", seed=1, label=9)
    add(tmp_path, "c", seed=2)
    for id, kept in (("a", 4), ("b", 200)):
        path = tmp_path / f"images/{id}.png"
        path.write_bytes(path.read_bytes()[:kept])
    report = check(FolderDataset(tmp_path, CLASSES))
    assert len(about(report, "images/a.png")) == 1
    assert len(about(report, "images/b.png")) == 1
    assert "9 (40 pixels)" in about(report, "masks/b.png")[0]
    assert len(report.faults) == 3


def test_a_listing_that_fails_is_a_report_too(tmp_path: Path) -> None:
    report = check(FolderDataset(tmp_path / "none", CLASSES))
    assert [fault.what for fault in report.faults] == ["the data folder does not exist"]
    assert report.images == ()
    assert report.shares == (0.0, 0.0)


def test_the_report_is_json_and_gives_the_numbers(tmp_path: Path) -> None:
    add(tmp_path, "a", seed=0)
    report = check(FolderDataset(tmp_path, {**CLASSES, "Fat": [3]}))
    content = json.loads(json.dumps(report.as_json()))
    assert content["format"] == "frostgrid-check-1"
    assert content["ok"] is False
    assert content["classes"][1] == {"name": "Gland", "pixels": 40, "share": pytest.approx(1 / 3)}
    assert content["images"][0]["pixels"] == [80, 40, 0]
    assert content["sizes"] == [{"height": 12, "width": 10, "images": 1}]
    assert content["faults"][0]["where"] == "data.classes"
    assert content["faults"][0]["remedy"]


def test_threads_do_not_change_the_report(tmp_path: Path) -> None:
    for seed in range(6):
        add(tmp_path, f"i{seed}", seed=seed // 2)
    dataset = FolderDataset(tmp_path, CLASSES)
    assert check(dataset, threads=1) == check(dataset, threads=4)
    assert len(check(dataset).duplicates) == 3


def test_the_demo_tissue_is_sound_and_counted_alike() -> None:
    dataset = DemoDataset(images=6)
    report = check(dataset, needs_mpp=True)
    assert report.ok
    assert report.ignored == 0
    assert len(report.patients) == 3
    counts = class_counts(dataset, dataset.records())
    assert {image.id: image.pixels for image in report.images} == {id: tuple(c) for id, c in counts.items()}


def test_thirty_images_of_1024_px_take_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(30):
        pixels = smooth.copy()
        pixels[n, n] ^= 255
        Image.fromarray(pixels).save(tmp_path / f"images/{n:02d}.png", compress_level=1)
        Image.fromarray((smooth[..., 0] > 99).astype(np.uint8)).save(
            tmp_path / f"masks/{n:02d}.png", compress_level=1
        )
    start = time.process_time()
    assert check(FolderDataset(tmp_path, CLASSES)).ok
    assert time.process_time() - start < 8  # about 1.5 on two idle cores


def test_real_glands_are_sound(shared: Path) -> None:
    classes = {"Stroma": [0], "Benign": [1], "Malignant": [2]}
    report = check(FolderDataset(shared / "data/he_glas", classes, table="meta.csv"))
    assert report.ok
    assert len(report.images) == 48
    assert report.shares == pytest.approx((0.460, 0.257, 0.283), abs=1e-3)
    assert report.patients["4"] == 9
