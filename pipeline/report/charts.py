"""Charts with two axes: learning curves, and Dice against a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.svg import LETTER, Axis, path, picture, short, spanning, tag, title, words


@dataclass(frozen=True)
class Curve:
    """Values over epochs of one seed; ``chosen`` is the epoch that was selected, where there is one."""

    name: str
    epochs: Sequence[int]
    values: Sequence[float]
    chosen: int | None = None


def learning_curves(curves: Sequence[Curve], ends: tuple[float, float], label: str, *, percent: bool) -> str:
    """Draw the curves of all seeds of one encoder on the value axis ``ends`` that all encoders share."""
    width, height, left, right, top, bottom = 300, 156, 40, 290, 10, 120
    last = max(epoch for curve in curves for epoch in curve.epochs)
    x_axis, y_axis = Axis(0, last, left, right), Axis(*ends, bottom, top)
    parts = value_rows(y_axis, left, right, about=4, percent=percent)
    parts += [words(x_axis(tick), bottom + 15, f"{tick:g}", class_="tick") for tick in x_axis.ticks(4)]
    parts.append(words((left + right) / 2, height - 3, "epoch", class_="tick"))
    for curve in curves:
        points = [
            (x_axis(epoch), y_axis(value)) for epoch, value in zip(curve.epochs, curve.values, strict=True)
        ]
        parts.append(tag("g", title(curve.name) + path(points, class_="curve")))
        for epoch, value, (x, y) in zip(curve.epochs, curve.values, points, strict=True):
            if curve.chosen is None:
                continue
            text = f"{curve.name}, epoch {epoch}: {100 * value:.2f} %" + (
                ", selected" if epoch == curve.chosen else ""
            )
            look = "chosen" if epoch == curve.chosen else "passed"
            parts.append(
                tag("circle", title(text), cx=x, cy=y, r=4 if epoch == curve.chosen else 2.5, class_=look)
            )
    return picture(width, height, label, *parts)


_DASHES = ("none", "6 3", "2 3", "8 3 2 3", "12 4")


def dice_against_value(
    lines: Mapping[str, Sequence[tuple[float, float, float | None]]], factor: str, label: str
) -> str:
    """Draw mean Dice against a setting, a line an encoder, each (value, mean, std)."""
    height, left, right, top, bottom = 300, 50, 350, 14, 250
    width = right + LETTER * max(len(name) for name in lines)
    points = [point for line in lines.values() for point in line]
    values = sorted({value for value, _, _ in points})
    log = values[0] > 0 and values[-1] / values[0] > 8
    if len(values) == 1:
        x_axis = Axis(values[0] - 1, values[0] + 1, left + 20, right - 20)
    else:
        x_axis = Axis(values[0], values[-1], left + 20, right - 20, log=log)
    reach = [mean + sign * (std or 0.0) for _, mean, std in points for sign in (-1, 1)]
    y_axis = Axis(*spanning(reach, at_least=0.05, within=(0.0, 1.0)), bottom, top)
    parts = value_rows(y_axis, left, right)
    parts += [
        words(x_axis(value), bottom + 18, short(value), class_="tick") for value in _apart(values, x_axis)
    ]
    parts += [
        words((left + right) / 2, height - 10, factor, class_="tick"),
        words(
            14,
            (top + bottom) / 2,
            "test Dice (%)",
            class_="tick",
            transform=f"rotate(-90 14 {(top + bottom) / 2})",
        ),
    ]
    ends = []
    for number, (name, line) in enumerate(lines.items()):
        drawn = [(x_axis(value), y_axis(mean)) for value, mean, _ in sorted(line)]
        parts.append(
            tag(
                "g",
                title(name)
                + path(drawn, class_="curve bold", stroke_dasharray=_DASHES[number % len(_DASHES)]),
            )
        )
        for (value, mean, std), (x, y) in zip(sorted(line), drawn, strict=True):
            text = f"{name}, {factor} {value:g}: {100 * mean:.2f} %" + (f" ± {100 * std:.2f}" if std else "")
            bar = (
                tag("line", x1=x, x2=x, y1=y_axis(mean - std), y2=y_axis(mean + std), class_="reach thin")
                if std
                else ""
            )
            parts.append(tag("g", title(text) + bar + tag("circle", cx=x, cy=y, r=4, class_="point")))
        ends.append((drawn[-1][1], name))
    written = float("-inf")
    for end, name in sorted(ends):
        written = max(end, written + 14)
        parts.append(words(right - 8, written + 4, name, class_="label"))
    return picture(width, height, label, *parts)


def _apart(values: Sequence[float], axis: Axis) -> list[float]:
    """Return the values whose labels do not touch."""
    kept: list[float] = []
    for value in values:
        if (
            not kept
            or axis(value) - axis(kept[-1]) >= LETTER * (len(short(value)) + len(short(kept[-1]))) / 2 + 4
        ):
            kept.append(value)
    return kept


def value_rows(axis: Axis, left: float, right: float, *, about: int = 5, percent: bool = True) -> list[str]:
    """Return the lines and labels of a value axis, across a chart from ``left`` to ``right``."""
    parts = []
    for tick in axis.ticks(about):
        text = f"{100 * tick:g}" if percent else f"{tick:g}"
        parts += [
            tag("line", x1=left, x2=right, y1=axis(tick), y2=axis(tick), class_="grid"),
            words(left - 6, axis(tick) + 4, text, class_="tick left"),
        ]
    return parts
