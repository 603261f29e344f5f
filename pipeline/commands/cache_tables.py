"""The tables about caches that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.console import bytes_text


def caches_table(place: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What is at a place: a row a cache."""
    table = Table(
        title=f"{escape(place)}: {len(rows)} cache{'s' if len(rows) != 1 else ''}, "
        f"{bytes_text(sum(row['bytes'] for row in rows))}",
        caption="views: finished / planned. may be shared: whether the licence lets tokens be passed on. fits: studies "
        "whose recipe, encoder and encoding are these; which tiles are there, only their pixels can tell",
    )
    for name in ("cache", "encoder", "encoding", "views", "size", "licence", "may be shared", "fits"):
        table.add_column(
            name, justify="right" if name in ("views", "size") else "left", no_wrap=name == "cache"
        )
    for row in rows:
        table.add_row(
            escape(row["cache"]),
            escape(row["encoder"] or "(masks)"),
            row["encoding"],
            f"{row['views_done']} / {row['views_planned']}",
            bytes_text(row["bytes"]),
            escape(row["licence"] or "–"),
            row["share"],
            escape(", ".join(row["fits"])) or "–",
        )
    return table


def cache_table(about: Mapping[str, Any]) -> Table:
    """One cache: a row a field."""
    table = Table(title=escape(about["cache"]), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    error = about["int8_error"]
    fields = {
        "lies at": about["place"],
        "key": about["key"],
        "encoder": about["encoder"] or "(masks)",
        "grid": "×".join(map(str, about["grid"])),
        "encoding": about["encoding"],
        "int8 error": error
        and f"{100 * error['mean_rms']:.2f} % of a channel's σ in the mean view, {100 * error['max_rms']:.2f} % in the "
        f"worst; {100 * error['worst_channel']:.2f} % in the worst channel",
        "views": f"{about['views_done']} of {about['views_planned']} finished",
        "tiles": f"{about['tiles']}: {', '.join(about['tile_names'][:6])}"
        + (", …" if about["tiles"] > 6 else ""),
        "parts": "\n".join(
            f"{part['part']}: {part['shards_done']} of {part['shards']} shards, {part['views']} views, "
            f"{bytes_text(part['bytes'])}, {'sealed' if part['sealed'] else 'not sealed'}"
            for part in about["parts"]
        ),
        "size": bytes_text(about["bytes"]),
        "licence": about["licence"],
        "may be shared": about["share"],
        **{f"identity {name}": value for name, value in flat(about["identity"])},
        **{f"made with {name}": value for name, value in flat(about["provenance"])},
    }
    for name, value in fields.items():
        if value is not None:
            table.add_row(name, escape(str(value)))
    return table


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings with their dotted paths."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def rechecked_table(rows: Sequence[Mapping[str, Any]], tolerance: Mapping[str, float]) -> Table:
    """Views that were encoded again, beside what is stored of them."""
    table = Table(
        title="Encoded again",
        caption=f"allowed here: relative L2 difference up to {tolerance['l2']:g}, cosine of every token from "
        f"{tolerance['cosine']:g}",
    )
    for name in ("tile", "view", "relative L2", "least cosine", ""):
        table.add_column(name, justify="left" if name in ("tile", "") else "right")
    for row in rows:
        same = row["l2"] is not None
        table.add_row(
            escape(row["tile"]),
            str(row["view"]),
            f"{row['l2']:.5f}" if same else "–",
            f"{row['cosine']:.6f}" if same else "–",
            "as stored" if row["same"] else "differs" if same else "other pixels",
        )
    return table


def superfluous_table(root: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What a folder of caches could do without."""
    size, pieces = bytes_text(sum(row["bytes"] for row in rows)), f"piece{'s' if rows[1:] else ''}"
    table = Table(title=f"{escape(root)}: {size} in {len(rows)} {pieces}")
    for name in ("what", "why", "size", ""):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for row in rows:
        table.add_row(escape(row["path"]), escape(row["reason"]), bytes_text(row["bytes"]), row["done"])
    return table
