"""The paper's Figure 1: Dice against parameters, one mark an encoder, whose shape says how large the encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from pipeline.report.charts import value_rows
from pipeline.report.svg import LETTER, Axis, picture, short, spanning, tag, title, words


class Capacity(NamedTuple):
    """A size of encoder: its name, the parameters below which it ends, and the radius of its marker."""

    name: str
    below: float
    radius: float


CAPACITIES = (
    Capacity("no weights", 1, 4.5),
    Capacity("small", 50e6, 5),
    Capacity("base", 150e6, 5.5),
    Capacity("large", 450e6, 6),
    Capacity("huge", 900e6, 7),
    Capacity("giant", float("inf"), 8),
)


@dataclass(frozen=True)
class Point:
    """An encoder in Figure 1: Dice as a share, with its interval where there is one."""

    name: str
    parameters: int
    dice: float
    interval: Sequence[float] | None = None


def capacity(parameters: float) -> Capacity:
    """Return the capacity class of an encoder."""
    return next(one for one in CAPACITIES if parameters < one.below)


def marker(size: Capacity, x: float, y: float) -> str:
    """Return the mark of a capacity class, centred on (x, y): shape and size tell it, not colour."""
    r, place = size.radius, CAPACITIES.index(size)
    if place == 0:
        cross = f"M{x - r:.1f} {y - r:.1f} L{x + r:.1f} {y + r:.1f} M{x - r:.1f} {y + r:.1f} L{x + r:.1f} {y - r:.1f}"
        return tag("path", d=cross, class_="cross")
    if place == 1:
        return tag("circle", cx=x, cy=y, r=r, class_="mark")
    if place == 2:
        return tag("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, class_="mark")
    shapes: dict[int, list[tuple[float, float]]] = {
        3: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        4: [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
        5: [(0.5, -1), (1.1, 0), (0.5, 1), (-0.5, 1), (-1.1, 0), (-0.5, -1)],
    }
    corners = shapes[place]
    return tag(
        "polygon", points=" ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners), class_="mark"
    )


def dice_against_parameters(points: Sequence[Point], label: str) -> str:
    """Draw Figure 1: mean test Dice against the encoder's parameters, one mark an encoder."""
    width, height, left, right, top, bottom = 560, 360, 50, 545, 14, 312
    sized = [point.parameters for point in points if point.parameters > 0]
    floor = any(point.parameters <= 0 for point in points)
    start = left + (70 if floor else 25)
    room = 1.6 if sized and max(sized) > 5 * min(sized) else 4
    low, high = (min(sized) / room, max(sized) * room) if sized else (1e7, 1e9)
    x_axis = Axis(low, high, start, right - 15, log=True)
    seen = [value for point in points for value in (point.dice, *(point.interval or ()))]
    y_axis = Axis(*spanning(seen, at_least=0.1, within=(0.0, 1.0)), bottom, top)
    parts = value_rows(y_axis, left, right)
    for tick in x_axis.ticks() if sized else ():
        parts += [
            tag("line", x1=x_axis(tick), x2=x_axis(tick), y1=bottom, y2=bottom + 4, class_="axis"),
            words(x_axis(tick), bottom + 18, short(tick), class_="tick"),
        ]
    if floor:
        parts.append(words(left + 30, bottom + 18, "none", class_="tick"))
    parts += [
        words((left + right) / 2, height - 8, "parameters of the encoder", class_="tick"),
        words(
            14,
            (top + bottom) / 2,
            "test Dice (%)",
            class_="tick",
            transform=f"rotate(-90 14 {(top + bottom) / 2})",
        ),
    ]
    placed = []
    beside: dict[int, int] = {}
    for point in points:
        x = x_axis(point.parameters) if point.parameters > 0 else left + 30
        column = round(
            x / 6
        )  # those of one size stand side by side, so that their intervals can be told apart
        beside[column] = beside.get(column, 0) + 1
        x += (beside[column] // 2) * (5 if beside[column] % 2 else -5)
        said = f"{point.name}: Dice {100 * point.dice:.2f} %, {short(point.parameters)} parameters"
        body = ""
        if point.interval is not None:
            below, above = (y_axis(end) for end in point.interval)
            said += f", 95 % interval {100 * point.interval[0]:.1f} to {100 * point.interval[1]:.1f}"
            body = tag("line", x1=x, x2=x, y1=below, y2=above, class_="reach thin")
        size = capacity(point.parameters)
        parts.append(tag("g", title(said) + body + marker(size, x, y_axis(point.dice))))
        placed.append((x, y_axis(point.dice), size.radius, point.name))
    return picture(width, height, label, *parts, *_labels(placed, (left, top, right, bottom)))


def _labels(
    placed: Sequence[tuple[float, float, float, str]], frame: tuple[float, float, float, float]
) -> list[str]:
    """Write names beside their marks where nothing lies yet, with a thin line to those that had to move away."""
    left, top, right, bottom = frame
    taken = [(x - r - 1, y - r - 1, x + r + 1, y + r + 1) for x, y, r, _ in placed]
    parts = []
    for x, y, r, name in placed:
        length = LETTER * len(name)
        for distance, (side, step) in product(
            (0, 16, 34, 56), ((1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1))
        ):
            reach = r + 4 + (distance if step == 0 or side == 0 else 0)
            centre_y = y + step * (14 + distance)
            start = x + reach if side > 0 else x - reach - length if side < 0 else x - length / 2
            box = (start, centre_y - 7, start + length, centre_y + 7)
            inside = box[0] >= left and box[2] <= right and box[1] >= top - 8 and box[3] <= bottom
            if inside and not any(_touch(box, other) for other in taken):
                taken.append(box)
                if distance:
                    near = start if side > 0 else start + length if side < 0 else x
                    parts.append(tag("line", x1=x, y1=y, x2=near, y2=centre_y, class_="leader"))
                parts.append(words(start, centre_y + 4, name, class_="label"))
                break
    return parts


def _touch(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
