"""Writing one shard: stream its views, commit the file, then its done marker; take over what others finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.disk_errors import storage_errors
from store.durable import commit_exclusive, new_partial, put_exclusive, remove_exactly
from store.errors import InputError, StorageError
from store.identity import canonical_json
from store.int8 import MAX_ERROR, META, Int8Error, encode
from store.parts import Part
from store.records import Meta, ShardRecord, label, meta_of_label
from store.rows import ViewRow
from store.sealing import reopen
from store.shardfile import ShardFault, ShardWriter, scan

_RACES = 3


def settle(part: Part, shard: int) -> bool:
    """Bring a shard into one of two states and tell which: finished, or free to be written.

    A whole shard without a marker (its writer was killed, or the marker was lost) is checked and taken over.
    Markers and shard files that are damaged, cut or of another shard are removed. Raises ``StorageError``.
    """
    record = part.record(shard)
    if record is not None and part.intact(record):
        return True
    path, marker = part.shard_path(shard), part.marker_path(shard)
    with storage_errors(path):
        if record is not None and (part.sealed() or part.reopened.exists()):
            reopen(part)
        if marker.exists():
            remove_exactly(marker, marker.stat())
        if not path.exists():
            return False
        seen = path.stat()
        found = inspect(part, shard)
        if found is not None:
            put_exclusive(marker, found.marker())
            return True
        remove_exactly(path, seen)
        return False


def write_shard(
    part: Part,
    shard: int,
    grids: Iterable[tuple[NDArray[Any], Mapping[str, Any] | None]],
    max_error: float = MAX_ERROR,
) -> None:
    """Write the shard's views, given in the order of its rows, one at a time; see ``GridStore.write``."""
    rows = part.shard_rows(shard)
    if settle(part, shard):
        return
    partial = new_partial(part.shard_path(shard))
    metas: list[Meta] = []
    with storage_errors(partial):
        writer = ShardWriter(partial, part.slots, part.spec.content)
    with writer:
        source = iter(grids)
        for row in rows:
            item = next(source, None)
            if item is None:
                raise InputError(
                    f"Only {len(metas)} of {len(rows)} grids were given; the first one missing is {row}",
                    where=f"{part.name}, shard {shard}",
                    remedy="Nothing was stored. Give one grid for each row of the task.",
                )
            grid, meta = item
            _check(part, row, grid)
            kept = _checked_meta(row, meta)
            if part.spec.encoding == "int8":
                grid, error = encode(grid)
                kept = _with_error(row, kept, error, max_error)
            metas.append(kept)
            with storage_errors(partial):
                writer.append(grid)
        if next(source, None) is not None:
            raise InputError(
                f"More than {len(rows)} grids were given",
                where=f"{part.name}, shard {shard}",
                remedy="Nothing was stored. Give one grid for each row of the task.",
            )
        with storage_errors(partial):
            meta_of_all = tuple(metas)
            summary = writer.finish(label(part.shard_id(shard), meta_of_all))
        commit(part, writer.path, ShardRecord(part.shard_id(shard), summary, meta_of_all))


def commit(part: Part, partial: Path, record: ShardRecord) -> None:
    """Name the flushed shard file ``partial``, then its marker. Raises ``StorageError``.

    Where another writer was first, its shard stands, and ``partial`` is left to its owner to remove.
    """
    shard = record.id.shard
    path, marker = part.shard_path(shard), part.marker_path(shard)
    for _ in range(_RACES):
        with storage_errors(path):
            mine = commit_exclusive(partial, path)
        if mine:
            break
        if settle(part, shard):
            return
    else:
        raise StorageError(
            "Another process keeps replacing this shard",
            where=path,
            remedy="Find what else writes into the cache, stop it, and run the same command again.",
        )
    with storage_errors(marker):
        try:
            if put_exclusive(marker, record.marker()):
                return
        except FileNotFoundError:
            pass  # sealed by the one who took our shard over, and the markers' folder is gone
    standing = part.record(shard)
    if standing is None or standing.summary.sha256 != record.summary.sha256:
        settle(part, shard)


def inspect(part: Part, shard: int) -> ShardRecord | None:
    """Return the record of a shard file as found, or ``None`` if it is damaged or another shard's."""
    path, views, identity = part.shard_path(shard), len(part.shard_rows(shard)), part.shard_id(shard)
    try:
        summary, text = scan(path, part.slots, views)
    except (ShardFault, FileNotFoundError):
        return None
    meta = meta_of_label(text, identity, views, path)
    return None if meta is None else ShardRecord(identity, summary, meta)


def _check(part: Part, row: ViewRow, grid: NDArray[Any]) -> None:
    spec = part.spec
    if grid.shape != spec.shape or grid.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"The grid is {grid.dtype} {grid.shape}, the cache holds {spec.dtype} {spec.shape}",
            where=str(row),
            remedy="Nothing of this shard was stored. Make grids of the cache's form, or use another cache.",
        )
    if spec.dtype != "float16":
        return
    # All exponent bits set means infinite or NaN; this is ten times faster than np.isfinite.
    exponent = np.uint16(0x7C00)
    bad = (np.ascontiguousarray(grid).view(np.uint16) & exponent) == exponent
    if bad.any():
        place = ", ".join(
            f"{name} {at}" for name, at in zip(spec.dims, np.argwhere(bad)[0].tolist(), strict=True)
        )
        raise InputError(
            f"The grid has {int(bad.sum())} values that are infinite or not a number, the first at {place}",
            where=str(row),
            remedy="Nothing of this shard was stored. Values beyond 65504 do not fit float16: "
            "use normalised tokens or another layer.",
        )


def _checked_meta(row: ViewRow, meta: Mapping[str, Any] | None) -> Meta:
    if meta is None:
        return None
    try:
        canonical_json(meta)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"What is to be kept beside the grid is not JSON ({error})",
            where=str(row),
            remedy="Nothing of this shard was stored. Give numbers, texts, lists and mappings only.",
        ) from error
    return dict(meta)


def _with_error(row: ViewRow, meta: Meta, error: Int8Error, max_error: float) -> Meta:
    """Return the metadata of a view with what its int8 form costs, if that is no more than ``max_error``."""
    if not error.rms <= max_error:
        raise InputError(
            f"As int8 the grid would change by {error.rms:.2%} of the standard deviation of its channels (root mean "
            f"square; the worst one by {error.worst:.2%}), and {max_error:.2%} is the limit",
            where=str(row),
            remedy='Nothing of this shard was stored. Keep these grids as float16 (cache.encoding = "float16"), '
            "or raise the limit (cache.max_int8_error of the study, --max-error of frostgrid cache convert).",
        )
    if meta and META in meta:
        raise InputError(
            f"What is to be kept beside the grid uses the name {META!r}, which is taken",
            where=str(row),
            remedy="Nothing of this shard was stored. Use another name.",
        )
    return {**(meta or {}), META: error._asdict()}
