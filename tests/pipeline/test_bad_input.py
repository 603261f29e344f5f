"""Whatever is wrong with the input: one clear paragraph with file and remedy, a status, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from studykit import FOLDER, frostgrid, write_folder, write_study

from store import GridStore, verify


def run(study: Path, folder: Path, command: str = "extract", *more: str) -> Result:
    return frostgrid(command, study, "--cache", folder / "cache", "--runs", folder / "runs", *more)


def refused(result: Result, *said: str, status: int = 2) -> None:
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    for text in said:
        assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.rstrip().endswith((".", "!", "?"))


def test_a_truncated_tiff_is_named_and_what_was_cached_stays(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    study = write_study(tmp_path, FOLDER.format(root=root))
    assert run(study, tmp_path).exit_code == 0
    stored = sorted((tmp_path / "cache").rglob("c.*"))
    victim = root / "images/i3.tif"
    tifffile.imwrite(victim, np.array(Image.open(root / "images/i3.png")), compression="zlib")
    (root / "images/i3.png").unlink()
    victim.write_bytes(victim.read_bytes()[:-500])
    for command in ("extract", "train"):
        refused(run(study, tmp_path, command), "i3.tif")
    refused(frostgrid("data", "check", study), "i3.tif")
    assert sorted((tmp_path / "cache").rglob("c.*")) == stored


def test_a_mask_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    Image.fromarray(np.zeros((41, 40), np.uint8)).save(root / "masks/i2.png")
    study = write_study(tmp_path, FOLDER.format(root=root))
    refused(run(study, tmp_path), "i2.png", "40", "41")
    assert not list(tmp_path.glob("cache/*/*/*/c.*"))


def test_an_unknown_class_of_a_geojson_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (root / "geojson").mkdir()
    for number in range(8):
        ring = [[0, 0], [20, 0], [20, 40], [0, 40], [0, 0]]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": "Green" if number != 5 else "Grene"}},
        }
        collection = {"type": "FeatureCollection", "features": [feature]}
        (root / f"geojson/i{number}.geojson").write_text(json.dumps(collection))
    text = FOLDER.format(root=root).replace("Red = [0], Green = [1]", 'Red = ["Red"], Green = ["Green"]')
    study = write_study(tmp_path, text.replace("tile_px", 'masks = "geojson"\nunlabelled = "Red"\ntile_px'))
    refused(run(study, tmp_path), "i5.geojson", "Grene", "Green")


def test_a_class_absent_from_the_training_split_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for number in range(3):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(root / f"masks/i{number}.png")
    study = write_study(tmp_path, FOLDER.format(root=root))
    split = Path(frostgrid("data", "split", study, "--out", tmp_path / "split.json").stdout.strip())
    chosen = json.loads(split.read_text())
    chosen |= {"train": ["i0", "i1", "i2"], "val": ["i3"], "test": ["i4", "i5"]}
    split.write_text(json.dumps(chosen))
    text = FOLDER.format(root=root)
    given = text.replace("{ train = 3, val = 1, test = 2, seed = 0 }", json.dumps(str(split)))
    refused(run(write_study(tmp_path, given), tmp_path), "Green", "training")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/masks").mkdir()
    refused(run(write_study(tmp_path, FOLDER.format(root=tmp_path / "data")), tmp_path), "data/images")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(run(write_study(tmp_path, FOLDER.format(root=tmp_path / "none")), tmp_path), "none")


def test_a_misspelt_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    study = write_study(tmp_path, FOLDER.format(root=tmp_path).replace("epochs = 2", "epoch = 2"))
    refused(run(study, tmp_path, "train"), "train.epoch", "Did you mean 'epochs'?", str(study))


def test_an_unknown_encoder_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    study = write_study(tmp_path, FOLDER.format(root=write_folder(tmp_path / "data")))
    refused(run(study, tmp_path, "extract", "--encoder", "virchov2"), "virchov2", "virchow2")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    study = write_study(tmp_path, FOLDER.format(root=root))
    weights = tmp_path / "other.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file({name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}, weights)
    result = run(study, tmp_path, "extract", "--encoder", "dinov2-s14", "--weights", str(weights))
    refused(result, str(weights), "architecture")


def test_training_before_extraction_says_what_to_run(tmp_path: Path) -> None:
    study = write_study(tmp_path, FOLDER.format(root=write_folder(tmp_path / "data")))
    refused(run(study, tmp_path, "train"), "frostgrid extract")
    refused(run(study, tmp_path, "report"), "frostgrid extract")


def test_cuda_graphs_on_a_cpu_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    text = FOLDER.format(root=write_folder(tmp_path / "data")) + "cuda_graphs = true\n"
    study = write_study(tmp_path, text)
    assert run(study, tmp_path).exit_code == 0
    refused(run(study, tmp_path, "train", "--device", "cpu"), "train.cuda_graphs", "NVIDIA GPU")
    refused(run(study, tmp_path, "train", "--workers", "1"), "train.cuda_graphs", "NVIDIA GPU")
    assert not list(tmp_path.glob("runs/small/stain/*/seed-*"))


def test_a_damaged_run_is_named_and_not_reported(tmp_path: Path) -> None:
    study = write_study(tmp_path, FOLDER.format(root=write_folder(tmp_path / "data")))
    assert run(study, tmp_path, "run").exit_code == 0
    (counts,) = tmp_path.glob("runs/small/stain/linear/seed-*/confusions.npz")
    counts.write_bytes(counts.read_bytes()[:-1])
    refused(run(study, tmp_path, "report"), "confusions.npz", status=4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k,nr_inodes=0", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_loses_nothing_and_goes_on_after_room_is_made(tmp_path: Path, small_disk: Path) -> None:
    text = FOLDER.format(root=write_folder(tmp_path / "data", images=30, px=80))
    text = text.replace("train = 3, val = 1, test = 2", "train = 15, val = 5, test = 10").replace(
        "tile_px = 32", "tile_px = 64"
    )
    study = write_study(
        tmp_path, text.replace('["stain"]', '["pixels"]').replace("per_tile = 2", "per_tile = 6")
    )
    refused(run(study, small_disk), str(small_disk), "full", status=1)
    before = {path: path.stat().st_mtime_ns for path in small_disk.rglob("c.*")}
    assert before
    assert not list(small_disk.rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    again = run(study, small_disk)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (cache,) = small_disk.glob("cache/pixels-*")
    assert not verify(GridStore.open(cache))


def test_a_read_only_cache_trains_but_is_not_written_to(tmp_path: Path) -> None:
    study = write_study(tmp_path, FOLDER.format(root=write_folder(tmp_path / "data")))
    assert run(study, tmp_path).exit_code == 0
    cache = tmp_path / "cache"
    if os.geteuid() == 0:
        bound = subprocess.run(["mount", "--bind", cache, cache], capture_output=True)
        if bound.returncode != 0:
            pytest.skip("root writes to read-only folders, and mounting one is not allowed here")
        subprocess.run(["mount", "-o", "remount,ro,bind", cache], check=True)
    else:
        for folder in (cache, *(path for path in cache.rglob("*") if path.is_dir())):
            folder.chmod(0o555)
    try:
        trained = run(study, tmp_path, "run")
        assert trained.exit_code == 0, trained.output
        more = write_study(tmp_path, study.read_text().replace("per_tile = 2", "per_tile = 4"))
        refused(run(more, tmp_path), "cache", "read-only", status=1)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", cache], check=True)


def test_true_label_images_without_a_prediction_are_said_to_be_in_no_score(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 6, (16, 16), dtype=np.uint8)
    for name in ("predicted/a", "true/a", "true/b", "true/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / f"{name}.tif", labels)
    done = frostgrid("data", "score", tmp_path / "predicted", tmp_path / "true", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["images"], found["not_scored"]) == ({"a.tif": 1.0}, ["b.tif", "c.tif"])
    assert "2 of 3 true label images have no prediction and are in no score, such as b.tif" in done.stderr
