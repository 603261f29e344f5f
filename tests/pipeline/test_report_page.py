"""The page of a study: every figure is that of results.csv, and what is missing or damaged is said on it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cachekit import Home, copy_results, flip_bit
from pagekit import Page, check_cell
from PIL import Image
from studykit import FOLDER, frostgrid, write_folder

from stages.training.record import read_record
from store.documents import encode

STUDY = (
    FOLDER.replace("test = 2", "test = 4")
    .replace('names = ["stain"]', 'names = ["stain", "pixels"]')
    .replace("seeds = 1", "seeds = 3")
    .replace("epochs = 2", "epochs = 2\nlr = 0.05")
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A study of two encoders, three seeds and four test images, with its report."""
    home = Home(tmp_path_factory.mktemp("made"), text=STUDY)
    done = home.run("run")
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def copied(made: Home, tmp_path: Path) -> Home:
    """A copy of it, to be changed or damaged."""
    copy_results(made.folder, tmp_path / "copy")
    return Home(tmp_path / "copy", text=STUDY)


def page(home: Home) -> Page:
    return Page(home.folder / "runs/small/report.html")


def summary(home: Home) -> Any:
    return json.loads((home.folder / "runs/small/summary.json").read_text(encoding="utf-8"))


def rows(home: Home, name: str = "results.csv") -> list[dict[str, str]]:
    with (home.folder / "runs/small" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mean_dice(home: Home, encoder: str) -> dict[str, float]:
    """The mean test Dice of each seed, from results.csv alone."""
    found: dict[str, list[float]] = {}
    for row in rows(home):
        if row["encoder"] == encoder and row["split"] == "test":
            shared = int(row["prediction"]) + int(row["truth"])
            found.setdefault(row["seed"], []).append(2 * int(row["intersection"]) / shared)
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def dice_row(home: Home, encoder: str) -> list[str]:
    table = page(home).tables["Test Dice (%), mean ± standard deviation over seeds"]
    return next([cell.text for cell in row] for row in table if row[0].text == encoder)


def test_every_number_in_the_tables_is_that_of_the_summary(made: Home) -> None:
    found, numbers = page(made), 0
    for cell in found.cells():
        if cell.at:
            numbers += check_cell(cell, summary(made))
    assert numbers > 80
    for label, table in found.tables.items():
        for row in table[1:]:
            for cell, head in zip(row[1:], table[0][1:], strict=True):
                words = head.text in ("seeds", "title", "licence", "told apart", "against") or label == "Runs"
                assert cell.at or words or cell.text == "–", (label, head.text, cell.text)


def test_the_dice_table_is_that_of_results_csv(made: Home) -> None:
    for encoder in ("stain", "pixels"):
        by_seed = list(mean_dice(made, encoder).values())
        assert len(by_seed) == 3
        shown = dice_row(made, encoder)
        assert shown[3] == f"{100 * np.mean(by_seed):.2f} ± {100 * np.std(by_seed, ddof=1):.2f}"
        assert shown[-1] == "3"
        for index, name in enumerate(("Red", "Green"), start=1):
            dice = [
                float(row["dice"])
                for row in rows(made)
                if (row["encoder"], row["split"], row["class"]) == (encoder, "test", name)
            ]
            assert shown[index] == f"{100 * np.mean(dice):.2f} ± {100 * np.std(dice, ddof=1):.2f}"


def test_confusions_are_those_of_all_seeds(made: Home) -> None:
    for row in summary(made)["results"]:
        matrix = np.array(row["confusion"])
        counted = [r for r in rows(made) if (r["encoder"], r["split"]) == (row["encoder"], "test")]
        for index, name in enumerate(("Red", "Green")):
            of = [r for r in counted if r["class"] == name]
            assert matrix[index].sum() == sum(int(r["truth"]) for r in of)
            assert matrix[:, index].sum() == sum(int(r["prediction"]) for r in of)
            assert matrix[index, index] == sum(int(r["intersection"]) for r in of)


def test_the_page_needs_nothing_but_itself(made: Home) -> None:
    found = page(made)
    assert "http://" not in found.source and "https://" not in found.source
    assert found.references
    assert all(reference.startswith(("#", "data:")) for reference in found.references)
    assert not found.tags & {"script", "iframe", "object", "embed"}
    assert "@import" not in found.source and "url(" not in found.source
    assert "prefers-color-scheme: dark" in found.source and "@media print" in found.source
    ids = {part.split('"')[0] for part in found.source.split(' id="')[1:]}
    assert {r[1:] for r in found.references if r.startswith("#")} <= ids


def test_no_line_ends_between_a_number_and_its_per_cent_sign(made: Home) -> None:
    found = page(made)
    assert not re.search(r"\d %", found.text)
    assert summary(made)["answer"].replace(" %", "\xa0%") in found.text
    heads = [cell.text for table in found.tables.values() for cell in table[0]]
    assert "95\xa0% interval" in heads


def test_the_same_runs_give_the_same_page(made: Home) -> None:
    before = page(made).source
    assert made.run("report").exit_code == 0
    assert page(made).source == before


def test_best_median_and_worst_tile_are_those_of_the_first_seed(made: Home) -> None:
    found = page(made)
    for encoder in ("stain", "pixels"):
        dice: dict[str, list[float]] = {}
        for row in rows(made, "tiles.csv"):
            if (row["encoder"], row["seed"], row["split"]) == (encoder, "0", "test"):
                size = int(row["prediction"]) + int(row["truth"])
                dice.setdefault(row["tile"], []).extend([2 * int(row["intersection"]) / size] if size else [])
        means = {tile: float(np.mean(values)) for tile, values in dice.items()}
        best, worst = max(means, key=lambda t: means[t]), min(means, key=lambda t: means[t])
        assert f"best: {best}, Dice {100 * means[best]:.1f}\xa0%" in found.text
        assert f"worst: {worst}, Dice {100 * means[worst]:.1f}\xa0%" in found.text


def test_tables_are_written_as_csv_markdown_and_latex(made: Home) -> None:
    folder = made.folder / "runs/small/tables"
    names = {path.stem for path in folder.iterdir()}
    assert names == {"dice", "scores", "encoders", "comparisons", "ranks"}
    for row, wanted in zip(
        csv.DictReader((folder / "dice.csv").open(encoding="utf-8")), summary(made)["results"], strict=True
    ):
        assert row["encoder"] == wanted["encoder"]
        assert float(row["mean mean"]) == 100 * wanted["mean_dice"]["mean"]
        assert float(row["Red std"]) == 100 * wanted["dice"]["Red"]["std"]
        assert float(row["95 % interval low"]) == 100 * wanted["mean_dice"]["ci"][0]
    for name in names:
        latex = (folder / f"{name}.tex").read_text(encoding="utf-8")
        body = latex.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
        layout = latex.split("\\begin{tabular}{")[1].split("}")[0]
        for line in body:
            assert line.endswith(r"\\")
            assert line.replace(r"\&", "").count("&") == len(layout) - 1
        assert "%" not in latex.replace(r"\%", "")
        lines = (folder / f"{name}.md").read_text(encoding="utf-8").splitlines()
        assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_missing_seed_is_said_and_the_mean_is_of_those_there_are(copied: Home) -> None:
    (gone,) = (copied.folder / "runs/small/pixels/linear").glob("seed-001-*")
    shutil.rmtree(gone)
    done = copied.run("report")
    assert done.exit_code == 0, done.output
    said = "pixels has 2 of 3 seeds: no finished run of seed 1"
    assert said in done.stderr and said in page(copied).text
    assert set(mean_dice(copied, "pixels")) == {"0", "2"}
    shown = dice_row(copied, "pixels")
    assert shown[-1] == "2 of 3"
    assert shown[3].startswith(f"{100 * np.mean(list(mean_dice(copied, 'pixels').values())):.2f} ±")
    assert summary(copied)["results"][0]["missing_seeds"] + summary(copied)["results"][1][
        "missing_seeds"
    ] == [1]
    (pair,) = summary(copied)["evidence"]["comparisons"]
    assert (pair["seeds"], pair["all_seeds"]) == (2, False)
    assert "over the 2 seeds that both have" in found_sentence(copied)
    by_seed = [mean_dice(copied, encoder) for encoder in (pair["a"], pair["b"])]
    means = [np.mean([scores[seed] for seed in ("0", "2")]) for scores in by_seed]
    assert pair["difference"] == pytest.approx(means[0] - means[1])
    assert "Over the seeds that all encoders have: 0 and 2." in page(copied).text


def test_a_damaged_run_is_left_out_and_named_and_the_status_says_so(copied: Home) -> None:
    (victim,) = (copied.folder / "runs/small/stain/linear").glob("seed-002-*")
    flip_bit(victim / "confusions.npz")
    done = copied.run("report")
    assert done.exit_code == 4
    assert str(victim / "confusions.npz") in done.stderr and "Traceback" not in done.stderr
    found = page(copied)
    assert "The run of stain, seed 2, is damaged and was left out" in found.text
    assert str(victim / "confusions.npz") in found.text
    assert set(mean_dice(copied, "stain")) == {"0", "1"}
    assert dice_row(copied, "stain")[-1] == "2 of 3"
    assert summary(copied)["damaged"][0]["seed"] == 2
    assert "ablations" not in found.text


def found_sentence(home: Home) -> str:
    (pair,) = summary(home)["evidence"]["comparisons"]
    assert pair["sentence"].replace(" %", "\xa0%") in page(home).text
    return str(pair["sentence"])


def test_a_damaged_run_of_a_sweep_is_left_out_and_named_and_its_factor_is_over_the_seeds_left(
    copied: Home,
) -> None:
    before = dice_row(copied, "stain")
    assert copied.run("sweep", "--encoder", "stain", "--set", "train.lr=0.02,0.1").exit_code == 0
    runs = copied.folder / "runs/small"
    with (runs / "sweep.csv").open(encoding="utf-8") as file:
        swept = [row for row in csv.DictReader(file) if row["encoder"] == "stain"]
    (victim,) = (
        path
        for path in runs.glob("stain/linear/seed-001-*")
        if read_record(path)["identity"]["settings"]["lr"] == 0.02
    )
    flip_bit(victim / "losses.csv", 5)
    done = copied.run("report")
    assert done.exit_code == 4 and str(victim) in done.stderr
    found = page(copied)
    assert (
        f"A run of a sweep is damaged and was left out: The file is not what was written [{victim}"
        in found.text
    )
    assert "train.lr of stain is shown over seeds 0 and 2 alone, which all of its values have." in found.text
    assert dice_row(copied, "stain") == before
    table = found.tables["Mean test Dice (%) against train.lr"]
    for lr, row in zip(("0.02", "0.05", "0.1"), table[1:], strict=True):
        dice = [
            [float(one["dice"]) for one in swept if (one["train.lr"], one["seed"]) == (lr, seed)]
            for seed in "02"
        ]
        assert row[2].text == f"{100 * np.mean(dice):.2f} ± {100 * np.std(np.mean(dice, axis=1), ddof=1):.2f}"
    shutil.rmtree(victim)
    again = copied.run("report")
    assert again.exit_code == 0 and "over seeds 0 and 2 alone" in page(copied).text


def test_runs_of_an_encoder_that_is_no_longer_installed_are_named_and_all_else_is_reported(
    copied: Home,
) -> None:
    before = dice_row(copied, "stain")
    (run,) = (copied.folder / "runs/small/pixels/linear").glob("seed-000-*")
    body = read_record(run)
    body["identity"]["encoder"] = "gone"
    gone = copied.folder / "runs/small/gone/linear" / run.name
    shutil.copytree(run, gone)
    (gone / "run.json").write_bytes(encode("run", 2, body))
    done = copied.run("report")
    assert done.exit_code == 0, done.output
    assert "Runs of gone were left out: " in done.stderr
    assert "Runs of gone were left out: " in page(copied).text
    assert dice_row(copied, "stain") == before


def test_a_damaged_run_of_a_sweep_takes_nothing_from_the_study_where_its_cache_is_gone(copied: Home) -> None:
    before = dice_row(copied, "stain")
    assert copied.run("sweep", "--encoder", "stain", "--set", "train.lr=0.02").exit_code == 0
    own = {run["folder"] for row in summary(copied)["results"] for run in row["runs"]}
    runs = copied.folder / "runs/small"
    for path in runs.glob("stain/linear/seed-*"):
        if path.relative_to(runs).as_posix() not in own:
            flip_bit(path / "losses.csv", 5)
    shutil.rmtree(copied.store("stain"))
    assert copied.run("report").exit_code == 4
    assert dice_row(copied, "stain") == before


def test_one_cache_that_cannot_be_read_leaves_a_page_of_the_others(copied: Home) -> None:
    shutil.rmtree(copied.folder / "runs")
    shard = next(path for path in copied.store("pixels").rglob("c.*") if path.parent.name == "tokens")
    flip_bit(shard, 300)
    done = copied.run("run")
    assert done.exit_code == 4 and str(shard) in done.stderr
    assert (
        "No finished run with the settings of the study, and so in none of the tables of encoders: pixels."
        in page(copied).text
    )
    assert dice_row(copied, "stain")[-1] == "3"


def test_names_with_signs_of_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "Red <i>&'/~"
    home = Home(tmp_path, text=STUDY.replace("Red =", f'"{name}" =').replace("seeds = 3", "seeds = 1"))
    done = home.run("run")
    assert done.exit_code == 0, done.output
    found = page(home)
    assert "i" not in found.tags and name in found.text
    for cell in found.cells():
        if cell.at:
            check_cell(cell, summary(home))


def test_an_encoder_without_runs_is_named_and_in_no_table(copied: Home) -> None:
    shutil.rmtree(copied.folder / "runs/small/pixels")
    done = copied.run("report")
    assert done.exit_code == 0, done.output
    found = page(copied)
    assert (
        "No finished run with the settings of the study, and so in none of the tables of encoders: pixels."
        in found.text
    )
    assert "There is no other encoder to compare it with." in found.text
    assert "How sure is the order?" not in found.text
    assert all(row[0].text != "pixels" for table in found.tables.values() for row in table if row)
    for cell in found.cells():
        if cell.at:
            check_cell(cell, summary(copied))


def test_one_test_image_and_one_seed_give_neither_interval_nor_comparison(tmp_path: Path) -> None:
    text = STUDY.replace("test = 4", "test = 1").replace("seeds = 3", "seeds = 1")
    home = Home(tmp_path, text=text)
    done = home.run("run")
    assert done.exit_code == 0, done.output
    found = page(home)
    assert "All test tiles are of one image: there are no intervals" in found.text
    assert "There is one seed" in found.text
    assert "stain and pixels cannot be compared on 1 image" in found.text or (
        "pixels and stain cannot be compared on 1 image" in found.text
    )
    assert "±" not in "".join(dice_row(home, "stain")) and dice_row(home, "stain")[-2] == "–"
    for cell in found.cells():
        if cell.at:
            check_cell(cell, summary(home))


def test_a_class_that_the_test_images_lack_is_said_and_has_no_share(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    split = {"train": ["i0", "i1", "i2"], "val": ["i3"], "test": ["i4", "i5"]}
    for name in split["test"]:
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(data / f"masks/{name}.png")
    home = Home(tmp_path, text=STUDY)
    written = frostgrid("data", "split", home.study, "--runs", tmp_path / "runs")
    given = json.loads(Path(written.stdout.strip()).read_text(encoding="utf-8"))
    drawn = "{ train = 3, val = 1, test = 4, seed = 0 }"
    home.study.write_text(home.study.read_text().replace(drawn, json.dumps(str(tmp_path / "s.json"))))
    (tmp_path / "s.json").write_text(json.dumps({**given, **split}))
    done = home.run("run")
    assert done.exit_code == 0, done.output
    assert "No test tile has the class Green" in page(home).text
    for row in summary(home)["results"]:
        assert row["confusion_shares"][1] == [None, None]


def test_without_its_cache_a_study_has_every_figure_and_says_why_there_are_no_pictures(copied: Home) -> None:
    before = dice_row(copied, "stain")
    shutil.rmtree(copied.store("stain"))
    done = copied.run("report")
    assert done.exit_code == 0, done.output
    assert "No pictures of stain" in page(copied).text
    assert "pixels, seed 0" in page(copied).text
    assert dice_row(copied, "stain") == before


def test_runs_under_another_setting_are_ablations_and_change_no_mean(copied: Home) -> None:
    before = dice_row(copied, "stain")
    usual = copied.study.read_text()
    for other in ("lr = 0.02", "lr = 0.1", "lr = 0.05\ntiles = 2"):
        copied.study.write_text(usual.replace("lr = 0.05", other))
        assert copied.run("train", "--encoder", "stain").exit_code == 0
    copied.study.write_text(usual)
    done = copied.run("report")
    assert done.exit_code == 0, done.output
    assert dice_row(copied, "stain") == before
    found = page(copied)
    table = found.tables["Mean test Dice (%) against train.lr"]
    assert [row[1].text for row in table[1:]] == ["0.02", "0.05", "0.1"]
    assert {row[0].text for row in table[1:]} == {"stain"}
    assert table[2][2].text == before[3]
    for cell in found.cells():
        if cell.at:
            check_cell(cell, summary(copied))
    assert (copied.folder / "runs/small/tables/ablation-train-lr.csv").is_file()
    assert found.text.count("All seeds saw the same tiles") == 1  # of those that vary the tiles
    assert {row["seeds"] for row in summary(copied)["ablations"]} == {3}
    assert copied.run("report", "--seeds", "2").exit_code == 0
    assert [row["seeds"] for row in summary(copied)["ablations"]] == [2] * 5
    assert (
        "There are runs of more than the 2 seeds that are shown: frostgrid report --seeds 3"
        in page(copied).text
    )
    for row in summary(copied)["ablations"]:
        if row["factor"] == "train.lr":
            lr = [f"train.lr={row['value']:g}"] if row["value"] != 0.05 else []
            assert [part for part in row["options"] if part.startswith("train.lr")] == lr
    own = {run["folder"] for row in summary(copied)["results"] for run in row["runs"]}
    runs = copied.folder / "runs/small"
    for path in runs.glob("stain/linear/seed-*"):
        if path.relative_to(runs).as_posix() not in own:
            shutil.rmtree(path)
    (runs / "tables/notes.csv").write_text("not ours")
    assert copied.run("report", "--seeds", "2").exit_code == 0
    assert {path.stem for path in (runs / "tables").iterdir()} == {
        *("dice", "scores", "encoders", "comparisons", "ranks", "notes")
    }


def test_the_options_to_repeat_a_variant_undo_what_the_study_says_of_its_decoder(tmp_path: Path) -> None:
    own = 'decoder = "mlp"\ndecoder_options = { hidden = 4 }'
    home = Home(
        tmp_path, text=FOLDER.replace('decoder = "linear"', own.replace("{", "{{").replace("}", "}}"))
    )
    assert home.run("run").exit_code == 0
    assert (
        home.run("sweep", "--decoder", "mlp:hidden=256").exit_code == 0
    )  # which is the decoder's own default
    assert home.run("report").exit_code == 0
    found = {row["value"]: row["options"] for row in summary(home)["ablations"]}
    assert found[4.0][:4] == ["--encoder", "stain", "--decoder", "mlp"]
    assert found[256.0][:4] == ["--encoder", "stain", "--decoder", "mlp:hidden=256"]
