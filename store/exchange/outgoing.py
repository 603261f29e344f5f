"""Files and folders that leave the store: there completely, flushed to the disk, or not at all; never over others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import h5py

from store.disk_errors import storage_error, storage_errors
from store.durable import commit_exclusive, make_folder, new_partial, sync_file, sync_folder
from store.errors import ImpossiblePath, InputError, StorageError
from store.sweeping import sweep

# Superblock, headers and chunk indices of this version carry checksums; HDF5 1.10 (2016) and later read it.
CHECKSUMMED = ("v110", "v110")


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the file or folder, how many views, how many masks with them, bytes on the disk."""

    path: Path
    views: int
    masks: int
    bytes: int


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the block a temporary name to write; afterwards it is flushed and named ``path``.

    Raises ``InputError`` if ``path`` exists, ``StorageError`` if the disk does not take the file. Whatever else ends
    the block, the temporary file is removed.
    """
    if os.path.lexists(path):
        raise _taken(path)
    partial = new_partial(path)
    try:
        with _explained(path):
            make_folder(path.parent)
            sweep(path.parent)
            yield partial
            sync_file(partial)
            if not commit_exclusive(partial, path):
                raise _taken(path)
    finally:
        # Where nothing can be written there is nothing to remove, and the reason is told.
        with suppress(OSError):
            partial.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give the block an empty folder to fill with files, which is then flushed and named ``path``; see ``new_file``."""
    if _occupied(path):
        raise _taken(path)
    partial = new_partial(path)
    try:
        with _explained(path):
            make_folder(path.parent)
            sweep(path.parent)
            partial.mkdir()
            yield partial
            for file in partial.iterdir():
                sync_file(file)
            sync_folder(partial)
            try:
                partial.rename(path)
            except OSError:
                if _occupied(path):
                    raise _taken(path) from None
                raise
            sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_hdf5(
    path: Path, libver: tuple[str, str] | None = None
) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Give the block a new HDF5 file at ``path``, which must not exist, and a function that raises if its disk is full.

    The HDF5 library cannot close a file that the disk no longer takes: it leaves objects behind that end the process.
    So every byte passes through ``_Sink``, and the disk's refusal is raised (as ``OSError``) by the function and after
    an orderly close at the end of the block, not where it was met.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    sink = _Sink(descriptor)
    try:
        # Without a cache of chunks each is written at once, and a full disk is noticed at the view that fills it.
        with h5py.File(cast(IO[bytes], sink), "w", libver=libver, rdcc_nbytes=0) as file:
            yield file, sink.check
        sink.check()
    except Exception:
        sink.check()  # after a refused write the library reads back what is not there; that is no news
        raise
    finally:
        os.close(descriptor)


def require_space(folder: Path, needed: int) -> None:
    """Raise ``StorageError`` if the disk of ``folder``, which need not exist yet, has no room for ``needed`` bytes.

    Raises ``ImpossiblePath`` if it cannot be made, or lies on what is no disk (/proc).
    """
    given = folder = folder.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    with storage_errors(given):
        usage = shutil.disk_usage(folder)
    if not folder.is_dir() or not usage.total:
        raise ImpossiblePath(
            f"It cannot be written there: {folder} is no folder{'' if usage.total else ' on a disk'}",
            where=given,
            remedy="Give another path.",
        )
    free = usage.free
    if free < needed:
        raise StorageError(
            f"The disk has not enough room: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free",
            where=folder,
            remedy="Nothing was written. Free some space, or choose a folder on another disk.",
        )


class _Sink:
    """A file as the HDF5 library sees it; after the first error it takes everything and keeps nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error that a write met."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = os.pread(self._descriptor, size, self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        length = len(rest)
        try:
            while rest and self._error is None:
                written = os.pwrite(self._descriptor, rest, self._at + length - len(rest))
                rest = rest[written:]
        except OSError as error:
            self._error = error
        self._at += length
        return length

    def truncate(self, size: int) -> int:
        try:
            if self._error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Nothing is held back here; the file is flushed to the disk before it gets its name."""


def _occupied(folder: Path) -> bool:
    """Tell whether a folder of this name cannot be made: one that is empty may as well be used."""
    usable = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    return os.path.lexists(folder) and not usable


def _taken(path: Path) -> InputError:
    return InputError(
        "Something lies there already, and an export never replaces anything",
        where=path,
        remedy="Choose another name, or move what is there away.",
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found = storage_error(error, path)
        raise type(found)(
            found.what,
            where=found.where,
            remedy=found.remedy
            if isinstance(found, ImpossiblePath)
            else "Nothing is left of this export. Make room there, or choose another folder, and repeat it.",
        ) from error
