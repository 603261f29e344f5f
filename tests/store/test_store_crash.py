"""Whatever ends a writer, at whatever instant: nothing half-written is trusted, nothing finished is lost."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import storekit as kit

from store import GridStore, processes, verify
from store.clean import leftovers
from store.processes import partial_token
from store.sweeping import sweep

ROWS = kit.rows_of(3, 2)  # two shards of four and two views
CHANGES = ("open", "write", "fsync", "link", "unlink", "rename", "replace", "mkdir", "rmdir")


@contextlib.contextmanager
def _before_every_change(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` before every operation of this process that changes a file system."""
    real = {name: getattr(os, name) for name in CHANGES}

    def wrapped(name: str):
        def call(*args, **kwargs):
            act()
            return real[name](*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, wrapped(name))
    try:
        yield
    finally:
        for name in CHANGES:
            setattr(os, name, real[name])


def _killed_at(root: Path, step: int, work: Callable[[Path], object]) -> bool:
    """Run ``work`` in a process that is killed just before its ``step``-th change; returns whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            with _before_every_change(count):
                work(root)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _partials(store: GridStore) -> list[Path]:
    return list(store.path.parent.rglob("*.partial"))


def test_a_writer_killed_before_any_of_its_file_operations_is_resumed(memory_path: Path) -> None:
    step = trusted = adopted = 0
    while True:
        step += 1
        root = memory_path / str(step)
        if not _killed_at(root, step, lambda root: kit.fill(kit.store_at(root), ROWS)):
            break
        store = kit.store_at(root)
        kept = kit.finished(store)
        trusted += kit.expect_nothing_wrong(store, ROWS)
        standing = len(kit.shard_files(store))
        written = kit.fill(store, ROWS)
        assert written == 2 - standing  # a shard that was whole is taken over, not made again
        adopted += standing - len(kept)
        kit.expect_untouched(kept, store)
        kit.expect_all(store, ROWS)
        assert verify(store) == [] and _partials(store) == []
    assert step > 60 and trusted > 100 and adopted > 0


def test_a_killed_repair_loses_no_other_shard(memory_path: Path) -> None:
    step = 0
    while True:
        step += 1
        store = kit.store_at(memory_path / str(step))
        kit.fill(store, ROWS)
        kit.shard_files(store)[1].unlink()
        kept = kit.finished(store)
        assert len(kept) == 1
        killed = _killed_at(store.path, step, lambda path: kit.fill(GridStore.open(path), ROWS))
        kit.expect_untouched(kept, store)
        kit.expect_nothing_wrong(store, ROWS)
        assert kit.fill(store, ROWS) <= 1
        kit.expect_untouched(kept, store)
        kit.expect_all(store, ROWS)
        assert verify(store) == [] and store.reader()._parts[0].sealed()
        if not killed:
            break
    assert step > 20


def test_only_what_was_flushed_is_trusted_after_a_power_loss(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _durable_images(memory_path / "real")
    host, _, space = processes._machine()
    monkeypatch.setattr(processes, "_machine", lambda: (host, "the boot after the power loss", space))
    assert len(images) > 20
    readable = []
    for number, image in enumerate(images):
        root = memory_path / str(number)
        image(root)
        store = kit.store_at(root / "a" / "cache")
        kept = kit.finished(store)
        readable.append(kit.expect_nothing_wrong(store, ROWS))
        assert kit.fill(store, ROWS) <= 2 - len(kept)
        kit.expect_untouched(kept, store)
        kit.expect_all(store, ROWS)
        assert verify(store) == []
    assert readable == sorted(readable) and readable[-1] == len(ROWS)


def _durable_images(root: Path) -> list[Callable[[Path], None]]:
    """Fill a store in ``root`` and return, for each flush, what would build the tree a power loss then leaves.

    The worst disk is modelled: a file keeps what it held when it was last flushed itself (nothing if never), a
    folder the names it had when it was last flushed.
    """
    root.mkdir()
    contents: dict[int, bytes] = {}
    names: dict[int, dict[str, tuple[int, bool]]] = {}
    images: list[Callable[[Path], None]] = []
    flush = os.fsync

    def note(descriptor: int) -> None:
        flush(descriptor)
        found, place = os.fstat(descriptor), f"/proc/self/fd/{descriptor}"
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(place) as entries:
                names[found.st_ino] = {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}
        else:
            contents[found.st_ino] = Path(place).read_bytes()
        images.append(_image(root.stat().st_ino, dict(names), dict(contents)))

    os.fsync = note
    try:
        kit.fill(kit.store_at(root / "a" / "cache"), ROWS)
    finally:
        os.fsync = flush
    return images


def _image(top: int, names, contents) -> Callable[[Path], None]:
    def build(folder: Path, inode: int = top) -> None:
        folder.mkdir()
        for name, (child, is_folder) in names.get(inode, {}).items():
            if is_folder:
                build(folder / name, child)
            else:
                (folder / name).write_bytes(contents.get(child, b""))

    return build


def test_killed_writers_are_resumed_until_every_grid_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    rows = kit.rows_of(12, 8)
    rng = random.Random(7)
    store = kit.store_at(tmp_path)
    kills = progress = 0
    while kills < 10 or not progress:
        writer = kit.start_writer(tmp_path, rows=[12, 8], pause=0.02)
        try:
            assert writer.stdout is not None and writer.stdout.readline() == "go\n"
            before = kit.finished(store)
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
            time.sleep(rng.uniform(0.02, 0.25) * (1 + kills // 10))  # a loaded machine may need longer
            writer.kill()
        finally:
            status = writer.wait()
            writer.stdin.close()
            writer.stdout.close()
        kit.expect_untouched(before, store)
        progress = max(progress, kit.expect_nothing_wrong(store, rows))
        assert verify(store) == []
        assert status == -signal.SIGKILL
        kills += 1
    kept = kit.finished(store)
    assert 0 < progress < len(rows) and 0 < len(kept) < 24
    assert kit.fill(store, rows) <= 24 - len(kept)
    kit.expect_untouched(kept, store)
    kit.expect_all(store, rows)
    assert verify(store) == [] and _partials(store) == []
    fresh = kit.store_at(tmp_path / "uninterrupted")
    kit.fill(fresh, rows)
    assert [p.read_bytes() for p in kit.shard_files(fresh)] == [
        p.read_bytes() for p in kit.shard_files(store)
    ]


def test_a_grid_source_that_fails_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    first, second = store.plan(ROWS, shard_views=4)
    store.write(first, kit.grids(first))
    kept = kit.finished(store)

    def failing():
        yield from list(kit.grids(second))[:2]
        raise OSError("image server went away")

    with pytest.raises(OSError, match="image server"):
        store.write(second, failing())
    assert _partials(store) == [] and kit.finished(store) == kept
    assert kit.fill(store, ROWS) == 1


def test_folders_that_go_while_leftovers_are_looked_for_are_no_error(tmp_path: Path) -> None:
    space, gone = partial_token().split("-")[0], threading.Event()
    left = tmp_path / f"c.0.{space}-{2**22 + 1}-0123456789ab.partial"  # of a process that there cannot be
    left.write_bytes(b"x")

    def seal_again_and_again(part: Path) -> None:
        while not gone.is_set():
            (part / "_work" / "done").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)

    with ThreadPoolExecutor(3) as pool:
        for number in range(3):
            pool.submit(seal_again_and_again, tmp_path / f"part-{number}")
        try:
            found = [leftovers(tmp_path) for _ in range(1500)]
        finally:
            gone.set()
    assert all([one.path for one in each] == [left] for each in found)


def test_leftovers_of_living_writers_are_not_swept_until_they_are_an_hour_old(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    space = partial_token().split("-")[0]
    dead = tmp_path / f"c.0.{space}-{child}-0123456789ab.partial"
    mine = tmp_path / f"c.1.{space}-{os.getpid()}-0123456789ab.partial"
    elsewhere = tmp_path / f"c.2.ffffffff-{child}-0123456789ab.partial"
    folder = tmp_path / f"part-x.{space}-{child}-0123456789ab.partial"
    other = tmp_path / "c.3"
    for path in (dead, mine, elsewhere, other):
        path.write_bytes(b"x")
    folder.mkdir()
    (folder / "part.json").write_bytes(b"x")
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere, other])
    past = time.time() - 3700
    os.utime(mine, (past, past))
    os.utime(elsewhere, (past, past))
    os.utime(other, (past, past))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [other]
