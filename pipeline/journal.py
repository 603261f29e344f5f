"""What a command is working on and what failed of it: a small file with a study's results, for others to look at.

What is done, the stores and the folders of runs say themselves. A journal adds what they cannot: what is under way,
and what failed and why. The process that drives the work writes it, be the work done in this process, in others or on
a cluster. Nothing is ever right because of a journal, and no work ends because one cannot be written.

A unit of work has a kind and a name: a run that of its folder, relative to the study's results; a shard what
:func:`shard_name` says.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from store.documents import decode, encode, read_bytes
from store.durable import new_partial, sweep
from store.errors import FrostgridError, VerificationError
from store.grids import GridStore
from store.processes import Process
from store.rows import ShardTask

Kind = Literal["shard", "run"]
Unit = tuple[str, str]  # kind, name

FOLDER = "journal"
EVERY_S = 1.0  # between writes, at the least
SHARE = 0.01  # of the time that may be spent on writing
TOUCH_S = 15.0  # between signs of life while something is under way
STALE_S = 60.0  # without a sign of life, after which a process that cannot be looked at counts as gone
MAX_WHY = 2000  # characters of an explanation
VERSION = 1
_REMEDY = "Remove it: what is done is not affected."


def shard_name(store: GridStore, task: ShardTask) -> str:
    """Return what a shard is called in journals: ``<cache folder>/<part>/<shard>``."""
    return f"{store.path.name}/{task.part}/{task.shard}"


class Journal:
    """The journal of this process in a study's results (``folder``); every method may be called from any thread.

    Writing is left to a thread of its own, at most once a second and for at most a hundredth of the time. The failures
    of processes that are gone are taken over, so that their files can go.
    """

    def __init__(self, folder: Path) -> None:
        process = Process.current()
        host = re.sub(r"[^A-Za-z0-9._]", "_", process.host)[:64]
        self.path = folder / FOLDER / f"{host}-{process.pid}-{uuid.uuid4().hex[:8]}.json"
        self._process = process
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._under_way: dict[Unit, float] = {}
        self._failed: dict[Unit, tuple[float, str]] = {}
        self._changed = self._written = False
        gone = [one for one in _entries(folder) if isinstance(one[1], _Entry) and one[1].gone]
        self._failed.update(_standing([entry for _, entry in gone if isinstance(entry, _Entry)]))
        self._inherited = [path for path, _ in gone]
        atexit.register(self._leave)

    def begin(self, kind: Kind, name: str) -> None:
        """Note that a unit of work is under way; that it failed before no longer counts."""
        with self._lock:
            self._failed.pop((kind, name), None)
            self._under_way[kind, name] = time.time()
        self._note()

    def end(self, kind: Kind, name: str) -> None:
        """Note that a unit is no longer under way: done, or given up, which others can tell from what it left."""
        with self._lock:
            self._under_way.pop((kind, name), None)
        self._note()

    def fail(self, kind: Kind, name: str, why: str) -> None:
        """Note that a unit failed, and why; it need not have begun."""
        with self._lock:
            self._under_way.pop((kind, name), None)
            self._failed[kind, name] = time.time(), why if len(why) <= MAX_WHY else f"{why[:MAX_WHY]}…"
        self._note()

    def flush(self) -> None:
        """Write what there is to be said now; the file goes where that is nothing."""
        with self._writing:
            if self._changed:
                self._write()

    def _note(self) -> None:
        self._changed = True
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)
                self._thread.start()
        self._woken.set()

    def _keep(self) -> None:
        """Write the file whenever something has changed, and show that this process lives, until all is at rest."""
        while True:
            self._woken.clear()
            started = time.monotonic()
            with self._writing:
                if self._changed or not self._written or not self._touch():
                    self._write()
            time.sleep(min(TOUCH_S, max(EVERY_S, (time.monotonic() - started) / SHARE)))
            with self._lock:
                if not self._changed and not self._under_way:
                    self._thread = None
                    return
            if not self._changed:
                self._woken.wait(TOUCH_S)

    def _touch(self) -> bool:
        """Show that this process lives; returns whether the file is still there."""
        try:
            os.utime(self.path)
        except OSError:
            self._written = False
        return self._written

    def _write(self) -> None:
        with suppress(OSError, ValueError):  # ValueError: a text that no file can hold
            self._changed = False
            with self._lock:
                under_way, failed = dict(self._under_way), dict(self._failed)
            if under_way or failed:
                body = {
                    "process": self._process.to_json(),
                    "under_way": [[*unit, round(at, 3)] for unit, at in under_way.items()],
                    "failed": [[*unit, round(at, 3), why] for unit, (at, why) in failed.items()],
                }
                self._put(encode("journal", VERSION, body))
                self._written = True
            elif self._written:
                self.path.unlink(missing_ok=True)
                self._written = False
            while self._inherited:
                self._inherited.pop().unlink(missing_ok=True)
            if not self._written:
                self.path.parent.rmdir()  # refused where others have theirs there

    def _put(self, data: bytes) -> None:
        """Replace the file; it is not flushed to the disk, because after a power loss nothing in it holds any more."""
        if not self._written:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent)
        partial = new_partial(self.path)
        try:
            partial.write_bytes(data)
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _leave(self) -> None:
        """Leave the failures behind, if there are any; this process works on nothing any more."""
        if os.getpid() != self._process.pid:
            return  # of a process that was forked from it
        with self._writing:
            if self.path.parent.is_dir():
                with self._lock:
                    self._under_way.clear()
                self._write()


_journals: dict[tuple[int, Path], Journal] = {}
_opening = threading.Lock()


def journal_of(folder: Path) -> Journal:
    """Return the journal that this process keeps in a study's results, always the same one."""
    key = os.getpid(), folder.absolute()
    with _opening:
        if key not in _journals:
            _journals[key] = Journal(key[1])
        return _journals[key]


@dataclass(frozen=True)
class Journals:
    """What all journals of a study say together.

    ``under_way``: units that a living process works on; ``failed``: why units failed that nobody has begun again since;
    ``faults``: what is wrong with journals that cannot be read.
    """

    under_way: frozenset[Unit]
    failed: dict[Unit, str]
    faults: list[FrostgridError] = field(default_factory=list)


def read_journals(folder: Path) -> Journals:
    """Return what the journals in a study's results say; ``folder`` need not be there."""
    found = [entry for _, entry in _entries(folder)]
    entries = [entry for entry in found if isinstance(entry, _Entry)]
    under_way = {unit for entry in entries if not entry.gone for unit in entry.under_way}
    failed = {unit: why for unit, (_, why) in _standing(entries).items()}
    return Journals(frozenset(under_way), failed, [fault for fault in found if not isinstance(fault, _Entry)])


def _standing(entries: Iterable[_Entry]) -> dict[Unit, tuple[float, str]]:
    """Return when and why units failed last that were not begun again since."""
    tried: dict[Unit, float] = {}
    failed: dict[Unit, tuple[float, str]] = {}
    for entry in entries:
        for unit, at in entry.under_way.items():
            tried[unit] = max(at, tried.get(unit, at))
        for unit, why in entry.failed.items():
            failed[unit] = max(why, failed.get(unit, why))
    return {unit: (at, why) for unit, (at, why) in failed.items() if tried.get(unit, at) <= at}


@dataclass(frozen=True)
class _Entry:
    """One journal: whether its process is gone, and what it said."""

    gone: bool
    under_way: dict[Unit, float]
    failed: dict[Unit, tuple[float, str]]


def _entries(folder: Path) -> Iterator[tuple[Path, _Entry | FrostgridError]]:
    """Yield every journal in a study's results, or what is wrong with it."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            touched = path.stat().st_mtime
            data = read_bytes(path)
            if data is not None:
                yield path, _entry(decode("journal", VERSION, data, path, _REMEDY), touched, path)
        except FileNotFoundError:  # its process has just ended
            continue
        except FrostgridError as fault:
            yield path, fault
        except OSError as error:
            yield path, VerificationError(f"It cannot be read: {error.strerror}", where=path, remedy=_REMEDY)


def _entry(body: dict[str, Any], touched: float, path: Path) -> _Entry:
    try:
        process = Process.from_json(body["process"])
        if process is None:
            raise ValueError("names no process")
        return _Entry(
            gone=process.certainly_dead() or time.time() - touched >= STALE_S,
            under_way={(str(kind), str(name)): float(at) for kind, name, at in body["under_way"]},
            failed={(str(kind), str(name)): (float(at), str(why)) for kind, name, at, why in body["failed"]},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError("The journal is incomplete", where=path, remedy=_REMEDY) from error
