"""What makes a cache the right one: the pixels and the settings, and neither paths nor names nor what else is in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from cachekit import Home, cache, copy_results, parsed, refused
from PIL import Image
from studykit import FOLDER

from stages.tiles.views import Recipe

TRAIN, VAL, TEST = 3, 1, 2
VIEWS = TRAIN * 2 + VAL + TEST


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Home:
    """The study with its data and its caches in another folder, everything of today's date."""
    there = Home(tmp_path / "some where" / "else", data=home.folder / "data")
    shutil.copytree(home.cache, there.cache)
    return there


def committed(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Inode, time and content of every file of every part below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.glob("*/part-*/**/*")
        if path.is_file()
    }


def decoder(study: Home) -> bytes:
    (weights,) = study.folder.glob("runs/*/stain/linear/seed-000-*/decoder.safetensors")
    return weights.read_bytes()


def split_of(study: Home) -> dict[str, list[str]]:
    (kept,) = study.folder.glob("runs/*/split.json")
    return json.loads(kept.read_text())


def test_cache_and_data_in_other_folders_and_files_are_a_hit_with_the_same_results(
    home: Home, copy: Home
) -> None:
    shutil.move(copy.cache, copy.folder / "caches of spring")
    for image in (copy.folder / "data" / "images").iterdir():
        pixels = np.array(Image.open(image))
        before = image.read_bytes()
        Image.fromarray(pixels).save(image, compress_level=0)  # other bytes, the same pixels
        assert image.read_bytes() != before
    at = ("--cache", copy.folder / "caches of spring")
    planned = parsed(copy.run("plan", "--json", *at))
    assert [row["views_cached"] for row in planned["encoders"]] == [VIEWS]
    kept = committed(copy.folder / "caches of spring")
    again = copy.run("run", *at)
    assert again.exit_code == 0, again.output
    assert f"views: 0 drawn, {VIEWS} kept" in again.stderr
    assert f"stain: 0 views encoded, {VIEWS} kept" in again.stderr
    assert copy.results() == home.results()
    assert committed(copy.folder / "caches of spring") == kept
    assert (
        cache("diff", home.store(), next((copy.folder / "caches of spring").glob("stain-*"))).exit_code == 0
    )


@pytest.mark.parametrize(("side", "lost"), [("train", 2), ("test", 1)])
def test_one_changed_pixel_is_a_miss_of_that_tile_alone(copy: Home, side: str, lost: int) -> None:
    assert copy.run("extract").exit_code == 0
    victim, *others = split_of(copy)[side]
    image = copy.folder / "data" / "images" / f"{victim}.png"
    pixels = np.array(Image.open(image))
    pixels[20, 20, 1] ^= 1
    Image.fromarray(pixels).save(image)
    planned = parsed(copy.run("plan", "--json"))
    assert [row["views_cached"] for row in planned["encoders"]] == [VIEWS - lost]
    missed = copy.run("train")
    refused(missed, f"cached with other pixels or another mask: {victim} [", "frostgrid extract", status=4)
    assert not any(f"{other}" in missed.stderr for other in others)
    kept = committed(copy.cache)
    again = copy.run("extract")
    assert again.exit_code == 0, again.output
    assert f"views: {lost} drawn, {VIEWS - lost} kept" in again.stderr
    assert f"stain: {lost} views encoded, {VIEWS - lost} kept" in again.stderr
    assert kept.items() <= committed(copy.cache).items()
    assert copy.run("train").exit_code == 0
    assert cache("verify", copy.store()).exit_code == 0


CHANGES = {
    "degrees": ("affine = {{ degrees = 90 }}", "stored 180.0, wanted 90.0"),
    "translate": ("affine = {{ translate = 0.05 }}", "stored 0.1, wanted 0.05"),
    "scale": ("affine = {{ scale = [0.8, 1.3] }}", "stored [0.8, 1.25], wanted [0.8, 1.3]"),
    "shear": ("affine = {{ shear = 9.5 }}", "stored 10.0, wanted 9.5"),
    "flip": ("flip = false", "stored True, wanted False"),
    "brightness": ("jitter = {{ brightness = 0.21 }}", "stored 0.2, wanted 0.21"),
    "contrast": ("jitter = {{ contrast = 0.1 }}", "stored 0.2, wanted 0.1"),
    "saturation": ("jitter = {{ saturation = 0 }}", "stored 0.2, wanted 0.0"),
    "hue": ("jitter = {{ hue = 0.04 }}", "stored 0.05, wanted 0.04"),
    "seed": ("seed = 1", "stored 0, wanted 1"),
}


def test_one_changed_parameter_of_the_augmentation_is_a_miss_that_names_it_alone(
    home: Home, tmp_path: Path
) -> None:
    assert CHANGES.keys() == {field.name for field in fields(Recipe)}
    for parameter, (line, said) in CHANGES.items():
        text = FOLDER.replace("per_tile = 2", f"per_tile = 2\n{line}")
        changed = Home(tmp_path / parameter, data=home.folder / "data", text=text)
        missed = changed.run("train", "--cache", home.cache)
        refused(missed, f"recipe.{parameter}: {said}")
        assert missed.stderr.count("stored ") == 1


def test_other_settings_make_a_cache_beside_and_the_first_stays_a_hit(copy: Home) -> None:
    kept = committed(copy.cache)
    text = copy.study.read_text()
    copy.study.write_text(text.replace("per_tile = 2", "per_tile = 2\nflip = false"))
    other = copy.run("extract")
    assert other.exit_code == 0, other.output
    assert f"stain: {VIEWS} views encoded, 0 kept" in other.stderr
    assert len(list(copy.cache.glob("stain-*"))) == 2
    copy.study.write_text(text)
    assert f"stain: 0 views encoded, {VIEWS} kept" in copy.run("extract").stderr
    assert kept.items() <= committed(copy.cache).items()


def more_tiles(copy: Home, text: str) -> str:
    """Two of the images that no side has join the test side."""
    split = split_of(copy)
    taken = {name for side in ("train", "val", "test") for name in split[side]}
    rest = sorted(path.stem for path in (copy.folder / "data/images").iterdir() if path.stem not in taken)
    file = copy.folder / "more.json"
    file.write_text(json.dumps({**split, "test": [*split["test"], *rest[:2]]}))
    return text.replace("{ train = 3, val = 1, test = 2, seed = 0 }", json.dumps(str(file)))


@pytest.mark.parametrize(
    ("change", "added"),
    [
        (lambda copy, text: text.replace("per_tile = 2", "per_tile = 7"), TRAIN * 5),
        (more_tiles, 2),
        (lambda copy, text: text.replace("test = 2, seed = 0", "test = 2, seed = 3"), None),
    ],
    ids=["more views", "more tiles", "another split"],
)
def test_a_study_that_asks_for_more_keeps_and_uses_what_is_there(
    home: Home, copy: Home, change: Callable[[Home, str], str], added: int | None
) -> None:
    kept, first = committed(copy.cache), copy.study.read_text()
    copy_results(home.folder / "runs", copy.folder / "runs")
    copy.study.write_text(change(copy, first))
    needs = parsed(copy.run("plan", "--json"))
    lacking = needs["views"] - needs["encoders"][0]["views_cached"]
    assert (lacking == added) if added is not None else (0 < lacking < needs["views"])
    grown = copy.run("extract")
    assert grown.exit_code == 0, grown.output
    assert f"stain: {lacking} views encoded, {needs['views'] - lacking} kept" in grown.stderr
    assert kept.items() <= committed(copy.cache).items()
    assert cache("verify", copy.store()).exit_code == 0
    # And the study that was there first finds what it had, and trains to the same weights.
    shutil.rmtree(copy.folder / "runs")
    copy.study.write_text(first)
    back = copy.run("train")
    assert back.exit_code == 0, back.output
    assert decoder(copy) == decoder(home)
