"""Reads a report's page as a browser would: its tables, and what it refers to."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"[−-]?\d+(?:\.\d+)?")


@dataclass
class PageCell:
    """One cell of a table, or one figure beside a chart."""

    text: str = ""
    at: list[str] = field(default_factory=list)
    scale: float = 1.0
    head: bool = False


class Page(HTMLParser):
    """``tables``: by the label of their box, rows of cells; ``figures``: what stands beside charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tables: dict[str, list[list[PageCell]]] = {}
        self.figures: list[PageCell] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._label, self._cell = "", PageCell()
        self._open = False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.references += [
            given[name] for name in ("src", "href", "srcset", "action", "data") if name in given
        ]
        if tag == "div" and given.get("role") == "region":
            self._label = given["aria-label"]
            self.tables[self._label] = []
        elif tag == "tr":
            self.tables[self._label].append([])
        elif tag in ("td", "th") or (tag == "span" and "figure" in given.get("class", "").split()):
            at = json.loads(given["data-at"]) if "data-at" in given else []
            self._cell = PageCell("", at, float(given.get("data-scale", 1)), tag == "th")
            self._open = True
            if tag == "span":
                self.figures.append(self._cell)
            else:
                self.tables[self._label][-1].append(self._cell)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "span"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self.lasttag not in ("style", "title"):
            self.text += data
        if self._open:
            self._cell.text += data

    def cells(self) -> list[PageCell]:
        """Every cell and figure of the page that is no heading."""
        cells = [cell for rows in self.tables.values() for row in rows for cell in row if not cell.head]
        return cells + self.figures


def looked_up(summary: Any, pointer: str) -> Any:
    """Follow a JSON pointer."""
    value = summary
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def check_cell(cell: PageCell, summary: Any) -> int:
    """Assert that the figures of a cell are those of the summary, as exact as they are shown; return how many."""
    shown = NUMBER.findall(cell.text)
    assert len(shown) == len(cell.at), (cell.text, cell.at)
    for text, pointer in zip(shown, cell.at, strict=True):
        wanted = cell.scale * looked_up(summary, pointer)
        if cell.text.startswith("<"):
            assert wanted < float(text)
            continue
        digits = len(text.partition(".")[2])
        if pointer.rpartition("/")[2] in ("p", "p_holm"):
            assert abs(float(text) - wanted) <= max(0.06 * abs(wanted), 0.5 * 10.0**-digits), (
                cell.text,
                wanted,
            )
        else:
            assert abs(float(text.replace("−", "-")) - wanted) <= 0.5000001 * 10.0**-digits, (
                cell.text,
                wanted,
            )
    return len(shown)
