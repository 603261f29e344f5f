"""The store's own JSON files: each names its format, and carries a digest of what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.errors import AccessError, InputError, VerificationError
from store.identity import canonical_json, fingerprint

_FIRST = 1  # the oldest version of every kind


def encode(kind: str, version: int, body: Mapping[str, Any]) -> bytes:
    """Return ``body`` as the bytes of a document of format ``frostgrid-<kind>/<version>``."""
    document = {"format": f"frostgrid-{kind}/{version}", **body}
    return canonical_json({**document, "digest": fingerprint(document)})


def encode_legibly(kind: str, version: int, body: Mapping[str, Any]) -> bytes:
    """Return ``body``, which is not empty, as ``encode`` does, but for people to read: a line for each field."""
    document = {"format": f"frostgrid-{kind}/{version}", **body}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(",\n ", f',\n "digest": "{digest}",\n ', 1).encode()


def decode(kind: str, version: int, data: bytes, where: str | Path, remedy: str) -> dict[str, Any]:
    """Return what ``encode`` was given; ``remedy`` says what to do about a document that is damaged.

    Raises ``VerificationError`` for anything that is not the unchanged document, ``InputError`` for one of a
    newer version than ``version``.
    """
    document = parse(kind, version, data, where, remedy)
    if not _has_digest(data, document.pop("digest", None)):
        raise VerificationError(
            "The file is not what was written: its digest differs", where=where, remedy=remedy
        )
    del document["format"]
    return document


def parse(kind: str, version: int, data: bytes, where: str | Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in ``data`` if its format can be read; errors as for ``decode``."""
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise VerificationError("The file is not JSON any more", where=where, remedy=remedy) from error
    name, _, number = str(document.get("format") if isinstance(document, dict) else "").partition("/")
    if name != f"frostgrid-{kind}" or not number.isdecimal():
        raise VerificationError(f"The file is not a frostgrid-{kind} document", where=where, remedy=remedy)
    if int(number) > version:
        raise InputError(
            f"The file is of format frostgrid-{kind}/{number}, newer than this version of frostgrid can read "
            f"(up to {version})",
            where=where,
            remedy="Update frostgrid.",
        )
    if int(number) < _FIRST:
        raise VerificationError(
            f"The file is of format frostgrid-{kind}/{number}, which no version of frostgrid has written",
            where=where,
            remedy=remedy,
        )
    return dict(document)


def _has_digest(data: bytes, digest: object) -> bool:
    # What was hashed is the file less its digest, as ``encode`` or ``encode_legibly`` wrote it.
    # The bytes are compared and not what they mean: 1e-5 and 1E-5 are one number, and only one of them was written.
    members = (f'"digest":"{digest}",', f'"digest": "{digest}",\n ')
    return any(hashlib.sha256(data.replace(text.encode(), b"", 1)).hexdigest() == digest for text in members)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def read_bytes(path: Path) -> bytes | None:
    """Return the content of ``path``, or ``None`` where there is none; raises ``AccessError`` without the right.

    An empty file counts as absent: on a file system without hard links it is a name that a killed writer had
    claimed and not yet filled.
    """
    try:
        return path.read_bytes() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise AccessError(
            "The file may not be read with the rights at hand",
            where=path,
            remedy="Ask its owner for the right to read the whole cache folder.",
        ) from error
