"""Finding an encoder's weights on this machine: at a path that is given, or in the folder FROSTGRID_WEIGHTS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stages.encoders.checkpoint import file_sha256
from stages.encoders.table import TimmRow, spelling, spellings, table
from store.errors import InputError

WEIGHTS_VARIABLE: Final = "FROSTGRID_WEIGHTS"
_SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt")


def given_file(row: TimmRow, weights: Path | None) -> Path | None:
    """Return the weights file of ``row`` at ``weights`` or, without that, in the folder FROSTGRID_WEIGHTS.

    In a folder it is ``<name>/<file>``, or ``<name>.safetensors`` and the like, of the encoder's name or an alias; in
    one that is given and serves no other encoder the bare ``<file>``, too. None where nothing is given, or
    FROSTGRID_WEIGHTS has none. Raises ``InputError`` for a path that is given and does not hold the weights, for
    several different weights of the encoder in one folder, and as :func:`weights_folder` does.
    """
    if weights is not None:
        return _at(row, weights)
    root = weights_folder()
    return None if root is None else _one(row, root, _under_name(row, root))


def named_file(row: TimmRow, folder: Path) -> Path:
    """Return the weights file of ``row`` in a folder that serves other encoders, too: never the bare ``<file>``.

    Raises ``InputError`` where it is not there, or not one.
    """
    found = _one(row, folder, _under_name(row, folder))
    if found is None:
        raise _missing(row, folder, shared=True)
    return found


def weights_folder() -> Path | None:
    """Return the folder FROSTGRID_WEIGHTS, None where it is not set; raise ``InputError`` where it is no folder."""
    root = os.environ.get(WEIGHTS_VARIABLE)
    if not root:
        return None
    if Path(root).is_dir():
        return Path(root)
    names = "a file, not a folder" if Path(root).exists() else "a folder that does not exist"
    raise InputError(
        f"{WEIGHTS_VARIABLE} names {names}",
        where=root,
        remedy="Set it to the folder that holds <encoder>/<file>, or unset it.",
    )


def alike(files: Sequence[Path]) -> bool:
    """Return whether files have the same content; it is read only where their sizes do not tell."""
    different = {path.resolve() for path in files}
    return len(different) <= 1 or (
        len({path.stat().st_size for path in different}) == 1
        and len({file_sha256(path) for path in different}) == 1
    )


def by_hand(row: TimmRow) -> str:
    """Return how the weights can be given by hand, and where they were looked for in vain: the end of a remedy."""
    root = os.environ.get(WEIGHTS_VARIABLE)
    if root:
        return (
            f"with --weights, or put it into the folder {WEIGHTS_VARIABLE} ({root}), which has none of "
            f"{', '.join(_looked_for(row))}."
        )
    return f"with --weights, or put it into the folder that {WEIGHTS_VARIABLE} names, as {row.name}/{row.files[0]}."


def _at(row: TimmRow, path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(
            f"there are no weights for {row.name} at this path", where=path, remedy="Check the path."
        )
    shared = _serves_others(row, path)
    bare = [] if shared else _first(path, row.files)
    found = _one(row, path, [*_under_name(row, path), *bare])
    if found is None:
        raise _missing(row, path, shared=shared)
    return found


def _missing(row: TimmRow, folder: Path, *, shared: bool) -> InputError:
    bare = _first(folder, row.files)
    nobodys = f", and its {bare[0].name} may be that of another encoder" if bare else ""
    looked = _looked_for(row) if shared else [*_looked_for(row), *row.files]
    return InputError(
        f"the folder holds no weights of {row.name}{nobodys}",
        where=folder,
        remedy=f"It should hold one of: {', '.join(looked)}.",
    )


def _looked_for(row: TimmRow) -> list[str]:
    names = (row.name, *row.aliases)
    return [
        *(f"{name}/{file}" for name in names for file in row.files),
        *(f"{row.name}{suffix}" for suffix in _SUFFIXES),
    ]


def _under_name(row: TimmRow, root: Path) -> list[Path]:
    """Return the files that the folder has under the encoder's name or an alias, in whatever spelling."""
    names = {spelling(known) for known in (row.name, *row.aliases)}
    found = []
    for entry in _entries(root):
        if entry.is_dir() and spelling(entry.name) in names:
            found += _first(entry, row.files)
        elif entry.suffix in _SUFFIXES and spelling(entry.stem) in names and entry.is_file():
            found.append(entry)
    return found


def _first(folder: Path, files: Sequence[str]) -> list[Path]:
    """Return the file that is preferred of those a folder has: they are forms of the same weights."""
    return [path for path in (folder / file for file in files) if path.is_file()][:1]


def _serves_others(row: TimmRow, folder: Path) -> bool:
    """Whether weights in a folder are named after their encoders, or the folder itself after another than ``row``."""
    known = {**spellings(), spelling(row.name): row.name}
    for entry in _entries(folder):
        name = entry.name if entry.is_dir() else entry.stem if entry.suffix in _SUFFIXES else ""
        if spelling(name) in known:
            return True
    whose = known.get(spelling(folder.absolute().name), row.name)
    return row.name in table() and whose != row.name


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"the folder of weights cannot be read ({error.strerror})",
            where=folder,
            remedy="Check its rights.",
        ) from None


def _one(row: TimmRow, folder: Path, candidates: Sequence[Path]) -> Path | None:
    """Return the first of the files, which must all be alike; raise ``InputError`` naming them where they are not."""
    if not alike(candidates):
        names = " and ".join(str(path.relative_to(folder)) for path in candidates)
        raise InputError(
            f"the folder holds several weights of {row.name} that differ: {names}",
            where=folder,
            remedy="Give the file that is meant with --weights, or take the others away.",
        )
    return candidates[0] if candidates else None
