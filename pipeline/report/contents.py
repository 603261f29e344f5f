"""The tables of a report, made from its summary: Dice, other scores, comparisons, ranks, encoders, the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.paper import paper, row_of
from pipeline.report.sheets import Cell, Column, Figures, Sheet, best_marked
from stages.evidence.words import listed, p_text

_SCORES = {
    "tile_dice": "Dice, mean of tiles",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "puma_micro": "PUMA micro",
    "puma_image": "PUMA image",
}


SHEETS = frozenset({"dice", "scores", "encoders", "comparisons", "ranks", "paper"})
"""The names of all tables that there can be."""


def sheets(summary: Mapping[str, Any]) -> dict[str, Sheet]:
    """Return every table that the summary has something for, by name."""
    figures = Figures(summary)
    found = [_dice(figures), _scores(figures), _encoders(figures)]
    if len(summary["results"]) > 1:
        found += [_comparisons(figures)]
        if summary["results"][0]["rank"] is not None:
            found += [_ranks(figures)]
    if summary["paper_table"] is not None:
        found += [_paper(figures, summary["paper_table"])]
    return {sheet.name: sheet for sheet in found}


def _dice(figures: Figures) -> Sheet:
    classes = figures.at("classes")
    rows = []
    for index, row in enumerate(figures.at("results")):
        planned = len(row["seeds"]) + len(row["missing_seeds"])
        seeds = f"{len(row['seeds'])} of {planned}" if row["missing_seeds"] else f"{planned}"
        rows.append(
            (
                Cell(row["encoder"]),
                *(figures.spread("results", index, "dice", name) for name in classes),
                figures.spread("results", index, "mean_dice"),
                figures.interval("results", index, "mean_dice", "ci"),
                Cell(seeds),
            )
        )
    marked = best_marked([row[:-2] for row in rows])
    columns = (
        Column("encoder"),
        *(Column(name, ("mean", "std")) for name in classes),
        Column("mean", ("mean", "std")),
        Column("95 % interval", ("low", "high")),
        Column("seeds"),
    )
    evidence = figures.at("evidence")
    return Sheet(
        "dice",
        "Test Dice (%), mean ± standard deviation over seeds",
        columns,
        tuple((*some, *row[-2:]) for some, row in zip(marked, rows, strict=True)),
        f"Pooled over all test pixels of a class. Interval: of the mean, over test {evidence['unit']} "
        f"({evidence['resamples']} resamples of {evidence['clusters']}), seeds averaged.",
    )


def _scores(figures: Figures) -> Sheet:
    rows = [
        (
            Cell(row["encoder"]),
            figures.spread("results", index, "mean_dice"),
            *(figures.spread("results", index, "metrics", name, "mean") for name in _SCORES),
        )
        for index, row in enumerate(figures.at("results"))
    ]
    titles = ["Dice, pooled", *_SCORES.values()]
    return Sheet(
        "scores",
        "Other scores (%), means over classes, mean ± standard deviation over seeds",
        (Column("encoder"), *(Column(title, ("mean", "std")) for title in titles)),
        best_marked(rows),
        "Mean of tiles: a tile without a class, in truth and prediction, is left out of that class. PUMA micro: "
        "pooled, 0 without intersection. PUMA image: mean over tiles, 1 where truth and prediction both lack the "
        "class. The challenge scores its own five classes; these are its rules on the classes of this study.",
    )


def _comparisons(figures: Figures) -> Sheet:
    rows = []
    for index, one in enumerate(figures.at("evidence", "comparisons")):
        at = ("evidence", "comparisons", index)
        rows.append(
            (
                Cell(one["a"]),
                Cell(one["b"]),
                figures.signed(*at, "difference"),
                figures.interval(*at, "ci", digits=2),
                _p(figures, *at, "p"),
                _p(figures, *at, "p_holm"),
                figures.plain(*at, "seeds"),
                Cell("yes" if one["told_apart"] else "no"),
            )
        )
    tested = sum(one["p"] is not None for one in figures.at("evidence", "comparisons"))
    columns = (
        Column("encoder"),
        Column("against"),
        Column("difference", ("points",)),
        Column("95 % interval", ("low", "high")),
        Column("p", ("",)),
        Column("p (Holm)", ("",)),
        Column("seeds", ("",)),
        Column("told apart"),
    )
    return Sheet(
        "comparisons",
        "Differences of mean test Dice (points)",
        columns,
        tuple(rows),
        f"Paired over the same resampled {figures.at('evidence', 'unit')}. Interval and p are those of one comparison; "
        f"p (Holm) allows for {'all ' if tested > 1 else ''}{tested or 'none, as nothing could be tested'}. "
        "Seeds: those that both have, over which they are compared.",
    )


def _p(figures: Figures, *path: str | int) -> Cell:
    number = figures.number(*path)
    return Cell("–") if number.value is None else Cell(p_text(number.value), (number,))


def _ranks(figures: Figures) -> Sheet:
    rows = []
    for index, row in enumerate(figures.at("results")):
        at = ("results", index, "rank")
        ends = tuple(figures.number(*at, "interval", end) for end in (0, 1))
        rows.append(
            (
                Cell(row["encoder"]),
                figures.plain(*at, "observed"),
                Cell(" to ".join(f"{end.value:.0f}" for end in ends), ends),
                figures.percent(*at, "first", digits=1),
                figures.percent(*at, "top3", digits=1),
            )
        )
    columns = (
        Column("encoder"),
        Column("rank", ("",)),
        Column("95 % of ranks", ("low", "high")),
        Column("first (%)", ("",)),
        Column("top 3 (%)", ("",)),
    )
    note = "How often each encoder is first, or among the best three, when the test images are drawn again."
    common = figures.at("evidence", "ranked_seeds")
    if any(row["seeds"] != common for row in figures.at("results")):
        note += f" Over the seeds that all encoders have: {listed([str(seed) for seed in common])}."
    return Sheet("ranks", "Ranks by mean test Dice", columns, tuple(rows), note)


def _encoders(figures: Figures) -> Sheet:
    """Table 3's form, with what each encoder costs; the paper's parameters and widths where it has one of them."""
    printed = [row_of(row["encoder"]) for row in figures.at("results")]
    rows = []
    for index, (row, said) in enumerate(zip(figures.at("results"), printed, strict=True)):
        at = ("results", index)
        theirs = [Cell("–" if said is None else said["table_3"][name]) for name in ("parameters", "width")]
        rows.append(
            (
                Cell(row["encoder"]),
                figures.plain(*at, "encoder_parameters", form="{:.1f}", scale=1e-6),
                figures.plain(*at, "grid", 0),
                figures.plain(*at, "patch"),
                Cell("{}×{}".format(*row["grid"][1:]), tuple(figures.number(*at, "grid", n) for n in (1, 2))),
                figures.plain(*at, "cost", "gflop", form="{:.1f}"),
                figures.plain(*at, "cost", "bytes_a_view", form="{:.2f}", scale=1e-6),
                figures.plain(*at, "decoder_parameters", form="{:.3f}", scale=1e-6),
                figures.plain(*at, "cost", "train_seconds", form="{:.1f}"),
                *(theirs if any(printed) else []),
                Cell(row["title"]),
                Cell(row["licence"]),
            )
        )
    columns = (
        Column("encoder"),
        Column("parameters (M)", ("",)),
        Column("width", ("",)),
        Column("patch", ("",)),
        Column("grid", ("rows", "columns")),
        Column("GFLOP a view", ("",)),
        Column("MB a view", ("",)),
        Column("decoder (M)", ("",)),
        Column("s a training", ("",)),
        *([Column("paper: parameters"), Column("paper: width")] if any(printed) else []),
        Column("title"),
        Column("licence"),
    )
    note = (
        "GFLOP: encoding one view, a multiply-add is two. MB: float16 before compression. Seconds: one seed with its "
        "validations, on the machine named at the end."
    )
    if any(printed):
        note += " Widths are those of the tokens; the paper mixes them with pooled ones."
    return Sheet("encoders", "Encoders and what they cost", columns, tuple(rows), note)


def _paper(figures: Figures, table: str) -> Sheet:
    """Tables 1 and 2 in the paper's form: theirs, ours, and the difference."""
    printed = paper()["tables"][table]
    names = [*printed["classes"], "average"]
    rows = []
    for index, row in enumerate(figures.at("results")):
        if row["paper"] is None:
            continue
        cells = [Cell(row["encoder"])]
        for name in names:
            ours = ("mean_dice",) if name == "average" else ("dice", name)
            cells += [
                figures.spread("results", index, "paper", name),
                figures.spread("results", index, *ours),
                figures.signed("results", index, "paper", name, "difference"),
            ]
        rows.append(tuple(cells))
    columns = [Column("encoder")]
    for name in names:
        columns += [
            Column(f"{name}, paper", ("mean", "std")),
            Column(f"{name}, here", ("mean", "std")),
            Column(f"{name}, difference", ("points",)),
        ]
    return Sheet(
        "paper",
        f"{printed['title']} of the paper beside ours: Dice (%), mean ± standard deviation over seeds",
        tuple(columns),
        tuple(rows),
        "The paper does not say which images it chose, nor how it treats absent classes: equal figures are not to be "
        "expected.",
    )
