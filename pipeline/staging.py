"""Caches at a URL: what a study needs of them is copied here once, and what is extracted here is sent there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.choosing import UnclearCache, Wanted
from pipeline.console import Talk, bytes_text
from pipeline.sharing import choose, refuse_unlicensed, views_of
from pipeline.workspace import VIEWS, Workspace
from store import GridStore, ViewKey
from store.errors import NoCache
from store.places.place import Place
from store.sharing import Offer, offer_at, offers, pull, push

RIGHTS = (
    "Give a folder with --cache and extract into that, or a URL that only people with the same rights can read; "
    "frostgrid cache push sends caches of which you have the rights."
)


def stage(work: Workspace, reference: str, weights: Path | None, talk: Talk) -> None:
    """Copy what training on an encoder needs and this machine lacks: shards with the study's tokens and masks.

    Nothing is asked of the place where all is here already, and nothing happens without one. Raises as
    :func:`pipeline.sharing.choose` where it has no such cache; views that it lacks are for the reader to name.
    """
    if work.origin is None:
        return
    here = work.tokens_here(reference, weights)
    wanted = work.wanted_tokens(reference, weights)
    missing = _missing(work, here, wanted)
    if missing:
        offer = choose(work.origin, wanted) if here is None else _same(work.origin, here.slug, here.key)
        _fetch(work, offer, missing, talk)
    stage_masks(work, talk)
    if not work.masks_here():
        choose(work.origin, work.wanted_masks)  # says what is lacking


def acquaint(work: Workspace, reference: str, weights: Path | None) -> dict[str, Offer]:
    """Make the caches that training on an encoder needs known here, without copying anything of their content.

    Returns what the place has of them, by the names of their folders; nothing without a place. Raises as
    :func:`pipeline.sharing.choose` where it has no such cache.
    """
    if work.origin is None:
        return {}
    here = work.tokens_here(reference, weights)
    tokens = None if here is None else _same(work.origin, here.slug, here.key)
    masks = _same(work.origin, VIEWS, work.masks_key)
    found = [
        tokens or choose(work.origin, work.wanted_tokens(reference, weights)),
        masks or choose(work.origin, work.wanted_masks),
    ]
    for offer in found:
        pull(offer, work.cache, views=())
    return {offer.name: offer for offer in found}


def stage_masks(work: Workspace, talk: Talk) -> None:
    """Copy the masks that the study needs and this machine lacks, as far as the place has them."""
    here = work.masks_here()
    missing = _missing(work, here, work.wanted_masks)
    if work.origin is not None and missing:
        _fetch(work, _same(work.origin, VIEWS, work.masks_key), missing, talk)


def _missing(work: Workspace, here: GridStore | None, wanted: Wanted) -> list[ViewKey]:
    keys = work.keys_of(wanted.slug)
    return keys if here is None else here.reader().missing(keys)


def _fetch(work: Workspace, offer: Offer | None, missing: Sequence[ViewKey], talk: Talk) -> None:
    there = set() if offer is None else views_of(offer)
    fetched = [key for key in missing if key in there]
    if offer is None or not fetched:
        return
    with talk.bar(f"Fetching {offer.folder}", "bytes") as update:
        copied = pull(offer, work.cache, views=fetched, on_progress=update)
    talk.say(
        f"{offer.folder}: {copied.shards} shard(s), {bytes_text(copied.bytes)} fetched from {offer.place.url} "
        f"({copied.store.path})"
    )


def elsewhere(work: Workspace, store: GridStore) -> set[tuple[str, int]]:
    """Return the views that the place has of exactly this cache; none without a place."""
    offer = None if work.origin is None else _same(work.origin, store.slug, store.key)
    return set() if offer is None else views_of(offer)


def found_elsewhere(work: Workspace, reference: str, weights: Path | None) -> set[tuple[str, int]]:
    """Return the views that the place has of an encoder that is not loaded; none unless exactly one cache fits."""
    if work.origin is None:
        return set()
    wanted = work.wanted_tokens(reference, weights)
    found, _ = offers(work.origin, slug=wanted.slug)
    try:
        return views_of(
            wanted.choose({offer.folder: offer for offer in found}, where=work.origin.url, remedy="")
        )
    except (NoCache, UnclearCache):
        return set()


def refuse_unlicensed_place(work: Workspace, slug: str, provenance: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` if what is to be written to a cache could not be sent to the place afterwards."""
    if work.origin is not None:
        refuse_unlicensed(slug, provenance, work.origin, rights=False, remedy=RIGHTS)


def send(work: Workspace, store: GridStore, talk: Talk) -> None:
    """Send the place what it lacks of the study's views in ``store``, and of no other; nothing without a place."""
    if work.origin is None:
        return
    with talk.bar(f"Sending {store.path.name}", "bytes") as update:
        copied = push(store, work.origin, views=work.keys_of(store.slug), on_progress=update)
    talk.say(
        f"{store.path.name}: {copied.shards} shard(s), {bytes_text(copied.bytes)} sent to {work.origin.url}"
    )


def _same(origin: Place, slug: str, key: str) -> Offer | None:
    """Return the cache of this key at the place, if it is there; raise its fault if it cannot be read."""
    folder = f"{slug}-{key[:12]}"
    return offer_at(origin, folder) if origin.read(f"{folder}/cache.json") else None
