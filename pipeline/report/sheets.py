"""Tables as data: each number knows where in ``summary.json`` it stands, and every form of a table is made of this."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Number:
    """One figure: ``at`` is its JSON pointer in the summary, ``scale`` what the shown figure is multiplied with."""

    at: str
    value: float | None
    scale: float = 1.0


@dataclass(frozen=True)
class Cell:
    """``text`` as it is read; ``numbers`` the figures in it, in order; ``best``: the highest of its column."""

    text: str
    numbers: tuple[Number, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Column:
    """``parts``: what the numbers of a cell are, such as ``("mean", "std")``; none for a column of words."""

    title: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """One table. ``name`` is that of its files, ``note`` how to read it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Makes cells of the values of a summary."""

    summary: Mapping[str, Any]
    dash: str = field(default="–")

    def at(self, *path: str | int) -> Any:
        """Return the value at a path; None where one of its steps is None."""
        value: Any = self.summary
        for step in path:
            if value is None:
                return None
            value = value[step]
        return value

    def number(self, *path: str | int, scale: float = 1.0) -> Number:
        """Return the figure at a path."""
        value = self.at(*path)
        return Number(pointer(path), None if value is None else float(value), scale)

    def percent(self, *path: str | int, digits: int = 2) -> Cell:
        """Return a share as per cent."""
        return self._cell(self.number(*path, scale=100.0), f"{{:.{digits}f}}")

    def signed(self, *path: str | int, digits: int = 2) -> Cell:
        """Return a difference of shares in points, with its sign."""
        return self._cell(self.number(*path, scale=100.0), f"{{:+.{digits}f}}")

    def plain(self, *path: str | int, form: str = "{:.0f}", scale: float = 1.0) -> Cell:
        """Return a figure as ``form`` has it."""
        return self._cell(self.number(*path, scale=scale), form)

    def spread(self, *path: str | int) -> Cell:
        """Return ``mean ± std`` in per cent of what is at a path; the mean alone where there is no std."""
        mean = self.number(*path, "mean", scale=100.0)
        std = self.number(*path, "std", scale=100.0)
        if mean.value is None:
            return Cell(self.dash)
        if std.value is None:
            return Cell(f"{100 * mean.value:.2f}", (mean,))
        return Cell(f"{100 * mean.value:.2f} ± {100 * std.value:.2f}", (mean, std))

    def interval(self, *path: str | int, digits: int = 1) -> Cell:
        """Return ``low to high`` in per cent of the pair at a path."""
        if self.at(*path) is None:
            return Cell(self.dash)
        ends = tuple(self.number(*path, end, scale=100.0) for end in (0, 1))
        text = " to ".join(f"{100 * (end.value or 0.0):.{digits}f}" for end in ends)
        return Cell(text.replace("-", "−"), ends)

    def _cell(self, number: Number, form: str) -> Cell:
        if number.value is None:
            return Cell(self.dash)
        return Cell(form.format(number.scale * number.value).replace("-", "−"), (number,))


def pointer(path: Sequence[str | int]) -> str:
    """Return the JSON pointer (RFC 6901) of a path."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def best_marked(rows: Sequence[tuple[Cell, ...]]) -> tuple[tuple[Cell, ...], ...]:
    """Mark the highest first number of every column that has numbers, where there are rows to choose from."""
    if len(rows) < 2:
        return tuple(rows)
    highest = []
    for column in zip(*rows, strict=True):
        values = [
            cell.numbers[0].value for cell in column if cell.numbers and cell.numbers[0].value is not None
        ]
        highest.append(max(values) if values else None)
    return tuple(
        tuple(
            Cell(cell.text, cell.numbers, best=bool(cell.numbers) and cell.numbers[0].value == top)
            for cell, top in zip(row, highest, strict=True)
        )
        for row in rows
    )


def as_csv(sheet: Sheet) -> str:
    """Return a table as CSV: a column for each number, unrounded, in the unit that is shown."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(
        title
        for column in sheet.columns
        for title in ([f"{column.title} {part}".strip() for part in column.parts] or [column.title])
    )
    for row in sheet.rows:
        line: list[str] = []
        for column, cell in zip(sheet.columns, row, strict=True):
            if not column.parts:
                line.append(cell.text)
                continue
            shown = [number.value * number.scale for number in cell.numbers if number.value is not None]
            line += [repr(value) for value in shown] + [""] * (len(column.parts) - len(shown))
        writer.writerow(line)
    return text.getvalue()


def as_markdown(sheet: Sheet) -> str:
    """Return a table as Markdown, the best of each column in bold."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---:" if column.parts else "---" for column in sheet.columns]
    lines = [f"**{sheet.title}**", "", line([column.title for column in sheet.columns]), line(rule)]
    lines += [line([f"**{cell.text}**" if cell.best else cell.text for cell in row]) for row in sheet.rows]
    return "\n".join([*lines, *(["", sheet.note] if sheet.note else []), ""])


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
    "µ": r"$\mu$", "²": r"$^2$", "√": r"$\surd$", "’": "'", "…": r"\ldots{}", "<": "$<$", ">": "$>$",
}  # fmt: skip


def as_latex(sheet: Sheet) -> str:
    """Return a table as LaTeX (package booktabs), the best of each column in bold."""
    layout = "".join("r" if column.parts else "l" for column in sheet.columns)
    head = " & ".join(_tex(column.title) for column in sheet.columns)
    rows = [
        " & ".join(rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in row)
        for row in sheet.rows
    ]
    caption = _tex(f"{sheet.title}. {sheet.note}".strip() if sheet.note else f"{sheet.title}.")
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
        *(row + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
