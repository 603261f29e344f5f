"""What a person sees while work is going on: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

Update = Callable[[int, int], None]
LOG_SECONDS = 30.0  # between lines of progress where there is no terminal


class _Rate(TextColumn):
    """Units a second since the bar began, e.g. ``12.3 views/s``."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self._unit}/s")


class Talk:
    """Remarks and progress bars on stderr; nothing when ``quiet``. Colours follow ``NO_COLOR`` and the terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """Print one remark."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, unit: str, note: str = "") -> Iterator[Update]:
        """Show a bar with rate and ETA, or lines of progress in a log; yields ``update(done, total)``."""
        if not self._console.is_terminal:
            yield self._lines(what, unit)
            return
        counted: tuple[ProgressColumn, ProgressColumn] = (MofNCompleteColumn(), _Rate(unit))
        if unit == "bytes":
            counted = (DownloadColumn(), TransferSpeedColumn())
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            *counted,
            TimeRemainingColumn(),
            TextColumn(note),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(what, total=None)

            def update(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield update

    def _lines(self, what: str, unit: str) -> Update:
        started = said = time.monotonic()
        first: int | None = None

        def update(done: int, total: int) -> None:
            nonlocal said, first
            now = time.monotonic()
            first = done if first is None else first
            if now - said < LOG_SECONDS or done == first:
                return
            said, rate = now, (done - first) / (now - started)
            left = duration_text((total - done) / rate)
            if unit == "bytes":
                amounts = f"{bytes_text(done)} of {bytes_text(total)}, {bytes_text(rate)}/s"
            else:
                amounts = f"{done} of {total} {unit}, {rate:.2f} {unit}/s"
            self.say(f"{what}: {amounts}, {left} left")

        return update


def print_json(value: Any) -> None:
    """Print ``value`` to stdout as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(table: Any) -> None:
    """Print a rich table to stdout, at its full width where stdout is not a terminal."""
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def duration_text(seconds: float) -> str:
    """Return a duration as people read it, e.g. ``1.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def bytes_text(count: float) -> str:
    """Return a byte count as people read it, e.g. ``3.2 GB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
