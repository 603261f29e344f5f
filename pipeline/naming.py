"""Which place, or which cache, a person means by a folder or a URL."""

from __future__ import annotations

import os
from pathlib import Path

from store import GridStore
from store.errors import FrostgridError, InputError, NoCache
from store.places import LocalPlace, open_place
from store.places.place import Place
from store.sharing import FOLDER, Offer, offer_at, offers

_NAMED = 10


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

    Raises :class:`NoCache` where there is none, naming those of a place of several, and what is wrong with it where it
    cannot be read.
    """
    parent, folder = _parent_and_name(text)
    nothing = NoCache(
        "There is no cache here",
        where=text,
        remedy="Give the folder or URL of one that frostgrid cache ls lists.",
    )
    if not folder:
        raise _several(text, nothing)
    try:
        return offer_at(open_place(parent), folder)
    except NoCache as error:
        raise _several(text, nothing) from error


def place_or_cache(text: str) -> tuple[Place, str | None]:
    """Return the place that a person names; or, where it is one cache, the place it lies at, and its folder there."""
    place = place_at(text)
    parent, folder = _parent_and_name(text)
    if folder and place.read("cache.json") is not None:
        return open_place(parent), folder
    return place, None


def local_store(text: str) -> GridStore:
    """Open a cache of this machine that a person names by its folder.

    Raises :class:`InputError` for a URL, :class:`NoCache` where there is none, naming those of a place of several.
    """
    if is_url(text):
        raise InputError(
            "This is done with a cache of this machine only",
            where=text,
            remedy="Fetch it first: frostgrid cache pull, or frostgrid cache merge.",
        )
    try:
        return GridStore.open(Path(text).absolute())
    except NoCache as nothing:
        raise _several(text, nothing) from nothing


def offers_of(text: str) -> tuple[list[Offer], list[FrostgridError]]:
    """Return the caches that a person names, by a place or by one cache; and what is wrong with others there."""
    place = place_at(text)
    if place.read("cache.json") is not None:
        return [cache_at(text)], []
    found, faults = offers(place)
    if not found and not faults:
        raise NoCache(
            "There is no cache here", where=text, remedy="Give a folder or URL that frostgrid cache ls lists."
        )
    return found, faults


def _parent_and_name(text: str) -> tuple[str, str]:
    """Return the place around a folder or URL, and the last name of it; that is empty where nothing can be around."""
    if not is_url(text):
        parent, name = os.path.split(os.path.normpath(Path(text).absolute()))
        return parent, name
    whole = text.rstrip("/")
    scheme, _, path = whole.partition("://")
    if path.count("/") < (3 if scheme == "hf" else 1):  # a repository (datasets/owner/name), a bucket
        return whole, ""
    parent, _, name = whole.rpartition("/")
    return f"{parent}/", name


def _several(text: str, nothing: NoCache) -> NoCache:
    """Return what to say where a person names a place for one of its caches; ``nothing`` where it holds none."""
    names = []
    if is_url(text) or Path(text).is_dir():
        names = [name for name in place_at(text).folders() if FOLDER.fullmatch(name)]
    if not names:
        return nothing
    shown = ", ".join(f"{text.rstrip('/')}/{name}" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more, see frostgrid cache ls" if names[_NAMED:] else ""
    return NoCache(
        f"This is a place with {len(names)} cache{'s' if names[1:] else ''} in it, and one cache is asked for",
        where=text,
        remedy=f"Give {'one of them' if names[1:] else 'it'}: {shown}{more}.",
    )
