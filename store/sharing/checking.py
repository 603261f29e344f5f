"""Checking a cache where it lies, without keeping it: every document, every shard, every view."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from store.disk_errors import storage_errors
from store.errors import FrostgridError, MissingViews
from store.grids import GridStore
from store.parts import Part
from store.places.local_place import LocalPlace
from store.records import ShardRecord
from store.sharing.arriving import Arrival, fetch
from store.sharing.offers import Offer, OfferedPart
from store.sharing.work import Work
from store.verify import Checked, Tally, document_faults, group_faults, record_faults, shard_faults


def verify_at(offer: Offer, *, on_progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Return the faults of :func:`check_at`."""
    return check_at(offer, on_progress=on_progress).faults


def check_at(offer: Offer, *, on_progress: Callable[[int, int], None] | None = None) -> Checked:
    """Return one sentence for each fault in the finished shards of ``offer``, none if all is as it was written.

    The same sentences as those of ``store.verify.check``, with URLs for paths. Every byte is fetched, one shard at a
    time, into a temporary file that is removed again. ``on_progress``: bytes done and bytes to do. Raises
    ``StorageError`` if the connection or the disk of the temporary file gives up.
    """
    total = sum(record.summary.bytes for offered in offer.parts for record in offered.records.values())
    work = Work(1, total, on_progress)
    store = GridStore.described(Path(offer.folder), offer.description, offer.where("cache.json"))
    faults = group_faults(store, offer.place.read(f"{offer.folder}/zarr.json"), offer.where("zarr.json"))
    faults += [str(fault) for fault in offer.faults]
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for offered in offer.parts:
            # A part like that one, in which there is never more than one shard.
            part = replace(offered.part, folder=Path(folder, offer.folder, offered.part.name))
            found = _document_faults(offer, offered, part)
            lost = record_faults(
                part,
                offered.records,
                _names(offer, offered),
                leases=isinstance(offer.place, LocalPlace),
            )
            tally.add(offered.part, offered.whole, {*offered.records, *lost})
            found += dict.fromkeys(lost.values())
            for record in offered.records.values():
                found += _shard_faults(offer, offered, part, record, work)
            faults += [fault.replace(folder, offer.place.url) for fault in found]
    return tally.checked(faults)


def _document_faults(offer: Offer, offered: OfferedPart, part: Part) -> list[str]:
    names = [*part.documents, *(["manifest.json"] if offered.sealed else [])]
    for name in names:
        content = offer.place.read((offered.part.folder / name).as_posix())
        if content is not None:
            with storage_errors(part.folder):
                (part.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (part.folder / name).write_bytes(content)
    try:
        part.check_layout()
        return document_faults(part)
    except FrostgridError as error:
        return [str(error)]


def _names(offer: Offer, offered: OfferedPart) -> set[str]:
    prefix = f"{offered.part.name}/"
    return {
        name.removeprefix(prefix) for name, size in offer.files.items() if size and name.startswith(prefix)
    }


def _shard_faults(
    offer: Offer, offered: OfferedPart, part: Part, record: ShardRecord, work: Work
) -> list[str]:
    path = part.shard_path(record.id.shard)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Arrival(path, record.summary.bytes + 1, work) as arrival:
            fetch(offer.place, offered.part.shard_path(record.id.shard).as_posix(), arrival, work)
    except MissingViews:
        path.unlink(missing_ok=True)
    try:
        return shard_faults(part, record)
    finally:
        path.unlink(missing_ok=True)
