"""Copying what is lacking here of a cache that lies elsewhere; from another local folder this is a merge."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from store.caches import put_cache
from store.disk_errors import storage_errors
from store.durable import new_partial
from store.errors import FrostgridError, IdentityMismatch, InputError
from store.grids import GridStore
from store.parts import Part, create_part, load_part, part_folders
from store.places.place import Place
from store.records import ShardRecord
from store.rows import ShardTask, ViewKey
from store.sealing import prepare, seal, sweep_part
from store.sharing.arriving import fetch_shard
from store.sharing.offers import Offer, OfferedPart
from store.sharing.work import Copied, Work, raise_faults
from store.sizes import file_size
from store.sweeping import sweep
from store.writer import commit


@dataclass(frozen=True)
class _Job:
    """One shard to bring: the part there, the part here, and what is recorded of it there."""

    there: Part
    here: Part
    record: ShardRecord


def pull(
    offer: Offer,
    root: Path,
    *,
    views: Collection[ViewKey] | None = None,
    threads: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy what the cache of this name under ``root`` lacks of ``offer``; make the cache where there is none.

    A shard is copied if it holds a view (one of ``views``, if given) that is finished in no part here. It is streamed
    into a temporary file, compared with size and sha256 of its record, and committed as a writer would: what is
    finished here is never replaced, any number of pulls, merges and extractions may go on at once, and whatever ends
    this, a rerun goes on from the finished shards. ``on_progress``: bytes done and bytes to do.

    Raises ``IdentityMismatch`` if the cache here was made from something else, ``InputError`` if a part was divided
    into other shards, ``DamagedGrid`` naming tile, view and object if a shard there is not what was written (raised at
    the end: all others have been copied), ``StorageError`` if the connection or the disk here gives up.
    """
    store = _destination(offer, root)
    wanted = None if views is None else {ViewKey(*view) for view in views}
    lacking, kept = _lacking(store, offer, wanted)
    total = sum(offered.records[shard].summary.bytes for offered, shards in lacking for shard in shards)
    faults: list[FrostgridError] = list(offer.faults)
    jobs: list[_Job] = []
    for offered, shards in lacking:
        here = part_here(store, offered)
        if isinstance(here, InputError):
            faults.append(here)
        else:
            jobs += [_Job(offered.part, here, offered.records[shard]) for shard in shards]
    work = Work(threads, total, on_progress)
    faults += work.run(jobs, lambda job: _bring(store, offer.place, job, work))
    for folder in part_folders(store.path):
        part = load_part(folder, store.key, store.spec)
        sweep_part(part)
        seal(part)  # also where nothing was lacking: an earlier copy may have been killed just before this
    raise_faults(faults)
    return Copied(store, work.shards, work.bytes, kept + len(jobs) - work.shards)


def _destination(offer: Offer, root: Path) -> GridStore:
    path = root.absolute() / offer.name
    if file_size(path / "cache.json") is None:
        put_cache(path, offer.slug, offer.key, offer.description)
    store = GridStore.open(path)
    if (store.key, store.spec) != (offer.key, offer.spec):
        raise IdentityMismatch(
            f"The cache here was made from something else than the one at {offer.where('')}",
            where=path,
            remedy="Copy into another [cache] root.",
        )
    sweep(path.parent)
    sweep(path)
    return store


def _lacking(
    store: GridStore, offer: Offer, wanted: set[ViewKey] | None
) -> tuple[list[tuple[OfferedPart, list[int]]], int]:
    """Return, part by part, the shards there that are needed here, and the number of those that are not."""
    have: set[ViewKey] = set()
    for folder in part_folders(store.path):
        part = load_part(folder, store.key, store.spec)
        have.update(ViewKey(*key) for key in part.keys_in(part.done()))
    lacking, kept = [], 0
    for offered in offer.parts:
        needed = []
        for shard in sorted(offered.whole):
            keys = {row.key for row in offered.part.shard_rows(shard)}
            asked = keys if wanted is None else keys & wanted
            if asked - have:
                needed.append(shard)
                have |= keys
            elif asked:
                kept += 1
        if needed:
            lacking.append((offered, needed))
    return lacking, kept


def part_here(store: GridStore, offered: OfferedPart) -> Part | InputError:
    """Return this side's part of the same table, made if need be and ready to have shards written, or why not."""
    there = offered.part
    with storage_errors(store.path):
        folder = create_part(store.path, store.key, store.spec, there.rows, there.slots)
    here = load_part(folder, store.key, store.spec)
    if (here.key, here.slots) != (there.key, there.slots):
        return InputError(
            f"The part was planned here with {here.slots} views a shard, and there with {there.slots}",
            where=folder,
            remedy="Copy into another [cache] root, or plan both sides with the same number of views a shard.",
        )
    sweep_part(here)
    _open(here)
    return here


def _bring(store: GridStore, place: Place, job: _Job, work: Work) -> bool:
    """Copy one shard; returns ``False`` if another process is at it and has not finished."""
    shard, here = job.record.id.shard, job.here
    with store.lease(ShardTask(here.name, shard, here.shard_rows(shard))) as mine:
        if not mine:
            record = here.record(shard)
            if record is None or not here.intact(record):
                if not here.lease_folder.is_dir():  # sealed and opened again by another process meanwhile
                    _open(here)
                return False
            work.advance(job.record.summary.bytes)
            return True
        partial = new_partial(here.shard_path(shard))
        try:
            fetch_shard(place, job.there, job.record, partial, work)
            commit(here, partial, job.record)
        finally:
            partial.unlink(missing_ok=True)
    work.copied(job.record.summary.bytes)
    seal(here)
    return True


def _open(part: Part) -> None:
    if len(part.done()) < part.shards:
        prepare(part)
