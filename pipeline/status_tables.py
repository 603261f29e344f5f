"""What :mod:`pipeline.status` found, as tables and lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.console import bytes_text

SHOWN = 10  # failures that are shown; --json has all
_STATES = ("done", "running", "failed", "to_do")


def status_parts(found: dict[str, Any]) -> list[Table | str]:
    """Return what :func:`pipeline.status.status` found as tables and sentences for people."""
    parts: list[Table | str] = [_caches(found), _runs(found)]
    others = found["other_runs"]
    if others["recorded"]:
        parts.append(_others(others["recorded"]))
    if others["running"]:
        parts.append(f"Under way beside these: {_some(others['running'])}")
    if found["failures"]:
        lines = [f"{one['kind']} {one['name']}: {one['why']}" for one in found["failures"]]
        parts.append(f"Failed, and not tried again yet:\n{_lines(lines)}")
    if found["damaged"]:
        parts.append(f"Damaged, or not to be read:\n{_lines(found['damaged'])}")
    return parts


def _caches(found: dict[str, Any]) -> Table:
    place = f", copies of {found['place']}" if found["place"] else ""
    table = Table(title=f"{escape(found['study'])}: caches ({escape(found['cache'] + place)})")
    table.add_column("cache", overflow="fold")
    for name in ("views", "bytes", "shards done", "running", "failed", "to do"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for title, row in [("views", found["views"]), *((one["encoder"], one) for one in found["encoders"])]:
        views, shards = row["views"], row["shards"]
        lost = f"{shards['lost']} of them finished once, and lost or cut since" if shards["lost"] else ""
        table.add_row(
            escape(title),
            f"{views['stored']} / {views['wanted']}",
            bytes_text(row["bytes"]),
            *(str(shards[name]) for name in _STATES),
            escape("; ".join(text for text in (row["cache"] or "none yet", row["note"], lost) if text)),
        )
    return table


def _runs(found: dict[str, Any]) -> Table:
    table = Table(title=f"{escape(found['study'])}: runs, one a seed ({escape(found['results'])})")
    table.add_column("encoder", overflow="fold")
    table.add_column("decoder", overflow="fold")
    states = (*_STATES, "damaged")
    for name in states:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for row in found["encoders"]:
        table.add_row(
            escape(row["encoder"]), escape(row["decoder"]), *(str(len(row["runs"][name])) for name in states)
        )
    return table


def _others(groups: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Other runs that are recorded")
    for name in ("encoder", "decoder", "differs from the study in"):
        table.add_column(name, overflow="fold")
    table.add_column("done", justify="right", no_wrap=True)
    for group in groups:
        differs = ", ".join(group["differs"])
        table.add_row(
            escape(group["encoder"]), escape(group["decoder"]), escape(differs), str(len(group["done"]))
        )
    return table


def _lines(lines: Sequence[str]) -> str:
    more = [f"  … and {len(lines) - SHOWN} more (--json has all)"] if len(lines) > SHOWN else []
    return "\n".join([*(f"  - {line}" for line in lines[:SHOWN]), *more])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
