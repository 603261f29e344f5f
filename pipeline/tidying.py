"""What a folder of caches could do without, judged by the studies that use it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.sharing import fits
from pipeline.workspace import Workspace
from store import GridStore
from store.clean import Superfluous, leftovers, redundant_parts, remove, remove_parts, size_of
from store.errors import FrostgridError, InputError

Kind = Literal["leftover", "part", "cache"]


@dataclass(frozen=True)
class Found:
    """One thing that could go; ``store`` is the cache it belongs to, where it belongs to one."""

    what: Superfluous
    kind: Kind
    store: GridStore | None = None

    @property
    def asked_by_name(self) -> bool:
        """Whether it goes only where its name was given: what cost GPU time is not removed by the dozen."""
        return self.kind == "cache"


def superfluous(root: Path, studies: Sequence[Workspace]) -> tuple[list[Found], list[FrostgridError]]:
    """Return what could go from ``root``, and what is wrong with caches that cannot be read: they are left alone.

    Leftovers of ended writers, parts whose views are all in another part as well, and, where ``studies`` are given,
    the caches that none of them fits.
    """
    found = [Found(what, "leftover") for what in leftovers(root)]
    stores, faults = GridStore.under(root)
    for store in stores:
        if studies and not any(fits(work, store.slug, store.identity, named=True) for work in studies):
            names = ", ".join(work.study.name for work in studies)
            reason = f"none of the given studies uses it ({names})"
            found.append(Found(Superfluous(store.path, reason, size_of(store.path)), "cache", store))
            continue
        try:
            found += [Found(what, "part", store) for what in redundant_parts(store)]
        except FrostgridError as fault:
            faults.append(fault)
    return found, faults


def check_named(found: Sequence[Found], named: Collection[str], root: Path, *, studies: bool) -> None:
    """Raise :class:`InputError` if a cache is to be removed by name that is none of those which no study uses."""
    unused = [one.what.path.name for one in found if one.kind == "cache"]
    for name in named:
        if name in unused:
            continue
        if not studies:
            raise InputError(
                "Which caches are not used, only studies can tell",
                where=name,
                remedy="Name the studies that are to go on with --study.",
            )
        there = (root / name / "cache.json").is_file()
        raise InputError(
            "A study uses this cache" if there else "There is no such cache",
            where=root / name,
            remedy=f"These are not used: {', '.join(unused)}." if unused else "All caches here are used.",
        )


def removed(found: Sequence[Found], named: Collection[str]) -> list[Found]:
    """Remove leftovers, redundant parts, and the caches that are ``named``; return what has gone.

    Raises ``VerificationError`` for a cache that is damaged, before a part of it goes, and ``StorageError``.
    """
    gone = [one for one in found if not one.asked_by_name or one.what.path.name in named]
    parts: dict[Path, tuple[GridStore, list[Superfluous]]] = {}
    for one in gone:
        if one.kind == "part" and one.store is not None:
            parts.setdefault(one.store.path, (one.store, []))[1].append(one.what)
    for store, those in parts.values():
        remove_parts(store, those)
    for one in gone:
        if one.kind != "part":
            remove(one.what)
    return gone
