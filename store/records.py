"""What is remembered of a finished shard: its done marker, its line in the manifest, and its own label."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from store.documents import decode, encode
from store.errors import FrostgridError
from store.shardfile import ShardSummary

VERSION = 1
_SHA = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]*")

Meta = dict[str, Any] | None


@dataclass(frozen=True)
class ShardId:
    """Which shard of which part of which cache: keys of cache and part, number of the shard."""

    cache: str
    part: str
    shard: int

    def to_json(self) -> dict[str, Any]:
        """Return the three fields as JSON has them."""
        return {"cache": self.cache, "part": self.part, "shard": self.shard}


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: which it is, its size and checksums, and what was learned about each view."""

    id: ShardId
    summary: ShardSummary
    meta: tuple[Meta, ...]

    def entry(self) -> dict[str, Any]:
        """Return size, checksums and metadata as JSON has them; crc32c as 8 hex digits each."""
        summary = self.summary
        return {
            "bytes": summary.bytes,
            "sha256": summary.sha256,
            "index_crc32c": f"{summary.index_crc32c:08x}",
            "chunk_crc32c": "".join(f"{crc:08x}" for crc in summary.chunk_crc32c),
            "meta": list(self.meta) if any(self.meta) else None,
        }

    @classmethod
    def from_entry(cls, identity: ShardId, views: int, entry: Mapping[str, Any]) -> ShardRecord:
        """Return the record of ``views`` views that ``entry`` was made from; raises ``ValueError`` if it is none."""
        size, sha256, crcs = entry.get("bytes"), str(entry.get("sha256")), str(entry.get("chunk_crc32c"))
        index_crc, meta = str(entry.get("index_crc32c")), entry.get("meta")
        if not isinstance(size, int) or not _SHA.fullmatch(sha256) or not _HEX.fullmatch(index_crc):
            raise ValueError("size, sha256 or checksum of the index is missing")
        if len(index_crc) != 8 or len(crcs) != 8 * views or not _HEX.fullmatch(crcs):
            raise ValueError(f"the checksums are not those of {views} views")
        chunk_crcs = struct.unpack(f">{views}I", bytes.fromhex(crcs))
        summary = ShardSummary(size, sha256, int(index_crc, 16), chunk_crcs)
        return cls(identity, summary, metas(meta, views))

    def marker(self) -> bytes:
        """Return the content of this shard's done marker."""
        return encode("shard", VERSION, {**self.id.to_json(), **self.entry()})

    @classmethod
    def from_marker(cls, data: bytes, identity: ShardId, views: int, where: str | Path) -> ShardRecord | None:
        """Return the record a done marker holds, or ``None`` if it is no intact marker of exactly this shard."""
        try:
            body = decode("shard", VERSION, data, where, "")
            return cls.from_entry(identity, views, body) if _names(body, identity) else None
        except (FrostgridError, ValueError):
            return None


def label(identity: ShardId, meta: tuple[Meta, ...]) -> bytes:
    """Return what a shard file says of itself, so that it can be taken over when its marker is lost."""
    return encode("label", VERSION, {**identity.to_json(), "meta": list(meta) if any(meta) else None})


def meta_of_label(data: bytes, identity: ShardId, views: int, where: Path) -> tuple[Meta, ...] | None:
    """Return the metadata in a shard's label, or ``None`` if the label is not that of exactly this shard."""
    try:
        body = decode("label", VERSION, data, where, "")
        return metas(body.get("meta"), views) if _names(body, identity) else None
    except (FrostgridError, ValueError):
        return None


def metas(value: Any, views: int) -> tuple[Meta, ...]:
    """Return one mapping or ``None`` per view from their JSON form; raises ``ValueError`` if it is another."""
    if value is None:
        return _nothing(views)
    if not isinstance(value, list) or len(value) != views:
        raise ValueError(f"the metadata are not those of {views} views")
    if not all(item is None or isinstance(item, dict) for item in value):
        raise ValueError("the metadata of a view are no mapping")
    return tuple(value)


@cache
def _nothing(views: int) -> tuple[Meta, ...]:
    return (None,) * views  # one for all shards: most have nothing, and there may be very many


def _names(body: Mapping[str, Any], identity: ShardId) -> bool:
    return {name: body.get(name) for name in ("cache", "part", "shard")} == identity.to_json()
