"""frostgrid evaluate: a run on other labelled images gives the counts that its own validation gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cachekit import Home, parsed, refused
from PIL import Image
from slides_kit import QUICK, STUDY, run_of, trained
from studykit import frostgrid, write_folder, write_study

from stages.training.record import load_run
from store.errors import StorageError


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return trained(tmp_path_factory.mktemp("learned"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_images_of_a_tiles_size_get_the_very_counts_of_the_run(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", px=32)
    home = Home(tmp_path, text=QUICK)
    assert home.run("run").exit_code == 0
    run = run_of(home)
    done = frostgrid("evaluate", run, home.study, "--split", "test", "--output", tmp_path / "out", "--json")
    told = parsed(done)
    result = load_run(run).result
    wanted = result.best_counts("test")
    found = rows(tmp_path / "out" / "tiles.csv")
    assert [row["tile"] for row in found[::2]] == list(result.test_names) and told["images"] == 2
    counts = np.array([[int(row[name]) for name in ("intersection", "prediction", "truth")] for row in found])
    np.testing.assert_array_equal(counts.reshape(wanted.shape), wanted)
    theirs = [row for row in rows(tmp_path / "runs" / "small" / "results.csv") if row["split"] == "test"]
    assert rows(tmp_path / "out" / "results.csv") == theirs
    assert told["trained_on_these"] is False


def test_larger_images_are_scored_whole_at_the_runs_resolution(learned: Home, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", images=3, px=150)
    text = STUDY.format(root=tmp_path / "other").replace("image_mpp = 1.0", "image_mpp = 0.5")
    study = write_study(tmp_path, text, "other")
    told = parsed(frostgrid("evaluate", run_of(learned), study, "--output", tmp_path / "out", "--json"))
    assert told["images"] == 3 and told["mean_dice"] > 0.9
    pixels = sum(int(row["truth"]) for row in rows(tmp_path / "out" / "tiles.csv"))
    assert pixels == 3 * 75 * 75
    assert not told["trained_on_these"]


def test_classes_are_matched_by_name_whatever_their_order(learned: Home, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", images=2, px=64)
    straight = STUDY.format(root=tmp_path / "other")
    turned = straight.replace("{ Red = [0], Green = [1] }", "{ Green = [1], Red = [0] }")
    dice = []
    for name, text in (("straight", straight), ("turned", turned)):
        study = write_study(tmp_path, text, name)
        dice.append(
            parsed(frostgrid("evaluate", run_of(learned), study, "--output", tmp_path / name, "--json"))[
                "dice"
            ]
        )
    assert dice[0] == dice[1] and dice[0]["Red"] > 0.8


def test_a_folder_laid_out_as_the_runs_own_data_will_do(
    learned: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "ward", images=2, px=70)
    monkeypatch.chdir(tmp_path)
    done = frostgrid("evaluate", run_of(learned), tmp_path / "ward")
    assert done.exit_code == 0 and "Red" in done.stdout and "ward (all): 2 images" in done.stdout
    (folder,) = (tmp_path / "evaluations" / "ward").iterdir()
    assert {path.name for path in folder.iterdir()} == {"results.csv", "tiles.csv"}


def test_images_that_the_run_was_trained_on_are_called_so(learned: Home, tmp_path: Path) -> None:
    done = frostgrid("evaluate", run_of(learned), learned.study, "--output", tmp_path, "--json")
    assert json.loads(done.stdout)["trained_on_these"] is True
    assert "trained or selected on" in done.stderr


def test_images_are_known_again_by_another_path_and_under_another_split(
    learned: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = run_of(learned).absolute(), ("--output", tmp_path / "out", "--json")
    monkeypatch.chdir(learned.folder)
    done = frostgrid("evaluate", run, "data", *out)
    assert parsed(done)["trained_on_these"] is True
    assert "trained or selected on 4 of these 8 images" in done.stderr
    text = STUDY.format(root=learned.folder / "data")
    other = text.replace("train = 3, val = 1, test = 2, seed = 0", "train = 1, val = 1, test = 6, seed = 5")
    done = frostgrid("evaluate", run, write_study(tmp_path, other, "other"), "--split", "test", *out)
    assert parsed(done)["trained_on_these"] is True
    done = frostgrid("evaluate", run, learned.study, "--split", "test", *out)
    assert parsed(done)["trained_on_these"] is False


def test_a_runs_own_images_have_the_runs_own_scale(home: Home, tmp_path: Path) -> None:
    text = home.study.read_text(encoding="utf-8")
    assert "scale" not in text.replace("grayscale", "")
    other = write_study(tmp_path, text.replace("tile_px = ", "scale = 0.5\ntile_px = "), "other")
    run = run_of(home)
    parsed(frostgrid("evaluate", run, other, "--output", tmp_path / "a", "--json"))
    parsed(frostgrid("evaluate", run, home.study, "--output", tmp_path / "b", "--json"))
    assert (tmp_path / "a" / "tiles.csv").read_bytes() == (tmp_path / "b" / "tiles.csv").read_bytes()


def test_other_classes_are_refused_and_named(learned: Home, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", images=2)
    study = write_study(tmp_path, STUDY.format(root=tmp_path / "other").replace("Green", "Blue"), "other")
    done = frostgrid("evaluate", run_of(learned), study, "--output", tmp_path / "out")
    refused(done, "Green missing", "Blue unknown to the run")
    assert not (tmp_path / "out").exists()


def test_images_of_unknown_resolution_are_refused(learned: Home, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", images=2)
    text = STUDY.format(root=tmp_path / "other").replace("image_mpp = 1.0", "scale = 1.0")
    done = frostgrid("evaluate", run_of(learned), write_study(tmp_path, text, "other"))
    refused(done, "2 faults", "i0.png", "image_mpp")


def test_a_run_without_mpp_takes_data_that_gives_a_scale(home: Home, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", images=2, px=80)
    text = STUDY.format(root=tmp_path / "other").replace("image_mpp = 1.0", "scale = 0.5")
    study = write_study(tmp_path, text, "other")
    parsed(frostgrid("evaluate", run_of(home), study, "--output", tmp_path / "out", "--json"))
    assert sum(int(row["truth"]) for row in rows(tmp_path / "out" / "tiles.csv")) == 2 * 40 * 40


def test_the_scores_of_the_others_are_kept_where_an_image_is_damaged(learned: Home, tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "other", images=4), tmp_path / "out"
    command = ("evaluate", run_of(learned), root, "--output", out)
    whole = parsed(frostgrid(*command, "--json"))
    every = rows(out / "tiles.csv")
    (root / "images" / "i3.png").write_bytes(b"x")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / "masks" / "i1.png")
    done = frostgrid(*command, "--json")
    told = parsed(done, 2)
    assert (whole["images"], whole["unscored"], whole["errors"]) == (4, [], [])
    assert (told["images"], told["unscored"]) == (2, ["i1", "i3"])
    assert rows(out / "tiles.csv") == [row for row in every if row["tile"] in ("i0", "i2")]
    assert sum(int(row["truth"]) for row in rows(out / "results.csv")) == 2 * 40 * 40
    for words, error in zip(("its image 40 × 40 px", "i3.png"), told["errors"], strict=True):
        assert words in error
    refused(done, *told["errors"], "2 of 4 images scored", "i1, i3")
    assert "2 of 4 images" in frostgrid(*command).stdout


def test_what_goes_wrong_later_leaves_the_scores_that_were_made(learned: Home, tmp_path: Path) -> None:
    from pipeline.console import Talk
    from pipeline.slide_evaluation import evaluated, labelled_data
    from pipeline.slide_runs import TrainedRun
    from pipeline.slide_windows import Backbone, Windows
    from stages.slides.tokens import Tokens

    class FullDisk(Backbone):
        """Gives the tokens of ``left`` images of one window; then the disk of their cache is full."""

        encoded = kept = left = 0

        def tokens(self, cache: Path | None) -> Tokens:
            self.inner = super().tokens(cache)
            return self

        def of(self, windows: Any, names: Any) -> Any:
            if not self.left:
                raise StorageError("The disk is full", remedy="Free some space.")
            self.left -= 1
            return self.inner.of(windows, names)

    device, talk, run = torch.device("cpu"), Talk(quiet=True), TrainedRun(run_of(learned))
    disk = FullDisk(run, talk, device=device, weights=None, dtype="auto", batch=None)
    windows = Windows(run, disk, device, 1)
    work = labelled_data(run, write_folder(tmp_path / "other", images=3, px=32), 1)
    disk.left = 3
    assert evaluated(windows, work, "all", None, talk).unscored == ()
    disk.left = 2
    score = evaluated(windows, work, "all", None, talk)
    assert (score.names, score.unscored) == (("i0", "i1"), ("i2",))
    assert [error.what for error in score.errors] == ["The disk is full"]
    with pytest.raises(StorageError, match="The disk is full"):
        evaluated(windows, work, "all", None, talk)


def test_images_that_are_all_damaged_are_all_named(learned: Home, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "other", images=2)
    for name in ("i0", "i1"):
        (root / "images" / f"{name}.png").write_bytes(b"x")
    done = frostgrid("evaluate", run_of(learned), root, "--output", tmp_path / "out")
    refused(done, "2 faults", "i0.png", "i1.png")
    assert not (tmp_path / "out").exists()


def test_scores_that_cannot_be_written_are_printed(learned: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    root = write_folder(tmp_path / "other", images=2)
    done = frostgrid("evaluate", run_of(learned), root, "--output", tmp_path / "file" / "out", "--json")
    assert parsed(done, 2)["images"] == 2
    refused(done, "is no folder")
