"""A store of grids: one folder for one way of making them, grown part by part, resumed after anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from store.description import RESTORE, SLUG, VERSION, Description, nothing
from store.documents import read_bytes
from store.durable import put_folder, storage_errors, sweep
from store.errors import FrostgridError, InputError, NoCache, StorageError, VerificationError
from store.identity import canonical_json
from store.int8 import MAX_ERROR
from store.layout import MAX_PART_SHARDS, MAX_PART_VIEWS, group_metadata, shard_views, to_bytes
from store.leases import Holder, hold, holder
from store.parts import Part, create_part, load_part, part_folders
from store.planning import assign, check_pixels, survey
from store.reader import GridReader
from store.rows import GridSpec, ShardTask, StoreStatus, ViewKey, ViewRow
from store.sealing import prepare, seal, sweep_part
from store.sizes import file_size
from store.whereabouts import count_views
from store.writer import settle, write_shard

__all__ = ["GridReader", "GridSpec", "GridStore", "ShardTask", "StoreStatus", "ViewKey", "ViewRow"]


@dataclass(frozen=True)
class GridStore:
    """A cache: the folder ``<slug>-<first 12 digits of key>`` of immutable parts, all grids of one ``spec``.

    ``key`` is the fingerprint of ``identity``, which says everything that changes a grid besides the view itself;
    ``provenance`` says how, where and with what it was made. A store can be pickled; it then names its folder.
    """

    path: Path
    key: str
    slug: str
    identity: dict[str, Any]
    spec: GridSpec
    provenance: dict[str, Any]
    _loaded: dict[Path, Part] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def at(
        cls,
        root: Path,
        slug: str,
        identity: Mapping[str, Any],
        spec: GridSpec,
        provenance: Mapping[str, Any],
        *,
        create: bool,
    ) -> GridStore:
        """Open the store of ``identity`` under ``root``; with ``create`` make it where it is not there yet.

        Raises ``OtherCache`` naming the fields if there are only stores of the same slug with another identity,
        ``NoCache`` if there is none at all, ``IdentityMismatch`` if it holds grids of another form, ``StorageError`` if
        it cannot be made.
        """
        if not SLUG.fullmatch(slug):
            raise InputError(
                "The name of a cache has up to 200 letters, digits and . _ @ + -, and starts with a letter or digit",
                where=slug,
                remedy="Choose another name.",
            )
        wanted = Description(slug, json.loads(canonical_json(identity)), spec, dict(provenance))
        path = root / wanted.folder
        if create and file_size(path / "cache.json") is None:
            put_cache(path, slug, wanted.key, wanted.written())
        if not path.is_dir():
            others = [(store.path, store.identity) for store in cls.beside(root, slug)]
            raise nothing(slug, wanted.identity, path, others)
        store = cls.open(path)
        wanted.refuse_other(store.identity, store.spec, path)
        return store

    @classmethod
    def open(cls, path: Path) -> GridStore:
        """Open the store in the folder ``path``.

        Raises ``NoCache`` if there is none, ``InputError`` if it was written by a newer version, ``VerificationError``
        if its description is lost or damaged.
        """
        file = path / "cache.json"
        data = read_bytes(file)
        if data is None and path.is_dir() and part_folders(path):
            raise VerificationError("The cache has lost its description", where=file, remedy=RESTORE)
        if data is None:
            remedy = "Give the folder that holds cache.json, or extract first."
            raise NoCache("There is no cache here", where=path, remedy=remedy)
        return cls.described(path, data, file)

    @classmethod
    def described(cls, path: Path, data: bytes, file: str | Path) -> GridStore:
        """Return the store in the folder ``path`` that ``data``, a cache.json found at ``file``, describes.

        The folder is not looked at. Errors as for ``open``.
        """
        found = Description.read(data, file)
        return cls(path, found.key, found.slug, found.identity, found.spec, found.provenance)

    def __reduce__(self) -> tuple[Any, ...]:
        return GridStore.open, (self.path,)

    @classmethod
    def beside(cls, root: Path, slug: str) -> list[GridStore]:
        """Return every readable store of ``slug`` under ``root``, whatever its identity, in the order of their keys."""
        name = re.compile(re.escape(slug) + "-[0-9a-f]{12}")
        stores = []
        if root.is_dir():
            for folder in sorted(entry for entry in root.iterdir() if name.fullmatch(entry.name)):
                with suppress(InputError, VerificationError):
                    stores.append(cls.open(folder))
        return stores

    @classmethod
    def under(cls, root: Path) -> tuple[list[GridStore], list[FrostgridError]]:
        """Return every readable store in the folder ``root``, by name, and what is wrong with the others."""
        stores: list[GridStore] = []
        faults: list[FrostgridError] = []
        for file in sorted(root.glob("*/cache.json")):
            if not file.parent.name.endswith(".partial"):
                try:
                    stores.append(cls.open(file.parent))
                except FrostgridError as fault:
                    faults.append(fault)
        return stores, faults

    def plan(
        self,
        rows: Sequence[ViewRow],
        *,
        shard_views: int | None = None,
        can_make: Callable[[ViewRow], bool] = lambda row: True,
    ) -> list[ShardTask]:
        """Return the shards to write so that every one of ``rows`` is stored, the first needed first.

        Rows that a part already has stay where they are; all others form new parts, in the given order, with
        ``shard_views`` views a shard (chosen by size if not given). A finished shard is not returned, unless its
        file has been lost or cut. Parts whose shards are all finished are sealed. A shard is written whole, so one
        that was left unfinished and holds a row for which ``can_make`` is false (of a tile that has since left the
        study, say) is passed over, and what is wanted of it goes into a new part.

        Raises ``IdentityMismatch`` naming the tile if a view is stored that was made from other pixels,
        ``StorageError`` if something has to be written and cannot.
        """
        if shard_views is not None and shard_views < 1:
            raise ValueError(f"a shard holds one view or more, not {shard_views}")
        wanted: dict[ViewKey, ViewRow] = {}
        for row in rows:
            wanted.setdefault(row.key, row)
        parts = self._parts()
        check_pixels(parts, rows, self.path)
        found = survey(parts, can_make)
        new = [row for key, row in wanted.items() if key not in found]
        if new:
            self._add(new, shard_views)
            # Read again: where another process has planned the same views meanwhile, both then agree on its shards.
            parts = self._parts()
            found = survey(parts, can_make)
        tasks = assign(parts, found, wanted)
        for part in parts:
            sweep_part(part)
            if any(task.part == part.name for task in tasks):
                prepare(part)
            else:
                with suppress(StorageError):  # its markers serve as well, and there may be no right to write
                    seal(part)
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

    def reader(self) -> GridReader:
        """Return a reader of all grids that are finished now."""
        return GridReader(self.path, self.spec, self._parts())

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

    def _parts(self) -> list[Part]:
        found = {}
        for folder in part_folders(self.path):
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


def cache_group(slug: str, key: str) -> bytes:
    """Return the ``zarr.json`` that makes the folder of a cache a zarr group."""
    attributes = {"format": f"frostgrid-cache/{VERSION}", "key": key, "title": slug}
    return to_bytes(group_metadata(attributes))


def put_cache(path: Path, slug: str, key: str, description: bytes) -> None:
    """Make the folder of a cache, with ``description`` as its cache.json, unless it is there already.

    Raises ``InputError`` if the folder around it is a cache itself, ``StorageError``.
    """
    with storage_errors(path):
        around = read_bytes(path.parent / "cache.json")
    if around is not None:
        raise within_a_cache(path.parent)
    files = {"cache.json": description, "zarr.json": cache_group(slug, key)}
    with storage_errors(path):
        put_folder(path, files)
        sweep(path.parent)


def within_a_cache(where: str | Path) -> InputError:
    """Return what to say where a cache is given for the folder of caches that another is to be written to."""
    return InputError(
        "This is a cache, and caches are not written into one another",
        where=where,
        remedy="Give the folder of caches it lies in.",
    )
