"""Checking a whole store: every file against what was recorded of it, every view decoded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.documents import decode, read_bytes
from store.errors import FrostgridError
from store.grids import GridStore
from store.parts import MANIFEST_VERSION, Part, load_part, part_folders
from store.records import ShardRecord
from store.shardfile import ShardFault, scan


def verify(store: GridStore) -> list[str]:
    """Return one sentence for each fault in the finished shards of ``store``, none if all is as it was written.

    Reads every byte, one view at a time in memory. Checked are the documents, the sha256 of every file, index and
    checksums, and that every value is finite. Shards that were never finished are no fault.
    """
    faults: list[str] = []
    for folder in part_folders(store.path):
        try:
            part = load_part(folder, store.key, store.spec)
            part.check_layout()
            records = part.records()
            faults += _other_faults(part)
        except FrostgridError as error:
            faults.append(str(error))
            continue
        for record in records.values():
            faults += _shard_faults(part, record)
    return faults


def _other_faults(part: Part) -> list[str]:
    data = read_bytes(part.manifest)
    listed = decode("manifest", MANIFEST_VERSION, data, part.manifest, "")["files"] if data else {}
    shards = {part.shard_path(shard) for shard in range(part.shards)}
    return [
        f"{part.folder / name}: the file is not what was written."
        for name, entry in listed.items()
        if part.folder / name not in shards and _sha256(part.folder / name) != entry["sha256"]
    ]


def _shard_faults(part: Part, record: ShardRecord) -> list[str]:
    shard = record.id.shard
    path, rows = part.shard_path(shard), part.shard_rows(shard)
    not_finite: list[str] = []

    def check(slot: int, grid: NDArray[Any]) -> None:
        if not np.isfinite(grid).all():
            not_finite.append(f"{path}: the grid of {rows[slot]} has values that are not finite.")

    try:
        summary, _ = scan(path, part.slots, len(rows), part.spec.empty(), check)
    except (ShardFault, OSError) as fault:
        what = fault.strerror if isinstance(fault, OSError) else fault
        return [f"{path}: {what} (views from {rows[0]} to {rows[-1]})."]
    if summary != record.summary:
        return [f"{path}: the file is another one than was written (views from {rows[0]} to {rows[-1]})."]
    return not_finite


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
