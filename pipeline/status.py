"""How far a study is: what is done, under way, failed and to do, of its caches and of its runs.

Nothing is changed and nothing computed, so it can be asked at any time, also while others work. It costs what
``frostgrid plan`` does: each image is read once to know the tiles, and beside that the documents of the caches, the
sizes of their shards and the ``run.json`` of the runs. What shards and runs hold is checked by ``cache verify`` and
``report``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.choosing import UnclearCache, Wanted
from pipeline.engine import jobs
from pipeline.job import Job
from pipeline.journal_reading import Journals, read_journals
from pipeline.status_runs import Recordings
from pipeline.workspace import Workspace
from stages.tiles.plan import mask_spec
from store import GridSpec, GridStore, ViewKey
from store.errors import FrostgridError, InputError, NoCache, OtherCache, VerificationError
from store.layout import shard_views
from store.leases import held
from store.progress import Position, Progress, Sighted, progress, sighted
from store.sharing import FOLDER, Offer, offers
from store.sharing.claims import claimed


class WorkFailed(FrostgridError):
    """Something of a study failed, and nobody has tried it again since."""


def status(
    work: Workspace, asked: Sequence[str], seeds: int | None, *, weights: Path | None = None
) -> dict[str, Any]:
    """Return how far the study is with the encoders asked for, or all it has, as JSON-able values.

    ``weights`` as for :func:`pipeline.engine.jobs`. Raises what reading the data raises; whatever else is damaged or
    missing is in the answer.
    """
    asked_for = list(jobs(work, asked, seeds, weights=weights))
    journals = read_journals(work.results)
    recordings = Recordings(work, journals)
    faults = [*journals.faults]
    masks, _ = _Cache(work, journals, work.wanted_masks, mask_spec(work.study.data.tile_px)).told(faults)
    encoders = []
    for job in asked_for:
        wanted, note = _wanted(job)
        cache = _Cache(work, journals, wanted, work.tokens_spec(job.about.grid), note)
        told, store = cache.told(faults)
        runs = recordings.of(_with_cache(job, store))
        encoders.append({"encoder": job.encoder, **told, "decoder": job.settings.decoder, "runs": runs})
    others = recordings.others()
    faults += recordings.faults
    return {
        "study": work.study.name,
        "cache": str(work.cache),
        "place": None if work.origin is None else work.origin.url,
        "results": str(work.results),
        "views": masks,
        "encoders": encoders,
        "other_runs": others,
        "failures": _failures(masks, encoders, others),
        "damaged": list(dict.fromkeys(map(str, faults))),
    }


def raise_trouble(found: dict[str, Any]) -> None:
    """Raise what a command ends with that has shown ``found``; nothing where nothing failed and nothing is damaged.

    Raises :class:`VerificationError` for what is damaged or cannot be read, else :class:`WorkFailed`.
    """
    if damaged := found["damaged"]:
        raise VerificationError(
            f"{len(damaged)} thing(s) are damaged or cannot be read, such as: {damaged[0]}",
            where=found["results"],
            remedy="What is said above is right for everything else.",
        )
    if failures := found["failures"]:
        raise WorkFailed(
            f"{len(failures)} shard(s) or run(s) failed and were not tried again",
            where=found["results"],
            remedy="The command that made them tries them again and keeps what is finished.",
        )


@dataclass
class _Cache:
    """One cache as the study wants it, wherever it lies; ``spec``: what it keeps of a view; ``note``: for people."""

    work: Workspace
    journals: Journals
    wanted: Wanted
    spec: GridSpec
    note: str | None = None

    def told(self, faults: list[FrostgridError]) -> tuple[dict[str, Any], GridStore | None]:
        """Return what there is of it as JSON-able values, and the cache itself; adds to ``faults`` what is damaged."""
        note = self.note
        store, offer = None, None
        try:
            store = self._here(faults)
        except (OtherCache, UnclearCache) as fault:
            note = fault.what
        except NoCache:
            pass
        try:
            offer = self._there(store, faults)
        except UnclearCache as fault:
            note = fault.what
        parts, held_places = self._parts(store, offer, faults)
        if store is None and offer is not None:
            note = self.note
            store = GridStore.described(Path(offer.folder), offer.description, offer.where("cache.json"))
        name = f"{store.slug}-{store.key[:12]}" if store is not None else None
        state = progress(parts, self._keys)
        return {
            "cache": name,
            "note": note,
            "views": {"stored": state.views, "wanted": len(self._keys)},
            "bytes": state.bytes,
            "shards": self._shards(name, state, held_places),
        }, store

    @cached_property
    def _keys(self) -> set[ViewKey]:
        return set(self.work.keys_of(self.wanted.slug))

    def _here(self, faults: list[FrostgridError]) -> GridStore:
        found: dict[str, GridStore] = {}
        cache = self.work.cache
        for folder in sorted(cache.iterdir()) if cache.is_dir() else ():
            match = FOLDER.fullmatch(folder.name)
            if match and match[1] == self.wanted.slug:
                try:
                    found[folder.name] = GridStore.open(folder)
                except FrostgridError as fault:
                    faults.append(fault)
        return self.wanted.choose(found, where=cache, remedy="")

    def _there(self, store: GridStore | None, faults: list[FrostgridError]) -> Offer | None:
        """Return the same cache at the place elsewhere, or the one that fits where there is none here."""
        if self.work.origin is None:
            return None
        try:
            found, damaged = offers(self.work.origin, slug=self.wanted.slug)
        except FrostgridError as fault:  # no connection, say: what is here is here all the same
            faults.append(fault)
            return None
        faults += damaged
        if store is not None:
            return next((offer for offer in found if offer.key == store.key), None)
        try:
            return self.wanted.choose({offer.folder: offer for offer in found}, where="", remedy="")
        except NoCache:
            return None

    def _parts(
        self, store: GridStore | None, offer: Offer | None, faults: list[FrostgridError]
    ) -> tuple[list[Sighted], set[Position]]:
        """Return the parts of the cache here and elsewhere, and the shards that somebody is writing there."""
        parts: list[Sighted] = []
        writing: set[Position] = set()
        if store is not None:
            parts, damaged = sighted(store)
            faults += damaged
            writing = {(one.part.name, shard) for one in parts for shard in held(one.part.lease_folder)}
        if offer is not None:
            parts += [Sighted(one.part, one.records, one.whole) for one in offer.parts]
            try:
                writing |= _claimed(offer)
            except FrostgridError as fault:
                faults.append(fault)
        return parts, writing

    def _shards(self, name: str | None, state: Progress, writing: set[Position]) -> dict[str, Any]:
        units = {place: ("shard", f"{name}/{place[0]}/{place[1]}") for place in state.left}
        running = {
            place for place, unit in units.items() if place in writing or unit in self.journals.under_way
        }
        failed = {
            unit[1]: self.journals.failed[unit]
            for place, unit in units.items()
            if unit in self.journals.failed and place not in running
        }
        new = -(-state.unplanned // shard_views(self.spec, state.unplanned)) if state.unplanned else 0
        return {
            "done": len(state.done),
            "running": len(running),
            "failed": len(failed),
            "to_do": len(state.left) - len(running) - len(failed) + new,
            "lost": len(state.lost),
            "failures": failed,
        }


def _claimed(offer: Offer) -> set[Position]:
    """Return the shards that somebody has claimed at a place."""
    found: set[Position] = set()
    for part in (one.part.name for one in offer.parts):
        folder = f"{part}/_work/lease"
        names = [file.removeprefix(f"{folder}/") for file in offer.files if file.startswith(f"{folder}/")]
        shards = claimed(offer.place, f"{offer.folder}/{folder}", names)
        found |= {(part, shard) for shard in shards}
    return found


def _wanted(job: Job) -> tuple[Wanted, str | None]:
    """Return the cache that a job wants; where its weights are not at hand, whichever fits, and a note."""
    try:
        return job.work.wanted_tokens(job.reference, job.weights), None
    except InputError as fault:
        return job.work.wanted_tokens(job.reference, None), fault.what


def _with_cache(job: Job, store: GridStore | None) -> Job:
    """Return the job on a cache that need not be at hand; on none, whose key is empty, where there is none."""
    known = replace(job)
    if store is None:
        spec = job.work.tokens_spec(job.about.grid)
        store = GridStore(job.work.cache / job.slug, "", job.slug, {}, spec, {})
    known.tokens = store
    return known


def _failures(
    masks: dict[str, Any], encoders: list[dict[str, Any]], others: dict[str, Any]
) -> list[dict[str, str]]:
    """Return everything that failed, and take it out of where it was gathered."""
    found = [("shard", masks["shards"].pop("failures"))]
    for row in encoders:
        found += [("shard", row["shards"].pop("failures")), ("run", row["runs"].pop("failures"))]
    found.append(("run", others.pop("failures")))
    return [{"kind": kind, "name": name, "why": why} for kind, some in found for name, why in some.items()]
