"""What a folder of caches could do without, and why; and removing it, completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from store.disk_errors import storage_errors
from store.durable import new_partial, sync_folder
from store.errors import VerificationError
from store.grids import GridStore
from store.parts import load_part, part_folders
from store.sweeping import abandoned, remove_abandoned
from store.verify import verify


@dataclass(frozen=True)
class Superfluous:
    """A file or folder that could go: why, as a clause, and how many bytes that frees."""

    path: Path
    reason: str
    bytes: int


def leftovers(root: Path) -> list[Superfluous]:
    """Return what ended writers have left anywhere below ``root``: temporary files, complete for nobody."""
    found: list[Superfluous] = []
    for folder, names, _ in os.walk(root):
        try:
            gone = abandoned(Path(folder))
        except FileNotFoundError:  # somebody seals a part just now, say, and removes what it no longer needs
            continue
        # what lies in an abandoned folder goes with it
        names[:] = [name for name in names if Path(folder, name) not in gone]
        found += [Superfluous(path, "left behind by a writer that has ended", size_of(path)) for path in gone]
    return found


def redundant_parts(store: GridStore) -> list[Superfluous]:
    """Return the sealed parts of ``store`` of which every view is in another sealed part that stays, too.

    Small parts go before large ones. Errors of the parts as for ``store.parts.load_part``.
    """
    parts = [load_part(folder, store.key, store.spec) for folder in part_folders(store.path)]
    sealed = [part for part in parts if part.sealed() and len(part.done()) == part.shards]
    staying = {part.name: set(part.rows.keys()) for part in sealed}
    found = []
    for part in sorted(sealed, key=lambda part: (len(part.rows), part.name)):
        views = staying.pop(part.name)
        holders = [name for name, others in staying.items() if not views.isdisjoint(others)]
        if not views <= set().union(*(staying[name] for name in holders)):
            staying[part.name] = views
        else:
            reason = f"all its {len(part.rows)} views are in {' and '.join(holders)} as well"
            found.append(Superfluous(part.folder, reason, size_of(part.folder)))
    return found


def remove(found: Superfluous) -> None:
    """Remove a file or folder: it loses its name in one step, so that a kill leaves a leftover and never half a cache.

    Raises ``StorageError``.
    """
    with storage_errors(found.path):
        aside = found.path if found.path.name.endswith(".partial") else new_partial(found.path)
        if aside != found.path:
            try:
                found.path.rename(aside)
            except FileNotFoundError:
                return
            sync_folder(aside.parent)
        remove_abandoned(aside)


def remove_parts(store: GridStore, found: Collection[Superfluous]) -> None:
    """Remove redundant parts of ``store``, after reading all of it: what stays has to be whole.

    Raises ``VerificationError`` where a grid of the store is damaged, ``StorageError``; then none is removed.
    """
    faults = verify(store)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise VerificationError(
            f"Nothing is removed from a cache that is damaged: {faults[0].rstrip('.')}{more}",
            where=store.path,
            remedy="Find out with frostgrid cache verify, and mend it first: the good copy may be the one to go.",
        )
    for one in found:
        remove(one)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 for what has gone meanwhile."""
    return sum(_sizes(path))


def _sizes(path: Path) -> Iterator[int]:
    try:
        if not path.is_dir() or path.is_symlink():
            yield path.lstat().st_size
            return
        entries = list(path.iterdir())
    except OSError:
        return
    for entry in entries:
        yield from _sizes(entry)
