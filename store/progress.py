"""How far a cache is with the views somebody wants: which shards are done, and which are still to be written.

The same answer that planning gives, without changing anything, whatever is damaged, and for a cache of which parts may
lie in several places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from store.errors import FrostgridError
from store.grids import GridStore
from store.parts import Part, load_part, part_folders
from store.records import ShardRecord
from store.rows import ViewKey

Position = tuple[str, int]  # part, number of the shard in it


@dataclass(frozen=True)
class Sighted:
    """A part as it was found somewhere: the records of its finished shards, and which of them are there whole."""

    part: Part
    records: Mapping[int, ShardRecord]
    whole: AbstractSet[int]


@dataclass(frozen=True)
class Progress:
    """What is there of the wanted views.

    ``views``: how many are stored. ``done``: the shards that hold them, of ``bytes`` together. ``left``: the shards of
    existing parts that are to be written yet for the others, ``lost`` those of them that were finished once.
    ``unplanned``: how many views are in no part yet.
    """

    views: int
    bytes: int
    done: frozenset[Position]
    left: frozenset[Position]
    lost: frozenset[Position]
    unplanned: int


def sighted(store: GridStore) -> tuple[list[Sighted], list[FrostgridError]]:
    """Return the parts of a store on this machine, and what is wrong with those that cannot be read.

    Reads their documents and the sizes of their shards, no shard.
    """
    found: list[Sighted] = []
    faults: list[FrostgridError] = []
    for folder in part_folders(store.path):
        try:
            part = load_part(folder, store.key, store.spec)
            records = part.records()
            found.append(Sighted(part, records, part.done(records).keys()))
        except FrostgridError as fault:
            faults.append(fault)
    return found, faults


def progress(parts: Iterable[Sighted], wanted: AbstractSet[ViewKey]) -> Progress:
    """Return how far ``parts`` of one cache are with ``wanted``; a part may be given as often as it was found.

    A view that is in several unfinished shards counts for the first of them, and none for one that holds tiles beside
    the wanted ones', as :func:`store.planning.survey` has it.
    """
    by_name: dict[str, list[Sighted]] = {}
    for one in parts:
        by_name.setdefault(one.part.name, []).append(one)
    tiles = {tile for tile, _ in wanted}
    stored: set[tuple[str, int]] = set()
    planned: dict[tuple[str, int], Position] = {}
    done: set[Position] = set()
    size = 0
    for name, copies in sorted(by_name.items()):
        whole = {shard: one.records[shard] for one in copies for shard in one.whole}
        part = copies[0].part
        foreign = _foreign(part, tiles)
        held: set[int] = set()
        for at, key in enumerate(part.rows.keys()):
            if key in wanted:
                shard = at // part.slots
                if shard in whole:
                    stored.add(key)
                    held.add(shard)
                elif shard not in foreign:
                    planned.setdefault(key, (name, shard))
        done.update((name, shard) for shard in held)
        size += sum(whole[shard].summary.bytes for shard in held)
    open_places = {place for key, place in planned.items() if key not in stored}
    recorded = {(name, shard) for name, copies in by_name.items() for one in copies for shard in one.records}
    return Progress(
        views=len(stored),
        bytes=size,
        done=frozenset(done),
        left=frozenset(open_places),
        lost=frozenset(open_places & recorded),
        unplanned=len(wanted) - len(stored | planned.keys()),
    )


def _foreign(part: Part, tiles: AbstractSet[str]) -> set[int]:
    """Return the shards with a row of another tile than these."""
    others = {number for number, (tile, _) in enumerate(part.rows.tiles) if tile not in tiles}
    return (
        {at // part.slots for at, number in enumerate(part.rows.tile) if number in others}
        if others
        else set()
    )
