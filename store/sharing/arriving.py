"""A shard on its way here: streamed into a file, resumed where a connection broke off, compared with its record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from store.disk_errors import storage_errors
from store.durable import write_all
from store.errors import DamagedGrid, MissingViews, StorageError
from store.parts import Part
from store.places.place import Place
from store.records import ShardRecord
from store.rows import ViewRow
from store.sharing.work import Work
from store.verify import differing

RETRIES = 5
_FIRST_PAUSE_S = 0.2
_NAMED = 3


class Arrival:
    """The new file ``path`` while it is being filled, with at most ``limit`` bytes if given; use as a context.

    The file is left to the caller. Errors of this machine's disk are raised as ``StorageError``.
    """

    def __init__(self, path: Path, limit: int | None, work: Work | None) -> None:
        self.path = path
        self.size = 0
        self.digest = hashlib.sha256()
        self.too_long = False
        self.full: StorageError | None = None
        self._limit = limit
        self._work = work
        with storage_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def __enter__(self) -> Arrival:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def write(self, block: bytes) -> None:
        """Take the next bytes; those beyond the limit are only noticed."""
        fitting = block if self._limit is None else block[: self._limit - self.size]
        self.too_long |= len(fitting) < len(block)
        try:
            with storage_errors(self.path):
                write_all(self._descriptor, fitting)
        except StorageError as error:
            self.full = error
            raise
        self.digest.update(fitting)
        self.size += len(fitting)
        if self._work is not None:
            self._work.advance(len(fitting))

    def flush(self) -> None:
        """Make the content survive a power loss."""
        with storage_errors(self.path):
            os.fsync(self._descriptor)


def fetch(place: Place, name: str, arrival: Arrival, work: Work) -> None:
    """Bring the file ``name`` of a place into ``arrival``.

    A connection that breaks off is taken up again from the byte reached; five times in a row without a new byte end in
    ``StorageError``. Raises ``MissingViews`` where there is no such file.
    """
    failures = 0
    while True:
        reached = arrival.size
        try:
            place.fetch(name, arrival.write, arrival.size)
            return
        except StorageError as error:
            if arrival.full is not None:
                raise arrival.full from None
            failures = 1 if arrival.size > reached else failures + 1
            if failures > RETRIES:
                raise StorageError(
                    f"The connection broke off and could not be taken up again: {error.what}",
                    where=f"{place.url}/{name}",
                    remedy="Finished shards are kept. Run the same command again to go on from there.",
                ) from error
            work.pause(_FIRST_PAUSE_S * 2 ** (failures - 1))


def fetch_shard(place: Place, part: Part, record: ShardRecord, path: Path, work: Work) -> None:
    """Bring a shard of the offered ``part`` into the new file ``path``, flushed and exactly as its record says.

    Raises ``DamagedGrid`` naming tiles, views and object if it is anything else, and as :func:`fetch`.
    """
    name = part.shard_path(record.id.shard).as_posix()
    with Arrival(path, record.summary.bytes, work) as arrival:
        try:
            fetch(place, name, arrival, work)
        except MissingViews as error:
            raise _damage(place, part, record, part.shard_rows(record.id.shard), "it is gone") from error
        if arrival.too_long or arrival.size < record.summary.bytes:
            what = f"it has {'more' if arrival.too_long else 'fewer'} bytes than the {record.summary.bytes} written"
            raise _damage(place, part, record, part.shard_rows(record.id.shard), what)
        if arrival.digest.hexdigest() != record.summary.sha256:
            raise _damage(
                place, part, record, differing(path, part, record), "its sha256 is not what was written"
            )
        arrival.flush()


def _damage(place: Place, part: Part, record: ShardRecord, rows: Sequence[ViewRow], what: str) -> DamagedGrid:
    names = "; ".join(str(row) for row in rows[:_NAMED]) + (
        f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    )
    return DamagedGrid(
        f"The shard with {names} is damaged: {what}",
        where=f"{place.url}/{part.shard_path(record.id.shard).as_posix()}",
        remedy="It was not copied. Restore it there from a copy of the cache; what was whole has been copied.",
    )
