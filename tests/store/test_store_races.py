"""Several processes and threads on one store, and the leases that keep them from doing the same work twice."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import storekit as kit

from store import GridStore, ShardTask, leases, parts, verify
from store.leases import hold
from store.parts import create_part
from store.processes import Process
from store.sealing import seal
from store.writer import write_shard


def _run(*writers) -> None:
    for writer in writers:
        assert writer.stdout.readline() == "go\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.wait(timeout=60) == 0
        writer.stdin.close()
        writer.stdout.close()


def test_two_processes_that_plan_the_same_views_make_one_part_together(tmp_path: Path) -> None:
    options = {"rows": [10, 4], "pause": 0.005}
    _run(kit.start_writer(tmp_path, **options), kit.start_writer(tmp_path, **options))
    store = kit.store_at(tmp_path)
    assert store.status().parts == 1 and store.status().shards_done == 10
    kit.expect_all(store, kit.rows_of(10, 4))
    assert verify(store) == [] and not list(tmp_path.rglob("*.partial"))


def test_two_processes_that_plan_overlapping_views_at_once_end_complete_and_right(tmp_path: Path) -> None:
    _run(
        kit.start_writer(tmp_path, rows=[10, 3], pause=0.005),
        kit.start_writer(tmp_path, rows=[7, 5], pause=0.005, reverse=True),
    )
    store = kit.store_at(tmp_path)
    kit.expect_all(store, kit.rows_of(10, 3))
    kit.expect_all(store, kit.rows_of(7, 5))
    assert store.plan(kit.rows_of(10, 3) + kit.rows_of(7, 5)) == []
    assert verify(store) == []


def test_a_view_that_two_parts_hold_is_planned_and_read_once(tmp_path: Path) -> None:
    # What two processes leave that both planned before either had made its part.
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(6, 2)
    for chosen in (rows[:8], rows[4:]):
        create_part(store.path, store.key, store.spec, chosen, 4)
    tasks = store.plan(rows)
    assert tasks == GridStore.open(store.path).plan(list(rows))
    assert kit.fill(store, rows) == len(tasks) <= 4
    kit.expect_all(store, rows)
    assert store.status().views_planned == store.status().views_done == 12
    assert store.plan(rows) == [] and verify(store) == []


def test_a_view_is_read_from_the_part_in_which_it_is_whole(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(4, 1)
    for chosen in (rows, rows[::-1]):
        create_part(store.path, store.key, store.spec, chosen, 4)
    for part in store._parts():
        task = ShardTask(part.name, 0, part.shard_rows(0))
        store.write(task, kit.grids(task))
    kit.expect_all(store, rows)
    kit.shard_files(store)[0].unlink()
    kit.expect_all(store, rows)
    assert store.plan(rows) == []


def test_writers_of_the_same_shard_without_leases_leave_one_whole_shard(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(8, 1)
    (task,) = store.plan(rows, shard_views=8)
    barrier = threading.Barrier(4)

    def write(writer: int) -> None:
        def source():
            for number, item in enumerate(kit.grids(task)):
                if number == 7:
                    barrier.wait()
                yield item

        GridStore.open(store.path).write(task, source())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    kit.expect_all(store, rows)
    assert verify(store) == [] and not list(tmp_path.rglob("*.partial"))


def _left_by_another(store: GridStore, task: ShardTask, content: bytes):
    """The grids of a task; while they are made, another writer commits the shard and dies before its marker."""
    yield from kit.grids(task)
    (part,) = store._parts()
    part.shard_path(task.shard).write_bytes(content)


def test_a_shard_that_another_writer_left_meanwhile_is_taken_over_if_whole_and_replaced_if_not(
    tmp_path: Path,
) -> None:
    rows = kit.rows_of(4, 1)
    whole = kit.store_at(tmp_path / "whole")
    kit.fill(whole, rows)
    content = kit.shard_files(whole)[0].read_bytes()
    for number, left in enumerate([content, content[:-9], b""]):
        store = kit.store_at(tmp_path / str(number))
        (task,) = store.plan(rows, shard_views=4)
        store.write(task, _left_by_another(store, task, left))
        kit.expect_all(store, rows)
        assert verify(store) == [] and store._parts()[0].sealed()
        assert not list(store.path.rglob("*.partial"))


def test_a_part_sealed_while_it_is_looked_at_is_seen_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = kit.rows_of(6, 2)
    real = parts.read_bytes
    for number, look in enumerate([lambda part: part.record(1), lambda part: part.records()[1]]):
        store = kit.store_at(tmp_path / str(number))
        tasks = store.plan(rows, shard_views=4)
        (part,) = store._parts()
        for task in tasks:
            write_shard(part, task.shard, kit.grids(task))
        assert not part.sealed()

        def read(path: Path, part: parts.Part = part) -> bytes | None:
            if path.parent == part.done_folder:
                monkeypatch.setattr(parts, "read_bytes", real)
                assert seal(part)
            return real(path)

        monkeypatch.setattr(parts, "read_bytes", read)
        assert look(part) is not None and part.sealed()


def test_one_store_object_is_shared_by_writing_and_reading_threads(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(16, 2)
    tasks = store.plan(rows, shard_views=4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda task: store.write(task, kit.grids(task)), tasks))
    reader = store.reader()
    keys = [row.key for row in rows]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: reader.read_many(keys).tobytes(), range(8)))
    assert set(got) == {b"".join(kit.grid_of(row).tobytes() for row in rows)}


def test_a_reader_survives_a_fork(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(8, 1)
    kit.fill(store, rows)
    reader = store.reader()
    wanted = reader.read_many([row.key for row in rows]).tobytes()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            same = reader.read_many([row.key for row in rows]).tobytes() == wanted
            os._exit(0 if same else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_a_shard_leased_by_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    first, second = store.plan(kit.rows_of(8, 1), shard_views=4)
    other = GridStore.open(store.path)
    with store.lease(first) as mine:
        assert mine
        with other.lease(first) as theirs, other.lease(second) as free:
            assert not theirs and free
        store.write(first, kit.grids(first))
    with other.lease(first) as again:
        assert not again
    with other.lease(second) as free:
        assert free


def _lease_file(path: Path, holder: Process, age: float = 0.0) -> None:
    path.write_text(json.dumps({**holder.to_json(), "uuid": "x", "started": 0.0}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_the_lease_of_a_dead_or_silent_process_is_taken_by_exactly_one(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead by now, and not yet reaped
    here = Process.current()
    zombie = Process(here.host, here.boot, here.space, child, "")
    reused = Process(here.host, here.boot, here.space, here.pid, "1")
    rebooted = Process(here.host, "another boot", here.space, here.pid, here.start)
    remote = Process("another host", here.boot, here.space, child, "")
    other_space = Process(here.host, here.boot, "pid:[1]", child, "")
    for number, (holder, age, free) in enumerate(
        [
            (zombie, 0, True),
            (reused, 0, True),
            (rebooted, 0, True),
            (remote, 0, False),
            (other_space, 0, False),
            (here, 0, False),
            (remote, 700, True),
            (here, 700, True),
        ]
    ):
        _lease_file(tmp_path / f"{number}.0", holder, age)
        barrier = threading.Barrier(5)

        def claim(_: int, number: int = number, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            with hold(tmp_path, number) as held:
                barrier.wait()
                return held

        with ThreadPoolExecutor(5) as pool:
            assert sum(pool.map(claim, range(5))) == (1 if free else 0), number
    os.waitpid(child, 0)


def test_of_two_that_claim_a_lease_under_different_numbers_one_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = leases._create

    def late(path: Path, about: object) -> int | None:
        _lease_file(tmp_path / "0.5", Process.current())  # claimed after our look and before our claim
        return create(path)

    monkeypatch.setattr(leases, "_create", late)
    with hold(tmp_path, 0) as held:
        assert not held
    assert [path.name for path in tmp_path.iterdir()] == ["0.5"]


def test_a_held_lease_is_kept_fresh_and_given_back(tmp_path: Path) -> None:
    with hold(tmp_path, 0, ttl=0.5) as held:
        assert held
        start = (tmp_path / "0.0").stat().st_mtime_ns
        time.sleep(0.8)
        assert (tmp_path / "0.0").stat().st_mtime_ns > start
        with hold(tmp_path, 0, ttl=0.5) as second:
            assert not second
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_lost_its_lease_leaves_its_successors_alone(tmp_path: Path) -> None:
    first, second = hold(tmp_path, 0), hold(tmp_path, 0)
    assert first.__enter__()
    os.utime(tmp_path / "0.0", (0, 0))
    assert second.__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["0.1"]
    first.__exit__(None, None, None)
    with hold(tmp_path, 0) as third:
        assert not third
    second.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_lease_in_a_sealed_part_claims_nothing(tmp_path: Path) -> None:
    with hold(tmp_path / "lease", 3) as held:
        assert not held
