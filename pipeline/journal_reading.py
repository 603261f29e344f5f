"""What the journals of a study say together, by whomever they are kept; see :mod:`pipeline.journal`."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.documents import decode, read_bytes
from store.errors import FrostgridError, VerificationError
from store.processes import Process

Unit = tuple[str, str]
"""A unit of work: its kind, and its name."""

FOLDER = "journal"  # in a study's results
VERSION = 1
STALE_S = 60.0  # without a sign of life, after which a process counts as gone, be it only at rest
_REMEDY = "Remove it: what is done is not affected."


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
    found = [entry for _, entry in entries_in(folder)]
    entries = [entry for entry in found if isinstance(entry, Entry)]
    under_way = {unit for entry in entries if not entry.gone for unit in entry.under_way}
    failed = {unit: why for unit, (_, why) in standing(entries).items()}
    return Journals(frozenset(under_way), failed, [fault for fault in found if not isinstance(fault, Entry)])


def standing(entries: Iterable[Entry]) -> dict[Unit, tuple[float, str]]:
    """Return when (seconds since 1970) and why units failed last that were not begun again since."""
    tried: dict[Unit, float] = {}
    failed: dict[Unit, tuple[float, str]] = {}
    for entry in entries:
        for unit, at in entry.under_way.items():
            tried[unit] = max(at, tried.get(unit, at))
        for unit, why in entry.failed.items():
            failed[unit] = max(why, failed.get(unit, why))
    return {unit: (at, why) for unit, (at, why) in failed.items() if tried.get(unit, at) <= at}


@dataclass(frozen=True)
class Entry:
    """One journal: whether its process is ``gone``, and what it said.

    ``under_way``: when units were begun; ``failed``: when, and why. Times are seconds since 1970.
    """

    gone: bool
    under_way: dict[Unit, float]
    failed: dict[Unit, tuple[float, str]]


def entries_in(folder: Path) -> Iterator[tuple[Path, Entry | FrostgridError]]:
    """Yield every journal in a study's results, or what is wrong with it."""
    names = glob.glob(f"{FOLDER}/*.json", root_dir=folder)  # noqa: PTH207  # Path.glob raises where the folder goes
    for path in sorted(folder / name for name in names):
        try:
            touched = path.stat().st_mtime
            data = read_bytes(path)
            if data is not None:
                yield path, _read(decode("journal", VERSION, data, path, _REMEDY), touched, path)
        except FileNotFoundError:  # its process has just ended
            continue
        except FrostgridError as fault:
            yield path, fault
        except OSError as error:
            yield path, VerificationError(f"It cannot be read: {error.strerror}", where=path, remedy=_REMEDY)


def _read(body: dict[str, Any], touched: float, path: Path) -> Entry:
    try:
        process = Process.from_json(body["process"])
        if process is None:
            raise ValueError("names no process")
        return Entry(
            gone=process.certainly_dead() or time.time() - touched >= STALE_S,
            under_way={(str(kind), str(name)): float(at) for kind, name, at in body["under_way"]},
            failed={(str(kind), str(name)): (float(at), str(why)) for kind, name, at, why in body["failed"]},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError("The journal is incomplete", where=path, remedy=_REMEDY) from error
