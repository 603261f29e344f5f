"""The whole pipeline on small studies, as a person runs it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studykit import FOLDER, SMALL_DEMO, frostgrid, write_folder, write_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small demo study has been run once."""
    folder = tmp_path_factory.mktemp("finished")
    done = frostgrid("run", write_study(folder), "--cache", folder / "cache", "--runs", folder / "runs")
    assert done.exit_code == 0, done.output
    assert "stain" in done.stdout
    assert "±" in done.stdout
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_recomputes_nothing_says_so_and_gives_the_same(finished: Path) -> None:
    caches, results = snapshot(finished / "cache"), (finished / "runs/small/results.csv").read_bytes()
    runs = {name: at for name, at in snapshot(finished / "runs").items() if "seed-" in name}
    again = frostgrid(
        "run", finished / "small.toml", "--cache", finished / "cache", "--runs", finished / "runs"
    )
    assert again.exit_code == 0
    assert "0 drawn, 18 kept" in again.stderr
    assert "stain: 0 views encoded, 18 kept" in again.stderr
    assert "pixels: 0 seed(s) trained, 2 kept" in again.stderr
    assert snapshot(finished / "cache") == caches
    assert {n: at for n, at in snapshot(finished / "runs").items() if "seed-" in n} == runs
    assert (finished / "runs/small/results.csv").read_bytes() == results


def test_every_figure_follows_from_the_counts_of_the_tiles(finished: Path) -> None:
    tiles, pooled = (rows(finished / "runs/small" / name) for name in ("tiles.csv", "results.csv"))
    assert len(pooled) == 2 * 2 * 2 * 3  # encoders, seeds, splits, classes
    for row in pooled:
        of = [t for t in tiles if all(t[k] == row[k] for k in ("encoder", "seed", "split", "class"))]
        assert len(of) == {"val": 2, "test": 4}[row["split"]]
        for count in ("intersection", "prediction", "truth"):
            assert sum(int(t[count]) for t in of) == int(row[count])
        dice = 2 * int(row["intersection"]) / (int(row["prediction"]) + int(row["truth"]))
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-12)
    truth = sum(int(row["truth"]) for row in pooled if row["split"] == "test" and row["seed"] == "0")
    assert truth == 2 * 4 * 48 * 48  # every test pixel counts once an encoder

    summary = json.loads((finished / "runs/small/summary.json").read_text())
    for result in summary["results"]:
        by_seed = [
            np.mean([float(r["dice"]) for r in pooled if (r["encoder"], r["seed"], r["split"]) == key])
            for key in ((result["encoder"], "0", "test"), (result["encoder"], "1", "test"))
        ]
        assert result["mean_dice"]["mean"] == pytest.approx(np.mean(by_seed))
        assert result["mean_dice"]["std"] == pytest.approx(np.std(by_seed, ddof=1))


def test_a_seed_gives_the_same_weights_alone_as_beside_others(finished: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, SMALL_DEMO.replace('["stain", "pixels"]', '["pixels"]'))
    done = frostgrid(
        "train", study, "--cache", finished / "cache", "--runs", tmp_path / "runs", "--seeds", "2"
    )
    assert done.exit_code == 0, done.output
    for seed in ("000", "001"):
        mine, theirs = (
            next((root / "runs/small/pixels/single-scale").glob(f"seed-{seed}-*/decoder.safetensors"))
            for root in (tmp_path, finished)
        )
        assert mine.read_bytes() == theirs.read_bytes()


def test_training_needs_neither_weights_nor_the_path_of_the_data(tmp_path: Path) -> None:
    here = write_folder(tmp_path / "here")
    study = write_study(tmp_path, FOLDER.format(root=here))
    assert frostgrid("extract", study, "--cache", tmp_path / "cache", "--runs", tmp_path / "r").exit_code == 0
    shutil.move(here, tmp_path / "there")
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    study = write_study(tmp_path, FOLDER.format(root=tmp_path / "there"))
    again = frostgrid("run", study, "--cache", tmp_path / "moved", "--runs", tmp_path / "runs")
    assert again.exit_code == 0, again.output
    assert "stain: 0 views encoded, 9 kept" in again.stderr


def test_more_views_and_another_split_keep_what_is_there(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    at = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert (
        "9 views encoded, 0 kept"
        in frostgrid("extract", write_study(tmp_path, FOLDER.format(root=root)), *at).stderr
    )
    more = FOLDER.format(root=root).replace("per_tile = 2", "per_tile = 5")
    assert "9 views encoded, 9 kept" in frostgrid("extract", write_study(tmp_path, more), *at).stderr
    other = FOLDER.format(root=root).replace("train = 3, val = 1, test = 2", "train = 5, val = 1, test = 2")
    grown = frostgrid("extract", write_study(tmp_path, other), *at)
    assert grown.exit_code == 0
    assert " 0 kept" not in grown.stderr
    assert frostgrid("train", write_study(tmp_path, other), *at).exit_code == 0


def test_a_changed_pixel_is_a_miss_that_names_the_tile(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    study = write_study(tmp_path, FOLDER.format(root=root))
    at = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert frostgrid("extract", study, *at).exit_code == 0
    split = frostgrid("data", "split", study, *at)
    used = json.loads(Path(split.stdout.strip()).read_text())
    victim = used["train"][0]
    pixels = np.array(Image.open(root / f"images/{victim}.png"))
    pixels[20, 20, 0] ^= 1
    Image.fromarray(pixels).save(root / f"images/{victim}.png")
    missed = frostgrid("train", study, *at)
    assert missed.exit_code == 4
    assert f"cached with other pixels or another mask: {victim} [" in missed.stderr
    assert "frostgrid extract" in missed.stderr


def test_a_changed_augmentation_is_a_miss_that_names_the_parameter(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    text = FOLDER.format(root=root)
    at = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert frostgrid("extract", write_study(tmp_path, text), *at).exit_code == 0
    changed = write_study(tmp_path, text.replace("per_tile = 2", "per_tile = 2\naffine = { shear = 3 }"))
    missed = frostgrid("train", changed, *at)
    assert missed.exit_code == 2
    assert "recipe.shear: stored 10.0, wanted 3.0" in missed.stderr


def test_a_corrected_mask_costs_no_encoder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    study = write_study(tmp_path, FOLDER.format(root=root))
    at = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert frostgrid("run", study, *at).exit_code == 0
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:4] = 0
        Image.fromarray(mask).save(path)
    again = frostgrid("run", study, *at)
    assert again.exit_code == 0
    assert "views: 9 drawn" in again.stderr
    assert "stain: 0 views encoded, 9 kept" in again.stderr
    assert "stain: 1 seed(s) trained" in again.stderr


def test_plan_encoders_and_check_report_as_tables_and_as_json(finished: Path) -> None:
    at = ("--cache", finished / "cache", "--runs", finished / "runs")
    needs = json.loads(frostgrid("plan", finished / "small.toml", "--json", *at).stdout)
    assert needs["views"] == 18
    assert [row["views_cached"] for row in needs["encoders"]] == [18, 18]
    shown = frostgrid("plan", finished / "small.toml", *at).stdout
    assert "18 / 18" in shown and "convolutions for the decoder" in " ".join(shown.split())
    for row in needs["encoders"]:
        assert row["decoder_seconds"] == row["decoder_flop"] / (1e9 * needs["decoder_gflop_per_second"])
    listed = {row["name"]: row for row in json.loads(frostgrid("encoders", "--json").stdout)}
    assert listed["virchow2"]["grid"] == [37, 37]
    assert "virchow2" in frostgrid("encoders").stdout
    checked = json.loads(frostgrid("data", "check", finished / "small.toml", "--json").stdout)
    assert checked["faults"] == []
    assert len(checked["images"]) == 10


def test_preview_and_split_are_written_where_they_say(finished: Path, tmp_path: Path) -> None:
    at = ("--cache", finished / "cache", "--runs", tmp_path)
    shown = frostgrid("data", "preview", finished / "small.toml", "--tiles", "2", "--views", "1", *at)
    assert Path(shown.stdout.strip()).is_file()
    split = Path(frostgrid("data", "split", finished / "small.toml", *at).stdout.strip())
    given = SMALL_DEMO.replace("{ train = 4, val = 2, test = 4, seed = 0 }", json.dumps(str(split)))
    study = write_study(tmp_path, given.replace("seeds = 2", "seeds = 1"), name="given")
    planned = frostgrid("plan", study, "--json", *at)
    assert planned.exit_code == 0, planned.output
    assert (
        json.loads(planned.stdout)["encoders"][0]["views_cached"] == 18
    )  # the same tiles, so the same caches
