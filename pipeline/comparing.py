"""How two caches differ: in what made them, in what they hold, and in what is stored of it."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from store import GridReader, GridStore, ViewKey
from store.identity import differences
from store.places import LocalPlace
from store.rows import ViewRow
from store.sharing import Offer, pull

NAMED = 5  # views and tiles, in one sentence


class _Stored(NamedTuple):
    row: ViewRow
    crc32c: int  # of the chunk as it is stored


def compare(a: Offer, b: Offer, values: int) -> dict[str, Any]:
    """Return where ``a`` and ``b`` differ, as JSON-able values; ``same`` is whether they do not.

    Compared are identity and form, tiles, finished views, and the checksums of what is stored of the views in both. Of
    at most ``values`` of those with other checksums the values are read, from a temporary copy where they lie
    elsewhere, and the largest difference of each is told. Raises what reading raises.
    """
    left, right = _views(a), _views(b)
    both = [key for key in left if key in right]
    fields = [
        {"field": difference.field, "a": difference.stored, "b": difference.wanted}
        for difference in differences(_made(a), _made(b))
    ]
    comparable = a.spec.encoding == b.spec.encoding
    differing = [key for key in both if not comparable or left[key].crc32c != right[key].crc32c]
    pixels = [key for key in both if _other_pixels(left[key].row, right[key].row)]
    found = {
        "made_differently": fields,
        "tiles_only_in_a": _tiles(left, right),
        "tiles_only_in_b": _tiles(right, left),
        "views_only_in_a": [str(left[key].row) for key in left if key not in right],
        "views_only_in_b": [str(right[key].row) for key in right if key not in left],
        "views_in_both": len(both),
        "views_of_other_pixels": [str(left[key].row) for key in pixels],
        "views_stored_differently": [str(left[key].row) for key in differing],
        "faults": [str(fault) for fault in (*a.faults, *b.faults)],
    }
    same = not any(value for name, value in found.items() if name != "views_in_both")
    readable = (a.spec.shape, a.spec.dtype) == (b.spec.shape, b.spec.dtype)
    chosen = _spread(differing, values) if readable else []
    return {"same": same, **found, "values": _values(a, b, [left[key].row for key in chosen])}


def sentences(found: Mapping[str, Any], a: str, b: str) -> list[str]:
    """Return what :func:`compare` found in words."""
    if found["same"]:
        return [
            f"the same: both hold these {found['views_in_both']} views, made alike and recorded as stored alike"
        ]
    lines = [
        f"made differently: {one['field']}: {one['a']!r} | {one['b']!r}" for one in found["made_differently"]
    ]
    for side, name in (("a", a), ("b", b)):
        for what in ("tiles", "views"):
            only = found[f"{what}_only_in_{side}"]
            if only:
                lines.append(f"only in {name}: {len(only)} {what} ({_few(only)})")
    lines.append(f"in both: {found['views_in_both']} views")
    for name, words in (
        ("views_of_other_pixels", "of them made from other pixels"),
        ("views_stored_differently", "of them stored differently"),
    ):
        if found[name]:
            lines.append(f"{words}: {len(found[name])} ({_few(found[name])})")
    lines += [
        f"{one['view']}: values differ by up to {one['max_abs']:g} (largest value {one['largest']:g})"
        for one in found["values"]
    ]
    return lines + [f"not compared: {fault}" for fault in found["faults"]]


def _made(offer: Offer) -> dict[str, Any]:
    return {**offer.identity, "grid": offer.spec.to_json()}


def _views(offer: Offer) -> dict[ViewKey, _Stored]:
    """Return what is finished; of a view that several parts hold, what a reader takes: that of the first."""
    found: dict[ViewKey, _Stored] = {}
    for offered in offer.parts:
        for shard in sorted(offered.whole):
            rows, crcs = offered.part.shard_rows(shard), offered.records[shard].summary.chunk_crc32c
            for row, crc in zip(rows, crcs, strict=True):
                found.setdefault(row.key, _Stored(row, crc))
    return found


def _tiles(views: Mapping[ViewKey, _Stored], others: Mapping[ViewKey, _Stored]) -> list[str]:
    there = {key.tile for key in others}
    return list(dict.fromkeys(stored.row.name for key, stored in views.items() if key.tile not in there))


def _other_pixels(a: ViewRow, b: ViewRow) -> bool:
    return bool(a.pixels and b.pixels and a.pixels != b.pixels)


def _spread(keys: Sequence[ViewKey], count: int) -> list[ViewKey]:
    """Return at most ``count`` of ``keys``, evenly over all of them."""
    taken = min(count, len(keys))
    return [keys[at * len(keys) // taken] for at in range(taken)]


def _values(a: Offer, b: Offer, rows: Sequence[ViewRow]) -> list[dict[str, Any]]:
    if not rows:
        return []
    keys = [row.key for row in rows]
    found = []
    with _reader(a, keys) as left, _reader(b, keys) as right:
        for row in rows:
            one, other = (reader.read(row.key).astype(np.float64) for reader in (left, right))
            largest = float(max(np.abs(one).max(), np.abs(other).max()))
            found.append({"view": str(row), "max_abs": float(np.abs(one - other).max()), "largest": largest})
    return found


@contextmanager
def _reader(offer: Offer, keys: Collection[ViewKey]) -> Iterator[GridReader]:
    if isinstance(offer.place, LocalPlace):
        yield GridStore.open(offer.place.folder / offer.folder).reader()
        return
    with tempfile.TemporaryDirectory(prefix="frostgrid-") as folder:
        yield pull(offer, Path(folder), views=keys).store.reader()


def _few(names: Sequence[str]) -> str:
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED} more" if len(names) > NAMED else "")
