"""Leases: a live writer's claim on a shard. They save work only; no file is ever right because of one.

The lease on shard 7 is a file ``7.0``; who finds its holder gone claims ``7.1``, and so on. Of several who find the
same, the exclusive creation of the next number lets one through, and no living lease is ever moved or removed.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from store.durable import commit_exclusive, new_partial, storage_errors, write_all
from store.processes import Process

TTL_S = 600.0


@contextmanager
def hold(folder: Path, shard: int, ttl: float = TTL_S) -> Iterator[bool]:
    """Hold the lease on ``shard`` for the block; yields ``False`` where another live process has it.

    The lease is touched ten times per ``ttl`` seconds while it is held. One that was not touched for ``ttl``
    seconds, or whose process has died on this machine, no longer counts. Where ``folder`` is gone there is nothing
    left to claim, and ``False`` is yielded. Raises ``StorageError``.
    """
    with storage_errors(folder):
        lease = _acquire(folder, shard, ttl)
    if lease is None:
        yield False
        return
    path, descriptor = lease
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(descriptor, ended, ttl / 10), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        _release(path, descriptor)


def _acquire(folder: Path, shard: int, ttl: float) -> tuple[Path, int] | None:
    gone = _gone_leases(folder, shard, ttl)
    if gone is None:
        return None
    path = folder / f"{shard}.{max(gone) + 1 if gone else 0}"
    descriptor = _create(path)
    if descriptor is None:
        return None
    # Whoever looked before we came may have claimed another number. Both look once more, so at most one goes on.
    others = _gone_leases(folder, shard, ttl, besides=path)
    if others is None:
        _release(path, descriptor)
        return None
    for number in others:
        (folder / f"{shard}.{number}").unlink(missing_ok=True)
    return path, descriptor


def _gone_leases(folder: Path, shard: int, ttl: float, besides: Path | None = None) -> set[int] | None:
    """Return the numbers of the leases whose holders are gone, or ``None`` if one is alive (or the folder gone)."""
    try:
        names = [path.name.split(".") for path in folder.iterdir()]
    except FileNotFoundError:
        return None
    numbers = {
        int(name[1]) for name in names if len(name) == 2 and name[0] == str(shard) and name[1].isdecimal()
    }
    for number in numbers:
        path = folder / f"{shard}.{number}"
        if path != besides and not _is_gone(path, ttl):
            return None
    return numbers if besides is None else numbers - {int(besides.suffix[1:])}


def _is_gone(path: Path, ttl: float) -> bool:
    try:
        touched = path.stat().st_mtime
        holder = Process.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return True
    except ValueError:
        holder = None  # not legible, so its age decides
    return time.time() - touched >= ttl or (holder is not None and holder.certainly_dead())


def _create(path: Path) -> int | None:
    holder = {**Process.current().to_json(), "uuid": uuid.uuid4().hex, "started": time.time()}
    # Complete before it has its name: a lease without a holder would have to be respected until it is old.
    partial = new_partial(path)
    held = False
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileNotFoundError:
        return None
    try:
        write_all(descriptor, json.dumps(holder).encode())
        os.fsync(descriptor)  # or it is empty after a power loss
        held = commit_exclusive(partial, path)
    except FileNotFoundError:
        return None
    finally:
        if not held:
            os.close(descriptor)
            partial.unlink(missing_ok=True)
    return descriptor if held else None


def _beat(descriptor: int, ended: threading.Event, period: float) -> None:
    while not ended.wait(period):
        # By descriptor: a number that was given up and claimed anew must not be touched for its new holder.
        with suppress(OSError):
            os.utime(descriptor)


def _release(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            path.unlink()
    os.close(descriptor)
