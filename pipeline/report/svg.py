"""Just enough SVG: charts that take their colours from the page and say what they show when pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LETTER = 6.4  # mean width of a letter of the charts' 12 px type


def tag(name: str, body: str = "", /, **attributes: str | float) -> str:
    """Return an element; ``_`` in an attribute's name stands for ``-``, a last one is dropped (``class_``)."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{text}>{body}</{name}>" if body else f"<{name}{text}/>"


def title(text: str) -> str:
    """Return what is shown when the element around it is pointed at, and read aloud."""
    return f"<title>{escape(text)}</title>"


def words(x: float | str, y: float, text: str, **attributes: str | float) -> str:
    """Return a piece of text at (x, y)."""
    return tag("text", escape(text), x=x, y=y, **attributes)


def picture(width: float, height: float, label: str, *parts: str, class_: str = "chart") -> str:
    """Return a whole picture that scales with the page; ``label`` says what it shows."""
    box = f"0 0 {_value(width)} {_value(height)}"
    return tag("svg", "".join(parts), viewBox=box, role="img", aria_label=label, class_=class_)


@dataclass(frozen=True)
class Axis:
    """Maps values ``low`` … ``high`` to coordinates ``start`` … ``end``; ``log`` for a logarithmic axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values on the axis: powers of ten with 2 and 5 between them on a logarithmic one."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 2000 else (1,)
            found = [step * 10.0**power for power in powers for step in steps]
        else:
            step = _round_step((self.high - self.low) / about)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            found = [round(step * number, 10) for number in range(first, last + 1)]
        return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


def spanning(values: Sequence[float], *, at_least: float, within: tuple[float, float]) -> tuple[float, float]:
    """Return round ends that hold all values with some room, ``at_least`` apart, and lie ``within`` a range."""
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), (at_least - (high - low)) / 2, 0.0)
    low, high = max(within[0], low - room), min(within[1], high + room)
    if high - low < at_least:
        low, high = max(within[0], high - at_least), min(within[1], low + at_least)
    step = _round_step((high - low) / 5)
    return max(within[0], math.floor(low / step) * step), min(within[1], math.ceil(high / step) * step)


def path(points: Sequence[tuple[float, float]], **attributes: str | float) -> str:
    """Return a line through points."""
    steps = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return tag("path", d=steps, **attributes)


def short(value: float) -> str:
    """Return a number as an axis has it: ``0.5``, ``20``, ``300 M``."""
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("-", "−")


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= step * (1 - 1e-9))


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
