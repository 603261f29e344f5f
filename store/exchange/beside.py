"""Which view of a views store belongs to which view of a feature cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from store.errors import InputError
from store.grids import GridStore
from store.reader import GridReader
from store.rows import ViewKey, ViewRow

# The views to take from a feature cache, each with the key of its mask in the views store; a study knows both.
Chosen = Mapping[ViewKey, ViewKey]

_NAMED = 5


def finished(store: GridStore, chosen: Chosen | None) -> tuple[GridReader, list[ViewRow]]:
    """Return a reader of ``store`` and the rows to export, in the store's order: all, or the ``chosen`` ones.

    Raises ``MissingViews`` if a chosen view is not there, ``DamagedGrid`` if one was finished and its shard is lost or
    cut, and ``InputError`` if there is nothing to export.
    """
    reader = store.reader()
    for key in reader.damaged():
        if chosen is None or key in chosen:
            reader.row(key)
    if chosen is not None:
        for key in reader.missing(chosen):
            reader.row(key)
    rows = [reader.row(key) for key in reader.views() if chosen is None or key in chosen]
    if not rows:
        raise InputError("The cache has no finished view", where=store.path, remedy="Extract first.")
    return reader, rows


def drawn_beside(rows: Sequence[ViewRow], masks: GridReader, chosen: Chosen | None) -> list[list[ViewKey]]:
    """Return, for each row, the keys of the views store that belong to it: of the same pixels, index and name.

    Several where the views store holds the masks before and after a correction and ``chosen`` does not say which.
    Raises ``InputError`` if the chosen one lies beside other pixels, ``MissingViews`` if it is not there.
    """
    if chosen is None:
        found: dict[tuple[str, int, str], list[ViewKey]] = defaultdict(list)
        for key in masks.views():
            found[_pixels(masks, key), key.view, masks.row(key).name].append(key)
        return [found.get((row.pixels, row.view, row.name), []) if row.pixels else [] for row in rows]
    for row in rows:
        if _pixels(masks, chosen[row.key]) != row.pixels:
            raise InputError(
                f"The mask chosen for {row} was drawn beside other pixels",
                where=masks.folder,
                remedy="Give the views store that was made with this cache.",
            )
    return [[chosen[row.key]] for row in rows]


def mask_keys(rows: Sequence[ViewRow], masks: GridReader, chosen: Chosen | None) -> list[ViewKey]:
    """Return the key in the views store of each row's mask; an empty list if the views store has none of them.

    Raises ``InputError`` if only some of the rows have one or if one has several; further errors as for
    ``drawn_beside``.
    """
    candidates = drawn_beside(rows, masks, chosen)
    if not any(candidates):
        return []
    several = [row for row, keys in zip(rows, candidates, strict=True) if len(keys) > 1]
    if several:
        raise InputError(
            f"The views store holds several masks for {some(several)}",
            where=masks.folder,
            remedy="Export for one study: it says which of them are meant.",
        )
    require_all(rows, candidates, masks)
    return [keys[0] for keys in candidates]


def require_all(rows: Sequence[ViewRow], candidates: Sequence[list[ViewKey]], masks: GridReader) -> None:
    """Raise ``InputError`` naming the rows that have nothing in the views store."""
    absent = [row for row, keys in zip(rows, candidates, strict=True) if not keys]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(rows)} views are not in the views store: {some(absent)}",
            where=masks.folder,
            remedy="Give the views store that was made with this cache, or export for one study only.",
        )


def some(rows: Sequence[object]) -> str:
    """Return the first few as a list in words."""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return "; ".join(str(row) for row in rows[:_NAMED]) + more


def _pixels(masks: GridReader, key: ViewKey) -> str:
    return str(masks.meta(key).get("pixels", ""))
