"""Pushes, pulls and merges killed at any moment are taken up, and nothing finished is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server
import sharing_kit
import storekit as kit
from s3_server import BUCKET, S3, Wire
from sharing_kit import finish, let_go, made, only_offer, start_copier

from store import GridStore, verify
from store.places import open_place
from store.sharing import offers, pull, push, verify_at

URL = f"s3://{BUCKET}/caches"
ROWS = {2: kit.rows_of(8, 8), 10: kit.rows_of(16, 16)}  # by the number of kills
SHARDS = {2: 16, 10: 64}  # of four
Record = Callable[[str, object], None]
TWICE_OR_TEN_TIMES = pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server.s3_server() as running:
        yield running


@pytest.fixture
def wire(server: S3) -> Iterator[Wire]:
    with s3_server.bucket(server) as wire:
        yield wire


def _kill(
    process: subprocess.Popen[str], there: Callable[[], int], lacking: int, left: int, rng: random.Random
) -> bool:
    """Let a copier go, kill it somewhere on its way to ``left`` more kills, and tell whether it was still at work.

    By the number of shards that are ``there`` (``lacking`` were not) and not by the clock, which says little on a busy
    machine.
    """
    enough = there() + rng.randint(0, max(1, lacking // (left + 1)))
    let_go(process)
    while process.poll() is None and there() < enough:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.01))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


@TWICE_OR_TEN_TIMES
def test_killed_pushes_are_taken_up_and_send_nothing_twice_that_was_finished(
    server: S3, wire: Wire, tmp_path: Path, kills: int, record_property: Record
) -> None:
    rng = random.Random(kills)
    home = made(tmp_path / "home", ROWS[kills])
    finished: dict[str, bytes] = {}
    killed = 0
    for number in range(kills):
        push_process = start_copier("push", home.path, URL)
        killed += _kill(
            push_process,
            lambda: sum("/tokens/c." in key for key in server.objects()),
            SHARDS[kills] - len(finished),
            kills - number,
            rng,
        )
        found, faults = offers(open_place(URL))
        assert faults == [] or not found
        for offer in found:
            assert verify_at(offer) == []  # a marker there always stands by a whole shard
            whole = {key: server.get(key) for key in _finished(offer)}
            assert finished.items() <= whole.items()
            finished = whole
    assert killed > kills // 2 - 1
    wire.mend()
    process = start_copier("push", home.path, URL)
    let_go(process)
    said = finish(process)
    assert said == {"shards": SHARDS[kills] - len(finished), "kept": len(finished)}
    record_property(
        "kills", f"{killed} of {kills}, {len(finished)} of {SHARDS[kills]} shards before the last push"
    )
    assert not any("_work" in key for key in server.objects())
    sharing_kit.expect_copy(pull(only_offer(URL), tmp_path / "away"), ROWS[kills])


def _finished(offer) -> list[str]:
    """The objects of the shards that count at a place."""
    return [
        f"caches/{offered.part.shard_path(shard).as_posix()}"
        for offered in offer.parts
        for shard in sorted(offered.whole)
    ]


def _killed_copies(source: Path | str, root: Path, kills: int, record_property: Record) -> GridStore:
    """Kill ``kills`` pulls into ``root``, see after each that nothing is lost, finish, and return the copy."""
    rng = random.Random(kills)
    folder = root / only_offer(source).folder
    killed, before = 0, {}
    for number in range(kills):
        pulling = start_copier("pull", source, root)
        killed += _kill(
            pulling,
            lambda: len(list(folder.glob("part-*/tokens/c.*[0-9]"))),
            SHARDS[kills] - len(before),
            kills - number,
            rng,
        )
        if (folder / "cache.json").exists():
            store = GridStore.open(folder)
            kit.expect_untouched(before, store)
            kit.expect_nothing_wrong(store, ROWS[kills])
            assert verify(store) == []
            before = kit.finished(store)
    assert killed > kills // 2 - 1
    record_property(
        "kills", f"{killed} of {kills}, {len(before)} of {SHARDS[kills]} shards before the last copy"
    )
    process = start_copier("pull", source, root)
    let_go(process)
    said = finish(process)
    store = GridStore.open(folder)
    kit.expect_untouched(before, store)
    assert said["shards"] <= SHARDS[kills] - len(before)  # what was whole without its marker is taken over
    return store


@TWICE_OR_TEN_TIMES
def test_killed_pulls_are_taken_up(wire: Wire, tmp_path: Path, kills: int, record_property: Record) -> None:
    push(made(tmp_path / "home", ROWS[kills]), open_place(URL))
    store = _killed_copies(URL, tmp_path / "away", kills, record_property)
    copied = pull(only_offer(URL), tmp_path / "away")
    assert copied.shards == 0
    assert sharing_kit.expect_copy(copied, ROWS[kills]).path == store.path


@TWICE_OR_TEN_TIMES
def test_killed_merges_are_taken_up(tmp_path: Path, kills: int, record_property: Record) -> None:
    a = made(tmp_path / "a", ROWS[kills], limit=0)
    b = made(tmp_path / "b", ROWS[kills], limit=0)
    tasks = a.plan(ROWS[kills])
    for task in tasks[:4]:
        a.write(task, kit.grids(task))
    for task in tasks[2:]:
        b.write(task, kit.grids(task))
    before = kit.finished(a)
    store = _killed_copies(tmp_path / "b", tmp_path / "a", kills, record_property)
    kit.expect_untouched(before, store)
    sharing_kit.expect_copy(pull(only_offer(tmp_path / "b"), tmp_path / "a"), ROWS[kills])
