"""The store's own JSON files: each names its format, and carries a digest of what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.errors import AccessError, InputError, VerificationError
from store.identity import canonical_json, fingerprint


def encode(kind: str, version: int, body: Mapping[str, Any]) -> bytes:
    """Return ``body`` as the bytes of a document of format ``frostgrid-<kind>/<version>``."""
    document = {"format": f"frostgrid-{kind}/{version}", **body}
    return canonical_json({**document, "digest": fingerprint(document)})


def decode(kind: str, version: int, data: bytes, where: Path, remedy: str) -> dict[str, Any]:
    """Return what ``encode`` was given; ``remedy`` says what to do about a document that is damaged.

    Raises ``VerificationError`` for anything that is not the unchanged document, ``InputError`` for one of a
    newer version than ``version``.
    """
    document = parse(kind, version, data, where, remedy)
    digest = document.pop("digest", None)
    if digest != fingerprint(document):
        raise VerificationError(
            "The file is not what was written: its digest differs", where=where, remedy=remedy
        )
    del document["format"]
    return document


def parse(kind: str, version: int, data: bytes, where: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in ``data`` if its format can be read; errors as for ``decode``."""
    try:
        document = json.loads(data)
    except ValueError as error:
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
    return dict(document)


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
