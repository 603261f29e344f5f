"""Files and folders that are there completely and durably, or not at all.

Everything is prepared under a name that ends in ``.partial``, flushed to the disk, and only then given its real
name, in one step that fails if somebody else was first.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from store.processes import partial_token

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def new_partial(final: Path) -> Path:
    """Return an unused temporary name beside ``final`` that tells which process it belongs to."""
    return final.with_name(f"{final.name}.{partial_token()}.partial")


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte of ``data``; a plain ``os.write`` may stop early on a disk that is nearly full."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power loss; its name is not yet flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # EINVAL: this file system knows no such operation, and there is nothing else to ask it for.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each durably; nothing happens where it exists."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_durable(path: Path, data: bytes) -> None:
    """Create the new file ``path`` with ``data`` and flush it; its name is not yet flushed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_exclusive(partial: Path, final: Path) -> bool:
    """Give the flushed file ``partial`` its name ``final``, durably, unless that name is taken.

    Returns whether it was given. ``partial`` is gone afterwards if so, and still there if not.
    """
    try:
        os.link(partial, final)
    except OSError as error:
        # A network file system may have made the link and lost the answer: then the file has two names.
        if partial.stat().st_nlink != 2:
            if isinstance(error, FileExistsError):
                return False
            if error.errno not in _NO_HARD_LINKS:
                raise
            if not _claim(final):
                return False
            partial.replace(final)
    partial.unlink(missing_ok=True)
    sync_folder(final.parent)
    return True


def put_exclusive(final: Path, data: bytes) -> bool:
    """Create ``final`` with ``data``, complete and durable; returns ``False`` where it exists already."""
    partial = new_partial(final)
    try:
        write_durable(partial, data)
        return commit_exclusive(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def put_replacing(final: Path, data: bytes) -> None:
    """Put ``data`` in the place of whatever ``final`` is, complete and durable."""
    partial = new_partial(final)
    try:
        write_durable(partial, data)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(final.parent)


def put_folder(final: Path, files: Mapping[str, bytes], folders: Sequence[str] = ()) -> bool:
    """Create the folder ``final`` with all ``files`` (relative name: content) and empty ``folders`` in one step.

    Returns ``False`` where a folder of that name with something in it exists already; it is left as it is.
    """
    make_folder(final.parent)
    partial = new_partial(final)
    try:
        partial.mkdir()
        for name in folders:
            make_folder(partial / name)
        for name, data in files.items():
            make_folder((partial / name).parent)
            write_durable(partial / name, data)
        for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
            sync_folder(folder)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            return False
        sync_folder(final.parent)
        return True
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_exactly(path: Path, seen: os.stat_result) -> bool:
    """Remove ``path`` if it is still the file that was examined as ``seen``; returns whether it was.

    The file is renamed and looked at again before it goes, so that of two processes that found the same file at
    fault the slower one does not remove what the faster one has put in its place.
    """
    aside = new_partial(path)
    try:
        if not _unchanged(path.stat(), seen):
            return False
        path.rename(aside)
    except FileNotFoundError:
        return False
    if not _unchanged(aside.stat(), seen) and commit_exclusive(aside, path):
        return False
    aside.unlink()
    sync_folder(path.parent)
    return True


def _unchanged(found: os.stat_result, seen: os.stat_result) -> bool:
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    return all(getattr(found, name) == getattr(seen, name) for name in names)


def _claim(final: Path) -> bool:
    """Take a name on a file system without hard links: whoever creates the empty file may replace it."""
    try:
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True
