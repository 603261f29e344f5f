"""Half and whole stores to share, what must hold of a copy, and a copier that can be started as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import storekit as kit

from store import GridSpec, GridStore, ViewRow, verify
from store.places import open_place
from store.sharing import Copied, Offer, offers, pull, push

BIG = GridSpec("tokens", (16, 32, 32), "float16", ("d", "h", "w"))  # 32 kB a view, 128 kB a shard of four


def made(
    root: Path, rows: Sequence[ViewRow], salt: str = "", limit: int | None = None, **more: Any
) -> GridStore:
    """A store under ``root`` with ``rows`` planned in shards of four, ``limit`` of them written."""
    store = kit.store_at(root, **more)
    kit.fill(store, rows, salt=salt, limit=limit)
    return store


def only_offer(place: str | Path) -> Offer:
    """The one cache at a place, with nothing wrong at it."""
    (offer,), faults = offers(open_place(place))
    assert faults == []
    return offer


def expect_copy(copied: Copied, rows: Sequence[ViewRow], salt: str = "") -> GridStore:
    """What was copied is all there, right, sealed, and nothing is left over."""
    store = copied.store
    kit.expect_all(store, rows, salt)
    assert verify(store) == []
    assert store.status().shards_done == store.status().shards_planned
    assert not list(store.path.parent.rglob("*.partial")) and not list(store.path.rglob("_work"))
    return store


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(data: bytes, at: int) -> bytes:
    """The same bytes with one bit turned over."""
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def start_copier(act: str, source: Path | str, target: Path | str) -> subprocess.Popen[str]:
    """Start a process that pushes the store at ``source`` or pulls the cache at the place ``source``.

    It says ``go`` when it has loaded its libraries, waits for a line, and says at the end what it copied.
    """
    return subprocess.Popen(
        [sys.executable, __file__, act, str(source), str(target)],
        env={**os.environ, "PYTHONPATH": str(kit.REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def let_go(process: subprocess.Popen[str]) -> None:
    """Wait until a copier has loaded its libraries, then let it begin."""
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "go\n", process.communicate()[1]
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    """Wait for a copier and return what it says it copied."""
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return json.loads(said)


def _main(act: str, source: str, target: str) -> None:
    if "://" in source + target:
        import s3fs  # a second that is not part of what is interrupted

        s3fs.S3FileSystem.retries = 1  # a request of ours is one on the wire
    print("go", flush=True)
    sys.stdin.readline()
    if act == "push":
        copied = push(GridStore.open(Path(source)), open_place(target))
    else:
        copied = pull(only_offer(source), Path(target))
    print(json.dumps({"shards": copied.shards, "kept": copied.kept}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
