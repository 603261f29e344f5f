"""Which shards have to be written so that the asked-for views are all stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from store.errors import IdentityMismatch, VerificationError
from store.parts import Part
from store.rows import ShardTask, ViewKey, ViewRow

_NAMED = 5


def check_pixels(parts: Sequence[Part], rows: Iterable[ViewRow], where: Path) -> None:
    """Raise ``IdentityMismatch`` if a view is in ``parts``, or twice in ``rows``, with different pixels.

    Rows whose pixels are not known in advance fit everything.
    """
    stored: dict[tuple[str, int], str] = {}
    for part in reversed(parts):
        known = zip(part.rows.keys(), part.rows.pixels, strict=True)
        stored.update((key, pixels) for key, pixels in known if pixels)
    faults = {}
    for row in rows:
        if row.pixels and stored.setdefault(row.key, row.pixels) != row.pixels:
            faults[row.key] = f"{row} (stored {stored[row.key][:12]}, wanted {row.pixels[:12]})"
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise IdentityMismatch(
            f"The stored grids were made from other pixels: {'; '.join(list(faults.values())[:_NAMED])}{more}",
            where=where,
            remedy="Views are drawn differently than when the cache was made: restore the images or the library "
            "versions in the provenance of cache.json, or extract into another [cache] root.",
        )


@dataclass(frozen=True)
class Survey:
    """Where views are: finished somewhere, or planned in an unfinished shard (part number, shard)."""

    stored: set[tuple[str, int]]
    planned: dict[ViewKey, tuple[int, int]]

    def __contains__(self, key: ViewKey) -> bool:
        return key in self.stored or key in self.planned


def survey(parts: Sequence[Part], can_make: Callable[[ViewRow], bool]) -> Survey:
    """Find every view in ``parts``. An unfinished shard with a row that the caller cannot make plans nothing.

    A view in several unfinished parts is planned in the first of them, so every process chooses the same shard.
    """
    found = Survey(set(), {})
    for number, part in enumerate(parts):
        done = part.done()
        found.stored.update(part.keys_in(done))
        for shard in range(part.shards):
            if shard in done:
                continue
            rows = part.shard_rows(shard)
            if all(can_make(row) for row in rows):
                for row in rows:
                    found.planned.setdefault(row.key, (number, shard))
    return found


def assign(parts: Sequence[Part], found: Survey, wanted: Mapping[ViewKey, ViewRow]) -> list[ShardTask]:
    """Return the unfinished shards that hold a wanted view which is nowhere finished, in the order of ``wanted``."""
    shards: dict[tuple[int, int], None] = {}
    for key, row in wanted.items():
        if key in found.stored:
            continue
        if key not in found.planned:
            raise VerificationError(
                f"{row} is in no part although it was just planned",
                where=parts[0].folder.parent if parts else None,
                remedy="Another process removes parts of this cache; stop it and run the same command again.",
            )
        shards.setdefault(found.planned[key])
    return [ShardTask(parts[number].name, shard, parts[number].shard_rows(shard)) for number, shard in shards]
