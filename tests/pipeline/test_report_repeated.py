"""What a page says of itself can be done again, and each run stands where it belongs, whatever order it came in."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cachekit import Home, cache, copy_results, flip_bit
from PIL import Image
from studykit import FOLDER, frostgrid, write_folder

from pipeline.report.repeating import repeating
from stages.training.record import read_record
from store.documents import encode

STUDY = FOLDER.replace("test = 2", "test = 4").replace("epochs = 2", "epochs = 2\nlr = 0.05")
TWO = STUDY.replace('names = ["stain"]', 'names = ["stain", "pixels"]')


def summary(home: Home) -> Any:
    return json.loads((home.folder / "runs/small/summary.json").read_text(encoding="utf-8"))


def figures(found: Any) -> dict[str, Any]:
    """Everything that another making of the same runs has to come to."""
    results = {row["encoder"]: (row["seeds"], row["dice"], row["by_seed"]) for row in found["results"]}
    ablated = {(row["factor"], row["value"], row["encoder"]): row["dice"] for row in found["ablations"]}
    return {"results": results, "ablations": ablated, "evidence": found["evidence"]}


def test_the_commands_on_the_page_make_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY.replace(
        'decoder = "linear"', 'decoder = "single-scale"\ndecoder_options = {{ width = 8, depth = 1 }}'
    )
    home = Home(tmp_path / "one", text=text)
    assert home.run("run", "--seeds", "2").exit_code == 0
    assert home.run("extract", "--encoder", "pixels").exit_code == 0
    assert cache("convert", home.store(), "--to", "int8").exit_code == 0
    sweep = ("sweep", "--encoder")
    for more in (
        ("stain", "--decoder", "single-scale:depth=default", "--decoder", "single-scale:width=default"),
        ("stain", "--set", "cache.encoding=int8", "--seeds", "3"),
        ("pixels", "--set", "train.lr=0.01,0.02", "--seeds", "2"),
    ):
        done = home.run(*sweep, *more)
        assert done.exit_code == 0, done.output
    assert home.run("report", "--seeds", "3").exit_code == 0
    found = summary(home)
    assert {row["factor"] for row in found["ablations"]} >= {
        "cache.encoding", "train.lr", "train.decoder_options.depth", "train.decoder_options.width",
    }  # fmt: skip
    commands = repeating(found)["commands"]
    again = tmp_path / "two"
    again.mkdir()
    shutil.copy(home.study, again)
    monkeypatch.chdir(again)
    for command in commands:
        name, *arguments = shlex.split(command)
        done = frostgrid(*arguments)
        assert name == "frostgrid" and done.exit_code == 0, done.output
    repeated = json.loads((again / "runs/small/summary.json").read_text(encoding="utf-8"))
    assert figures(repeated) == figures(found)
    assert repeating(repeated)["commands"] == commands


@pytest.mark.parametrize("first", ["study", "sweep"])
def test_all_tiles_are_the_study_itself_whichever_was_trained_first(tmp_path: Path, first: str) -> None:
    home = Home(tmp_path, text=STUDY)
    assert home.run("extract").exit_code == 0
    sweep, own = ("sweep", "--set", "train.tiles=2,3", "--seeds", "3"), ("train", "--seeds", "1")
    for command in (own, sweep) if first == "study" else (sweep, own):
        assert home.run(*command).exit_code == 0
    assert home.run("report", "--seeds", "3").exit_code == 0
    found = summary(home)
    rows = {row["value"]: row for row in found["ablations"]}
    assert set(rows) == {2.0, 3.0} and {row["seeds"] for row in rows.values()} == {3}
    mean = found["results"][0]["mean_dice"]
    assert rows[3.0]["dice"] == {name: mean[name] for name in ("mean", "std", "ci")}
    assert not any("alone" in note or "not shown" in note for note in found["notes"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("trained"), text=TWO.replace("seeds = 1", "seeds = 3"))
    assert home.run("run").exit_code == 0
    return home


@pytest.fixture
def two(trained: Home, tmp_path: Path) -> Home:
    """A study of two encoders and three seeds, to be changed or damaged."""
    copy_results(trained.folder, tmp_path / "copy")
    return Home(tmp_path / "copy", text=TWO.replace("seeds = 1", "seeds = 3"))


def remove(home: Home, encoder: str, *seeds: int) -> None:
    for seed in seeds:
        (run,) = home.folder.glob(f"runs/small/{encoder}/linear/seed-{seed:03d}-*")
        shutil.rmtree(run)


def test_what_rests_on_one_common_seed_is_said_to(two: Home) -> None:
    remove(two, "pixels", 1, 2)
    assert two.run("report").exit_code == 0
    found = summary(two)
    assert "over seed 0 alone, which all encoders have" in found["answer"]
    assert "over the seeds that both have: " in found["answer"]
    assert any(note.startswith("Compared over one seed alone") for note in found["notes"])


def test_a_pair_without_a_common_seed_has_no_difference_and_corrects_no_other(two: Home) -> None:
    remove(two, "pixels", 1, 2)
    remove(two, "stain", 0)
    assert two.run("report").exit_code == 0
    (pair,) = summary(two)["evidence"]["comparisons"]
    assert pair["seeds"] == 0 and pair["difference"] is None
    other = two.folder / "other.toml"
    other.write_text(two.study.read_text().replace("lr = 0.05", "lr = 0.01"))
    at = ("--cache", two.cache, "--runs", two.folder / "runs")
    assert frostgrid("train", other, *at, "--encoder", "stain", "--seeds", "1").exit_code == 0
    assert frostgrid("train", other, *at, "--encoder", "pixels", "--seeds", "1").exit_code == 0
    compared = frostgrid("compare", two.study, other, *at, "--json")
    rows = {row["a"]["encoder"]: row for row in json.loads(compared.stdout)["encoders"]}
    assert rows["stain"]["difference"] is None and rows["pixels"]["difference"] is not None
    assert "fewer than 6 independent images" in frostgrid("compare", two.study, other, *at).stdout


def test_an_encoder_that_was_swept_only_is_not_missing(two: Home) -> None:
    shutil.rmtree(two.folder / "runs/small/pixels")
    two.study.write_text(two.study.read_text().replace(', "pixels"', ""))
    assert two.run("sweep", "--encoder", "pixels", "--set", "train.lr=0.01,0.02").exit_code == 0
    assert two.run("report").exit_code == 0
    found = summary(two)
    assert {row["encoder"] for row in found["ablations"]} == {"pixels"} and found["without_runs"] == []
    assert not any("pixels" in note for note in found["notes"])


def test_an_encoder_that_was_asked_for_under_two_names_is_reported_once(two: Home) -> None:
    two.study.write_text(two.study.read_text().replace(', "pixels"', ""))
    assert two.run("train", "--encoder", "Pixels", "--seeds", "4").exit_code == 0
    assert two.run("report", "--seeds", "4").exit_code == 0
    assert [row["encoder"] for row in summary(two)["results"]].count("pixels") == 1


def test_a_cache_of_another_form_that_no_command_makes_is_told_of(two: Home) -> None:
    own = two.study.read_text()
    assert cache("convert", two.store("stain"), "--to", "int8").exit_code == 0
    two.study.write_text(f'{own}\n[cache]\nencoding = "int8"\n')
    done = two.run("sweep", "--encoder", "stain", "--set", "cache.encoding=float16,int8", "--seeds", "1")
    assert done.exit_code == 0, done.output
    done = two.run("report", "--seeds", "1")
    assert done.exit_code == 0, done.output
    page = (two.folder / "runs/small/report.html").read_text(encoding="utf-8")
    assert "The caches of cache.encoding=float16 are made apart" in page and "cache convert" not in page


def test_runs_that_might_be_of_either_of_two_caches_are_left_out_and_named(two: Home) -> None:
    assert two.run("sweep", "--encoder", "stain", "--set", "train.lr=0.02", "--seeds", "1").exit_code == 0
    (run,) = (
        path
        for path in two.folder.glob("runs/small/stain/linear/seed-000-*")
        if read_record(path)["identity"]["settings"]["lr"] == 0.02
    )
    body = read_record(run)
    body["identity"]["tokens"] = "0" * 64
    twin = run.with_name("seed-000-00000000")
    shutil.copytree(run, twin)
    (twin / "run.json").write_bytes(encode("run", 2, body))
    shutil.rmtree(two.store("stain"))
    done = two.run("report")
    assert done.exit_code == 0, done.output
    assert any("Runs of stain were left out: 2 runs" in note for note in summary(two)["notes"])


def test_runs_of_a_decoder_that_is_no_longer_installed_are_named(two: Home) -> None:
    (run,) = two.folder.glob("runs/small/stain/linear/seed-000-*")
    body = read_record(run)
    body["identity"]["study"]["train"]["decoder"] = "gone"
    gone = two.folder / "runs/small/stain/gone" / run.name
    shutil.copytree(run, gone)
    (gone / "run.json").write_bytes(encode("run", 2, body))
    assert two.run("report").exit_code == 0
    assert any("unknown decoder 'gone'" in note for note in summary(two)["notes"])


def test_a_damaged_run_is_damaged_for_compare_with_its_cache_or_without(two: Home) -> None:
    (victim,) = two.folder.glob("runs/small/pixels/linear/seed-001-*/run.json")
    flip_bit(victim)
    other = two.folder / "other.toml"
    other.write_text(two.study.read_text())
    copy_results(two.folder / "runs/small", two.folder / "runs/other")
    for _ in range(2):
        at = ("--cache", two.cache, "--runs", two.folder / "runs")
        done = frostgrid("compare", two.study, other, *at)
        assert done.exit_code == 4 and str(victim) in done.stdout, done.output
        for folder in two.cache.glob("pixels-*"):
            shutil.rmtree(folder)


def test_a_class_that_no_test_tile_has_is_in_no_mean_whoever_predicts_it(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    for name in ("i4", "i5"):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(data / f"masks/{name}.png")  # some of it is green
    split = {"train": ["i0", "i1", "i2"], "val": ["i3"], "test": ["i4", "i5"]}
    home = Home(tmp_path, text=TWO.replace("epochs = 2", "epochs = 10"))
    written = frostgrid("data", "split", home.study, "--runs", tmp_path / "runs")
    given = json.loads(Path(written.stdout.strip()).read_text(encoding="utf-8"))
    drawn = "{ train = 3, val = 1, test = 4, seed = 0 }"
    home.study.write_text(home.study.read_text().replace(drawn, json.dumps(str(tmp_path / "s.json"))))
    (tmp_path / "s.json").write_text(json.dumps({**given, **split}))
    assert home.run("run").exit_code == 0
    for row in summary(home)["results"]:
        assert row["dice"]["Green"]["mean"] == 0
        assert row["mean_dice"]["mean"] == row["dice"]["Red"]["mean"] > 0.3
        assert row["metrics"]["iou"]["mean"]["mean"] == row["metrics"]["iou"]["by_class"]["Red"]["mean"]
        assert row["metrics"]["puma_micro"]["mean"]["mean"] < row["mean_dice"]["mean"]
