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
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pipeline.journal_reading import FOLDER, VERSION, Entry, Unit, entries_in, standing
from store.documents import encode
from store.durable import new_partial
from store.grids import GridStore
from store.processes import Process
from store.rows import ShardTask
from store.sweeping import sweep

Kind = Literal["shard", "run"]

EVERY_S = 1.0  # between writes, at the least
SHARE = 0.01  # of the time that may be spent on writing
TOUCH_S = 15.0  # between signs of life while something is under way
MAX_WHY = 2000  # characters of an explanation


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
        self._changed = False  # since it was written
        self._behind = False  # because it could not be written
        self._written = False  # and so to be removed in the end
        gone = {path: one for path, one in entries_in(folder) if isinstance(one, Entry) and one.gone}
        self._failed.update(standing(gone.values()))
        self._inherited = list(gone)
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
        told = why if len(why) <= MAX_WHY else f"{why[:MAX_WHY]}…"
        told = told.encode(errors="backslashreplace").decode()  # a path may have bytes that are no text
        with self._lock:
            self._under_way.pop((kind, name), None)
            self._failed[kind, name] = time.time(), told
        self._note()

    def flush(self) -> None:
        """Write what there is to be said now; the file goes where that is nothing."""
        with self._writing:
            if self._changed or self._behind:
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
                if self._changed or self._behind or not self._touch():
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
        self._changed, self._behind = False, True
        with self._lock:
            under_way, failed = dict(self._under_way), dict(self._failed)
        with suppress(OSError):
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
            self._behind = False
            while self._inherited:
                self._inherited.pop().unlink(missing_ok=True)
            if not self._written:
                self.path.parent.rmdir()  # refused where others have theirs there

    def _put(self, data: bytes) -> None:
        """Replace the file; it is not flushed to the disk, because after a power loss nothing in it holds any more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._written:
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
