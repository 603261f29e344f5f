"""A cache in another encoding, made beside the one it is converted from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from store.errors import InputError
from store.grids import GridStore
from store.int8 import MAX_ERROR
from store.reader import GridReader
from store.rows import ShardTask, ViewRow

WAIT_SECONDS = 1.0  # between looks at shards that another process is converting


def convert(
    store: GridStore,
    root: Path,
    encoding: str,
    *,
    max_error: float = MAX_ERROR,
    threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> GridStore:
    """Return the cache of ``store``'s grids in ``encoding`` ("int8") under ``root``, made as far as it is not there.

    Its identity is the source's with ``encoding`` in it, its provenance names the source's key ("converted_from").
    All views that are finished in the source are converted, in its parts, order and shards; what it keeps beside
    them is kept. The source is only read. Whatever ends this, a rerun goes on from the finished shards; several at
    once share the work, ``threads`` shards at a time each. ``on_progress``: views done, views to do.

    Raises ``InputError`` for an encoding that cannot be made from the source's, for a source without a finished view,
    and naming tile and view for one that int8 would change by more than ``max_error`` (see
    :class:`store.int8.Int8Error`); ``DamagedGrid`` where the source is damaged; ``StorageError``. Shards finished by
    then stay.
    """
    _refuse(store, encoding)
    reader = store.reader()
    if not len(reader):
        raise InputError("The cache has no finished view", where=store.path, remedy="Extract first.")
    target = GridStore.at(
        root,
        store.slug,
        {**store.identity, "encoding": encoding},
        replace(store.spec, encoding="int8"),
        {**store.provenance, "converted_from": store.key},
        create=True,
    )
    _refuse_finished(target, max_error)
    progress = _Progress(len(reader), on_progress)
    before = 0
    for rows, slots in reader.tables():
        _convert_part(reader, target, rows, slots, max_error, threads, before, progress)
        before += len(rows)
    return target


def _refuse(store: GridStore, encoding: str) -> None:
    if encoding not in ("int8", "float16"):
        raise InputError(
            f"There is no encoding {encoding!r}", where="encoding", remedy="A cache can be converted to int8."
        )
    if store.spec.encoding == "int8":
        what = (
            "The cache is int8 already"
            if encoding == "int8"
            else "The cache is int8, and what that has lost cannot be restored"
        )
        remedy = (
            "Use it as it is." if encoding == "int8" else "Use it as it is, or extract again with float16."
        )
        raise InputError(what, where=store.path, remedy=remedy)
    if encoding == "float16" or store.spec.dtype != "float16" or len(store.spec.shape) < 2:
        raise InputError(
            f"The cache holds {store.spec.dtype} grids of shape {store.spec.shape}, which are not converted to "
            f"{encoding}",
            where=store.path,
            remedy="Only token grids in float16 are converted, and only to int8.",
        )


def _refuse_finished(target: GridStore, max_error: float) -> None:
    """Refuse a limit that views converted before, under a higher one, are beyond."""
    error = target.reader().encoding_error()
    if error is not None and error.max_rms > max_error:
        raise InputError(
            f"Views that were converted before are up to {error.max_rms:.2%} of a standard deviation off, and "
            f"{max_error:.2%} is the limit",
            where=target.path,
            remedy="Raise the limit, or convert into another folder.",
        )


class _Progress:
    """Counts views as they are converted, from any thread."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._total, self._done = total, 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def at(self, done: int) -> None:
        with self._lock:
            self._done = done
            self._report()

    def add(self, views: int) -> None:
        with self._lock:
            self._done += views
            self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)


def _convert_part(
    reader: GridReader,
    target: GridStore,
    rows: Sequence[ViewRow],
    slots: int,
    max_error: float,
    threads: int,
    before: int,
    progress: _Progress,
) -> None:
    """Convert the rows of one part that ``target`` lacks; what another process holds is waited for."""
    wanted = {row.key for row in rows}

    def one(task: ShardTask) -> bool:
        with target.lease(task) as mine:
            if mine:
                target.write(task, _grids(reader, task), max_error=max_error)
                progress.add(len(task.rows))
            return mine

    while tasks := target.plan(rows, shard_views=slots, can_make=lambda row: row.key in reader):
        left = sum(row.key in wanted for task in tasks for row in task.rows)
        progress.at(before + len(rows) - left)
        with ThreadPoolExecutor(threads, "convert") as pool:
            mine = list(pool.map(one, tasks))
        if not any(mine):
            time.sleep(WAIT_SECONDS)
    progress.at(before + len(rows))


def _grids(reader: GridReader, task: ShardTask) -> Iterator[tuple[NDArray[Any], Mapping[str, Any] | None]]:
    for row in task.rows:
        yield reader.read(row.key), reader.meta(row.key) or None
