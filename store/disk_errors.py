"""What the operating system refuses to write, said so that people know what is wrong and where else to go."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from store.errors import ImpossiblePath, StorageError

_IMPOSSIBLE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
    *(errno.ENXIO, errno.ENODEV),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "or point [cache] root in the study at another disk, and run the same command again"


def storage_error(error: OSError, path: Path) -> StorageError:
    """Explain a failed write at ``path``: what the disk refused, how much is free, where else to go.

    An ``ImpossiblePath`` where the path itself is at fault.
    """
    folder = path if os.path.isdir(path) else path.parent  # noqa: PTH112  (is_dir raises for a name that is too long)
    if error.errno in _FULL:
        with suppress(OSError):
            free = shutil.disk_usage(_existing(folder)).free
            return StorageError(
                f"The disk is full: {free / 1e6:.1f} MB are free",
                where=folder,
                remedy=f"Finished shards are kept. Free some space, {_ELSEWHERE}.",
            )
    if error.errno == errno.EROFS:
        return StorageError(
            "The folder lies on a read-only file system",
            where=folder,
            remedy=f"Mount it for writing, {_ELSEWHERE}.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(
            "The folder may not be written with the rights at hand",
            where=folder,
            remedy=f"Give yourself the right to write there, {_ELSEWHERE}.",
        )
    if error.errno in _IMPOSSIBLE:
        return ImpossiblePath(
            f"It cannot be written there: {_why_impossible(error, path)}",
            where=path,
            remedy="Give another path.",
        )
    return StorageError(
        f"The disk does not take the file: {error.strerror or error}",
        where=path,
        remedy=f"Finished shards are kept. Check the disk, {_ELSEWHERE}.",
    )


def _why_impossible(error: OSError, path: Path) -> str:
    """Return what is in the way of ``path``: a file among its folders, a folder in which nothing can be made."""
    parent = path.absolute().parent
    above = _existing(parent)
    if not above.is_dir():
        return f"{above} is no folder"
    if error.errno == errno.ENOENT:
        there = "" if above == parent else f"there is no folder {parent}, and "
        return f"{there}nothing could be made in {above}"
    if error.errno == errno.EEXIST:
        return f"{path} is there already, and is no folder"
    return (error.strerror or str(error)).lower()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn every ``OSError`` of the enclosed file operations on ``path`` into a ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def _existing(folder: Path) -> Path:
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder
