"""A folder of this machine as a place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from store.disk_errors import storage_errors
from store.documents import read_bytes
from store.durable import commit_exclusive, make_folder, new_partial, sync_folder, write_all
from store.errors import AccessError, MissingViews, StorageError
from store.places.place import Content

_BLOCK = 4 << 20


class LocalPlace:
    """The caches under the absolute path ``folder``; see :class:`store.places.place.Place`."""

    batch_files = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    def folders(self) -> list[str]:
        """See ``Place``."""
        with _reading(self.folder):
            try:
                return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []

    def files(self, folder: str) -> dict[str, int]:
        """See ``Place``. A file that goes away while the folder is being listed is left out."""
        with _reading(self.folder / folder):
            return dict(_sizes(self.folder / folder, ""))

    def read(self, name: str) -> bytes | None:
        """See ``Place``; an empty file counts as none."""
        with _reading(self.folder / name):
            return read_bytes(self.folder / name)

    def fetch(self, name: str, write: Callable[[bytes], object], start: int = 0) -> None:
        """See ``Place``."""
        path = self.folder / name
        try:
            with _reading(path):
                file = path.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingViews(
                "The file is gone", where=path, remedy="Restore it from a copy of the cache."
            ) from error
        with file:
            file.seek(start)
            while True:
                with _reading(path):
                    block = file.read(_BLOCK)
                if not block:
                    return
                write(block)

    def send(self, files: Mapping[str, Content], *, new: bool = False) -> list[str]:
        """See ``Place``; every file is complete and durable before it has its name."""
        names = list(files)
        for at, (name, content) in enumerate(files.items()):
            final = self.folder / name
            with storage_errors(final):
                make_folder(final.parent)
                partial = new_partial(final)
                try:
                    digest = _copy(content, partial)
                    if not new:
                        partial.replace(final)
                        sync_folder(final.parent)
                    elif not commit_exclusive(partial, final) and _sha256(final) != digest:
                        return names[at:]
                finally:
                    partial.unlink(missing_ok=True)
        return []

    def remove(self, names: Iterable[str]) -> None:
        """See ``Place``."""
        for name in names:
            with storage_errors(self.folder / name), suppress(FileNotFoundError, NotADirectoryError):
                (self.folder / name).unlink()

    def public(self) -> bool | None:
        """Return ``False``: only who may use this machine reads its folders."""
        return False


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except PermissionError as error:
        raise AccessError(
            "This may not be read with the rights at hand",
            where=path,
            remedy="Ask its owner for the right to read the whole cache folder.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"This cannot be read: {error.strerror or error}", where=path, remedy="Check the disk."
        ) from error


def _sizes(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        with suppress(FileNotFoundError):
            if entry.is_dir():
                yield from _sizes(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


def _copy(content: Content, path: Path) -> str:
    """Write and flush the new file ``path``; returns the sha256 of what it holds."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for block in _blocks(content):
            write_all(descriptor, block)
            digest.update(block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
