"""One shard file: a zarr v3 shard whose inner chunk is one view, written as a stream and read view by view.

Layout: ``chunk 0 | chunk 1 | ... | label | label length, crc32c | index | crc32c of the index``. A chunk is
blosc(bitshuffle) of the little-endian grid and the crc32c of that; the index holds offset and length of every
chunk as uint64. This is the zarr v3 sharding specification with the index at the end. The label (who this shard
is, see ``store.records``) lies in a gap that the index does not name, which other readers step over.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from store.durable import write_all

# Blosc's own threads hold a lock that does not survive a fork; views are spread over our threads instead.
# zarr-python sets the same switch.
blosc.use_threads = False

HOLE = 2**64 - 1
_CRC = struct.Struct("<I")
_LABEL_END = struct.Struct("<II")
_BLOSC_SIZES = struct.Struct("<4xIII")  # decoded bytes, block bytes, encoded bytes
_BLOCK = 1 << 20
_LARGE_PAGES = (
    4 << 20
)  # from this size on numpy asks the system for large pages, which are faster to go through


class ShardFault(Exception):
    """What is wrong with a shard file, as a phrase; callers add the tile, the view and the file."""


@dataclass(frozen=True)
class Compression:
    """Parameters of the blosc codec, always with bitshuffle: inner compressor, level, bytes of one element."""

    cname: str
    clevel: int
    typesize: int

    @classmethod
    def of(cls, content: str) -> Compression:
        """Return the codec of a ``GridSpec.content``: lz4 for float16 and int8 grids, zstd for uint8 masks."""
        return {"uint8": cls("zstd", 5, 1), "int8": cls("lz4", 5, 1), "float16": cls("lz4", 5, 2)}[content]


@dataclass(frozen=True)
class ShardSummary:
    """Size and checksums of one shard file; ``chunk_crc32c`` holds one value per view."""

    bytes: int
    sha256: str
    index_crc32c: int
    chunk_crc32c: tuple[int, ...]


class ShardWriter:
    """Streams views into the new file ``path``; holds one encoded view at a time.

    ``slots`` is the number of views a full shard has. Use as a context: the file is removed again unless
    ``finish`` was reached and the block ended without an exception. Disk errors are raised as ``OSError``.
    """

    def __init__(self, path: Path, slots: int, dtype: str) -> None:
        self.path = path
        self._codec = Compression.of(dtype)
        self._index = np.full((slots, 2), HOLE, dtype="<u8")
        self._crcs: list[int] = []
        self._digest = hashlib.sha256()
        self._size = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def append(self, grid: NDArray[Any]) -> None:
        """Encode and write the next view's grid."""
        little = np.ascontiguousarray(grid, dtype=grid.dtype.newbyteorder("<"))
        codec = self._codec
        data = blosc.compress(
            little, codec.cname.encode(), codec.clevel, blosc.BITSHUFFLE, blosc.AUTOBLOCKS, codec.typesize
        )
        crc = google_crc32c.value(data)
        self._index[len(self._crcs)] = self._size, len(data) + _CRC.size
        self._crcs.append(crc)
        self._write(data)
        self._write(_CRC.pack(crc))

    def finish(self, label: bytes) -> ShardSummary:
        """Write label and index, flush the file to the disk and close it."""
        self._write(label)
        self._write(_LABEL_END.pack(len(label), google_crc32c.value(label)))
        index = self._index.tobytes()
        index_crc = google_crc32c.value(index)
        self._write(index + _CRC.pack(index_crc))
        os.fsync(self._descriptor)
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        return ShardSummary(self._size, self._digest.hexdigest(), index_crc, tuple(self._crcs))

    def _write(self, data: bytes) -> None:
        write_all(self._descriptor, data)
        self._digest.update(data)
        self._size += len(data)


class Scratch:
    """Memory for one encoded chunk, kept from one read to the next; for one thread at a time.

    New memory has to be cleared by the system first, which takes as long as reading into it.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def take(self, length: int) -> NDArray[np.uint8]:
        """Return ``length`` bytes of any content; what was taken before is overwritten."""
        if self._bytes.size < length:
            self._bytes = np.empty(max(length, _LARGE_PAGES), dtype=np.uint8)
        return self._bytes[:length]


def read_index(descriptor: int, size: int, slots: int) -> tuple[NDArray[np.uint64], int]:
    """Return the checked index (``slots``, 2) of an open shard file of ``size`` bytes, and the index's crc32c."""
    length = slots * 16
    start = size - length - _CRC.size
    if start < 0:
        raise ShardFault(f"the file is only {size} bytes long")
    data = _read(descriptor, start, np.empty(length + _CRC.size, dtype=np.uint8))
    crc = _check_crc(data, "the index of the file")
    index = np.frombuffer(data, dtype="<u8", count=slots * 2).reshape(slots, 2)
    used = index[(index != HOLE).any(axis=1)]
    if (used[:, 0] > start).any() or (used[:, 1] > start - np.minimum(used[:, 0], start)).any():
        raise ShardFault("the index of the file points outside of it")
    return index, crc


def read_chunk(
    descriptor: int,
    index: NDArray[np.uint64],
    slot: int,
    out: NDArray[Any],
    expected_crc: int | None = None,
    scratch: Scratch | None = None,
) -> int:
    """Decode one view into ``out`` (C-contiguous, of exactly the right shape) and return its crc32c.

    Nothing is decoded before its checksum is right, and is ``expected_crc`` where that is given. The encoded chunk is
    read into ``scratch`` if that is given.
    """
    data = _read_slot(descriptor, index, slot, scratch or Scratch())
    crc = _check_crc(data, "its chunk")
    if expected_crc is not None and crc != expected_crc:
        raise ShardFault("its chunk is another one than was written")
    payload = data[: -_CRC.size]
    if payload.size < 16:
        raise ShardFault("its chunk is no blosc data")
    decoded, _, encoded = _BLOSC_SIZES.unpack_from(payload.data)
    if decoded != out.nbytes or encoded != payload.size:
        raise ShardFault(f"its chunk holds {decoded} bytes in {encoded}, not {out.nbytes} in {payload.size}")
    try:
        blosc.decompress(payload, out)
    except (RuntimeError, ValueError) as error:
        raise ShardFault(f"its chunk cannot be decoded ({error})") from error
    return crc


def scan(
    path: Path,
    slots: int,
    views: int,
    blank: NDArray[Any] | None = None,
    check: Callable[[int, NDArray[Any]], None] | None = None,
) -> tuple[ShardSummary, bytes]:
    """Read all of a shard of ``views`` views, check every checksum, return its summary and its label.

    With ``blank`` (an array of one grid) every view is decoded into it as well and passed to ``check``. The label
    is empty where another program wrote the file. Raises ``ShardFault`` or ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        index, index_crc = read_index(descriptor, size, slots)
        if (index[views:] != HOLE).any():
            raise ShardFault(f"the file holds more than {views} views")
        crcs, scratch = [], Scratch()
        for slot in range(views):
            try:
                if blank is None:
                    crcs.append(_check_crc(_read_slot(descriptor, index, slot, scratch), "the chunk"))
                else:
                    crcs.append(read_chunk(descriptor, index, slot, blank, scratch=scratch))
                    if check is not None:
                        check(slot, blank)
            except ShardFault as fault:
                raise ShardFault(f"of its view {slot}, {fault}") from None
        end = size - slots * 16 - _CRC.size
        return ShardSummary(size, _sha256(descriptor), index_crc, tuple(crcs)), _read_label(
            descriptor, index, end
        )
    finally:
        os.close(descriptor)


def _read(descriptor: int, offset: int, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill ``out`` with what the file holds from ``offset`` on, and return it."""
    rest = out.data
    while rest:  # a signal or a network file system may cut a read short
        more = os.preadv(descriptor, [rest], offset + len(out) - len(rest))
        if not more:
            raise ShardFault("the file ends too early")
        rest = rest[more:]
    return out


def _read_slot(descriptor: int, index: NDArray[np.uint64], slot: int, scratch: Scratch) -> NDArray[np.uint8]:
    offset, length = (int(number) for number in index[slot])
    if (offset, length) == (HOLE, HOLE):
        raise ShardFault("the file has a hole in its place")
    return _read(descriptor, offset, scratch.take(length))


def _check_crc(data: NDArray[np.uint8], what: str) -> int:
    if len(data) < _CRC.size:
        raise ShardFault(f"{what} is too short")
    crc = int(google_crc32c.value(data[: -_CRC.size]))
    if crc != _CRC.unpack_from(data.data, len(data) - _CRC.size)[0]:
        raise ShardFault(f"{what} fails its checksum")
    return crc


def _read_label(descriptor: int, index: NDArray[np.uint64], end: int) -> bytes:
    used = index[(index != HOLE).any(axis=1)]
    first = int((used[:, 0] + used[:, 1]).max(initial=0))
    start = end - _LABEL_END.size
    if start < first:
        return b""
    length, crc = _LABEL_END.unpack(_read_bytes(descriptor, start, _LABEL_END.size))
    label = _read_bytes(descriptor, start - length, length) if length <= start - first else b""
    return label if google_crc32c.value(label) == crc else b""


def _read_bytes(descriptor: int, offset: int, length: int) -> bytes:
    return _read(descriptor, offset, np.empty(length, dtype=np.uint8)).tobytes()


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
