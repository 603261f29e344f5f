"""Full, read-only, forbidden and simple disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import storekit as kit

from store import GridSpec, GridStore, ShardTask, open_labelled, verify
from store.errors import AccessError, StorageError

BIG = GridSpec("tokens", (16, 32, 32), "float16", ("d", "h", "w"))


def test_a_full_disk_keeps_the_finished_shards_and_the_rest_follows_once_there_is_room(
    small_disk: Callable[[str], Path],
) -> None:
    root = small_disk("size=1m")
    rows = kit.rows_of(12, 4)
    store = kit.store_at(root, BIG)
    with pytest.raises(StorageError, match=r"disk is full: 0\.\d MB are free.*\[cache\] root") as caught:
        kit.fill(store, rows)
    assert str(store.path) in str(caught.value)
    kept = kit.finished(store)
    assert 4 <= len(kept) < 12 and not list(root.rglob("*.partial"))
    assert kit.expect_nothing_wrong(store, rows) == 4 * len(kept) and verify(store) == []
    with pytest.raises(StorageError, match="disk is full"):
        kit.fill(store, rows)
    kit.expect_untouched(kept, store)
    small_disk("size=8m")
    assert kit.fill(store, rows) == 12 - len(kept)
    kit.expect_untouched(kept, store)
    kit.expect_all(store, rows)
    assert verify(store) == []


def test_a_disk_too_full_for_a_new_cache_says_so(small_disk: Callable[[str], Path]) -> None:
    root = small_disk("size=64k")
    filler = root / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageError, match="disk is full"):
        kit.store_at(root)
    assert [path.name for path in root.iterdir()] == ["filler"]


def test_a_read_only_cache_is_read_without_any_write_and_refuses_new_views(
    small_disk: Callable[[str], Path],
) -> None:
    root = small_disk("size=4m")
    rows = kit.rows_of(8, 1)
    store = kit.store_at(root)
    kit.fill(store, rows)
    more = kit.rows_of(8, 2)
    open_task = store.plan(more, shard_views=4)[0]
    store.write(open_task, kit.grids(open_task))
    small_disk("ro")
    before = sorted(root.rglob("*"))
    store = kit.store_at(root)
    done = [*rows, *open_task.rows]
    kit.expect_all(store, done)
    assert verify(store) == [] and store.plan(done) == [] and store.status().views_done == 12
    assert open_labelled(store.path).sizes["view"] == 12
    with pytest.raises(StorageError, match="read-only"):
        store.plan(kit.rows_of(9, 2))
    (part,) = [part for part in store._parts() if part.name == open_task.part]
    last = ShardTask(part.name, 1, part.shard_rows(1))
    with pytest.raises(StorageError, match="read-only"):
        store.write(last, kit.grids(last))
    with pytest.raises(StorageError, match="read-only"), store.lease(last):
        pass
    with pytest.raises(StorageError, match=r"read-only.*\[cache\] root"):
        kit.store_at(root, identity={"encoder": "other"})
    assert sorted(root.rglob("*")) == before


def _as_nobody(act: Callable[[], str]) -> str:
    """Run ``act`` as a user without rights (root may write everywhere) and return its answer."""
    if os.geteuid() != 0:
        return act()
    back, forth = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            answer = act()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(forth, answer.encode())
        os._exit(0)
    os.close(forth)
    with os.fdopen(back) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def _complaint(act: Callable[[], object]) -> str:
    try:
        act()
    except (StorageError, AccessError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def test_missing_rights_are_explained_and_reading_needs_only_the_right_to_read(memory_path: Path) -> None:
    memory_path.chmod(0o755)
    rows = kit.rows_of(6, 1)
    store = kit.store_at(memory_path)
    kit.fill(store, rows)
    for folder in [memory_path, *(path for path in memory_path.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    try:
        assert _as_nobody(lambda: _complaint(lambda: kit.expect_all(store, rows))) == "done"
        answer = _as_nobody(lambda: _complaint(lambda: store.plan(kit.rows_of(7, 1))))
        assert answer.startswith("StorageError: The folder may not be written") and "[cache] root" in answer
        answer = _as_nobody(
            lambda: _complaint(lambda: kit.store_at(memory_path, identity={"encoder": "other"}))
        )
        assert answer.startswith("StorageError: The folder may not be written")
        kit.shard_files(store)[0].chmod(0)
        answer = _as_nobody(lambda: _complaint(lambda: store.reader().read(rows[0].key)))
        assert answer.startswith("AccessError") and "train_0, view 0" in answer
    finally:
        for folder in [memory_path, *(path for path in memory_path.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)


def test_a_failing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = kit.store_at(tmp_path)
    first, second = store.plan(kit.rows_of(8, 1), shard_views=4)
    store.write(first, kit.grids(first))
    kept = kit.finished(store)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            store.write(second, kit.grids(second))
    assert not list(tmp_path.rglob("*.partial"))
    assert kit.fill(store, kit.rows_of(8, 1)) == 1
    kit.expect_untouched(kept, store)


def test_a_disk_without_hard_links_keeps_every_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(6, 2)
    first = store.plan(rows, shard_views=4)[0]
    store.write(first, kit.grids(first))
    kept = kit.finished(store)
    store.write(first, kit.grids(first, salt="other"))
    assert kit.fill(store, rows) == 2
    kit.expect_untouched(kept, store)
    kit.expect_all(store, rows)
    assert verify(store) == []
    # A writer killed between claiming a name and filling it leaves an empty file; it is nobody's work.
    part = store._parts()[0]
    part.manifest.write_bytes(b"")
    assert store.plan(rows) != []
    assert kit.fill(store, rows) == 0
    assert part.sealed()
    kit.expect_all(store, rows)


def test_a_network_disk_that_links_and_loses_the_answer_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def forgetful(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.EIO, "the answer was lost")

    monkeypatch.setattr(os, "link", forgetful)
    store = kit.store_at(tmp_path)
    assert kit.fill(store, kit.rows_of(6, 2)) == 3
    kit.expect_all(store, kit.rows_of(6, 2))
    assert verify(store) == [] and not list(tmp_path.rglob("*.partial"))


def test_a_moved_and_renamed_cache_is_the_same_cache(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path / "here")
    rows = kit.rows_of(6, 1)
    kit.fill(store, rows)
    (tmp_path / "there").mkdir()
    moved = store.path.rename(tmp_path / "there" / "my copy")
    kit.expect_all(GridStore.open(moved), rows)
    assert np.isfinite(open_labelled(moved).tokens.values).all()
