"""Downloading one file over HTTP: resumed after a cut connection, compared with its size and md5, then renamed."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from store.errors import AccessError, InputError, StorageError, VerificationError

TIMEOUT_S = 30.0
ATTEMPTS = 5  # in a row without a new byte
PAUSE_S = 2.0  # before the second attempt; doubled before each further one

_BLOCK = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class NotReached(Exception):
    """The server did not answer, or not to the end, however often it was asked."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its name, its size in bytes, its md5 (32 hex digits) and its address."""

    name: str
    size: int
    md5: str
    url: str

    def held(self, folder: Path) -> int:
        """Return how many bytes of the file an earlier download left in ``folder``."""
        for path in (folder / self.name, folder / f"{self.name}.part"):
            if path.is_file():
                return min(path.stat().st_size, self.size)
        return 0


def get_json(url: str) -> Any:
    """Return the JSON that ``url`` answers with. Raises ``NotReached``, or an error that says what was refused."""
    attempt = 0
    while True:
        try:
            with _open(url, {"Accept": "application/json"}) as response:
                return json.loads(response.read())
        except ValueError as error:
            raise InputError(
                "the server did not answer with JSON",
                where=url,
                remedy="Check whether a proxy answers in its place.",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            # A busy server is asked again; a machine without network should hear of it at once.
            attempt = attempt + 1 if isinstance(error, urllib.error.HTTPError) else ATTEMPTS
            _give_up_or_wait(error, url, attempt)


def fetch(file: RemoteFile, folder: Path, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Return ``folder / file.name`` after downloading what of it is missing.

    Bytes are added to ``<name>.part``, which gets its name only when size and md5 agree; ``progress`` is told the name,
    the bytes there are and the bytes in all. Raises ``NotReached`` after several attempts in a row that brought nothing
    (``<name>.part`` stays for the next call), ``VerificationError`` for another content (``<name>.part`` is removed),
    ``StorageError`` where the disk fails.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.is_file():
        if path.stat().st_size == file.size and _md5(path) == file.md5:
            return path
        raise VerificationError(
            "an archive with this name is there, and is not the record's",
            where=path,
            remedy="Move it elsewhere.",
        )
    failures = 0
    while (held := part.stat().st_size if part.exists() else 0) < file.size:
        try:
            _append(file, part, held, progress)
            error: Exception = ConnectionError("the server closed the connection early")
        except (OSError, http.client.HTTPException) as caught:
            error = caught
        now = part.stat().st_size if part.exists() else 0
        if now >= file.size:
            break
        failures = 0 if now > held else failures + 1
        _give_up_or_wait(error, file.url, failures)
    if part.stat().st_size != file.size or _md5(part) != file.md5:
        part.unlink()
        raise VerificationError(
            "what was downloaded is not the record's file: its checksum differs",
            where=file.url,
            remedy="Run the command again; the wrong bytes were removed.",
        )
    with _disk(path):
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(path)
    return path


def require_space(folder: Path, needed: int) -> None:
    """Raise ``StorageError`` where the disk of ``folder`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free",
            where=folder,
            remedy="Make room, or choose a folder on another disk.",
        )


def _append(
    file: RemoteFile, part: Path, held: int, progress: Callable[[str, int, int], None] | None
) -> None:
    """Ask for what is missing and write it; begin anew where the server cannot continue."""
    headers = {"Range": f"bytes={held}-"} if held else {}
    with _open(file.url, headers) as response:
        continued = response.status == 206
        if continued and not str(response.headers.get("Content-Range")).startswith(f"bytes {held}-"):
            raise VerificationError(
                f"the server continues with {response.headers.get('Content-Range')!r}, not at byte {held}",
                where=file.url,
                remedy=f"Remove {part} and run the command again.",
            )
        there = held if continued else 0
        with _disk(part):
            out = part.open("ab" if continued else "wb")
        with out:
            while block := response.read(_BLOCK):
                there += len(block)
                if there > file.size:
                    raise VerificationError(
                        f"the server sends more than the record's {file.size:,} bytes",
                        where=file.url,
                        remedy="Check whether a proxy answers in its place.",
                    )
                with _disk(part):
                    out.write(block)
                    out.flush()
                if progress is not None:
                    progress(file.name, there, file.size)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Tell a failing disk from a failing connection: both are ``OSError``."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the file cannot be written ({error})", where=path, remedy="Make room, or choose another folder."
        ) from error


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError("this is no web address", where=url, remedy="Give an https address.")
    request = urllib.request.Request(url, headers={"User-Agent": "frostgrid", **headers})
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    return response


def _give_up_or_wait(error: Exception, url: str, attempt: int) -> None:
    """Raise for what asking again cannot mend and where ``attempt`` was the last; otherwise wait a little."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            raise AccessError(
                f"the server refuses the file (HTTP {error.code})", where=url, remedy="Fetch it in a browser."
            ) from error
        if error.code not in _PASSING:
            raise InputError(
                f"the server does not have the file (HTTP {error.code})",
                where=url,
                remedy="Check the record's page.",
            ) from error
    if attempt >= ATTEMPTS:
        reason = getattr(error, "reason", None) or error
        raise NotReached(str(reason)) from error
    time.sleep(PAUSE_S * 2 ** max(0, attempt - 1))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
