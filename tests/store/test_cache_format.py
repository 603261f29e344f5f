"""The format's specification: its example reader, taken from the document, reads what the store wrote and no more."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storekit as kit

from store import GridSpec, GridStore, ViewKey
from store.documents import encode
from store.identity import canonical_json
from store.sealing import reopen

DOCUMENT = kit.REPOSITORY / "docs" / "cache-format.md"
INT8 = GridSpec("tokens", (3, 4, 5), "float16", ("d", "h", "w"), "int8")
SPECS = pytest.mark.parametrize("spec", [kit.TOKENS, INT8, kit.MASKS], ids=["float16", "int8", "masks"])

Read = Callable[[Path], Iterator[tuple[str, int, Any]]]


@pytest.fixture
def read_cache() -> Read:
    """The reader in the document, with nothing at hand that it does not import itself."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    modules = set(re.findall(r"^import (.*)$", source, re.MULTILINE))
    assert modules == {"hashlib, json, pathlib", "numpy as np, zarr"}
    names: dict[str, Any] = {}
    exec(compile(source, str(DOCUMENT), "exec"), names)
    read: Read = names["read_cache"]
    return read


def written(root: Path, spec: GridSpec, rows: list[Any], limit: int | None = None) -> GridStore:
    store = kit.store_at(root, spec)
    for task in store.plan(rows, shard_views=4)[:limit]:
        store.write(task, kit.grids(task, spec), max_error=1.0)
    return store


def collected(read: Read, store: GridStore) -> dict[ViewKey, Any]:
    return {ViewKey(tile, view): grid for tile, view, grid in read(store.path)}


@SPECS
def test_the_example_reader_gives_every_grid_bit_for_bit(
    tmp_path: Path, spec: GridSpec, read_cache: Read
) -> None:
    written(tmp_path, spec, kit.rows_of(5, 2))
    store = written(tmp_path, spec, kit.rows_of(5, 4), limit=2)  # a second part, not finished
    reader = store.reader()
    found = collected(read_cache, store)
    assert len(found) == 18 and set(found) == set(reader.views())
    for key, grid in found.items():
        expected = reader.read(key)
        assert grid.dtype == expected.dtype and grid.tobytes() == expected.tobytes(), key


@SPECS
def test_the_example_reader_knows_what_was_kept_of_a_reopened_part(
    tmp_path: Path, spec: GridSpec, read_cache: Read
) -> None:
    store = written(tmp_path, spec, kit.rows_of(8, 1))
    (part,) = store._parts()
    part.shard_path(0).unlink()
    reopen(part)
    assert set(collected(read_cache, store)) == {row.key for row in part.shard_rows(1)}
    store.write(
        store.plan(kit.rows_of(8, 1))[0], kit.grids(store.plan(kit.rows_of(8, 1))[0], spec), max_error=1.0
    )
    assert len(collected(read_cache, store)) == 8


@SPECS
def test_the_example_reader_takes_no_shard_without_a_marker_and_no_hole_for_a_grid(
    tmp_path: Path, spec: GridSpec, read_cache: Read
) -> None:
    rows = kit.rows_of(9, 1)
    store = written(tmp_path, spec, rows, limit=2)
    (part,) = store._parts()
    marker = part.marker_path(0).read_bytes()
    part.marker_path(0).unlink()
    assert set(collected(read_cache, store)) == {row.key for row in rows[4:8]}
    part.marker_path(0).write_bytes(marker)
    whole = part.shard_path(0).read_bytes()
    part.shard_path(0).write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(ValueError, match=r"c\.0.*is damaged"):
        collected(read_cache, store)
    part.shard_path(0).unlink()
    with pytest.raises(FileNotFoundError):
        collected(read_cache, store)


@pytest.mark.parametrize("spec", [kit.TOKENS, INT8], ids=["float16", "int8"])
def test_the_example_reader_refuses_a_hole_inside_a_shard_that_is_recorded_as_whole(
    tmp_path: Path, spec: GridSpec, read_cache: Read
) -> None:
    store = written(tmp_path, spec, kit.rows_of(8, 1), limit=1)
    (part,) = store._parts()
    # A shard whose index has no entry at all, vouched for by a marker: what a faulty writer might leave.
    index = b"\xff" * 64
    part.shard_path(0).write_bytes(index + crc32c(index))
    marker = json.loads(part.marker_path(0).read_bytes())
    del marker["digest"], marker["format"]
    marker["sha256"] = hashlib.sha256(part.shard_path(0).read_bytes()).hexdigest()
    part.marker_path(0).write_bytes(encode("shard", 1, marker))
    with pytest.raises(ValueError, match=r"view 0 of .* is a hole"):
        collected(read_cache, store)


def test_digests_keys_and_checksums_are_as_the_document_says(tmp_path: Path) -> None:
    rows = kit.rows_of(6, 1)
    store = written(tmp_path, kit.TOKENS, rows)
    (folder,) = store.path.glob("part-*")
    for name in ("part.json", "manifest.json"):
        data = (folder / name).read_bytes()
        digest = json.loads(data)["digest"]
        assert hashlib.sha256(data.replace(f'"digest":"{digest}",'.encode(), b"")).hexdigest() == digest
        assert canonical_json(json.loads(data)) == data
    data = (store.path / "cache.json").read_bytes()
    digest = json.loads(data)["digest"]
    assert hashlib.sha256(data.replace(f'"digest": "{digest}",\n '.encode(), b"")).hexdigest() == digest
    about, manifest = (json.loads((folder / name).read_bytes()) for name in ("part.json", "manifest.json"))
    assert about["key"] == hashlib.sha256(canonical_json(about["rows"])).hexdigest()
    assert folder.name == f"part-{about['key'][:8]}" and about["cache"] == store.key
    for number, record in manifest["shards"].items():
        name = f"tokens/c.{number}.0.0.0"
        data = (folder / name).read_bytes()
        assert manifest["files"][name] == {name: record[name] for name in ("bytes", "sha256")}
        assert record["bytes"] == len(data) and record["sha256"] == hashlib.sha256(data).hexdigest()
        assert data[-4:] == bytes.fromhex(record["index_crc32c"])[::-1]
        index = np.frombuffer(data[-4 - 16 * about["shard_views"] : -4], "<u8").reshape(-1, 2)
        for slot, (offset, length) in enumerate(index[: len(record["chunk_crc32c"]) // 8].tolist()):
            crc = record["chunk_crc32c"][8 * slot : 8 * slot + 8]
            assert data[offset + length - 4 : offset + length] == bytes.fromhex(crc)[::-1]
            assert crc32c(data[offset : offset + length - 4]) == bytes.fromhex(crc)[::-1]
        label = data.find(b'{"cache"')
        size, crc = np.frombuffer(data, "<u4", 2, len(data) - 4 - 16 * about["shard_views"] - 8).tolist()
        text = data[label : label + size]
        assert crc32c(text) == crc.to_bytes(4, "little") and json.loads(text)["part"] == about["key"]


def crc32c(data: bytes) -> bytes:
    """crc32c by its definition, not by the library the store uses."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def test_the_fields_of_every_document_are_those_of_the_specification(tmp_path: Path) -> None:
    """So that a field cannot be added, renamed or dropped without the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    store = written(tmp_path, INT8, kit.rows_of(8, 1), limit=1)
    (folder,) = store.path.glob("part-*")
    marker = json.loads((folder / "_work/done/0.json").read_bytes())
    part = json.loads((folder / "part.json").read_bytes())
    cache = json.loads((store.path / "cache.json").read_bytes())
    assert set(cache) == {"format", "digest", "slug", "key", "identity", "grid", "provenance", "created"}
    assert set(cache["grid"]) == {"name", "shape", "dtype", "dims", "encoding"}
    assert set(part) == {"format", "digest", "cache", "key", "spec", "shard_views", "rows"}
    assert set(part["rows"]) == {"tiles", "tile", "view", "pixels"}
    record = {"bytes", "sha256", "index_crc32c", "chunk_crc32c", "meta"}
    assert set(marker) == {"format", "digest", "cache", "part", "shard"} | record
    written(tmp_path, INT8, kit.rows_of(8, 1))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert set(manifest) == {"format", "digest", "cache", "part", "shards", "files"}
    assert all(set(entry) == record for entry in manifest["shards"].values())
    for fields in (cache, cache["grid"], part, part["rows"], marker, manifest):
        for name in fields:
            assert f"`{name}`" in text, name
    formats = {document["format"] for document in (cache, part, marker, manifest)} | {"frostgrid-label/1"}
    for name, version in (found.removeprefix("frostgrid-").split("/") for found in formats):
        assert f"| `{name}` | {version} |" in text
