"""The page ``report.html``: everything inside one file, which needs no network and no script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, select_autoescape
from markupsafe import Markup

from pipeline.finished import Finished
from pipeline.report import strips
from pipeline.report.ablations import ablations
from pipeline.report.charts import Curve, learning_curves
from pipeline.report.figure1 import CAPACITIES, Point, capacity, dice_against_parameters, marker
from pipeline.report.gallery import RIGHT, WRONG, Gallery
from pipeline.report.palette import IGNORED, colour_of
from pipeline.report.paper import paper
from pipeline.report.repeating import repeating
from pipeline.report.sheets import Cell, Figures, Sheet
from pipeline.report.svg import picture, spanning
from stages.metrics import mean_dice

SHOWN_COMPARISONS = 12  # sentences; the table has them all


@dataclass(frozen=True)
class Curves:
    """The learning curves of one encoder, drawn: loss, and Dice on the validation split."""

    encoder: str
    loss: Markup
    dice: Markup


@dataclass(frozen=True)
class Confusion:
    """The test pixels of all seeds of one encoder: of each true class, the shares that were given each class."""

    encoder: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def page(
    summary: Mapping[str, Any],
    sheets: Mapping[str, Sheet],
    results: Sequence[Finished],
    galleries: Sequence[Gallery],
    lacking: Mapping[str, str],
) -> str:
    """Return the page. ``galleries`` in the order of the summary; ``lacking``: why an encoder has none."""
    figures = Figures(summary)
    several = len(summary["results"]) > 1
    ranked = several and summary["results"][0]["rank"] is not None
    environment = Environment(
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    source = files("pipeline.report")
    template = environment.from_string((source / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup((source / "page.css").read_text(encoding="utf-8")),
        summary=summary,
        sheets=sheets,
        mean=strips.mean_strips(figures),
        by_class=[(name, strips.class_strips(figures, name)) for name in summary["classes"]],
        ranks=strips.rank_strips(figures) if ranked else None,
        sentences=_sentences(summary),
        figure1=_figure1(summary),
        capacities=_capacities(summary),
        curves=_curves(results, summary),
        confusions=_confusions(figures),
        galleries=galleries,
        pictures=_shared(galleries),
        lacking=lacking,
        ablations=ablations(figures),
        legend=[(name, colour_of(index)) for index, name in enumerate(summary["classes"])],
        errors={"right": RIGHT, "wrong": WRONG, "ignored": IGNORED},
        repeating=repeating(summary),
        markup=Markup,
    )


def _unbroken(value: object) -> object:
    """Keep per cent signs on the lines of their numbers, but in what is marked as ready for the page."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", value)


def _shared(galleries: Sequence[Gallery]) -> dict[str, str]:
    """Return an id for each tile and truth that is shown: the same ones of several encoders are in the page once."""
    urls = dict.fromkeys(
        url for one in galleries for shown in one.exhibits for url in (shown.picture, shown.truth)
    )
    return {url: f"picture-{number}" for number, url in enumerate(urls)}


def _sentences(summary: Mapping[str, Any]) -> list[str]:
    """Those of the best encoder first, then the others in order, as many as one reads."""
    best = summary["results"][0]["encoder"]
    found = summary["evidence"]["comparisons"]
    mine = [one["sentence"] for one in found if best in (one["a"], one["b"])]
    others = [one["sentence"] for one in found if best not in (one["a"], one["b"])]
    return (mine + others)[:SHOWN_COMPARISONS] if len(mine) <= SHOWN_COMPARISONS else mine


def _figure1(summary: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    ours = [
        Point(row["encoder"], row["encoder_parameters"], row["mean_dice"]["mean"], row["mean_dice"]["ci"])
        for row in summary["results"]
        if row["mean_dice"]["mean"] is not None
    ]
    drawn = []
    if ours:
        name = "Here" if summary["paper_table"] else ""
        chart = dice_against_parameters(ours, "Mean test Dice against parameters of the encoder")
        drawn.append((name, Markup(chart)))
    if summary["paper_table"]:
        theirs = [
            Point(
                row["encoder"],
                round(float(row["table_3"]["parameters"][:-1]) * _UNIT[row["table_3"]["parameters"][-1]]),
                row[summary["paper_table"]]["average"][0] / 100,
            )
            for row in paper()["encoders"]
        ]
        chart = dice_against_parameters(theirs, "The paper's mean test Dice against parameters")
        drawn.append(("In the paper", Markup(chart)))
    return drawn


_UNIT = {"M": 1e6, "B": 1e9}


def _capacities(summary: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    present = {capacity(row["encoder_parameters"]).name for row in summary["results"]}
    if summary["paper_table"]:
        present |= {"small", "base", "large", "huge", "giant"}
    return [
        (_capacity_words(size.name), Markup(picture(20, 20, size.name, marker(size, 10, 10), class_="key")))
        for size in CAPACITIES
        if size.name in present
    ]


def _capacity_words(name: str) -> str:
    index = [size.name for size in CAPACITIES].index(name)
    if index == 0:
        return name
    if index == len(CAPACITIES) - 1:
        return f"{name}: {CAPACITIES[index - 1].below / 1e6:.0f} M parameters and more"
    return f"{name}: below {CAPACITIES[index].below / 1e6:.0f} M"


def _curves(results: Sequence[Finished], summary: Mapping[str, Any]) -> list[Curves]:
    runs = {result.encoder: result.runs for result in results}
    order = [row["encoder"] for row in summary["results"]]
    losses = [float(loss) for name in order for run in runs[name].values() for loss in run.result.losses]
    validated = {
        name: {seed: mean_dice(run.result.val_counts) for seed, run in runs[name].items()} for name in order
    }
    every = [value for seeds in validated.values() for values in seeds.values() for value in values.tolist()]
    loss_ends = spanning(losses, at_least=0.1, within=(0.0, max(2.0, max(losses) * 1.1)))
    dice_ends = spanning([v for v in every if not np.isnan(v)] or [0.0], at_least=0.1, within=(0.0, 1.0))
    drawn = []
    for name in order:
        loss = [
            Curve(f"seed {seed}", range(1, len(run.result.losses) + 1), run.result.losses.tolist())
            for seed, run in runs[name].items()
        ]
        dice = [
            Curve(
                f"seed {seed}",
                run.result.validated.tolist(),
                np.nan_to_num(validated[name][seed]).tolist(),
                run.result.best_epoch,
            )
            for seed, run in runs[name].items()
        ]
        drawn.append(
            Curves(
                name,
                Markup(learning_curves(loss, loss_ends, f"Loss of {name} by epoch", percent=False)),
                Markup(learning_curves(dice, dice_ends, f"Validation Dice of {name} by epoch", percent=True)),
            )
        )
    return drawn


def _confusions(figures: Figures) -> list[Confusion]:
    """Row-normalised; a row of a class that the test set lacks has no shares."""
    classes = figures.at("classes")
    return [
        Confusion(
            row["encoder"],
            tuple(
                (
                    name,
                    tuple(
                        figures.percent("results", index, "confusion_shares", truth, given, digits=1)
                        for given in range(len(classes))
                    ),
                )
                for truth, name in enumerate(classes)
            ),
        )
        for index, row in enumerate(figures.at("results"))
    ]
