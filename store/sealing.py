"""Closing a complete part with its manifest, and opening it again when one of its shards has been lost."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress

from store.disk_errors import storage_errors
from store.documents import encode, read_bytes
from store.durable import make_folder, put_exclusive, put_replacing, remove_exactly
from store.parts import MANIFEST_VERSION, Part
from store.records import ShardRecord
from store.sizes import file_size
from store.sweeping import sweep


def seal(part: Part) -> bool:
    """Give a part its manifest if all its shards are finished and whole; returns whether it is sealed now.

    Raises ``StorageError`` if the disk does not take the manifest.
    """
    if part.sealed():
        _tidy(part)
        return True
    # Counting names is cheap, reading every marker after every shard is not.
    with suppress(OSError):
        markers = sum(1 for path in part.done_folder.iterdir() if path.suffix == ".json")
        if markers < part.shards and not part.reopened.exists():
            return False
    records = part.done()
    if len(records) < part.shards:
        return part.sealed()
    with storage_errors(part.manifest):
        _remove_empty(part)
        contents = part.contents()
        for name, data in contents.items():
            if read_bytes(part.folder / name) != data:  # or the manifest would vouch for what is damaged
                make_folder((part.folder / name).parent)
                put_replacing(part.folder / name, data)
        put_exclusive(part.manifest, listing(part, records, contents))
    _tidy(part)
    return True


def prepare(part: Part) -> None:
    """Make a part ready to have shards written; a sealed one has lost some. Raises ``StorageError``."""
    if part.sealed():
        reopen(part)
    with storage_errors(part.folder):
        make_folder(part.done_folder)
        make_folder(part.lease_folder)


def reopen(part: Part) -> None:
    """Turn a sealed part into one whose lost or cut shards are unfinished and whose other shards are kept.

    The list of the shards that are kept is on the disk before the manifest goes, so none is ever without record.
    """
    with storage_errors(part.folder):
        seen = part.manifest.stat() if part.sealed() else None
        kept = part.done()
        put_replacing(part.reopened, listing(part, kept, {}))
        if seen is not None:
            remove_exactly(part.manifest, seen)


def sweep_part(part: Part) -> None:
    """Remove what ended writers have left behind in a part."""
    for folder in (part.folder, part.array_folder, part.done_folder, part.lease_folder):
        sweep(folder)


def _tidy(part: Part) -> None:
    """Remove what a sealed part does not need; where that is not allowed nobody is harmed."""
    with suppress(OSError):
        part.reopened.unlink(missing_ok=True)
    shutil.rmtree(part.done_folder.parent, ignore_errors=True)


def listing(part: Part, records: Mapping[int, ShardRecord], documents: Mapping[str, bytes]) -> bytes:
    """Return the manifest of a part with these finished shards and these other files (relative name: content)."""
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in documents.items()
    }
    array = {
        part.shard_name(shard): {
            "bytes": record.summary.bytes,
            "sha256": record.summary.sha256,
        }
        for shard, record in records.items()
    }
    shards = {str(shard): record.entry() for shard, record in records.items()}
    body = {"cache": part.cache, "part": part.key, "files": {**files, **array}, "shards": shards}
    return encode("manifest", MANIFEST_VERSION, body)


def _remove_empty(part: Part) -> None:
    if file_size(part.manifest) == 0:
        remove_exactly(part.manifest, part.manifest.stat())
