"""Copying what is lacking elsewhere of a cache that lies here.

What counts there is what counts here: a shard with its done marker, a part with its manifest. A marker is sent only
after its shard has arrived and was compared, and the manifest only when every shard has its marker, so that whatever
ends a push nothing half-copied is taken for whole. A name that is taken is not replaced. Where a file system cannot
refuse a taken name, two pushes at the same instant may write one shard after the other; whoever then finds a marker or
manifest of other bytes than its own reads what really lies there and makes it say that. (One killed just then leaves a
shard that every reader refuses, never one that is taken for another.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from store.caches import cache_group, within_a_cache
from store.documents import read_bytes
from store.errors import FrostgridError, IdentityMismatch, VerificationError
from store.grids import GridStore
from store.parts import Part, load_part, part_folders
from store.places.local_place import LocalPlace
from store.places.place import Place
from store.records import ShardRecord
from store.rows import ViewKey
from store.sharing.offers import LOOKS, Moved, offer_at, read_part
from store.sharing.pulling import pull
from store.sharing.standing import StandingPart, expect_sound
from store.sharing.work import Copied, Work, raise_faults


def push(
    store: GridStore,
    place: Place,
    *,
    views: Collection[ViewKey] | None = None,
    threads: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy the finished shards of ``store`` that the cache of the same name at ``place`` lacks; make it if need be.

    With ``views`` only the shards that hold one of them, and nothing of the parts that hold none.

    Part by part: documents, then shards each followed by its marker, then the manifest if all of the part lies there,
    whoever sent it; the markers are removed after it. Whatever is finished there stands. Whatever ends this, a rerun
    sends only what is still lacking. ``on_progress``: bytes done and bytes to do.

    Raises ``IdentityMismatch`` if the cache there was made from something else, ``InputError`` if a part was divided
    into other shards, ``DamagedGrid`` naming tile, view and file if a shard here is not what was written (at the end:
    all others have been sent), ``VerificationError`` if something there is damaged that only a person may remove, and
    what the place raises.
    """
    if isinstance(place, LocalPlace):
        offer = offer_at(LocalPlace(store.path.parent), store.path.name)
        copied = pull(offer, place.folder, views=views, threads=threads, on_progress=on_progress)
        return replace(copied, store=store)
    wanted = None if views is None else {ViewKey(*view) for view in views}
    folder = f"{store.slug}-{store.key[:12]}"
    files = place.files(folder)
    describe(store, place, folder)
    faults: list[FrostgridError] = []
    standing: list[tuple[StandingPart, list[ShardRecord]]] = []
    for path in part_folders(store.path):
        here = load_part(path, store.key, store.spec)
        try:
            part, files = _standing(store, place, folder, here, files)
        except VerificationError as fault:
            faults.append(fault)
            continue
        records = [
            record
            for record in here.done().values()
            if wanted is None or any(row.key in wanted for row in here.shard_rows(record.id.shard))
        ]
        standing.append((part, records))
    lacking = [
        (part, [record for record in records if record.id.shard not in part.records])
        for part, records in standing
    ]
    total = sum(record.summary.bytes for _, records in lacking for record in records)
    batch = place.batch_files
    work = Work(1 if batch > 1 else threads, total, on_progress)
    for part, records in lacking:
        if records:
            part.send_documents()
            batches = [records[start : start + batch] for start in range(0, len(records), batch)]
            faults += work.run(batches, functools.partial(_send, part, work))
        if part.records:
            part.seal(files if part.sealed and not part.sent else place.files(folder), work)
    raise_faults(faults)
    asked = sum(len(records) for _, records in standing)
    return Copied(store, work.shards, work.bytes, asked - work.shards)


def _standing(
    store: GridStore, place: Place, folder: str, here: Part, files: dict[str, int]
) -> tuple[StandingPart, dict[str, int]]:
    """Return a part as it lies there, and the listing that this was found with: ``files``, or a newer one."""
    for _ in range(LOOKS):
        try:
            return StandingPart(place, folder, here, read_part(place, store, here.name, files, folder)), files
        except Moved:  # somebody else has sealed it meanwhile
            files = place.files(folder)
    raise VerificationError(
        "The part keeps changing while it is read",
        where=f"{place.url}/{folder}/{here.name}",
        remedy="Try again later.",
    )


def describe(store: GridStore, place: Place, folder: str) -> None:
    """Send the description of a cache to ``folder`` at a place, unless it is there.

    Raises ``IdentityMismatch`` where that of another is there, ``InputError`` where the place is a cache itself.
    """
    name = f"{folder}/cache.json"
    if not place.read(name):
        if place.read("cache.json"):
            raise within_a_cache(place.url)
        contents = {
            "zarr.json": cache_group(store.slug, store.key),
            "cache.json": read_bytes(store.path / "cache.json") or b"",
        }
        files: dict[str, Any] = {f"{folder}/{file}": data for file, data in contents.items()}
        while files:
            left = place.send(files, new=True)
            files = {file: files[file] for file in left[1:]}
    where = f"{place.url}/{name}"
    there = GridStore.described(store.path, place.read(name) or b"", where)
    if (there.key, there.spec) != (store.key, store.spec):
        raise IdentityMismatch(
            "The cache there was made from something else", where=where, remedy="Push to another place."
        )


def _send(part: StandingPart, work: Work, records: list[ShardRecord]) -> bool:
    """Send a batch of shards; those that are damaged here are left out, and told afterwards."""
    fault: FrostgridError | None = None
    sound = []
    for record in records:
        try:
            expect_sound(part.here, record)
            sound.append(record)
        except VerificationError as error:
            fault = error
    lost = [record for record in sound if record.id.shard in part.listed]
    for record in lost:
        part.mend(record)
    sent = [*lost, *part.send([record for record in sound if record not in lost], work)]
    for record in sent:
        work.copied(record.summary.bytes)
    work.advance(sum(record.summary.bytes for record in records))
    if fault:
        raise fault
    return True
