"""What a Xet server keeps of an upload: enough of its two formats to give a file back, and nothing of its network."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import imagecodecs

_HEADER = 48
_ENTRY = 48
_END = b"\xff" * 32
_WITH_VERIFICATION = 0x80000000
_WITH_SHA256 = 0x40000000
_LZ4, _LZ4_OF_FOUR = 1, 2  # how a chunk is compressed; 0: not at all


@dataclass
class XetStorage:
    """Xorbs {hash: chunks}: what clients upload, cut and compressed by their own rules, before they say what it is."""

    xorbs: dict[str, list[bytes]] = field(default_factory=dict)

    def put_xorb(self, name: str, body: bytes) -> None:
        self.xorbs[name] = list(_chunks(body))

    def files_of_shard(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield (sha256, content) of every file that an uploaded shard describes."""
        at = _HEADER
        while body[at : at + 32] != _END:
            flags, count = struct.unpack_from("<II", body, at + 32)
            at += _ENTRY
            content = b""
            for _ in range(count):
                size, first, last = struct.unpack_from("<III", body, at + 36)
                chunks = b"".join(self.xorbs[_name(body[at : at + 32])][first:last])
                assert len(chunks) == size
                content += chunks
                at += _ENTRY
            if flags & _WITH_VERIFICATION:
                at += _ENTRY * count
            assert flags & _WITH_SHA256
            yield _name(body[at : at + 32]), content
            at += _ENTRY


def _name(hashed: bytes) -> str:
    """A hash as it is written in an address: four little-endian words in hexadecimal."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", hashed))


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while at + 8 <= len(body) and body[at] == 0:  # a version; the footer that may follow begins with a letter
        packed, size = (int.from_bytes(body[at + i : at + i + 3], "little") for i in (1, 5))
        chunk = body[at + 8 : at + 8 + packed]
        if body[at + 4] in (_LZ4, _LZ4_OF_FOUR):
            chunk = imagecodecs.lz4f_decode(chunk)
        if body[at + 4] == _LZ4_OF_FOUR:
            chunk = _in_turn(chunk)
        assert len(chunk) == size
        yield bytes(chunk)
        at += 8 + packed


def _in_turn(planes: bytes) -> bytes:
    """Undo the sorting of bytes by their index modulo four."""
    whole = bytearray(len(planes))
    at = 0
    for plane in range(4):
        count = len(whole[plane::4])
        whole[plane::4] = planes[at : at + count]
        at += count
    return bytes(whole)
