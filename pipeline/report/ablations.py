"""What changing one thing did: the runs of a sweep, factor by factor, for the page and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.charts import dice_against_value
from pipeline.report.sheets import Cell, Column, Figures, Sheet
from pipeline.report.strips import Strips, value_strips

ABLATION = "ablation-"  # before the names of their tables
_NOTE = "All else is as the study says."
_MORE = {
    "train.tiles": " All seeds saw the same tiles of each number, and more tiles hold the fewer: what other tiles "
    "would have given is in no spread and no interval, and where the curve falls, it is the tiles that differ."
}


@dataclass(frozen=True)
class Ablated:
    """One encoder under one value of one factor.

    ``factor`` names what was changed (``train.views``), ``value`` is a number where it can be put on an axis.
    ``encoder`` is what a line of the chart is called: the encoder, and whatever else is not as in the study. ``dice``
    is the mean test Dice of each seed as a share of 1, ``ci`` its 95 % interval over test images where there is one,
    ``parameters`` those of the decoder, ``options`` the options of ``frostgrid sweep`` that make its ``runs``, of which
    there is what :func:`pipeline.report.results.stored_runs` tells, ``before`` the frostgrid command that has to come
    before, if there is one. ``reference`` is what the encoder was asked for as, ``in_study`` whether the study names
    it, ``tokens`` the key of its cache, ``environments`` the distinct ones of the runs.
    """

    factor: str
    value: float | str
    encoder: str
    dice: tuple[float, ...]
    parameters: int
    ci: tuple[float, float] | None = None
    options: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    runs: Sequence[Mapping[str, Any]] = ()
    reference: str = ""
    in_study: bool = True
    tokens: str = ""
    environments: Sequence[Mapping[str, Any]] = ()


def as_json(varied: Sequence[Ablated]) -> list[dict[str, Any]]:
    """Return them as they stand in the summary: by factor, then encoder, then value."""
    order = sorted(varied, key=lambda one: (one.factor, one.encoder, isinstance(one.value, str), one.value))
    return [
        {
            "factor": one.factor,
            "value": one.value,
            "encoder": one.encoder,
            "seeds": len(one.dice),
            "dice": {
                "mean": float(np.mean(one.dice)),
                "std": float(np.std(one.dice, ddof=1)) if len(one.dice) > 1 else None,
                "ci": None if one.ci is None else list(one.ci),
            },
            "parameters": one.parameters,
            "options": list(one.options),
            "before": list(one.before),
            "runs": list(one.runs),
            "reference": one.reference,
            "in_study": one.in_study,
            "tokens": one.tokens,
            "environments": list(one.environments),
        }
        for one in order
        if one.dice
    ]


@dataclass(frozen=True)
class Ablation:
    """One factor on the page: its table, and a chart with an axis (``chart``) or one line a value (``strips``)."""

    factor: str
    sheet: Sheet
    chart: str | None
    strips: Strips | None


def ablations(figures: Figures) -> list[Ablation]:
    """Return what there is to show of every factor in the summary; none where nothing was varied."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(figures.at("ablations")):
        found.setdefault(row["factor"], []).append(index)
    return [_ablation(figures, factor, indices) for factor, indices in found.items()]


def _ablation(figures: Figures, factor: str, indices: Sequence[int]) -> Ablation:
    rows = [figures.at("ablations", index) for index in indices]
    columns = (
        Column("encoder"),
        Column(factor),
        Column("mean Dice (%)", ("mean", "std")),
        Column("95 % interval", ("low", "high")),
        Column("decoder (M)", ("",)),
        Column("seeds", ("",)),
    )
    cells = tuple(
        (
            Cell(row["encoder"]),
            Cell(f"{row['value']:g}" if isinstance(row["value"], (int, float)) else row["value"]),
            figures.spread("ablations", index, "dice"),
            figures.interval("ablations", index, "dice", "ci"),
            figures.plain("ablations", index, "parameters", form="{:.3f}", scale=1e-6),
            figures.plain("ablations", index, "seeds"),
        )
        for index, row in zip(indices, rows, strict=True)
    )
    name = ABLATION + "".join(letter if letter.isalnum() else "-" for letter in factor)
    sheet = Sheet(name, f"Mean test Dice (%) against {factor}", columns, cells, _NOTE + _MORE.get(factor, ""))
    label = f"Mean test Dice against {factor}"
    if all(isinstance(row["value"], (int, float)) for row in rows):
        lines: dict[str, list[tuple[float, float, float | None]]] = {}
        for row in rows:
            point = (float(row["value"]), row["dice"]["mean"], row["dice"]["std"])
            lines.setdefault(row["encoder"], []).append(point)
        return Ablation(factor, sheet, dice_against_value(lines, factor, label), None)
    strips = value_strips(
        label,
        [
            (
                f"{row['encoder']}, {row['value']}",
                row["dice"],
                figures.percent("ablations", index, "dice", "mean"),
            )
            for index, row in zip(indices, rows, strict=True)
        ],
    )
    return Ablation(factor, sheet, None, strips)
