"""Shards of a cache at a place that are made on machines which share nothing but that place.

One process plans: :func:`plan_there` puts the tables of views there that say which shards there are. Others make the
shards: each in a :class:`Workshop`, a folder of its own that holds one shard at a time. At the end
:func:`store.sharing.push` seals the parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from store.disk_errors import storage_errors
from store.durable import put_folder
from store.errors import InputError, NoCache, StorageError, VerificationError
from store.grids import GridStore
from store.int8 import MAX_ERROR
from store.leases import Holder
from store.parts import RESTORE, Part, load_part, parse_part
from store.places.place import UNKNOWN, Place
from store.rows import ShardTask, ViewRow
from store.sharing.claims import claim, holder_at
from store.sharing.offers import offer_at
from store.sharing.pulling import part_here
from store.sharing.pushing import describe
from store.sharing.standing import StandingPart
from store.sharing.work import Work
from store.sweeping import sweep
from store.writer import write_shard


def plan_there(
    store: GridStore, place: Place, rows: Sequence[ViewRow], can_make: Callable[[ViewRow], bool]
) -> tuple[list[ShardTask], set[tuple[str, int]]]:
    """Return the shards to write so that every one of ``rows`` lies at a place, and the views that lie there already.

    ``store`` is the cache of the same name on this machine, in which the shards are planned as ``GridStore.plan`` does;
    what of it is finished here is not among the tasks, but for :func:`store.sharing.push` to send. Parts that others
    have begun there are gone on with, and whoever plans the same at the same time comes to the same shards.

    Raises as ``GridStore.plan``, ``InputError`` where a part was divided into other shards there, ``IdentityMismatch``
    where the cache there was made from something else, and what the place raises.
    """
    if place.batch_files > 1:
        raise InputError(
            "Workers send shard by shard, and here every file that is sent makes a new version of the whole",
            where=place.url,
            remedy="Extract into a folder that all workers see, or a bucket, and send it with frostgrid cache push.",
        )
    describe(store, place, store.path.name)
    there, known = _take_over(store, place, rows)
    while True:
        tasks = store.plan([row for row in rows if row.key not in there], can_make=can_make)
        sent = {task.part for task in tasks} - known
        if not sent:
            return tasks, there
        for name in sorted(sent):
            part = load_part(store.path / name, store.key, store.spec)
            StandingPart(place, store.path.name, part, None).send_documents()
        # Read again: where another client has planned the same views meanwhile, both then agree on its shards.
        there, found = _take_over(store, place, rows)
        known = found | sent


def _take_over(
    store: GridStore, place: Place, rows: Iterable[ViewRow]
) -> tuple[set[tuple[str, int]], set[str]]:
    """Make the parts here that others have begun there; return the views that lie there, and the names of all parts."""
    offer = offer_at(place, store.path.name)
    there = {key for one in offer.parts for key in one.part.keys_in(one.whole)}
    wanted = {row.key for row in rows} - there
    for one in offer.parts:
        if len(one.whole) < one.part.shards and not wanted.isdisjoint(one.part.rows.keys()):
            found = part_here(store, one)
            if isinstance(found, InputError):
                raise found
    return there, {one.part.name for one in offer.parts}


class Workshop:
    """A folder in which single shards of the cache ``folder`` at ``place`` are made, and from which they are sent.

    ``store`` describes the cache; nothing but the tables of its parts and the shard in hand is ever in it. Raises
    ``NoCache`` where there is none, ``InputError`` or ``VerificationError`` where its description cannot be used.
    """

    def __init__(self, place: Place, folder: str, scratch: Path) -> None:
        self._place = place
        where = f"{place.url}/{folder}/cache.json"
        data = place.read(f"{folder}/cache.json")
        if not data:
            raise NoCache("There is no cache here", where=where, remedy="Run the same command again.")
        self.store = GridStore.described(scratch / folder, data, where)
        self._parts: dict[str, StandingPart] = {}

    def task(self, part: str, shard: int) -> ShardTask:
        """Return the task of a shard that is known by the name of its part and its number.

        Raises ``ValueError`` for a shard that the part does not have, ``VerificationError`` where its table is lost.
        """
        here = self._standing(part).here
        if not 0 <= shard < here.shards:
            raise ValueError(f"{part} has no shard {shard}")
        return ShardTask(part, shard, here.shard_rows(shard))

    def holder(self, task: ShardTask) -> Holder | None:
        """Return who has claimed a shard, None where nobody has."""
        return holder_at(self._place, self._claims(task.part), task.shard)

    @contextmanager
    def lease(
        self, task: ShardTask, *, about: Mapping[str, Any] | None = None, gone: Collection[str] = ()
    ) -> Iterator[bool]:
        """Claim a shard for the block; yields ``False`` if another has it or it lies there already.

        One that was made here and could not be sent is sent now. Arguments as for :func:`store.sharing.claims.claim`.
        """
        with claim(self._place, self._claims(task.part), task.shard, about=about, gone=gone) as mine:
            if not mine or self.lies_there(task):
                yield False
            elif self._standing(task.part).here.record(task.shard) is not None:
                self._send(task)
                yield False
            else:
                yield True

    def write(
        self,
        task: ShardTask,
        grids: Iterable[tuple[NDArray[Any], Mapping[str, Any] | None]],
        *,
        max_error: float = MAX_ERROR,
    ) -> None:
        """Make a shard here as ``GridStore.write`` does, send it, then its marker, and remove what is left of it here.

        Raises as that does, and what the place raises; then the shard stays here for the next :meth:`lease`.
        """
        part = self._standing(task.part).here
        sweep(part.array_folder)
        write_shard(part, task.shard, grids, max_error)
        self._send(task)

    def _send(self, task: ShardTask) -> None:
        standing = self._standing(task.part)
        record = standing.here.record(task.shard)
        if record is None or not standing.here.intact(record):
            raise StorageError(
                "The shard is gone before it was sent",
                where=standing.here.shard_path(task.shard),
                remedy="Find out what removes files of workers while they run.",
            )
        if task.shard in standing.listed:
            standing.mend(record)
        else:
            standing.send([record], Work(1, record.summary.bytes, None))
        with storage_errors(standing.here.folder):
            standing.here.marker_path(task.shard).unlink(missing_ok=True)
            standing.here.shard_path(task.shard).unlink(missing_ok=True)

    def lies_there(self, task: ShardTask) -> bool:
        """Tell whether a shard lies there whole: one that is recorded may have been lost or cut."""
        standing = self._standing(task.part)
        record = standing.recorded(task.shard)
        if record is None:
            return False
        array, _, name = standing.there.shard_path(task.shard).as_posix().rpartition("/")
        return self._place.files(array).get(name) in (record.summary.bytes, UNKNOWN)

    def _claims(self, part: str) -> str:
        return f"{self.store.path.name}/{part}/_work/lease"

    def _standing(self, name: str) -> StandingPart:
        if name not in self._parts:
            self._parts[name] = StandingPart(self._place, self.store.path.name, self._part(name), None)
        return self._parts[name]

    def _part(self, name: str) -> Part:
        """Return a part with nothing in it but its table, as it lies there."""
        file = f"{self.store.path.name}/{name}/part.json"
        where, folder = f"{self._place.url}/{file}", self.store.path / name
        data = self._place.read(file)
        if not data:
            raise VerificationError("The part has lost its table of views", where=where, remedy=RESTORE)
        part = parse_part(folder, data, where, self.store.key, self.store.spec)
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            put_folder(folder, {"part.json": data}, (part.spec.name, "_work/done"))
        return part
