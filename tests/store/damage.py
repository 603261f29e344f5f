"""Everything that can happen to a stored file, for the tests that look whether it is noticed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c
import storekit as kit

from store import GridSpec, GridStore, ViewRow
from store.documents import encode
from store.parts import Part
from store.shardfile import HOLE, read_index

FORMS = {"float16": kit.TOKENS, "int8": replace(kit.TOKENS, encoding="int8"), "uint8": kit.MASKS}
STATES = ("sealed", "unsealed", "reopened")
SLOTS = 4

Change = Callable[[bytes], bytes | None]  # what a file holds afterwards; None: it is gone


@dataclass(frozen=True)
class Damage:
    """One way to spoil one file. ``read``: some view must not be readable any more; the others are as they were."""

    name: str
    path: Path
    change: Change
    read: bool

    def inflict(self) -> bytes:
        """Spoil the file; returns what it held."""
        before = self.path.read_bytes()
        after = self.change(before)
        if after is None:
            self.path.unlink()
        else:
            assert after != before, self
            self.path.write_bytes(after)
        return before


def written(root: Path, spec: GridSpec, state: str, identity=kit.IDENTITY, salt: str = "") -> GridStore:
    """A cache of two parts of three or four shards, in one of the states a part may be in."""
    store = kit.store_at(root, spec, identity)
    for first_view in (0, 5):
        tiles = 8 if state == "unsealed" else 6
        rows = kit.rows_of(tiles, 2, first_view)
        for task in store.plan(rows, shard_views=SLOTS)[:3]:
            with store.lease(task) as mine:
                assert mine
                store.write(task, kit.grids(task, spec, salt), max_error=1.0)
        if state == "reopened":
            part = next(part for part in store._parts() if part.rows[0].view == first_view)
            part.shard_path(1).unlink()
            assert len(store.plan(rows)) == 1
    for part in store._parts():
        assert part.sealed() == (state == "sealed") and part.reopened.exists() == (state == "reopened")
    return store


def kind_of(store: GridStore, path: Path) -> str:
    """What sort of file of a cache it is."""
    name = path.relative_to(store.path).as_posix()
    if "/" not in name:
        return name
    inner = name.partition("/")[2]
    if inner.startswith(("tile/", "aug/")):
        return "coordinate"
    if inner.startswith("_work/done/"):
        return "done marker"
    if inner.startswith(f"{store.spec.name}/c."):
        return "shard"
    return {"zarr.json": "group zarr.json"}.get(inner, inner.replace(store.spec.name, "array"))


def stored_files(store: GridStore) -> list[Path]:
    """The files of the cache itself and of its first part."""
    inside = sorted(path for path in store._parts()[0].folder.rglob("*") if path.is_file())
    return [store.path / "cache.json", store.path / "zarr.json", *inside]


def damages(store: GridStore, foreign: GridStore, files: list[Path], *, flips: int) -> Iterator[Damage]:
    """Every damage to each of the files.

    ``foreign`` is a cache of the same form and state, of another encoder; ``flips`` bits are flipped in each file at
    random, beside those at chosen places.
    """
    rng = random.Random(flips)
    part, other = store._parts()
    for path in files:
        kind = kind_of(store, path)
        counts = kind in ("shard", "manifest.json", "reopened.json", "done marker", "part.json", "cache.json")
        shard = kind == "shard"
        size = path.stat().st_size
        for at in (0, size // 3, size - 1):
            yield Damage("flipped bit", path, _flip(at, 3), counts)
        for at, bit in ((rng.randrange(size), rng.randrange(8)) for _ in range(flips)):
            yield Damage("flipped bit", path, _flip(at, bit), counts and not (shard and _in_label(path, at)))
        for name, change in _CUTS.items():
            yield Damage(name, path, change, counts)
        relative = path.relative_to(store.path)
        if (foreign.path / relative).read_bytes() != path.read_bytes():
            yield Damage("of another cache", path, _file(foreign.path / relative), counts)
        if path.is_relative_to(part.folder):
            inner = path.relative_to(part.folder)
            twin = other.folder / inner
            if twin.is_file() and twin.read_bytes() != path.read_bytes():
                yield Damage("of another part", path, _file(twin), counts)
        if kind in ("shard", "done marker"):
            for neighbour in sorted(path.parent.iterdir()):
                if neighbour != path:
                    yield Damage("of another shard", path, _file(neighbour), True)
        if kind in _EDITS or (path.suffix == ".json" and counts):
            yield Damage("an older version", path, _version(-1), True)
            yield Damage("a newer version", path, _version(+1), True)
            for name, (edit, read) in _EDITS.get(kind, {}).items():
                yield Damage(f"edited with a right digest: {name}", path, _edited(edit), read)
        if shard:
            yield from _inside_a_shard(path, part, foreign.path / relative)


def _inside_a_shard(path: Path, part: Part, foreign: Path) -> Iterator[Damage]:
    chunks, label = _taken_apart(path.read_bytes())
    theirs, _ = _taken_apart(foreign.read_bytes())
    index = len(b"".join(chunks)) + len(label)
    for name, at, read in (
        ("flipped bit in the checksum of a chunk", len(chunks[0]) - 2, True),
        ("flipped bit in a chunk", len(chunks[0]) + len(chunks[1]) // 2, True),
        ("flipped bit in the label", index - 20, False),
        ("flipped bit in the length of the label", index - 8, False),
        ("flipped bit in the index", index + 17, True),
        ("flipped bit in the checksum of the index", -2, True),
    ):
        yield Damage(name, path, _flip(at, 1), read)
    if len(chunks) > 1:
        hole = lambda data: _joined([chunks[0], None, *chunks[2:]], label)  # noqa: E731
        yield Damage("deleted chunk, a hole in a valid index", path, hole, True)
        for kept in (len(chunks[1]) - 1, len(chunks[1]) // 2, 10, 0):
            cut = _joined([chunks[0], chunks[1][:kept], *chunks[2:]], label)
            yield Damage("truncated chunk in a valid index", path, lambda _, cut=cut: cut, True)
        cut = _joined([chunks[0], _with_crc(chunks[1][: len(chunks[1]) // 2]), *chunks[2:]], label)
        yield Damage("truncated chunk with a valid checksum", path, lambda _: cut, True)
        swapped = _joined([chunks[0], theirs[1], *chunks[2:]], label)
        yield Damage("chunk of another cache, valid", path, lambda _: swapped, True)
        turned = _joined([chunks[1], chunks[0], *chunks[2:]], label)
        yield Damage("chunks of two tiles exchanged, valid", path, lambda _: turned, True)
        doubled = _joined([chunks[1], *chunks[1:]], label)
        yield Damage("chunk of another tile, valid", path, lambda _: doubled, True)


def _taken_apart(data: bytes) -> tuple[list[bytes], bytes]:
    """The chunks of a shard with their checksums, and what lies between them and the index."""
    count = SLOTS
    index = [struct.unpack_from("<QQ", data, len(data) - 4 - 16 * (count - slot)) for slot in range(count)]
    used = [(offset, length) for offset, length in index if offset != HOLE]
    end = max(offset + length for offset, length in used)
    return [data[offset : offset + length] for offset, length in used], data[end : len(data) - 4 - 16 * count]


def _joined(chunks: list[bytes | None], label: bytes) -> bytes:
    """A shard of these chunks (None: a hole), its index and its checksum right."""
    body, index = b"", b""
    for chunk in [*chunks, *[None] * (SLOTS - len(chunks))]:
        index += struct.pack("<QQ", *((HOLE, HOLE) if chunk is None else (len(body), len(chunk))))
        body += chunk or b""
    return body + label + index + google_crc32c.value(index).to_bytes(4, "little")


def _with_crc(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def _in_label(path: Path, at: int) -> bool:
    with path.open("rb") as file:
        index, _ = read_index(file.fileno(), path.stat().st_size, SLOTS)
    used = index[index[:, 0] != HOLE]
    return bool((used.sum(axis=1)).max() <= at < path.stat().st_size - 4 - 16 * SLOTS)


def _flip(at: int, bit: int) -> Change:
    def change(data: bytes) -> bytes:
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << bit
        return bytes(spoilt)

    return change


_CUTS: dict[str, Change] = {
    "cut by a byte": lambda data: data[:-1],
    "cut to a half": lambda data: data[: len(data) // 2],
    "a byte too long": lambda data: data + b"\0",
    "zeroed": lambda data: bytes(len(data)),
    "emptied": lambda data: b"",
    "deleted": lambda data: None,
}


def _file(path: Path) -> Change:
    return lambda _: path.read_bytes()


def _version(step: int) -> Change:
    def change(data: bytes) -> bytes:
        fields = json.loads(data)
        kind, _, number = fields.pop("format").removeprefix("frostgrid-").partition("/")
        del fields["digest"]
        return encode(kind, int(number) + step, fields)

    return change


def _edited(edit: Callable[[dict], object]) -> Change:
    def change(data: bytes) -> bytes:
        fields = json.loads(data)
        kind, _, number = fields.pop("format").removeprefix("frostgrid-").partition("/")
        del fields["digest"]
        edit(fields)
        return encode(kind, int(number), fields)

    return change


def _first(fields: dict) -> dict:
    """The record of a shard in a manifest, or the marker itself."""
    return fields["shards"]["0"] if "shards" in fields else fields


def _exchange(fields: dict) -> None:
    first, second = sorted(fields["shards"], key=int)[:2]
    fields["shards"][first], fields["shards"][second] = fields["shards"][second], fields["shards"][first]


def _other_crc(fields: dict) -> None:
    crcs = _first(fields)["chunk_crc32c"]
    _first(fields)["chunk_crc32c"] = crcs[:8] + f"{int(crcs[8:16], 16) ^ 1:08x}" + crcs[16:]


_RECORD: dict[str, tuple[Callable[[dict], object], bool]] = {
    "another sha256": (lambda fields: _first(fields).update(sha256="0" * 64), False),
    "another size": (lambda fields: _first(fields).update(bytes=_first(fields)["bytes"] + 1), True),
    "another checksum of the index": (lambda fields: _first(fields).update(index_crc32c="0" * 8), True),
    "another checksum of a chunk": (_other_crc, True),
    "other metadata of a view": (lambda fields: _first(fields)["meta"][0].update(angle=77.0), False),
    "without metadata": (lambda fields: _first(fields).update(meta=None), False),
    "fewer checksums": (
        lambda fields: _first(fields).update(chunk_crc32c=_first(fields)["chunk_crc32c"][8:]),
        True,
    ),
    "of another part": (lambda fields: fields.update(part="0" * 64), True),
    "of another cache": (lambda fields: fields.update(cache="0" * 64), True),
}
_LISTING: dict[str, tuple[Callable[[dict], object], bool]] = {
    **_RECORD,
    "records of two shards exchanged": (_exchange, True),
    "a shard too many": (lambda fields: fields["shards"].update({"99": fields["shards"]["0"]}), True),
}
_EDITS: dict[str, dict[str, tuple[Callable[[dict], object], bool]]] = {
    "manifest.json": {
        **_LISTING,
        "without a shard": (lambda fields: fields["shards"].pop("1"), True),
        "without a file": (lambda fields: fields["files"].pop("aug/c.0"), False),
        "another sha256 of a file": (
            lambda fields: fields["files"]["tile/c.0"].update(sha256="0" * 64),
            False,
        ),
        "two sha256 of a shard": (
            lambda fields: next(entry for name, entry in fields["files"].items() if "/c.0.0" in name).update(
                sha256="0" * 64
            ),
            False,
        ),
    },
    "reopened.json": {**_LISTING, "without a shard": (lambda fields: fields["shards"].pop("0"), True)},
    "done marker": {**_RECORD, "of another shard": (lambda fields: fields.update(shard=77), True)},
    "part.json": {
        "rows in another order": (lambda fields: fields["rows"]["tile"].reverse(), True),
        "another tile": (lambda fields: fields["rows"]["tiles"][0].update(tile="0" * 64), True),
        "another key": (lambda fields: fields.update(key="0" * 64), True),
        "other shards": (lambda fields: fields.update(shard_views=2), True),
        "another form": (lambda fields: fields["spec"].update(shape=[9, 9]), True),
        "without a column": (lambda fields: fields["rows"].pop("pixels"), True),
    },
    "cache.json": {
        "another identity": (lambda fields: fields["identity"].update(value="float32"), True),
        "another form": (lambda fields: fields["grid"].update(shape=[9, 9]), True),
        "without its form": (lambda fields: fields.pop("grid"), True),
    },
}


def shard_of(store: GridStore, path: Path) -> Path:
    """The shard that a shard file or a marker is about."""
    return store._parts()[0].shard_path(_number(path))


def hurt_rows(store: GridStore, path: Path) -> tuple[ViewRow, ...]:
    """The views that a shard or a marker is about; none for other files."""
    if kind_of(store, path) not in ("shard", "done marker"):
        return ()
    return store._parts()[0].shard_rows(_number(path))


def _number(path: Path) -> int:
    return int(path.stem if path.suffix == ".json" else path.name.split(".")[1])
