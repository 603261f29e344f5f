"""Two studies compared: what they say differently, and the paired difference of their Dice."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cachekit import Home, copy_results, flip_bit
from studykit import FOLDER, frostgrid, write_study

STUDY = (
    FOLDER.replace("test = 2", "test = 4")
    .replace('names = ["stain"]', 'names = ["stain", "pixels"]')
    .replace("seeds = 1", "seeds = 2")
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The study ``small`` and beside it ``quick``, trained with a much higher learning rate."""
    home = Home(tmp_path_factory.mktemp("two"), text=STUDY)
    assert home.run("run").exit_code == 0
    write_study(home.folder, home.study.read_text().replace("epochs = 2", "epochs = 2\nlr = 0.2"), "quick")
    done = frostgrid("run", home.folder / "quick.toml", "--cache", home.cache, "--runs", home.folder / "runs")
    assert done.exit_code == 0, done.output
    return home


def compare(home: Home, b: str, *more: str) -> Any:
    at = ("--cache", home.cache, "--runs", home.folder / "runs")
    return frostgrid("compare", home.study, home.folder / f"{b}.toml", *at, *more)


def mean_dice(home: Home, study: str, encoder: str) -> float:
    found: dict[str, list[float]] = {}
    with (home.folder / f"runs/{study}/results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["encoder"], row["split"]) == (encoder, "test"):
                found.setdefault(row["seed"], []).append(float(row["dice"]))
    return float(np.mean([np.mean(values) for values in found.values()]))


def test_it_says_what_differs_and_what_it_did(two: Home) -> None:
    done = compare(two, "quick", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["study"] == [{"field": "train.lr", "a": 0.0001, "b": 0.2}]
    assert found["paired"] and found["images"] == 4
    assert {row["a"]["encoder"] for row in found["encoders"]} == {"stain", "pixels"}
    for row in found["encoders"]:
        a, b = (mean_dice(two, study, row["a"]["encoder"]) for study in ("small", "quick"))
        assert row["a"]["mean"] == pytest.approx(a) and row["b"]["mean"] == pytest.approx(b)
        assert row["difference"] == pytest.approx(b - a)
        assert row["ci"][0] <= row["difference"] <= row["ci"][1]
        assert row["p"] <= row["p_holm"] <= 1
    said = compare(two, "quick").stdout
    assert "differs: train.lr: 0.0001 | 0.2" in said
    assert "in small" in said and "in quick" in said
    assert "fewer than 6 independent images or patients: do not trust the intervals" in said


def test_a_study_does_not_differ_from_itself(two: Home) -> None:
    found = json.loads(compare(two, "small", "--json").stdout)
    assert found["study"] == []
    assert [row["difference"] for row in found["encoders"]] == [0, 0]
    assert [row["p"] for row in found["encoders"]] == [1, 1]
    assert "the two studies say the same" in compare(two, "small").stdout


def test_another_tile_size_is_compared_where_tiles_show_the_same_of_their_images(two: Home) -> None:
    """Tiles of 32 px in the middle of 40 px: of 24 px they show less, of 16 px at half the scale the same."""
    at = ("--cache", two.cache, "--runs", two.folder / "runs")
    text = two.study.read_text().replace('["stain", "pixels"]', '["stain"]')
    write_study(two.folder, text.replace("tile_px = 32", "tile_px = 24"), "less")
    write_study(two.folder, text.replace("tile_px = 32", "tile_px = 16\nscale = 0.5"), "coarser")
    for name in ("less", "coarser"):
        assert frostgrid("run", two.folder / f"{name}.toml", *at).exit_code == 0
    other = json.loads(compare(two, "less", "--json").stdout)
    assert not other["paired"] and other["why_not"].startswith("their tiles cover other parts of the images")
    assert other["encoders"][0]["p"] is None
    found = json.loads(compare(two, "coarser", "--json").stdout)
    assert found["paired"]
    (row,) = found["encoders"]
    assert row["a"]["encoder"] == "stain" and row["ci"] is not None
    assert found["only_in_a"] == ["pixels"] and found["only_in_b"] == []
    assert row["b"]["mean"] == pytest.approx(mean_dice(two, "coarser", "stain"))


def test_studies_are_compared_over_common_seeds_and_what_lacks_or_is_damaged_is_said(
    two: Home, tmp_path: Path
) -> None:
    copy_results(two.folder, tmp_path / "copy")
    home = Home(tmp_path / "copy", text=STUDY)
    write_study(home.folder, home.study.read_text().replace("epochs = 2", "epochs = 2\nlr = 0.2"), "quick")
    (gone,) = home.folder.glob("runs/quick/stain/linear/seed-001-*")
    (broken,) = home.folder.glob("runs/quick/pixels/linear/seed-000-*")
    shutil.rmtree(gone)
    flip_bit(broken / "losses.csv", 5)
    done = compare(home, "quick", "--json")
    assert done.exit_code == 4 and str(broken) in done.stderr
    found = json.loads(done.stdout)
    assert found["missing"] == [[], ["stain, seed 1"]]
    assert [len(side) for side in found["damaged"]] == [0, 1]
    rows = {row["a"]["encoder"]: row for row in found["encoders"]}
    assert {name: (row["seeds"], row["other_seeds"]) for name, row in rows.items()} == {
        "stain": ([0], [1]),
        "pixels": ([1], [0]),
    }
    alone = json.loads(compare(two, "quick", "--seeds", "1", "--json").stdout)
    (wanted,) = (row for row in alone["encoders"] if row["a"]["encoder"] == "stain")
    assert [rows["stain"][name] for name in ("difference", "ci", "p")] == [
        wanted[name] for name in ("difference", "ci", "p")
    ]
    said = compare(home, "quick").stdout
    assert "over seed 0 alone, which both have" in said and "over seed 1 alone, which both have" in said
    assert "missing in quick: stain, seed 1" in said
    assert "in quick: A run is damaged: " in said
    (other,) = home.folder.glob("runs/small/stain/linear/seed-000-*")
    shutil.rmtree(other)
    said = compare(home, "quick").stdout
    assert "not tested: they have no seed in common" in said


def test_names_keep_their_hyphens(two: Home) -> None:
    write_study(two.folder, two.study.read_text().replace("epochs = 2", "epochs = 2\nlr = 0.2"), "my-quick")
    copy_results(two.folder / "runs/quick", two.folder / "runs/my-quick")
    assert (
        "in my-quick" in compare(two, "my-quick").stdout and "my−quick" not in compare(two, "my-quick").stdout
    )


def test_other_classes_are_not_tested_and_it_says_why(two: Home, tmp_path: Path) -> None:
    other = Home(tmp_path, text=STUDY.replace("seeds = 2", "seeds = 1"))
    renamed = other.study.read_text().replace("Red = [0]", "Crimson = [0]")
    other.study.write_text(renamed)
    assert other.run("run").exit_code == 0
    at = ("--cache", other.cache, "--runs", other.folder / "runs")
    usual = write_study(tmp_path, renamed.replace("Crimson", "Red"), "usual")
    assert frostgrid("run", usual, *at).exit_code == 0
    done = frostgrid("compare", other.study, usual, *at, "--json")
    found = json.loads(done.stdout)
    assert not found["paired"] and "classes differ" in found["why_not"]
    assert all(row["p"] is None and row["ci"] is None for row in found["encoders"])
    assert "not tested: their classes differ" in frostgrid("compare", other.study, usual, *at).stdout


def test_the_same_images_under_other_masks_are_not_tested_and_it_says_why(two: Home) -> None:
    text = two.study.read_text().replace('["stain", "pixels"]', '["stain"]')
    write_study(two.folder, text.replace("tile_px = 32", "tile_px = 32\nignore = [9]"), "ignoring")
    at = ("--cache", two.cache, "--runs", two.folder / "runs")
    done = frostgrid("run", two.folder / "ignoring.toml", *at)
    assert done.exit_code == 0, done.output
    found = json.loads(compare(two, "ignoring", "--json").stdout)
    assert not found["paired"] and found["why_not"].startswith("data.ignore differs, ")
    (row,) = found["encoders"]
    assert row["p"] is None and row["ci"] is None


def test_a_study_without_runs_is_refused(two: Home) -> None:
    write_study(two.folder, two.study.read_text().replace("epochs = 2", "epochs = 3"), "never")
    done = compare(two, "never")
    assert done.exit_code == 2
    assert "There is no finished run of this study" in done.stderr


def test_two_caches_are_compared_as_caches_and_a_study_with_none(two: Home) -> None:
    stain, pixels = (sorted(two.cache.glob(f"{slug}-*"))[0] for slug in ("stain", "pixels"))
    same = frostgrid("compare", stain, stain)
    assert same.exit_code == 0 and "the same: both hold these" in same.stdout
    assert frostgrid("compare", stain, pixels).exit_code == 4
    seeded = frostgrid("compare", stain, pixels, "--seeds", 2)
    assert seeded.exit_code == 2 and "Caches are compared whole, and have no runs [--seeds]" in seeded.stderr
    mixed = frostgrid("compare", two.study, stain)
    assert mixed.exit_code == 2 and "A study cannot be compared with a cache" in mixed.stderr
