"""The grids of a cache: planned, written part by part, resumed after anything, and read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from store.caches import Cache
from store.disk_errors import storage_errors
from store.errors import StorageError
from store.int8 import MAX_ERROR
from store.layout import MAX_PART_SHARDS, MAX_PART_VIEWS, shard_views
from store.leases import Holder, hold, holder
from store.parts import Part, create_part, load_part, part_folders
from store.planning import assign, check_pixels, survey
from store.reader import GridReader
from store.rows import GridSpec, ShardTask, StoreStatus, ViewKey, ViewRow
from store.sealing import prepare, seal, sweep_part
from store.sweeping import sweep
from store.whereabouts import count_views
from store.writer import settle, write_shard

__all__ = ["GridReader", "GridSpec", "GridStore", "ShardTask", "StoreStatus", "ViewKey", "ViewRow"]


@dataclass(frozen=True)
class GridStore(Cache):
    """A cache and its grids: planned, written and read, by any number of processes at the same time."""

    _loaded: dict[Path, Part] = field(default_factory=dict, init=False, repr=False, compare=False)

    def plan(
        self,
        rows: Sequence[ViewRow],
        *,
        shard_views: int | None = None,
        can_make: Callable[[ViewRow], bool] = lambda row: True,
        besides: Collection[str] = (),
    ) -> list[ShardTask]:
        """Return the shards to write so that every one of ``rows`` is stored, the first needed first.

        Rows that a part already has stay where they are; all others form new parts, in the given order, with
        ``shard_views`` views a shard (chosen by size if not given). A finished shard is not returned, unless its
        file has been lost or cut. Parts whose shards are all finished are sealed. A shard is written whole, so one
        that was left unfinished and holds a row for which ``can_make`` is false (of a tile that has since left the
        study, say) is passed over, and what is wanted of it goes into a new part. Parts ``besides`` which it is
        planned are not looked at: their names are those of parts that hold none of ``rows``.

        Raises ``IdentityMismatch`` naming the tile if a view is stored that was made from other pixels,
        ``StorageError`` if something has to be written and cannot.
        """
        if shard_views is not None and shard_views < 1:
            raise ValueError(f"a shard holds one view or more, not {shard_views}")
        wanted: dict[ViewKey, ViewRow] = {}
        for row in rows:
            wanted.setdefault(row.key, row)
        parts = self._parts(besides)
        check_pixels(parts, rows, self.path)
        found = survey(parts, can_make)
        new = [row for key, row in wanted.items() if key not in found]
        if new:
            self._add(new, shard_views)
            # Read again: where another process has planned the same views meanwhile, both then agree on its shards.
            parts = self._parts(besides)
            found = survey(parts, can_make)
        tasks = assign(parts, found, wanted)
        for part in parts:
            sweep_part(part)
            if any(task.part == part.name for task in tasks):
                prepare(part)
            else:
                with suppress(StorageError):  # its markers serve as well, and there may be no right to write
                    seal(part)
        if not besides:
            sweep(self.path)
        return tasks

    def task(self, part: str, shard: int) -> ShardTask:
        """Return the task of a shard that is known by the name of its part and its number.

        Raises ``ValueError`` for a shard that the part does not have, and as ``open`` where there is no such part.
        """
        found = self._part_named(part)
        if not 0 <= shard < found.shards:
            raise ValueError(f"{part} has no shard {shard}")
        return ShardTask(part, shard, found.shard_rows(shard))

    def holder(self, task: ShardTask) -> Holder | None:
        """Return who has claimed a shard, None where nobody has."""
        return holder(self._part(task).lease_folder, task.shard)

    @contextmanager
    def lease(
        self, task: ShardTask, *, about: Mapping[str, Any] | None = None, gone: Collection[str] = ()
    ) -> Iterator[bool]:
        """Claim a shard for the block; yields ``False`` if a live writer has it or it was finished meanwhile.

        ``about`` and ``gone`` as for :func:`store.leases.hold`.
        """
        part = self._part(task)
        record = part.record(task.shard)
        done = record is not None and part.intact(record)
        if not done:
            with hold(part.lease_folder, task.shard, about=about, gone=gone) as held:
                done = held and settle(part, task.shard)
                if not done:
                    yield held
                    return
        seal(part)  # whoever finished the last shard may not have lived to do it
        yield False

    def write(
        self,
        task: ShardTask,
        grids: Iterable[tuple[NDArray[Any], Mapping[str, Any] | None]],
        *,
        max_error: float = MAX_ERROR,
    ) -> None:
        """Store the grids of a shard, given in the order of ``task.rows`` with what to keep beside each (JSON).

        They are taken and written one at a time. A shard that is finished already is left alone and nothing is
        taken. Nothing is stored unless all of the shard is: ``InputError`` names tile and view of a grid of another
        shape or dtype, with a value that is not finite, or (in the int8 form only) one that int8 would change by more
        than ``max_error``, see :class:`store.int8.Int8Error`, which is kept beside the grid as "int8";
        ``StorageError`` says why the disk refused. The last shard of a part seals it.
        """
        part = self._part(task)
        write_shard(part, task.shard, grids, max_error)
        seal(part)

    def reader(self, *, besides: Collection[str] = ()) -> GridReader:
        """Return a reader of all grids that are finished now, but for those in parts of the names ``besides``."""
        return GridReader(self.path, self.spec, self._parts(besides))

    def status(self) -> StoreStatus:
        """Count what is planned and what is done; views that two parts hold count once.

        The documents and the names of the files say it; no shard is looked at (see ``verify``).
        """
        parts = self._parts()
        done = [part.present() for part in parts]
        return StoreStatus(
            parts=len(parts),
            views_planned=count_views(parts, [range(part.shards) for part in parts]),
            views_done=count_views(parts, done),
            shards_planned=sum(part.shards for part in parts),
            shards_done=sum(len(found) for found in done),
            bytes=sum(record.summary.bytes for found in done for record in found.values()),
        )

    def _parts(self, besides: Collection[str] = ()) -> list[Part]:
        found = {}
        for folder in part_folders(self.path, besides):
            found[folder] = self._loaded.get(folder) or load_part(folder, self.key, self.spec)
        self._loaded.clear()
        self._loaded.update(found)
        return list(found.values())

    def _part_named(self, name: str) -> Part:
        folder = self.path / name
        part = self._loaded.get(folder) or load_part(folder, self.key, self.spec)
        self._loaded[folder] = part
        return part

    def _part(self, task: ShardTask) -> Part:
        part = self._part_named(task.part)
        if not 0 <= task.shard < part.shards or part.shard_rows(task.shard) != task.rows:
            raise ValueError(f"{task.part} has no shard {task.shard} of the rows of this task")
        return part

    def _add(self, rows: Sequence[ViewRow], slots: int | None) -> None:
        slots = slots or shard_views(self.spec, len(rows))
        step = slots * max(1, min(MAX_PART_SHARDS, MAX_PART_VIEWS // slots))
        with storage_errors(self.path):
            for start in range(0, len(rows), step):
                create_part(self.path, self.key, self.spec, rows[start : start + step], slots)
