"""Claims on shards that lie at a place: leases for writers that share nothing but that place.

The claim on shard 7 of a part is an object ``_work/lease/7.0`` of it; who finds its holder gone claims ``7.1``, and so
on: of several that find the same, the exclusive creation of the next number lets one through. The holder writes its
claim anew with a higher count every now and then. No two clocks are compared: a claim is dead to someone who has looked
at it for long enough and has not seen the count move. As with leases no file is ever right because of a claim, and
where a place cannot refuse a name that is taken, at worst a shard is made twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from store.errors import FrostgridError
from store.leases import Holder, claim_of
from store.places.place import Place
from store.processes import Process

BEAT_S = 15.0  # between two signs of life of a holder
STALE_S = 120.0  # without one, after which a holder counts as gone


@contextmanager
def claim(
    place: Place,
    folder: str,
    shard: int,
    *,
    about: Mapping[str, Any] | None = None,
    gone: Collection[str] = (),
) -> Iterator[bool]:
    """Hold the claim on ``shard`` for the block; yields ``False`` where another writer has it.

    ``folder`` is where the claims of its part lie at the place. A claim does not count whose process has died on this
    machine, or whose token is among ``gone`` (see :func:`holder_at`). ``about`` is for others to read. Raises what the
    place raises when it is asked for the claim; later it is told of no fault, since a claim saves work only.
    """
    number = _free_number(place, folder, shard, gone)
    mine = claim_of(about)
    if number is None or place.send({f"{folder}/{shard}.{number}": _beat(mine, 0)}, new=True):
        yield False
        return
    ended = threading.Event()
    heart = threading.Thread(
        target=_keep, args=(place, f"{folder}/{shard}.{number}", mine, ended), daemon=True
    )
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        # The highest first: while one of them is there, nobody begins again at 0.
        with suppress(FrostgridError):
            for left in reversed(range(number + 1)):
                place.remove([f"{folder}/{shard}.{left}"])


def holder_at(place: Place, folder: str, shard: int) -> Holder | None:
    """Return who holds the claim on ``shard``, None where nobody does; the token changes with each sign of life."""
    number = 0
    last: bytes | None = None
    while (data := place.read(f"{folder}/{shard}.{number}")) is not None:
        number, last = number + 1, data
    if last is None:
        return None
    found = _read(last)
    return Holder(_token(last), dict(found.get("about") or {}))


def claimed(place: Place, folder: str, names: Iterable[str]) -> set[int]:
    """Return the shards with a claim among ``names``, the files in ``folder``, whose holder is not known to have died.

    Nothing is waited for: the claim of one that was lost on another machine counts until it is taken over.
    """
    found = set()
    for name in names:
        match = re.fullmatch(r"(\d+)\.\d+", name)
        if match and (data := place.read(f"{folder}/{name}")) is not None:
            process = Process.from_json(_read(data))
            if process is None or not process.certainly_dead():
                found.add(int(match[1]))
    return found


def _free_number(place: Place, folder: str, shard: int, gone: Collection[str]) -> int | None:
    """Return the number of the claim that comes after those whose holders are gone, None where one of them lives."""
    number = 0
    while (data := place.read(f"{folder}/{shard}.{number}")) is not None:
        process = Process.from_json(_read(data))
        if _token(data) not in gone and not (process is not None and process.certainly_dead()):
            return None
        number += 1
    return number


def _keep(place: Place, name: str, claim: Mapping[str, Any], ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        with suppress(FrostgridError):
            place.send({name: _beat(claim, beat)})


def _beat(claim: Mapping[str, Any], beat: int) -> bytes:
    return json.dumps({**claim, "beat": beat}).encode()


def _read(data: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    return {}


def _token(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
