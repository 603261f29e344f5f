"""Reading grids by tile and view: only finished shards, every byte checked before it is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store import int8
from store.errors import AccessError, DamagedGrid, FrostgridError, MissingViews, StorageError
from store.parts import Part
from store.records import ShardRecord
from store.rows import GridSpec, ViewKey, ViewRow
from store.shardfile import Scratch, ShardFault, read_chunk, read_index
from store.sizes import file_size
from store.whereabouts import Whereabouts

_NAMED = 5
_RUNS_A_THREAD = 4
_Decode = Callable[[NDArray[Any], NDArray[Any]], object]


class _Space:
    """Memory for one view on its way: as it is in the file, and (where that is not the grid itself) decompressed."""

    def __init__(self, spec: GridSpec) -> None:
        self.encoded = Scratch()
        self._spec = spec

    @cached_property
    def stored(self) -> NDArray[Any]:
        return self._spec.empty_stored()


class GridReader:
    """The finished grids of a store at the moment the reader was made; make a new one to see later shards.

    Safe to share between threads and to keep over a fork: files are opened for each read, and nothing is locked.
    A view that several parts hold is read from the first part (by name) in which its shard is whole.
    """

    def __init__(self, folder: Path, spec: GridSpec, parts: Sequence[Part]) -> None:
        self.folder = folder
        self.spec = spec
        self._parts = tuple(parts)
        self._records: list[dict[int, ShardRecord]] = []
        self._indices: dict[tuple[int, int], NDArray[np.uint64]] = {}
        # of reads that have ended, for the next ones; lists are safe between threads
        self._spare: list[_Space] = []
        for part in self._parts:
            part.check_layout()
            self._records.append(part.records())
        whole = [part.done(records) for part, records in zip(self._parts, self._records, strict=True)]
        others = [
            set(range(part.shards)).difference(shards)
            for part, shards in zip(self._parts, whole, strict=True)
        ]
        self._whole = [part.name for part, lacking in zip(self._parts, others, strict=True) if not lacking]
        self._places = Whereabouts(self._parts, whole)
        self._unusable = Whereabouts(self._parts, others)

    def __contains__(self, key: ViewKey) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def views(self) -> list[ViewKey]:
        """Return every view that can be read, in the order of parts and of their rows."""
        return self._places.keys()

    def whole_parts(self) -> set[str]:
        """Return the names of the parts of which every view can be read."""
        return set(self._whole)

    def damaged(self) -> list[ViewKey]:
        """Return every view whose grid was finished and whose shard is lost or cut, in all parts that had it."""
        places = zip(self._unusable.keys(), self._unusable.places(), strict=True)
        return [
            key
            for key, (number, at) in places
            if key not in self._places and at // self._parts[number].slots in self._records[number]
        ]

    def tables(self) -> list[tuple[list[ViewRow], int]]:
        """Return for each part the rows that are read from it, in its order, and the views that a shard of it has."""
        found: list[tuple[list[ViewRow], int]] = [([], part.slots) for part in self._parts]
        for number, at in self._places.places():
            found[number][0].append(self._parts[number].rows[at])
        return found

    def shard_of(self, key: ViewKey) -> tuple[str, int]:
        """Return part and number of the shard a view is read from; errors as for ``row``."""
        number, at = self._place(key)
        return self._parts[number].name, at // self._parts[number].slots

    def missing(self, keys: Iterable[ViewKey]) -> list[ViewKey]:
        """Return those of ``keys``, in their order, that are not stored or whose shard is lost or cut."""
        return [key for key in keys if key not in self]

    def row(self, key: ViewKey) -> ViewRow:
        """Return the table row of a view that can be read; raises ``MissingViews`` or ``DamagedGrid``."""
        number, at = self._place(key)
        return self._parts[number].rows[at]

    def meta(self, key: ViewKey) -> dict[str, Any]:
        """Return what the writer kept beside the grid (empty if nothing); errors as for ``row``."""
        number, at = self._place(key)
        shard, slot = divmod(at, self._parts[number].slots)
        return dict(self._records[number][shard].meta[slot] or {})

    def encoding_error(self) -> int8.EncodingError | None:
        """Return what int8 cost the views that can be read; ``None`` in a store that is exact, or empty."""
        places = ((number, *divmod(at, self._parts[number].slots)) for number, at in self._places.places())
        return int8.encoding_error(self._records[number][shard].meta[slot] for number, shard, slot in places)

    def read(self, key: ViewKey, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the grid of one view, in ``out`` if given (C-contiguous, of the store's shape and dtype).

        Raises ``MissingViews`` if it was never written, ``DamagedGrid`` if its file is not what was written; both
        name tile, view and file.
        """
        target = self._target(out, self.spec.shape, self.spec.dtype)
        self._read_run([(*self._place(key), 0)], target[np.newaxis], self._decode)
        return target

    def read_many(
        self, keys: Sequence[ViewKey], out: NDArray[Any] | None = None, *, threads: int = 2
    ) -> NDArray[Any]:
        """Return the grids of ``keys`` as (N, *shape), in their order, decoded by ``threads`` threads.

        ``out`` and errors as for ``read``; missing views are all found before anything is read.
        """
        target = self._target(out, (len(keys), *self.spec.shape), self.spec.dtype)
        return self._read_all(keys, target, threads, self._decode)

    def read_stored_many(
        self, keys: Sequence[ViewKey], out: NDArray[Any] | None = None, *, threads: int = 2
    ) -> NDArray[Any]:
        """Return the grids of ``keys`` as (N, *stored_shape) in the form in which they are stored.

        That of an exact store is the values themselves; the int8 form takes half the memory, see ``store.int8``. The
        rest is as for ``read_many``.
        """
        spec = self.spec
        target = self._target(out, (len(keys), *spec.stored_shape), spec.stored_dtype)
        return self._read_all(keys, target, threads, None)

    def _read_all(
        self, keys: Sequence[ViewKey], target: NDArray[Any], threads: int, decode: _Decode | None
    ) -> NDArray[Any]:
        places = [self._places.get(key) for key in keys]
        if None in places:
            raise self._absence(self.missing(keys))
        # In the order of the files, so that each is opened once a thread and read forwards.
        jobs = sorted((*place, at) for at, place in enumerate(places) if place is not None)
        workers = max(1, min(threads, len(jobs)))
        if workers == 1:
            self._read_run(jobs, target, decode)
            return target
        # More runs than threads, so that none waits long for one that shares its core with something else.
        count = min(len(jobs), _RUNS_A_THREAD * workers)
        bounds = [len(jobs) * number // count for number in range(count + 1)]
        runs = [jobs[start:end] for start, end in pairwise(bounds)]
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda run: self._read_run(run, target, decode), runs):
                pass
        return target

    def _place(self, key: ViewKey) -> tuple[int, int]:
        place = self._places.get(key)
        if place is None:
            raise self._absence([key])
        return place

    def _target(self, out: NDArray[Any] | None, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        if out is None:
            return np.empty(shape, dtype=dtype)
        if out.shape != shape or out.dtype != np.dtype(dtype) or not out.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous {dtype} array of shape {shape}")
        return out

    @property
    def _decode(self) -> _Decode | None:
        return int8.decode if self.spec.encoding == "int8" else None

    def _read_run(
        self, jobs: Sequence[tuple[int, int, int]], out: NDArray[Any], decode: _Decode | None
    ) -> None:
        """Read views, given as (part, row, position in ``out``) in ascending order; ``decode`` their stored form."""
        descriptor, opened = -1, (-1, -1)
        try:
            space = self._spare.pop()
        except IndexError:
            space = _Space(self.spec)
        try:
            for number, at, position in jobs:
                part, (shard, slot) = self._parts[number], divmod(at, self._parts[number].slots)
                try:
                    if opened != (number, shard):
                        if descriptor >= 0:
                            os.close(descriptor)
                            descriptor = -1
                        descriptor = os.open(part.shard_path(shard), os.O_RDONLY)
                        self._check_shard(number, shard, descriptor)
                        opened = (number, shard)
                    crc = self._records[number][shard].summary.chunk_crc32c[slot]
                    chunk = out[position] if decode is None else space.stored
                    read_chunk(descriptor, self._indices[opened], slot, chunk, crc, space.encoded)
                    if decode is not None:
                        decode(chunk, out[position])
                except (OSError, ShardFault) as fault:
                    raise self._fault(part, shard, part.rows[at], fault) from fault
        finally:
            self._spare.append(space)
            if descriptor >= 0:
                os.close(descriptor)

    def _check_shard(self, number: int, shard: int, descriptor: int) -> None:
        record = self._records[number][shard]
        size = os.fstat(descriptor).st_size
        if size != record.summary.bytes:
            raise _wrong_size(size, record)
        if (number, shard) in self._indices:
            return
        index, crc = read_index(descriptor, size, self._parts[number].slots)
        if crc != record.summary.index_crc32c:
            raise ShardFault("the file is another shard than the one written here")
        self._indices[number, shard] = index

    def _fault(self, part: Part, shard: int, row: ViewRow, fault: Exception) -> FrostgridError:
        path = part.shard_path(shard)
        if isinstance(fault, PermissionError):
            remedy = "Ask its owner for the right to read the whole cache folder."
            return AccessError(f"The grid of {row} may not be read", where=path, remedy=remedy)
        if isinstance(fault, OSError) and not isinstance(
            fault, FileNotFoundError | NotADirectoryError | IsADirectoryError
        ):
            remedy = "Check the disk, or restore the cache from a copy on another one."
            return StorageError(
                f"The grid of {row} cannot be read: {fault.strerror}", where=path, remedy=remedy
            )
        what = "the file is gone" if isinstance(fault, OSError) else str(fault)
        remedy = (
            "Restore the file from a copy of the cache, or delete it and extract again: "
            f"only its {len(part.shard_rows(shard))} views are computed anew."
        )
        return DamagedGrid(f"The grid of {row} is damaged: {what}", where=path, remedy=remedy)

    def _absence(self, keys: Sequence[ViewKey]) -> FrostgridError:
        planned = [self._unusable.get(key) for key in keys]
        for place in planned:
            if place is None:
                continue
            part, (shard, _) = self._parts[place[0]], divmod(place[1], self._parts[place[0]].slots)
            record = self._records[place[0]].get(shard)
            if record is not None:
                size = file_size(part.shard_path(shard))
                lost = FileNotFoundError() if size is None else _wrong_size(size, record)
                return self._fault(part, shard, part.rows[place[1]], lost)
        names = [
            f"tile {key[0][:12]}, view {key[1]}"
            if place is None
            else str(self._parts[place[0]].rows[place[1]])
            for key, place in zip(keys[:_NAMED], planned, strict=False)
        ]
        more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
        first = planned[0]
        where = self.folder
        if first is not None:
            part = self._parts[first[0]]
            where = part.shard_path(first[1] // part.slots)
        return MissingViews(
            f"Not in the cache: {'; '.join(names)}{more}",
            where=where,
            remedy="Extract again: what is there already is kept.",
        )


def _wrong_size(size: int, record: ShardRecord) -> ShardFault:
    return ShardFault(f"the file is {size} bytes long, {record.summary.bytes} were written")
