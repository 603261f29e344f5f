"""Extracts a study again and again in child processes that are killed at random moments; prints what was found.

Run as a script: forking is safe only before torch has started its threads, which a test process has.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from pipeline import engine
from pipeline.console import Talk
from pipeline.study import read_study
from store import GridStore, verify


def extract(study: Path, cache: Path) -> None:
    work = engine.workspace(read_study(study), cache, cache / "runs", 2)
    engine.extract_all(work, (), Talk(quiet=True))


def in_child(study: Path, cache: Path, *, kill_after: float | None) -> float:
    """Extract in a child; kill -9 it after so many seconds. Returns how long it lived."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            extract(study, cache)
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if kill_after is None and status != 0:
        raise SystemExit(f"extraction ended with status {status}")
    return time.monotonic() - started


def committed(cache: Path) -> dict[str, tuple[int, int]]:
    """Shards that have a marker or manifest entry, with inode and time of modification."""
    found = {}
    for store in cache.glob("*-????????????"):
        opened = GridStore.open(store)
        reader = opened.reader()
        for key in reader.views():
            part, shard = reader.shard_of(key)
            (path,) = (store / part / opened.spec.name).glob(f"c.{shard}.*")
            status = path.stat()
            found[str(path.relative_to(cache))] = (status.st_ino, status.st_mtime_ns)
    return found


def main() -> None:
    study, root, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    whole = in_child(study, root / "whole", kill_after=None)
    random.seed(0)
    cut, survivors, most = root / "cut", 0, 0
    kept: dict[str, tuple[int, int]] = {}
    rewritten: list[str] = []
    for _ in range(kills):
        in_child(study, cut, kill_after=random.uniform(0.05, 0.6) * whole)
        now = committed(cut) if cut.is_dir() else {}
        rewritten += [name for name, state in kept.items() if now.get(name) != state]
        survivors += bool(set(now) - set(kept))
        kept, most = now, max(most, len(now))
    in_child(study, cut, kill_after=None)
    now = committed(cut)
    rewritten += [name for name, state in kept.items() if now[name] != state]
    differing, grids = 0, 0
    for store in sorted((root / "whole").glob("*-????????????")):
        first, second = GridStore.open(store).reader(), GridStore.open(cut / store.name).reader()
        for key in first.views():
            grids += 1
            differing += first.read(key).tobytes() != second.read(key).tobytes()
    faults = [fault for store in cut.glob("*-????????????") for fault in verify(GridStore.open(store))]
    print(
        json.dumps(
            {
                "grids": grids,
                "differing": differing,
                "rewritten": rewritten,
                "kills_that_committed": survivors,
                "committed_before_the_last": most,
                "faults": [str(fault) for fault in faults],
            }
        )
    )


if __name__ == "__main__":
    main()
