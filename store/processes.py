"""Which process wrote something, and whether that process is certainly gone."""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """One process of one boot of one machine.

    ``space`` names the space its ``pid`` counts in (containers on one host have their own), ``start`` the clock
    tick it started at, so that a reused process number is not taken for it. A field is empty where the system
    does not tell.
    """

    host: str
    boot: str
    space: str
    pid: int
    start: str

    @classmethod
    def current(cls) -> Process:
        """Return the calling process; not cached, so it is right after a fork as well."""
        pid = os.getpid()
        return cls(*_machine(), pid, _start_and_state(pid)[0])

    @classmethod
    def from_json(cls, value: Any) -> Process | None:
        """Return the process a lease file names, or ``None`` if it names none."""
        if not isinstance(value, dict):
            return None
        texts = [value.get(name) for name in ("host", "boot", "space", "start")]
        pid = value.get("pid")
        if not all(isinstance(text, str) for text in texts) or not isinstance(pid, int):
            return None
        host, boot, space, start = (str(text) for text in texts)
        return cls(host, boot, space, pid, start)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as they stand in a lease file."""
        return asdict(self)

    def certainly_dead(self) -> bool:
        """Tell whether this process no longer runs; ``False`` whenever that cannot be known from here."""
        host, boot, space = _machine()
        if self.host != host:
            return False
        if self.boot != boot:
            return True  # the machine has been restarted since
        return self.space == space and _gone(self.pid, self.start)


def partial_token() -> str:
    """Return a unique text that names this process, for the names of its temporary files."""
    return f"{_space_digest()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def partial_writer_gone(space_digest: str, pid: int) -> bool:
    """Tell whether the process named in a temporary file's token is known to have ended."""
    return space_digest == _space_digest() and _gone(pid, "")


@cache
def _machine() -> tuple[str, str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot, space = "", ""
    return socket.gethostname(), boot, space


@cache
def _space_digest() -> str:
    return hashlib.sha256("\0".join(_machine()).encode()).hexdigest()[:8]


def _gone(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    now, state = _start_and_state(pid)
    # A zombie still answers to its number although it will never write again.
    return state in ("Z", "X") or bool(start and now and now != start)


def _start_and_state(pid: int) -> tuple[str, str]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[19], fields[0]
