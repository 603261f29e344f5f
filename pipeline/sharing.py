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
from store.errors import FrostgridError, InputError, NoCache
from store.identity import canonical_json
from store.places.place import Place
from store.sharing import Offer, offers

_BLOCK = re.compile(r"(.+)-block(\d+)")


def views_of(offer: Offer) -> set[tuple[str, int]]:
    """Return every view that is finished in a cache; each equals its ``ViewKey``."""
    return {key for offered in offer.parts for key in offered.part.keys_in(offered.whole)}


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


def choose(place: Place, wanted: Wanted, only: str | None = None) -> Offer:
    """Return the cache at ``place`` that a study wants, by what is known of it without weights.

    With ``only`` it has to be the one in this folder. Raises as :meth:`pipeline.choosing.Wanted.choose`; where none
    fits and one of this name cannot be read, its fault.
    """
    found, faults = offers(place, slug=wanted.slug)
    if only is not None:
        found, faults = [offer for offer in found if offer.folder == only], []
    try:
        return wanted.choose(
            {offer.folder: offer for offer in found},
            where=place.url,
            remedy="frostgrid cache ls PLACE shows what is there; frostgrid cache push brings more.",
        )
    except NoCache as nothing:
        if faults:
            raise faults[0] from nothing
        raise


def offers_for(
    work: Workspace,
    place: Place,
    asked: Sequence[str],
    weights: Path | None,
    talk: Talk,
    *,
    masks: bool,
    only: str | None = None,
) -> list[Offer]:
    """Return the caches at ``place`` that a study wants: of the encoders ``asked`` for, or of all it has.

    With ``masks`` its views store, too. With ``only`` the features are those in this folder and no others. What is
    missing is said; raises as :func:`choose` where it was asked for by name, or where no encoder's cache is there at
    all. ``weights`` as for :meth:`Workspace.wanted_tokens`.
    """
    if weights is not None and len(asked) != 1:
        raise InputError("--weights belongs to one encoder", remedy="Name it with --encoder.")
    found: list[Offer] = []
    missing: list[NoCache] = []
    slug = None if only is None else only.rpartition("-")[0]
    if slug == VIEWS:
        return [choose(place, work.wanted_masks, only)]
    for reference in asked or _of_slug(work, slug):
        given = weights or work.weights_of(canonical_name(reference))
        try:
            found.append(choose(place, work.wanted_tokens(reference, given), only))
        except NoCache as nothing:
            if asked:
                raise
            missing.append(nothing)
    if not found:
        raise missing[0]
    for left_out in missing:
        talk.say(f"left out: {left_out.what}")
    if masks:
        try:
            found.append(choose(place, work.wanted_masks))
        except NoCache as nothing:
            talk.say(f"left out: {nothing.what}. frostgrid extract draws them, without the encoder.")
    return found


def _of_slug(work: Workspace, slug: str | None) -> list[str]:
    """Return how the study calls its encoders, or with ``slug`` the ones whose caches are called so."""
    names = list(work.study.encoders.names)
    if slug is None:
        return names
    found = [name for name in names if slug_of(canonical_name(name)) == slug]
    if not found:
        raise InputError(
            f"The study {work.study.name} has no encoder whose cache is called {slug}",
            where=", ".join(names),
            remedy="Give the study that the cache was made for, or the encoder with --encoder.",
        )
    return found


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

    A place that only some people can list and read takes everything; one that everybody can list, or of which everybody
    can read a file (or of which neither can be known), takes what may be passed on. ``rights``: the user says to have
    them. ``remedy`` ends the message.
    """
    share, licence = provenance.get("share", "unclear"), provenance.get("licence", "not recorded")
    if share == "allowed" or rights:
        return
    public = place.public()
    if public is False:
        return
    readers = (
        "everybody can list or read this place"
        if public
        else "it cannot be known who can list or read this place"
    )
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
