"""Whether a file lies somewhere else as it was sent: by the checksum the store tells, else by reading it back."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c

from store.places.place import Content

PART_BYTES = 8 << 20  # a file of more than twice this goes to an S3 store in parts of this size
BLOCK_BYTES = 8 << 20
_ETAG = re.compile(r'"?([0-9a-f]{32})(?:-(\d+))?"?')


def arrived(files: Any, path: str, content: Content) -> bool:
    """Tell whether ``path`` in the fsspec file system ``files`` holds exactly ``content``.

    One request where the store tells a checksum. Raises whatever the file system raises, ``FileNotFoundError`` among
    it.
    """
    info = files.info(path)
    size = size_of(content)
    if info.get("size") is not None and info["size"] != size:
        return False
    told = _told(info, content)
    if told is not None:
        return told
    start = 0
    for block in blocks(content):
        if files.cat_file(path, start=start, end=start + len(block)) != block:
            return False
        start += len(block)
    # a store that does not tell sizes might have more
    return info.get("size") is not None or not files.cat_file(path, start=start, end=start + 1)


def size_of(content: Content) -> int:
    """Return how many bytes ``content`` has."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def blocks(content: Content) -> Iterator[bytes]:
    """Yield ``content`` in pieces of 8 MiB, the last one shorter."""
    if isinstance(content, bytes):
        yield from (content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES))
        return
    with content.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _told(info: Mapping[str, Any], content: Content) -> bool | None:
    """Compare with the checksum in ``info``; ``None`` where there is none that decides.

    An ETag of S3 is the MD5 of the object, or of the MD5s of its parts; with some kinds of encryption it is neither,
    so only an equal one decides.
    """
    etag = _ETAG.fullmatch(str(info.get("ETag", "")))
    if etag:
        found = _md5_of_parts(content, int(etag[2])) if etag[2] else _md5(content).hexdigest()
        if found == etag[1]:
            return True
    if isinstance(info.get("md5Hash"), str):
        return _equal(info["md5Hash"], _md5(content).digest())
    if isinstance(info.get("crc32c"), str):
        crc = 0
        for block in blocks(content):
            crc = google_crc32c.extend(crc, block)
        return _equal(info["crc32c"], crc.to_bytes(4, "big"))
    return None


def _equal(told: str, found: bytes) -> bool:
    return told == base64.b64encode(found).decode()


def _md5(content: Content) -> Any:
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks(content):
        digest.update(block)
    return digest


def _md5_of_parts(content: Content, parts: int) -> str:
    digests = [hashlib.md5(block, usedforsecurity=False).digest() for block in blocks(content)]
    return hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest() if len(digests) == parts else ""
