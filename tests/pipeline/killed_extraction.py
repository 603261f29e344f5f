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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline import engine
from pipeline.console import Talk
from pipeline.study import read_study
from store import GridStore, verify


def extract(study: Path, cache: Path) -> None:
    work = engine.workspace(read_study(study), cache, cache / "runs", 2)
    engine.extract_all(work, (), Talk(quiet=True))


def in_child(study: Path, cache: Path, *, kill_at: Callable[[], bool] | None = None) -> bool:
    """Extract in a child, which is killed (-9) as soon as ``kill_at`` says so; returns whether it was."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            extract(study, cache)
            status = 0
        finally:
            os._exit(status)
    if kill_at is not None:
        while not kill_at() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and status != 0:
        raise SystemExit(f"extraction ended with status {status}")
    return os.WIFSIGNALED(status)


def shards(cache: Path) -> int:
    """The number of shard files, with or without a marker."""
    return sum(1 for _ in cache.glob("*/part-*/*/c.*.*[0-9]"))


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


def _reached(cache: Path, enough: int, seconds: float) -> Callable[[], bool]:
    """Tell when there have been ``enough`` shard files for so many seconds."""
    since: list[float] = []

    def act() -> bool:
        # What is looked through may go meanwhile: the child renames folders.
        with suppress(FileNotFoundError):
            if not since and shards(cache) >= enough:
                since.append(time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + seconds

    return act


def main() -> None:
    study, root, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    in_child(study, root / "whole")
    total = shards(root / "whole")
    random.seed(0)
    cut, survivors, most = root / "cut", 0, 0
    kept: dict[str, tuple[int, int]] = {}
    rewritten: list[str] = []
    landed = 0
    for number in range(kills):
        # By the number of files there and not by the clock, which says little on a busy machine.
        there = shards(cut)
        enough = there + random.randint(0, max(1, (total - there) // (kills - number + 1)))
        landed += in_child(study, cut, kill_at=_reached(cut, enough, random.uniform(0, 0.03)))
        now = committed(cut) if cut.is_dir() else {}
        rewritten += [name for name, state in kept.items() if now.get(name) != state]
        survivors += bool(set(now) - set(kept))
        kept, most = now, max(most, len(now))
    in_child(study, cut)
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
                "kills": landed,
                "kills_that_committed": survivors,
                "committed_before_the_last": most,
                "faults": [str(fault) for fault in faults],
            }
        )
    )


if __name__ == "__main__":
    main()
