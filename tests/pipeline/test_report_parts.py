"""The parts of a report by themselves: the paper's figures, tables in other forms, axes, the study as TOML."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contrasting import joined_clusters
from pipeline.report.ablations import Ablated, ablations, as_json
from pipeline.report.contents import sheets
from pipeline.report.figure1 import Point, capacity, dice_against_parameters
from pipeline.report.gallery import chosen_tiles
from pipeline.report.paper import beside, paper, row_of, table_of
from pipeline.report.repeating import as_toml, repeating
from pipeline.report.sheets import Cell, Column, Figures, Sheet, as_csv, as_latex, as_markdown, pointer
from pipeline.report.strips import value_strips
from pipeline.report.summary import clusters_of
from pipeline.report.svg import Axis, spanning
from pipeline.study import Study
from stages.encoders import describe_encoder, known_encoders
from stages.tiles.dataset import ImageRecord
from stages.tiles.tiling import Tile


def study(**data: Any) -> Study:
    given = {
        "kind": "puma",
        "root": "r",
        "classes": {"Tumour": ["t"], "Stroma": ["s"], "Other": ["o"]},
        **data,
    }
    return Study.model_validate(
        {"name": given.pop("name", "puma"), "data": given, "encoders": {"names": ["uni"]}}
    )


def test_the_papers_tables_are_whole_and_their_averages_those_of_their_classes() -> None:
    rows = paper()["encoders"]
    assert len(rows) == 15
    assert {row["encoder"] for row in rows} <= set(known_encoders())
    for row in rows:
        for name, table in paper()["tables"].items():
            assert [*table["classes"], "average"] == list(row[name])
    table_1 = {row["encoder"]: row["table_1"] for row in rows}
    assert table_1["hibou-l"]["average"] == [84.53, 1.30]
    assert table_1["conch-v1.5"]["Stroma"] == [0.0, 0.0]
    exact = [
        row["encoder"]
        for row in rows
        if abs(
            sum(row["table_1"][c][0] for c in ("Tumour", "Stroma", "Other")) / 3
            - row["table_1"]["average"][0]
        )
        < 0.02
    ]
    assert len(exact) == 14  # the printed average of UNI2-h is not that of its classes


def test_the_papers_parameters_are_those_of_the_encoders_but_for_its_own_counting() -> None:
    for row in paper()["encoders"]:
        printed = row["table_3"]["parameters"]
        count = float(printed[:-1]) * {"M": 1e6, "B": 1e9}[printed[-1]]
        ours = describe_encoder(row["encoder"], tile_px=512).parameters
        if row["encoder"] != "conch":  # the paper counts the text tower, too
            assert ours == pytest.approx(count, rel=0.06), row["encoder"]


def test_only_a_study_of_the_papers_data_stands_beside_it() -> None:
    three = ("Tumour", "Stroma", "Other")
    assert table_of(study(), three) == "table_1"
    assert table_of(study(), ("Tumour", "Stroma")) is None
    upv = ("Tumour", "TIL", "Other")
    folder = {"kind": "folder", "classes": {"Tumour": [1], "TIL": [2], "Other": [0]}}
    assert table_of(study(name="upv-anxa5", **folder), upv) == "table_2"
    assert table_of(study(name="ours", **folder), upv) is None
    assert row_of("uni@18") is None and row_of("stain") is None


def test_differences_to_the_paper_are_ours_minus_theirs() -> None:
    found = beside("table_1", "uni", {"Tumour": 0.94, "Stroma": None, "Other": 0.5, "average": 0.8})
    assert found is not None
    assert found["Tumour"]["difference"] == pytest.approx(0.94 - 0.9301)
    assert found["Stroma"] == {
        "mean": pytest.approx(0.8788),
        "std": pytest.approx(0.0082),
        "difference": None,
    }
    assert beside(None, "uni", {}) is None and beside("table_1", "pixels", {}) is None


SCORES = ("tile_dice", "iou", "precision", "recall", "puma_micro", "puma_image")


def spread(mean: float) -> dict[str, Any]:
    return {"mean": mean, "std": 0.01, "ci": [mean - 0.1, mean + 0.1]}


def test_tables_1_and_2_have_the_paper_ours_and_the_difference() -> None:
    classes = ["Tumour", "Stroma", "Other"]
    dice = {"Tumour": 0.9, "Stroma": 0.8, "Other": 0.7}
    row = {
        "encoder": "uni", "title": "UNI", "licence": "x", "encoder_parameters": 303e6, "decoder_parameters": 2.6e6,
        "grid": [1024, 32, 32], "patch": 16, "seeds": [0, 1], "missing_seeds": [], "rank": None,
        "dice": {name: spread(value) for name, value in dice.items()}, "mean_dice": spread(0.8),
        "metrics": {name: {"mean": spread(0.5)} for name in SCORES},
        "cost": {"gflop": 1.0, "bytes_a_view": 1, "train_seconds": 1.0},
        "paper": beside("table_1", "uni", {**dice, "average": 0.8}),
    }  # fmt: skip
    summary = {
        "classes": classes,
        "results": [row, {**row, "encoder": "pixels", "paper": None}],
        "paper_table": "table_1",
        "evidence": {"unit": "images", "resamples": 2000, "clusters": 10, "comparisons": []},
    }
    sheet = sheets(summary)["paper"]
    assert sheet.title.startswith("Table 1, PUMA")
    (line,) = sheet.rows  # the paper has no pixels
    assert [cell.text for cell in line[:4]] == ["uni", "93.01 ± 0.63", "90.00 ± 1.00", "−3.01"]
    assert [cell.text for cell in line[-3:]] == ["83.28 ± 1.30", "80.00 ± 1.00", "−3.28"]
    encoders = sheets(summary)["encoders"]
    assert [cell.text for cell in encoders.rows[0]].count("303M") == 1


AWKWARD = Sheet(
    "a",
    "50 % & more_",
    (Column("name"), Column("x|y", ("mean", "std"))),
    ((Cell("a|b & 100% #1 {x} ~^\\"), Cell("1.00 ± 0.50"), )[:2], (Cell("c"), Cell("–"))),
)  # fmt: skip


def test_words_with_signs_of_a_table_language_are_escaped() -> None:
    latex = as_latex(AWKWARD)
    assert r"a|b \& 100\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in latex
    assert r"1.00 $\pm$ 0.50" in latex and r"\caption{50 \% \& more\_.}" in latex
    lines = as_markdown(AWKWARD).splitlines()
    assert r"a\|b & 100%" in lines[4] and r"x\|y" in lines[2]
    assert as_csv(AWKWARD).splitlines()[0] == "name,x|y mean,x|y std"


def test_pointers_are_those_of_rfc_6901() -> None:
    assert pointer(("results", 0, "dice", "a/b~c")) == "/results/0/dice/a~1b~0c"


@given(st.floats(0.001, 1e9), st.floats(1.001, 1e5), st.booleans())
def test_an_axis_meets_its_ends_and_its_ticks_lie_on_it(low: float, ratio: float, log: bool) -> None:
    axis = Axis(low, low * ratio, 10, 200, log)
    assert axis(low) == pytest.approx(10) and axis(low * ratio) == pytest.approx(200)
    ticks = axis.ticks()
    assert len(ticks) <= 22
    assert all(9.9 <= axis(tick) <= 200.1 for tick in ticks)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_span_holds_its_values_and_stays_within(values: list[float]) -> None:
    low, high = spanning(values, at_least=0.1, within=(0.0, 1.0))
    assert 0 <= low <= min(values) and max(values) <= high <= 1
    assert high - low >= 0.1 - 1e-9


@pytest.mark.parametrize(
    ("parameters", "name"),
    [(0, "no weights"), (22e6, "small"), (86e6, "base"), (304e6, "large"), (681e6, "huge"), (1.1e9, "giant")],
)
def test_capacity_classes(parameters: float, name: str) -> None:
    assert capacity(parameters).name == name


def test_figure_1_is_drawn_of_one_encoder_without_weights_and_of_equal_ones() -> None:
    assert "pixels: Dice 40.00 %" in dice_against_parameters([Point("pixels", 0, 0.4)], "x")
    same = [Point(f"e{n}", 300_000_000, 0.7, (0.6, 0.8)) for n in range(6)]
    drawn = dice_against_parameters(same, "x <&>")
    assert all(f">e{n}</text>" in drawn for n in range(6)) and "x &lt;&amp;&gt;" in drawn


def test_ablations_are_on_an_axis_where_their_values_are_numbers() -> None:
    found = as_json(
        [Ablated("train.views", value, "uni", (0.5, 0.6), 10) for value in (20.0, 1.0, 5.0)]
        + [Ablated("decoder", value, "uni", (0.5,), 10, (0.4, 0.6)) for value in ("mlp", "linear")]
    )
    assert [one["value"] for one in found] == ["linear", "mlp", 1.0, 5.0, 20.0]
    drawn = ablations(Figures({"ablations": found}))
    assert [(one.factor, one.chart is None, one.strips is None) for one in drawn] == [
        ("decoder", True, False),
        ("train.views", False, True),
    ]
    assert [row[2].text for row in drawn[1].sheet.rows] == ["55.00 ± 7.07"] * 3


def test_a_study_reads_back_from_the_page_as_the_same_study() -> None:
    one = study(root='C:\\data "x"\u007f', classes={"A b": ["é"], "Stroma": ["s", 2]})
    table = {key: value for key, value in one.resolved().items() if key != "name"}
    back = Study.model_validate({"name": one.name, **tomllib.loads(as_toml(table))})
    assert back == one


def test_no_reach_is_cut_off_at_the_end_of_its_axis() -> None:
    lines = [
        (f"e{n}", {"mean": mean, "std": std}, Cell(""))
        for n, (mean, std) in enumerate([(0.3, 0.08), (0.5, 0.02)])
    ]
    drawn = value_strips("x", lines)
    reaches = [
        re.search(r'<line x1="([\d.]+)%" x2="([\d.]+)%"[^>]*class="reach"', line.track)
        for line in drawn.lines
    ]
    ends = [float(end) for reach in reaches if reach for end in reach.groups()]
    assert len(ends) == 4 and min(ends) > 2 and max(ends) < 98
    assert "one standard deviation: 22.0 to 38.0" in drawn.lines[0].track


def test_the_commands_to_repeat_a_study_train_every_seed_and_every_variant_that_has_a_run() -> None:
    runs = [{"seed": seed, "folder": f"f{seed}", "fingerprint": "0", "best_epoch": 1} for seed in (0, 4)]
    rows = [
        {
            "encoder": name, "reference": reference, "in_study": inside, "seeds": seeds, "environments": [],
            "missing_seeds": [7], "tokens": "t", "runs": runs[:1],
        }
        for name, reference, inside, seeds in [("a", "a", True, [0, 4]), ("b", "my b.toml", False, [1, 2, 3])]
    ]  # fmt: skip
    options = ["--encoder", "a", "--decoder", "mlp:hidden=4", "--set", "train.views=5"]
    varied: list[dict[str, Any]] = [
        {
            "encoder": "a, lr 1", "reference": "a", "in_study": True, "factor": "train.views", "value": 5.0,
            "options": options, "before": [], "runs": runs, "tokens": "t", "environments": [{"torch": "2"}],
        }
    ]  # fmt: skip
    before = ["cache", "convert", "my cache/a-0", "--to", "int8"]
    int8 = ["--encoder", "a", "--set", "cache.encoding=int8"]
    varied += [varied[0] | {"value": v, "options": int8, "before": before, "tokens": "i"} for v in (1.0, 2.0)]
    varied.append(
        varied[0] | {"reference": "c", "in_study": False, "options": ["--encoder", "c"], "tokens": "c"}
    )
    said = repeating({"study": {"name": "my study"}, "results": rows, "ablations": varied})
    assert said["commands"] == [
        "frostgrid extract 'my study.toml'",
        "frostgrid train 'my study.toml' --seeds 5",
        "frostgrid extract 'my study.toml' --encoder 'my b.toml'",
        "frostgrid train 'my study.toml' --encoder 'my b.toml' --seeds 5",
        "frostgrid extract 'my study.toml' --encoder c",
        "frostgrid sweep 'my study.toml' --encoder a --decoder mlp:hidden=4 --set train.views=5 --seeds 5",
        "frostgrid cache convert 'my cache/a-0' --to int8",
        "frostgrid sweep 'my study.toml' --encoder a --set cache.encoding=int8 --seeds 5",
        "frostgrid sweep 'my study.toml' --encoder c --seeds 5",
        "frostgrid report 'my study.toml' --seeds 4",
    ]
    assert (
        said["tokens"] == [("a", "t"), ("a", "i"), ("c", "c")]
        and said["caches"] == []
        and said["environments"] == [{"torch": "2"}]
    )
    assert [(name, run["folder"]) for name, run in said["runs"]] == [
        ("a", "f0"),
        ("a, lr 1, train.views 5.0", "f4"),
    ]


@pytest.mark.parametrize(
    ("dice", "wanted"),
    [
        ([0.3], {"best": 0}),
        ([0.3, 0.8], {"best": 1, "worst": 0}),
        ([0.3, 0.8, float("nan"), 0.5], {"best": 1, "median": 3, "worst": 0}),
        ([float("nan")], {}),
    ],
)
def test_the_gallery_shows_best_median_and_worst(dice: list[float], wanted: dict[str, int]) -> None:
    found = chosen_tiles(np.array(dice))
    assert found == wanted and list(found) == list(wanted)


def tiles_of(patients: dict[str, str | None]) -> list[Tile]:
    """A tile of each image."""
    return [
        Tile(name, ImageRecord(name, None, None, patient=patient), (0, 0), 1, 1, "", "")
        for name, patient in patients.items()
    ]


def test_images_are_resampled_by_patient_where_some_patient_has_several() -> None:
    found = [
        clusters_of(tiles_of(patients))
        for patients in (
            {"a": "p", "b": "p", "c": "q"},
            {"a": "p", "b": "p", "c": None},
            {"a": "p", "b": "q"},
            {"a": None, "b": None},
        )
    ]
    assert found == [
        (["patient p", "patient p", "patient q"], "patients"),
        (["patient p", "patient p", "image c"], "groups"),
        (["image a", "image b"], "images"),
        (["image a", "image b"], "images"),
    ]


def test_images_that_either_study_has_of_one_patient_are_resampled_together() -> None:
    unknown = tiles_of(dict.fromkeys("abcd"))
    named = tiles_of({"a": "p", "b": "p", "c": "q", "d": None})
    renamed = tiles_of({"a": "x", "b": "y", "c": "x", "d": "z"})
    groups = [joined_clusters(*pair) for pair in ((unknown, named), (named, unknown), (named, renamed))]
    together = [
        sorted("".join(id for id in "abcd" if found[id] == name) for name in set(found.values()))
        for found in groups
    ]
    assert together == [["ab", "c", "d"], ["ab", "c", "d"], ["abc", "d"]]
