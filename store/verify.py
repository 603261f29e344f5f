"""Checking a whole store: every file against what was recorded of it, every view decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from store.caches import cache_group
from store.documents import read_bytes
from store.errors import FrostgridError
from store.grids import GridStore
from store.int8 import decode as decode_int8
from store.parts import RESTORE, Part, load_part, metadata_files, part_folders
from store.records import ShardRecord, meta_of_label
from store.rows import ViewRow
from store.shardfile import HOLE, ShardFault, read_index, scan
from store.whereabouts import count_views

_NAMED = 3
_TAKE_OVER = "Extract again: the shard is checked and, where it is whole, taken over."


@dataclass(frozen=True)
class Checked:
    """What a check has found: one sentence a fault, and how many views a cache has.

    ``views_done`` are those whose shard is finished and there, found at fault or not. ``views_unwritten`` are those of
    the ``views_planned`` that were never finished: none that a fault tells of, and no fault themselves.
    """

    faults: list[str]
    views_planned: int
    views_done: int
    views_unwritten: int


class Tally:
    """Counts the views of a cache, part by part; one that several parts hold counts once."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._done: list[Collection[int]] = []
        self._told: list[Collection[int]] = []

    def add(self, part: Part, done: Collection[int], told: Collection[int]) -> None:
        """Count a part with the shards that are there, and those that are or have been, whatever is told of them."""
        self._parts.append(part)
        self._done.append(done)
        self._told.append(told)

    def checked(self, faults: list[str]) -> Checked:
        """Return what was counted, with these faults."""
        planned = count_views(self._parts, [range(part.shards) for part in self._parts])
        told, done = count_views(self._parts, self._told), count_views(self._parts, self._done)
        return Checked(faults, planned, done, planned - told)


def verify(store: GridStore) -> list[str]:
    """Return the faults of :func:`check`."""
    return check(store).faults


def check(store: GridStore) -> Checked:
    """Return one sentence for each fault in the finished shards of ``store``, none if all is as it was written.

    Reads every byte, one view at a time in memory. Checked are the documents, the sha256 of every file, index and
    checksums, that every value is finite, and that no shard has lost what was recorded of it. Shards that were never
    finished are no fault.
    """
    try:
        described = GridStore.open(store.path)
    except FrostgridError as error:
        return Checked([str(error)], 0, 0, 0)
    tally = Tally()
    faults = group_faults(described, read_bytes(store.path / "zarr.json"), store.path / "zarr.json")
    for folder in part_folders(store.path):
        try:
            part = load_part(folder, described.key, described.spec)
            part.check_layout()
            names = _names(part)
            records = part.records()
            faults += document_faults(part)
        except FrostgridError as error:
            faults.append(str(error))
            continue
        lost = record_faults(part, records, names)
        tally.add(part, part.present(), {*records, *lost})
        faults += dict.fromkeys(lost.values())
        for record in records.values():
            faults += shard_faults(part, record)
    return tally.checked(faults)


def group_faults(store: GridStore, data: bytes | None, where: str | Path) -> list[str]:
    """Return a sentence if ``data`` is not the ``zarr.json`` of the cache's folder, ``None`` where there is none."""
    remedy = "Restore the file from a copy of the cache; frostgrid reads the cache without it."
    return [] if data == cache_group(store.slug, store.key) else [_changed(where, remedy)]


def document_faults(part: Part) -> list[str]:
    """Return one sentence for each file beside the shards of a part that is not what was written.

    What that was, the manifest says, and in a part that is not sealed its table of views. Raises ``VerificationError``
    or ``InputError`` for a manifest that cannot be read.
    """
    data = read_bytes(part.manifest)
    if data is None:
        made = metadata_files(part.spec, part.key, part.rows, part.slots)
        written = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    else:
        listed = part.listed_files(data, part.manifest)
        written = {name: listed[name][1] for name in part.documents}
    return [
        _changed(part.folder / name, RESTORE)
        for name, sha256 in written.items()
        if _sha256(part.folder / name) != sha256
    ]


def record_faults(
    part: Part, records: Mapping[int, ShardRecord], names: Collection[str], *, leases: bool = True
) -> dict[int, str]:
    """Return the shards of a part that have lost what was recorded of them, or whose record is damaged, and a sentence.

    All have the same sentence where the whole part has lost it.

    ``names`` are the files of the part that are not empty, as they were before ``records`` were read; one of a shard
    that is being written, or was when its writer was killed, has a lease among them. Where there are no ``leases`` a
    lost marker cannot be told from one that was not sent yet, and is no fault.
    """
    lost = [shard for shard in range(part.shards) if shard not in records]
    there = {shard for shard in lost if _relative(part, part.shard_path(shard)) in names}
    if len(there) == part.shards and not any(name.startswith("_work/") for name in names):
        words = _views(part.rows)
        what = (
            f"{part.manifest}: the part has lost its manifest, so that no shard counts {words}. {_TAKE_OVER}"
        )
        return dict.fromkeys(lost, what)
    leased = {name.split("/")[2].split(".")[0] for name in names if name.startswith("_work/lease/")}
    faults = {}
    for shard in lost:
        marker, words = part.marker_path(shard), _views(part.shard_rows(shard))
        if _relative(part, marker) in names:
            faults[shard] = f"{marker}: the done marker is not what was written {words}. {_TAKE_OVER}"
        elif leases and shard in there and str(shard) not in leased:
            path = part.shard_path(shard)
            what = f"{path}: the shard has lost its done marker {marker.name} {words}."
            faults[shard] = f"{what} {_TAKE_OVER}"
    return faults


def shard_faults(part: Part, record: ShardRecord) -> list[str]:
    """Return one sentence for each fault in the file of a finished shard; every view is decoded, one at a time."""
    shard = record.id.shard
    path, rows = part.shard_path(shard), part.shard_rows(shard)
    not_finite: list[str] = []

    def check(slot: int, grid: NDArray[Any]) -> None:
        values = decode_int8(grid) if part.spec.encoding == "int8" else grid
        if not np.isfinite(values).all():
            not_finite.append(f"{path}: the grid of {rows[slot]} has values that are not finite.")

    try:
        summary, label = scan(path, part.slots, len(rows), part.spec.empty_stored(), check)
    except FileNotFoundError:
        return [
            f"{path}: the shard is lost {_views(rows)}. Restore it from a copy of the cache, or extract again."
        ]
    except (ShardFault, OSError) as fault:
        what = fault.strerror if isinstance(fault, OSError) else fault
        return [f"{path}: {what} {_views(differing(path, part, record))}."]
    if summary != record.summary:
        words = _views(differing(path, part, record))
        return [f"{path}: the file is another one than was written {words}."]
    if label and meta_of_label(label, record.id, len(rows), path) != record.meta:
        return [f"{path}: what is recorded of the shard is not what it says of itself {_views(rows)}."]
    return not_finite


def differing(path: Path, part: Part, record: ShardRecord) -> list[ViewRow]:
    """Return the rows of a shard that are not in ``path`` as they were recorded; all where that cannot be told."""
    rows, summary = part.shard_rows(record.id.shard), record.summary
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return list(rows)
    try:
        index, _ = read_index(descriptor, os.fstat(descriptor).st_size, part.slots)
        found = []
        for row, (offset, length), expected in zip(rows, index.tolist(), summary.chunk_crc32c, strict=False):
            data = b"" if offset == HOLE else os.pread(descriptor, length, offset)
            if google_crc32c.value(data[:-4]) != expected or data[-4:] != expected.to_bytes(4, "little"):
                found.append(row)
        return found or list(rows)
    except (ShardFault, OSError, OverflowError):
        return list(rows)
    finally:
        os.close(descriptor)


def _names(part: Part) -> set[str]:
    """Return the files of a part that say how far it is: shards, then leases, then markers.

    A shard is leased before it is there, and its marker is there before the lease goes: so none of a living writer
    is seen without either.
    """
    names = set()
    for folder in (part.array_folder, part.lease_folder, part.done_folder):
        with suppress(OSError), os.scandir(folder) as entries:
            names |= {
                _relative(part, folder / entry.name)
                for entry in entries
                if entry.is_file() and entry.stat().st_size
            }
    if part.done_folder.parent.is_dir():
        names.add("_work/")
    return names


def _views(rows: Collection[ViewRow]) -> str:
    """Name the views that a fault concerns: each of a few, the first and the last of many."""
    every = tuple(rows)
    if len(every) <= _NAMED:
        return f"({'; '.join(map(str, every))})"
    return f"({len(every)} views from {every[0]} to {every[-1]})"


def _changed(where: str | Path, remedy: str) -> str:
    return f"{where}: the file is not what was written. {remedy}"


def _relative(part: Part, path: Path) -> str:
    return path.relative_to(part.folder).as_posix()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
