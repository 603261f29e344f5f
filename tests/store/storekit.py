"""Small stores with known content, and a writer that can be started as a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store import GridSpec, GridStore, ShardTask, ViewKey, ViewRow, verify
from store.documents import encode_legibly

REPOSITORY = Path(__file__).parents[2]
TOKENS = GridSpec("tokens", (3, 4, 5), "float16", ("d", "h", "w"))
MASKS = GridSpec("masks", (6, 7), "uint8", ("y", "x"))
IDENTITY = {"encoder": {"name": "pixels", "layer": 4}, "views": {"recipe": "flip"}, "value": "float16"}


def tile_key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def rows_of(tiles: int, views: int, first_view: int = 0) -> list[ViewRow]:
    """Rows of ``tiles`` tiles, all tiles of one view after the other."""
    return [
        ViewRow(tile_key(f"train_{tile}"), view, f"train_{tile}", tile_key(f"pixels {tile} {view}"))
        for view in range(first_view, first_view + views)
        for tile in range(tiles)
    ]


def grid_of(row: ViewRow | ViewKey, spec: GridSpec = TOKENS, salt: str = "") -> Any:
    """The grid every writer makes for a view: noise, so that all shards of a store have the same size."""
    seed = hashlib.sha256(f"{row.tile} {row.view} {salt}".encode()).digest()
    rng = np.random.default_rng(list(seed))
    if spec.dtype == "uint8":
        return rng.integers(0, 256, spec.shape, dtype=np.uint8)
    return rng.standard_normal(spec.shape).astype(np.float16)


def meta_of(row: ViewRow | ViewKey) -> dict[str, Any]:
    return {"angle": row.view * 1.5, "tile": row.tile[:6]}


def grids(
    task: ShardTask, spec: GridSpec = TOKENS, salt: str = "", pause: float = 0.0
) -> Iterator[tuple[Any, dict[str, Any]]]:
    for row in task.rows:
        time.sleep(pause)
        yield grid_of(row, spec, salt), meta_of(row)


def store_at(root: Path, spec: GridSpec = TOKENS, identity: dict[str, Any] = IDENTITY) -> GridStore:
    return GridStore.at(root, "pixels", identity, spec, {"host": "test"}, create=True)


def fill(
    store: GridStore,
    rows: Sequence[ViewRow],
    shard_views: int | None = 4,
    *,
    salt: str = "",
    pause: float = 0.0,
    limit: int | None = None,
) -> int:
    """Write what is missing of ``rows`` (at most ``limit`` shards) and return how many shards that were."""
    written = 0
    for task in store.plan(rows, shard_views=shard_views)[:limit]:
        with store.lease(task) as mine:
            if mine:
                store.write(task, grids(task, store.spec, salt, pause))
                written += 1
    return written


def expect_all(store: GridStore, rows: Sequence[ViewRow], salt: str = "") -> None:
    """Every row is stored, bit for bit as it was made, with what was kept beside it."""
    reader = store.reader()
    keys = [row.key for row in rows]
    assert reader.missing(keys) == []
    for row, grid in zip(rows, reader.read_many(keys), strict=True):
        assert grid.tobytes() == grid_of(row, store.spec, salt).tobytes(), row
        assert reader.meta(row.key) == meta_of(row)


def expect_nothing_wrong(store: GridStore, rows: Sequence[ViewRow], salt: str = "") -> int:
    """Whatever is readable is right; returns how many views that are."""
    reader = store.reader()
    readable = [row for row in rows if row.key in reader]
    for row in readable:
        assert reader.read(row.key).tobytes() == grid_of(row, store.spec, salt).tobytes(), row
    return len(readable)


def expect_only_unmarked(store: GridStore) -> int:
    """Nothing is wrong but shards for whose markers no room was left; returns how many they are."""
    faults = verify(store)
    assert all("has lost its done marker" in fault for fault in faults), faults
    return len(faults)


def shard_files(store: GridStore) -> list[Path]:
    return sorted(store.path.glob(f"part-*/{store.spec.name}/c.*[0-9]"))


def finished(store: GridStore) -> dict[str, tuple[int, int, str]]:
    """Inode, time of change and sha256 of every finished shard."""
    found = {}
    for part in store._parts():
        for shard in part.done():
            path = part.shard_path(shard)
            state = path.stat()
            found[str(path)] = (
                state.st_ino,
                state.st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
    return found


def expect_untouched(before: dict[str, tuple[int, int, str]], store: GridStore) -> None:
    after = finished(store)
    assert {path: after.get(path) for path in before} == before


def signed(description: bytes) -> bytes:
    """The bytes of a cache.json that was changed, with a digest that is right."""
    fields = {
        name: value for name, value in json.loads(description).items() if name not in ("format", "digest")
    }
    return encode_legibly("cache", 1, fields)


def start_writer(root: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a process that fills a store; it says ``go`` once it has loaded its libraries."""
    return subprocess.Popen(
        [sys.executable, __file__, str(root), json.dumps(options)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _main(root: str, options: str) -> None:
    wanted = json.loads(options)
    rows = rows_of(*wanted["rows"])
    if wanted.get("reverse"):
        rows.reverse()
    print("go", flush=True)
    sys.stdin.readline()
    store = store_at(Path(root))
    while True:
        written = fill(store, rows, pause=wanted.get("pause", 0.0))
        if not store.reader().missing([row.key for row in rows]):
            break
        time.sleep(0.0 if written else 0.02)


if __name__ == "__main__":
    _main(*sys.argv[1:])
