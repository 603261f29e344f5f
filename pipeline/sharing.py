"""Caches at a place: which of them is meant, which study they fit, and whether they may be passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.choosing import UnclearCache, Wanted
from pipeline.console import Talk
from pipeline.study import Study
from pipeline.workspace import VIEWS, Workspace, slug_of
from stages.encoders import canonical_name
from store import GridStore, ViewKey
from store.errors import FrostgridError, InputError
from store.identity import canonical_json
from store.places import LocalPlace, open_place
from store.places.place import Place
from store.sharing import Offer, offer_at, offers

_BLOCK = re.compile(r"(.+)-block(\d+)")


def is_url(text: str) -> bool:
    """Whether ``text`` names a place elsewhere, not a folder of this machine."""
    return "://" in text


def place_at(text: str) -> Place:
    """Open the place that a person names: a URL, or a folder of this machine, which has to exist."""
    place = open_place(text if is_url(text) else Path(text).absolute())
    if isinstance(place, LocalPlace) and not place.folder.is_dir():
        raise InputError(
            "There is no such folder of caches", where=place.folder, remedy="Give another folder, or a URL."
        )
    return place


def cache_at(text: str) -> Offer:
    """Return the one cache whose folder or URL a person names.

    Raises :class:`InputError` where there is none, and what is wrong with it where it cannot be read.
    """
    whole = text.rstrip("/") if is_url(text) else str(Path(text).absolute())
    parent, _, folder = whole.rpartition("/")
    return offer_at(open_place(parent or "/"), folder)


def views_of(offer: Offer) -> set[tuple[str, int]]:
    """Return every view that is finished in a cache; each equals its ``ViewKey``."""
    return {key for offered in offer.parts for key in offered.part.keys_in(offered.whole)}


def local_store(text: str) -> GridStore:
    """Open a cache of this machine that a person names by its folder; raises :class:`InputError` for a URL."""
    if is_url(text):
        raise InputError(
            "This is done with a cache of this machine only",
            where=text,
            remedy="Fetch it first: frostgrid cache pull, or frostgrid cache merge.",
        )
    return GridStore.open(Path(text).absolute())


def masks_beside(store: GridStore) -> GridStore | None:
    """Return the views store in the same folder that belongs to a feature cache; ``None`` where there is none.

    Raises :class:`pipeline.choosing.UnclearCache` where there are several.
    """
    recipe, px = store.identity.get("recipe"), store.identity.get("encoder", {}).get("tile_px")
    found = [
        other
        for other in GridStore.beside(store.path.parent, VIEWS)
        if other.identity.get("recipe") == recipe and other.identity.get("tile_px") == px
    ]
    if len(found) > 1:
        raise UnclearCache(
            f"{len(found)} views stores belong to this cache, of other classes",
            where=", ".join(other.path.name for other in found),
            remedy="Say which with --masks FOLDER.",
        )
    return found[0] if found else None


def chosen_views(study: Study, runs: Path, threads: int) -> dict[ViewKey, ViewKey]:
    """Return the views of a study, each with the key of its mask. Reads all its images."""
    work = Workspace(study, Path(), runs, threads)
    return {view.key: view.mask_key for view in work.views}


def choose(place: Place, wanted: Wanted) -> Offer:
    """Return the cache at ``place`` that a study wants, by what is known of it without weights.

    Raises as :meth:`pipeline.choosing.Wanted.choose`; where none fits and one of this name cannot be read, its fault.
    """
    found, faults = offers(place, slug=wanted.slug)
    try:
        return wanted.choose(
            {offer.folder: offer for offer in found},
            where=place.url,
            remedy="frostgrid cache ls PLACE shows what is there; frostgrid cache push brings more.",
        )
    except UnclearCache:
        raise
    except InputError as nothing:
        if faults:
            raise faults[0] from nothing
        raise


def offers_for(
    work: Workspace, place: Place, asked: Sequence[str], weights: Path | None, talk: Talk, *, masks: bool
) -> list[Offer]:
    """Return the caches at ``place`` that a study wants: of the encoders ``asked`` for, or of all it has.

    With ``masks`` its views store, too. What is missing is said; raises as :func:`choose` where it was asked for by
    name, or where no encoder's cache is there at all. ``weights`` as for :meth:`Workspace.wanted_tokens`.
    """
    if weights is not None and len(asked) != 1:
        raise InputError("--weights belongs to one encoder", remedy="Name it with --encoder.")
    found: list[Offer] = []
    missing: list[InputError] = []
    for reference in asked or work.study.encoders.names:
        given = weights or work.weights_of(canonical_name(reference))
        try:
            found.append(choose(place, work.wanted_tokens(reference, given)))
        except InputError as nothing:
            if asked or isinstance(nothing, UnclearCache):
                raise
            missing.append(nothing)
    if not found:
        raise missing[0]
    for left_out in missing:
        talk.say(f"left out: {left_out.what}")
    if masks:
        try:
            found.append(choose(place, work.wanted_masks))
        except InputError as nothing:
            talk.say(f"left out: {nothing.what}. frostgrid extract draws them, without the encoder.")
    return found


def offers_of(text: str) -> tuple[list[Offer], list[FrostgridError]]:
    """Return the caches that a person names, by a place or by one cache; and what is wrong with others there."""
    place = place_at(text)
    if place.read("cache.json") is not None:
        return [cache_at(text)], []
    found, faults = offers(place)
    if not found and not faults:
        raise InputError(
            "There is no cache here", where=text, remedy="Give a folder or URL that frostgrid cache ls lists."
        )
    return found, faults


def fits(work: Workspace, slug: str, identity: Mapping[str, Any], *, named: bool = False) -> bool:
    """Whether a study can use a cache: its own encoders and, unless ``named``, any that the cache's name leads to.

    Only the recipe, the encoder and the encoding are compared: which tiles are there, only their pixels can tell.
    """
    if slug == VIEWS:
        return canonical_json(work.wanted_masks.identity) == canonical_json(identity)
    block = _BLOCK.fullmatch(slug)
    names = list(work.study.encoders.names)
    if not named:
        names.append(f"{block[1]}@{block[2]}" if block else slug)
    for name in names:
        try:
            if slug_of(canonical_name(name)) == slug and not work.wanted_tokens(name, None).differences(
                identity
            ):
                return True
        except InputError:  # an encoder that is not known here
            continue
    return False


def workspaces(studies: Sequence[Study]) -> tuple[list[Workspace], list[FrostgridError]]:
    """Return the studies ready to be compared with caches, and what is wrong with those that cannot be."""
    found, faults = [], []
    for study in studies:
        work = Workspace(study, Path(), Path(), 1)
        try:
            work.dataset  # noqa: B018  (an impossible table of classes shows here)
            found.append(work)
        except FrostgridError as fault:
            faults.append(fault)
    return found, faults


def refuse_unlicensed(
    slug: str, provenance: Mapping[str, Any], place: Place, *, rights: bool, remedy: str
) -> None:
    """Raise :class:`InputError` if a cache must not be given to ``place``: its licence says no, or not clearly yes.

    A place that only some people can read takes everything, a public one (or one of which that cannot be known) what
    may be passed on. ``rights``: the user says to have them. ``remedy`` ends the message.
    """
    share, licence = provenance.get("share", "unclear"), provenance.get("licence", "not recorded")
    if share == "allowed" or rights:
        return
    public = place.public()
    if public is False:
        return
    readers = "everybody can read this place" if public else "it cannot be known who can read this place"
    if slug == VIEWS:
        what = f"It holds masks of your data, which only you can allow to be passed on, and {readers}"
    elif share == "forbidden":
        what = f"The licence of {slug} ({licence}) forbids passing on what is made from it, and {readers}"
    else:
        what = (
            f"It is not clear whether the licence of {slug} ({licence}) lets its tokens be passed on, and "
            f"{readers}"
        )
    raise InputError(what, where=place.url, remedy=remedy)
