"""A place: a folder of caches on this machine or anywhere else, as far as sharing has to know it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

UNKNOWN = -1  # the size of a file where a listing tells none
Content = Path | bytes  # a local file, or what is to be the file's content


class Place(Protocol):
    """Files under one root, by relative names with ``/`` between their parts.

    Every operation may be called from several threads. What the other side refuses is raised as ``AccessError`` (no
    right), ``InputError`` (no such bucket, repository or protocol) or ``StorageError`` (connection lost, no space),
    each with what to do next; a credential is in no message and in no ``url``.
    """

    url: str  # as a person writes it
    batch_files: int  # how many shards are best sent in one call of ``send``

    def folders(self) -> list[str]:
        """Return the names of the folders directly under the root, sorted; empty where the root is not there yet."""
        ...

    def files(self, folder: str) -> dict[str, int]:
        """Return every file below ``folder``, by its name relative to it, with its size in bytes.

        One listing, whatever the number of files: no file is looked at by itself. A size is ``UNKNOWN`` where the
        listing tells none (plain web servers); nothing is returned for a folder that is not there.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or ``None`` where there is none."""
        ...

    def fetch(self, name: str, write: Callable[[bytes], object], start: int = 0) -> None:
        """Pass the content of a file from byte ``start`` on to ``write``, block by block.

        A connection that is cut raises ``StorageError``; what was passed on until then is right, so the caller can
        go on from there. A file that is not there raises ``MissingViews``.
        """
        ...

    def send(self, files: Mapping[str, Content], *, new: bool = False) -> list[str]:
        """Store files, replacing any of the same name, in the order given: each is there before the next is begun.

        (A place with atomic commits may store all of them in one.) On return every file has arrived and was
        compared with what was sent. After an error any of them may be there, in whole or in part.

        With ``new`` no file is replaced: one that is there with another content ends the call, and the names that
        were not stored (that one and those after it; all of them where they are stored in one commit) are returned.
        A file that is there with this very content counts as stored.
        """
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""
        ...

    def public(self) -> bool | None:
        """Tell whether anybody can list or read what lies here without credentials; ``None`` where that is unknown."""
        ...
