"""A bucket, a server or anything else fsspec has a file system for, as a place."""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any
from urllib.parse import unquote

import fsspec

from store.errors import AccessError, FrostgridError, InputError, MissingViews, StorageError
from store.places.arrival import BLOCK_BYTES, PART_BYTES, arrived
from store.places.failures import (
    KEPT,
    READ_ONLY,
    code_of,
    explained,
    family,
    raise_unless_absent,
    without_secrets,
)
from store.places.place import UNKNOWN, Content

_BUCKETS = ("s3", "gs", "az")
_EXTRA = {"s3": 'pip install "frostgrid[s3]"', "gs": "pip install gcsfs", "az": "pip install adlfs"}
_ANONYMOUS: dict[str, dict[str, Any]] = {"s3": {"anon": True}, "gs": {"token": "anon"}, "az": {"anon": True}}
_WEB = ("http", "https")
_CONFLICTS = 5
_DEPTH = 4  # of files below the folder of a cache: part/_work/done/0.json


class FsspecPlace:
    """The caches under ``url``; see :class:`store.places.place.Place`.

    Credentials and endpoints come from where the file system looks for them (AWS_*, GOOGLE_APPLICATION_CREDENTIALS,
    fsspec's own configuration); ``url`` as an attribute is without any. Raises ``InputError`` for a protocol that is
    not known, or whose package is not installed.
    """

    batch_files = 1

    def __init__(self, url: str) -> None:
        self.url = without_secrets(url).rstrip("/")
        self._protocol = family(url.partition("://")[0])
        if "?" in url:
            raise InputError(
                "A URL with a query is no place for caches: the names of files go behind it",
                where=self.url,
                remedy="Give the URL of the folder alone; credentials come from the environment.",
            )
        if self._protocol in _BUCKETS and re.match(r"[^/@]*:[^/]*@", url.partition("://")[2]):
            raise InputError(
                "Credentials do not belong in the URL of a bucket",
                where=self.url,
                remedy="Leave them to the environment, as the tools of the store do.",
            )
        if "::" in url:
            raise InputError("A chain of URLs is no place for caches", where=self.url, remedy="Give one URL.")
        # Others may write here at any time, so nothing that was listed once may be taken for what is there now; and a
        # file system made earlier, which fsspec would hand out again, may have other credentials.
        fresh = {"use_listings_cache": False, "skip_instance_cache": True}
        self._options = fresh if self._protocol in (*_BUCKETS, *_WEB) else {}
        self._files, root = _file_system(url, self._protocol, self.url, self._options)
        self._root = str(root).rstrip("/")
        if self._protocol in _BUCKETS and not self._root:
            raise InputError(
                "The URL names no bucket", where=url, remedy="Give one, as in s3://bucket/folder."
            )
        # File systems without a listing of their own walk. That leaves out what cannot be read unless told not to, and
        # goes round in circles on a web server that answers every name with the same page.
        walks = type(self._files).find is fsspec.AbstractFileSystem.find or self._protocol in _WEB
        self._walking: dict[str, Any] = {"on_error": "raise", "maxdepth": _DEPTH} if walks else {}
        put = getattr(self._files, "_put_file", self._files.put_file)
        # Whether a name that is taken is refused by the store itself; not known until it was tried.
        self._refuses = None if "mode" in inspect.signature(put).parameters else False

    def folders(self) -> list[str]:
        """See ``Place``."""
        with self._explained():
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._root, detail=True)
            except FileNotFoundError as error:
                raise_unless_absent(error)
                return []
        return sorted({self._name(entry["name"]) for entry in entries if entry["type"] == "directory"})

    def files(self, folder: str) -> dict[str, int]:
        """See ``Place``."""
        path = self._path(folder)
        with self._explained(folder):
            self._files.invalidate_cache()
            try:
                found = self._files.find(path, detail=True, **self._walking)
            except FileNotFoundError as error:
                raise_unless_absent(error)
                return {}
        start = len(path) + 1
        return {
            self._unquoted(name)[start:]: UNKNOWN if entry.get("size") is None else int(entry["size"])
            for name, entry in found.items()
            if self._unquoted(name).startswith(path + "/") and entry.get("type") != "directory"
        }

    def read(self, name: str) -> bytes | None:
        """See ``Place``."""
        whole = {"max_concurrency": 1} if self._protocol == "s3" else {}  # or its size is asked for first
        with self._explained(name):
            try:
                return bytes(self._files.cat_file(self._path(name), **whole))
            except FileNotFoundError as error:
                raise_unless_absent(error)
                return None

    def fetch(self, name: str, write: Callable[[bytes], object], start: int = 0) -> None:
        """See ``Place``; read in pieces of 8 MiB, each of which the file system may itself have tried repeatedly."""
        path = self._path(name)
        size = self._present(name, lambda: self._files.info(path).get("size"))
        while size is None or start < size:
            end = start + BLOCK_BYTES if size is None else min(start + BLOCK_BYTES, size)
            block = self._present(name, functools.partial(self._files.cat_file, path, start=start, end=end))
            if len(block) > end - start:  # a server that knows no ranges sends all of it
                write(block[start:])
                return
            if not block and size is None:
                return
            if len(block) < end - start and size is not None:
                raise StorageError(
                    "The connection broke off",
                    where=self._where(name),
                    remedy=f"{KEPT}Run the same command again.",
                )
            write(block)
            start += len(block)

    def send(self, files: Mapping[str, Content], *, new: bool = False) -> list[str]:
        """See ``Place``.

        With ``new`` the store itself refuses a name that is taken where it can (S3, Google, Azure). Elsewhere, and on
        S3 servers that pass over the condition, the name is looked up first, and two senders at the same instant may
        both believe to be the first.
        """
        names = list(files)
        if self._protocol in _WEB:
            raise InputError("A place of this kind can only be read", where=self.url, remedy=READ_ONLY)
        for at, (name, content) in enumerate(files.items()):
            if not self._store(name, content, new):
                return names[at:]
        return []

    def remove(self, names: Iterable[str]) -> None:
        """See ``Place``."""
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(self._remove, names):
                pass

    def public(self) -> bool | None:
        """See ``Place``; a bucket is asked without credentials, first for its list and then for one file in it."""
        if self._protocol in _WEB:
            return True
        if self._protocol == "memory":
            return False
        if self._protocol not in _ANONYMOUS:
            return None
        options = {**self._files.storage_options, **self._options, **_ANONYMOUS[self._protocol]}
        stranger = fsspec.filesystem(self._protocol, **options)
        try:
            with self._explained(), suppress(FileNotFoundError):
                stranger.ls(self._root)
            return True
        except AccessError:
            return self._one_is_public(stranger)
        except FrostgridError:
            return None

    def _one_is_public(self, stranger: Any) -> bool | None:
        """Tell whether a stranger who may not list the place may read the file in it that we find first."""
        try:
            with self._explained():
                for _, _, files in self._files.walk(self._root, detail=True):
                    for entry in files.values():
                        stranger.info(entry["name"])
                        return True
        except AccessError:
            return False
        except FrostgridError:
            return None
        return False

    def _present(self, name: str, get: Callable[[], Any]) -> Any:
        try:
            with self._explained(name, copying=True):
                return get()
        except FileNotFoundError as error:
            raise MissingViews(
                "The file is not there",
                where=self._where(name),
                remedy="Push the cache again from where it is whole.",
            ) from error

    def _store(self, name: str, content: Content, new: bool) -> bool:
        path = self._path(name)
        with self._explained(name, copying=True):
            # a large file is worth a look, even where the store would refuse it after it was sent
            if new and not (self._refuses and isinstance(content, bytes)) and self._files.exists(path):
                return arrived(self._files, path, content)
            try:
                self._put(path, content, new)
            except FileExistsError:
                return arrived(self._files, path, content)
            if new and self._refuses is None and isinstance(content, bytes):
                self._try_twice(path, content)
            if arrived(self._files, path, content):
                return True
        if new:
            return False  # another has put something in its place meanwhile; the caller looks what
        raise StorageError(
            "The file did not arrive as it was sent",
            where=self._where(name),
            remedy=f"{KEPT}Run the same command again.",
        )

    def _put(self, path: str, content: Content, new: bool) -> None:
        for left in reversed(range(_CONFLICTS)):
            try:
                self._put_once(path, content, new and self._refuses is not False)
                return
            except FileNotFoundError as error:
                if not left or self._protocol in _BUCKETS or code_of(error):
                    raise
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            except OSError as error:
                code = code_of(error)
                if code in ("NotImplemented", "501") and new and self._refuses is None:
                    self._refuses = False
                elif code == "ConditionalRequestConflict" and left:
                    time.sleep(0.5)  # another is writing this very name: it will have it, or give it up
                else:
                    raise

    def _try_twice(self, path: str, content: bytes) -> None:
        """Find out whether the store refuses to create what is there; some S3 servers pass over the condition."""
        try:
            self._put_once(path, content, True)
            self._refuses = False
        except FileExistsError:
            self._refuses = True

    def _put_once(self, path: str, content: Content, create: bool) -> None:
        options: dict[str, Any] = {"mode": "create"} if create else {}
        if isinstance(content, bytes):
            self._files.pipe_file(path, content, **options)
            return
        if self._protocol == "s3":
            # small parts: a connection that breaks costs one of them, and few are held in memory
            options |= {"chunksize": PART_BYTES, "max_concurrency": 2}
        self._files.put_file(str(content), path, **options)

    def _remove(self, name: str) -> None:
        with self._explained(name):
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError as error:
                raise_unless_absent(error)

    def _explained(self, name: str = "", *, copying: bool = False) -> AbstractContextManager[None]:
        return explained(self._protocol, self._where(name), copying=copying)

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _name(self, path: str) -> str:
        return self._unquoted(path).rstrip("/").rpartition("/")[2]

    def _unquoted(self, path: str) -> str:
        return unquote(path) if self._protocol in _WEB else path


def _file_system(url: str, protocol: str, where: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    try:
        with explained(protocol, where):
            files, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        remedy = f"Install it: {_EXTRA[protocol]}." if protocol in _EXTRA else f"{error}."
        raise InputError(
            f"{protocol}:// needs a package that is not installed", where=where, remedy=remedy
        ) from error
    except ValueError as error:
        raise InputError(
            f"There is no place of the kind {protocol}://",
            where=where,
            remedy="Give a path, or a URL such as s3://bucket/folder or hf://datasets/owner/name.",
        ) from error
    return files, root
