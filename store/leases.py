"""Leases: a live writer's claim on a shard. They save work only; no file is ever right because of one.

The lease on shard 7 is a file ``7.0``; who finds its holder gone claims ``7.1``, and so on. Of several who find the
same, the exclusive creation of the next number lets one through, and no living lease is ever moved or removed.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.disk_errors import storage_errors
from store.durable import commit_exclusive, new_partial, write_all
from store.processes import Process

TTL_S = 600.0


@dataclass(frozen=True)
class Holder:
    """Who holds a shard, for whoever may know better whether it still lives.

    ``token`` names this one claim, and at a place its last sign of life; ``about`` is what the holder said of itself.
    """

    token: str
    about: Mapping[str, Any] = field(default_factory=dict)


def claim_of(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a new claim of this process as JSON has it, ``about`` being what it says of itself."""
    process = Process.current().to_json()
    return {**process, "uuid": uuid.uuid4().hex, "started": time.time(), "about": dict(about or {})}


@contextmanager
def hold(
    folder: Path,
    shard: int,
    ttl: float = TTL_S,
    *,
    about: Mapping[str, Any] | None = None,
    gone: Collection[str] = (),
) -> Iterator[bool]:
    """Hold the lease on ``shard`` for the block; yields ``False`` where another live process has it.

    The lease is touched ten times per ``ttl`` seconds while it is held. One that was not touched for ``ttl``
    seconds, or whose process has died on this machine, no longer counts, nor does one whose token (see :func:`holder`)
    is among those that the caller knows to be ``gone``: should it be mistaken, a shard is made twice, and the first to
    be finished stands. ``about`` is for others to read. Where ``folder`` is gone there is nothing left to claim, and
    ``False`` is yielded. Raises ``StorageError``.
    """
    with storage_errors(folder):
        lease = _acquire(folder, shard, _Judge(ttl, frozenset(gone)), about)
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


def held(folder: Path, ttl: float = TTL_S) -> set[int]:
    """Return the shards that live processes hold the leases on; nothing is changed, and ``folder`` may be missing."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return set()
    named = [path for path in paths if re.fullmatch(r"\d+\.\d+", path.name)]
    judge = _Judge(ttl)
    return {int(path.name.partition(".")[0]) for path in named if not judge.is_gone(path)}


def holder(folder: Path, shard: int, ttl: float = TTL_S) -> Holder | None:
    """Return who holds the lease on ``shard``; None where nobody does, or nothing can be read of it."""
    judge = _Judge(ttl)
    with suppress(OSError):
        for path in sorted(folder.glob(f"{shard}.*")):
            if path.suffix[1:].isdecimal() and not judge.is_gone(path):
                with suppress(ValueError, KeyError, TypeError):
                    claim = json.loads(path.read_bytes())
                    return Holder(str(claim["uuid"]), dict(claim.get("about") or {}))
    return None


@dataclass(frozen=True)
class _Judge:
    """Tells whether the holder of a lease no longer counts."""

    ttl: float
    tokens: frozenset[str] = frozenset()

    def is_gone(self, path: Path) -> bool:
        try:
            touched = path.stat().st_mtime
            claim = json.loads(path.read_bytes())
            process = Process.from_json(claim)
        except FileNotFoundError:
            return True
        except ValueError:
            claim, process = None, None  # not legible, so its age decides
        if time.time() - touched >= self.ttl or (process is not None and process.certainly_dead()):
            return True
        return isinstance(claim, dict) and claim.get("uuid") in self.tokens


def _acquire(
    folder: Path, shard: int, judge: _Judge, about: Mapping[str, Any] | None
) -> tuple[Path, int] | None:
    gone = _gone_leases(folder, shard, judge)
    if gone is None:
        return None
    path = folder / f"{shard}.{max(gone) + 1 if gone else 0}"
    descriptor = _create(path, about)
    if descriptor is None:
        return None
    # Whoever looked before we came may have claimed another number. Both look once more, so at most one goes on.
    others = _gone_leases(folder, shard, judge, besides=path)
    if others is None:
        _release(path, descriptor)
        return None
    for number in others:
        (folder / f"{shard}.{number}").unlink(missing_ok=True)
    return path, descriptor


def _gone_leases(folder: Path, shard: int, judge: _Judge, besides: Path | None = None) -> set[int] | None:
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
        if path != besides and not judge.is_gone(path):
            return None
    return numbers if besides is None else numbers - {int(besides.suffix[1:])}


def _create(path: Path, about: Mapping[str, Any] | None = None) -> int | None:
    # Complete before it has its name: a lease without a holder would have to be respected until it is old.
    partial = new_partial(path)
    held = False
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileNotFoundError:
        return None
    try:
        write_all(descriptor, json.dumps(claim_of(about)).encode())
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
