"""Charts of one line an encoder, whose labels are the page's own text: readable at any width, and on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.sheets import Cell, Figures
from pipeline.report.svg import Axis, spanning, tag, title, words

HEIGHT, MIDDLE = 26, 13
WRITTEN_SHARES = 9  # up to as many ranks, their shares are written into the cells


@dataclass(frozen=True)
class Strip:
    """One line: ``name``, the drawing ``track``, and the figure beside it."""

    name: str
    track: str
    value: Cell


@dataclass(frozen=True)
class Strips:
    """A chart: ``label`` says what it shows, ``scale`` is the drawing of its axis."""

    label: str
    lines: tuple[Strip, ...]
    scale: str


def mean_strips(figures: Figures) -> Strips:
    """Mean Dice of every encoder, with its interval and each seed."""
    rows = figures.at("results")
    seen = [
        value
        for row in rows
        for value in (
            row["mean_dice"]["mean"],
            *(row["mean_dice"]["ci"] or ()),
            *row["by_seed"].values(),
        )
        if value is not None
    ]
    axis = _axis(*spanning(seen or [0.0, 1.0], at_least=0.1, within=(0.0, 1.0)))
    lines = []
    for index, row in enumerate(rows):
        value = figures.percent("results", index, "mean_dice", "mean")
        drawn = [
            tag(
                "circle",
                title(f"seed {seed}: {100 * dice:.2f} %"),
                cx=_at(axis, dice),
                cy=MIDDLE + 8,
                r=2.2,
                class_="seed",
            )
            for seed, dice in row["by_seed"].items()
            if dice is not None
        ]
        lines.append(
            Strip(
                row["encoder"], _track(axis, _whisker(axis, row["mean_dice"], row["encoder"]), *drawn), value
            )
        )
    return Strips("Mean test Dice of each encoder with its 95 % interval", tuple(lines), _scale(axis))


def class_strips(figures: Figures, name: str) -> Strips:
    """Dice of one class by encoder, as bars with intervals."""
    axis = _axis(0.0, 1.0)
    lines = []
    for index, row in enumerate(figures.at("results")):
        value = figures.percent("results", index, "dice", name, "mean", digits=1)
        dice = row["dice"][name]
        bar = ""
        if dice["mean"] is not None:
            width = f"{axis(dice['mean']) - axis(0.0):.2f}%"
            bar = tag("rect", x=_at(axis, 0.0), y=MIDDLE - 6, width=width, height=12, class_="bar")
        lines.append(
            Strip(row["encoder"], _track(axis, bar, _whisker(axis, dice, row["encoder"], point=False)), value)
        )
    return Strips(f"Test Dice of {name} by encoder, with 95 % intervals", tuple(lines), _scale(axis))


def rank_strips(figures: Figures) -> Strips:
    """How often each encoder has each rank when the test images are drawn again."""
    rows = figures.at("results")
    count = len(rows)
    width = 100 / count
    lines = []
    for index, row in enumerate(rows):
        cells = []
        for place, share in enumerate(row["rank"]["shares"]):
            what = title(f"{row['encoder']}: rank {place + 1} in {100 * share:.1f} % of the resamples")
            body = tag(
                "rect",
                what,
                x=f"{place * width:.3f}%",
                y=2,
                width=f"{width:.3f}%",
                height=HEIGHT - 4,
                class_="share",
                fill_opacity=0.04 + 0.5 * share,
            )
            if share >= 0.005 and count <= WRITTEN_SHARES:
                body += words(
                    f"{(place + 0.5) * width:.3f}%", MIDDLE + 4, f"{100 * share:.0f}", class_="share-text"
                )
            cells.append(body)
        track = tag("svg", "".join(cells), class_="track", height=HEIGHT, role="img", aria_label=_spoken(row))
        lines.append(
            Strip(row["encoder"], track, figures.percent("results", index, "rank", "first", digits=0))
        )
    step = 1 if count <= WRITTEN_SHARES else 2
    ticks = "".join(
        words(f"{(place + 0.5) * width:.3f}%", 12, str(place + 1), class_="tick")
        for place in range(0, count, step)
    )
    return Strips("How often each encoder has each rank (%)", tuple(lines), _svg(ticks, 16))


def value_strips(label: str, lines: Sequence[tuple[str, Mapping[str, Any], Cell]]) -> Strips:
    """Named means with their std, on an axis that spans them; for each line its name, its spread and its cell."""
    seen = [
        spread["mean"] + sign * (spread["std"] or 0.0)
        for _, spread, _ in lines
        if spread["mean"] is not None
        for sign in (-1, 1)
    ]
    axis = _axis(*spanning(seen or [0.0, 1.0], at_least=0.1, within=(0.0, 1.0)))
    drawn = tuple(
        Strip(name, _track(axis, _deviation(axis, spread, name)), cell) for name, spread, cell in lines
    )
    return Strips(label, drawn, _scale(axis))


def _spoken(row: Mapping[str, Any]) -> str:
    shares = [
        f"rank {place + 1} {100 * share:.0f} %"
        for place, share in enumerate(row["rank"]["shares"])
        if share >= 0.005
    ]
    return f"{row['encoder']}: {', '.join(shares)}"


def _axis(low: float, high: float) -> Axis:
    return Axis(low, high, 2.0, 98.0)


def _at(axis: Callable[[float], float], value: float) -> str:
    return f"{axis(value):.2f}%"


def _whisker(axis: Axis, dice: Mapping[str, Any], name: str, *, point: bool = True) -> str:
    if dice["mean"] is None:
        return ""
    said = f"{name}: {100 * dice['mean']:.2f} %"
    parts = ""
    if dice["ci"] is not None:
        low, high = (min(max(end, axis.low), axis.high) for end in dice["ci"])
        said += f", 95 % interval {100 * dice['ci'][0]:.1f} to {100 * dice['ci'][1]:.1f}"
        parts += tag("line", x1=_at(axis, low), x2=_at(axis, high), y1=MIDDLE, y2=MIDDLE, class_="reach")
        for end in (low, high):
            parts += tag(
                "line", x1=_at(axis, end), x2=_at(axis, end), y1=MIDDLE - 4, y2=MIDDLE + 4, class_="end"
            )
    if point:
        parts += tag("circle", cx=_at(axis, dice["mean"]), cy=MIDDLE, r=5, class_="point")
    return tag("g", title(said) + parts)


def _deviation(axis: Axis, spread: Mapping[str, Any], name: str) -> str:
    if spread["mean"] is None:
        return ""
    reach = spread["std"] or 0.0
    ends = {"ci": [spread["mean"] - reach, spread["mean"] + reach]} if reach else {"ci": None}
    drawn = _whisker(axis, {"mean": spread["mean"], **ends}, name)
    return drawn.replace("95 % interval", "one standard deviation:")


def _track(axis: Axis, *parts: str) -> str:
    grid = [
        tag("line", x1=_at(axis, tick), x2=_at(axis, tick), y1=0, y2=HEIGHT, class_="grid")
        for tick in axis.ticks()
    ]
    return tag("svg", "".join([*grid, *parts]), class_="track", height=HEIGHT, aria_hidden="true")


def _scale(axis: Axis) -> str:
    ticks = "".join(words(_at(axis, tick), 12, f"{100 * tick:g}", class_="tick") for tick in axis.ticks())
    return _svg(ticks, 16)


def _svg(body: str, height: int) -> str:
    return tag("svg", body, class_="track", height=height, aria_hidden="true")
