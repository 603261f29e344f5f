"""Copies between folders and other stores: merged, part of the views, half and whole, hostile, out of room."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import sharing_kit
import storekit as kit
from fsspec.implementations.memory import MemoryFileSystem
from sharing_kit import made, only_offer
from test_store_crash import _killed_at

from store import GridStore, verify
from store.documents import encode
from store.errors import (
    AccessError,
    DamagedGrid,
    IdentityMismatch,
    InputError,
    StorageError,
    VerificationError,
)
from store.parts import load_part, part_folders
from store.places import LocalPlace, open_place
from store.places.fsspec_place import FsspecPlace
from store.sharing import offer_at, offers, pull, push, verify_at

ROWS = kit.rows_of(6, 4)  # six shards of four
URL = "memory://team"


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    """Nothing of one test is in the memory store of the next."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def _stored() -> dict[str, Any]:
    return MemoryFileSystem.store


def _put(name: str, data: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(name, data)


def test_two_who_each_did_half_of_one_plan_end_in_a_sealed_part(tmp_path: Path) -> None:
    a, b = (made(tmp_path / name, ROWS, limit=0) for name in "ab")
    tasks = a.plan(ROWS)
    for task in tasks[:4]:
        a.write(task, kit.grids(task))
    for task in tasks[2:]:
        b.write(task, kit.grids(task, salt="another GPU"))
    before = kit.finished(a)
    copied = pull(only_offer(tmp_path / "b"), tmp_path / "a")
    assert (copied.shards, copied.kept) == (2, 2)
    kit.expect_untouched(before, a)  # of what both had done, what was here stays
    assert verify(a) == [] and a.reader()._parts[0].sealed() and a.status().views_done == len(ROWS)
    kit.expect_all(a, [row for task in tasks[:4] for row in task.rows])
    again = pull(only_offer(tmp_path / "b"), tmp_path / "a")
    assert (again.shards, again.kept) == (0, 4)


def test_what_one_has_more_is_added_as_parts_and_views_that_are_here_are_not_copied_again(
    tmp_path: Path,
) -> None:
    a = made(tmp_path / "a", kit.rows_of(4, 2))
    b = made(tmp_path / "b", kit.rows_of(4, 2))
    kit.fill(b, kit.rows_of(4, 4))  # a second part
    made(tmp_path / "c", kit.rows_of(4, 4))  # all of it in one part
    copied = pull(only_offer(tmp_path / "b"), tmp_path / "a")
    assert (copied.shards, copied.kept) == (2, 2)
    assert len(part_folders(a.path)) == 2
    sharing_kit.expect_copy(copied, kit.rows_of(4, 4))
    overlapping = pull(only_offer(tmp_path / "c"), tmp_path / "a")
    assert (overlapping.shards, overlapping.kept) == (0, 4) and len(part_folders(a.path)) == 2


def test_only_the_shards_of_some_views_are_copied(tmp_path: Path) -> None:
    made(tmp_path / "a", ROWS)
    (part,) = only_offer(tmp_path / "a").parts
    wanted = [part.part.rows[at].key for at in (1, 21, 22)]
    copied = pull(only_offer(tmp_path / "a"), tmp_path / "b", views=wanted)
    assert copied.shards == 2 and copied.store.reader().missing(wanted) == []
    assert not copied.store.reader()._parts[0].sealed() and verify(copied.store) == []
    assert copied.store.status().views_done == 8
    nothing = pull(only_offer(tmp_path / "a"), tmp_path / "b", views=[("f" * 64, 0)])
    assert (nothing.shards, nothing.kept) == (0, 0)
    rest = pull(only_offer(tmp_path / "a"), tmp_path / "b")
    assert (rest.shards, rest.kept) == (4, 2)
    sharing_kit.expect_copy(rest, ROWS)


@pytest.mark.parametrize("url", ["memory://team", "file://{tmp}/elsewhere", "{tmp}/elsewhere"])
def test_a_half_done_cache_is_pushed_and_finished_by_a_colleague(tmp_path: Path, url: str) -> None:
    place = open_place(url.format(tmp=tmp_path))
    half = made(tmp_path / "home", ROWS, limit=2)
    assert push(half, place).shards == 2
    (offer,), _ = offers(place)
    assert offer.status.shards_done == 2 and not offer.parts[0].sealed
    colleague = pull(offer, tmp_path / "colleague").store
    assert kit.fill(colleague, ROWS) == 4
    finished = push(colleague, place)
    assert (finished.shards, finished.kept, finished.store) == (4, 2, colleague)
    (offer,), _ = offers(place)
    assert offer.parts[0].sealed and verify_at(offer) == []
    assert not any("_work" in name for name in offer.files)
    sharing_kit.expect_copy(pull(offer, tmp_path / "home"), ROWS)
    assert push(half, place).shards == 0


def test_a_lost_or_cut_shard_comes_back_from_a_copy(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    push(home, open_place(URL))
    lost, cut = kit.shard_files(home)[1:3]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-5])
    copied = pull(only_offer(URL), tmp_path / "home")
    assert (copied.shards, copied.kept) == (2, 4)
    sharing_kit.expect_copy(copied, ROWS)


def test_a_part_that_is_opened_again_offers_what_it_still_has(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    kit.shard_files(home)[1].unlink()
    task = home.plan(ROWS)[0]  # writes the list of what is kept
    assert (home.path / task.part / "reopened.json").exists()
    offer = only_offer(tmp_path / "home")
    assert offer.status == home.status() and offer.status.shards_done == 5
    assert pull(offer, tmp_path / "away").shards == 5
    assert push(home, open_place(URL)).shards == 5


def test_a_shard_that_is_damaged_here_is_not_pushed(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    bad = kit.shard_files(home)[3]
    bad.write_bytes(sharing_kit.flip(bad.read_bytes(), 300))
    with pytest.raises(DamagedGrid, match=r"The shard with tile train_2, view 2 is damaged") as caught:
        push(home, open_place(URL))
    assert str(bad) in str(caught.value)
    offer = only_offer(URL)
    assert offer.status.shards_done == 5 and not offer.parts[0].sealed and verify_at(offer) == []
    with pytest.raises(DamagedGrid, match="tile train_2, view 2 is damaged"):
        pull(only_offer(tmp_path / "home"), tmp_path / "away")


def test_checking_elsewhere_says_the_same_as_checking_here(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    files = kit.shard_files(home)
    files[0].write_bytes(sharing_kit.flip(files[0].read_bytes(), 300))
    files[1].write_bytes(files[1].read_bytes()[:-5])
    files[2].unlink()
    files[3].write_bytes(files[4].read_bytes())
    (part,) = part_folders(home.path)
    (part / "tile/c.0").write_bytes(bytes(200))
    here = verify(home)
    assert len(here) == 5
    assert sorted(verify_at(only_offer(tmp_path / "home"))) == sorted(here)
    (part / "manifest.json").write_bytes(b"{}")
    here = verify(home)
    place = open_place(tmp_path / "home")
    offer = offer_at(place, home.path.name)
    assert verify_at(offer) == here and [str(fault) for fault in offers(place)[1]] == here
    with pytest.raises(VerificationError, match="not a frostgrid-manifest"):
        pull(offer, tmp_path / "away")


def test_another_identity_or_another_division_into_shards_is_refused(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    other = kit.store_at(tmp_path / "away", identity={"encoder": "other"})
    other.path.rename(other.path.with_name(home.path.name))
    with pytest.raises(IdentityMismatch, match="made from something else"):
        pull(only_offer(tmp_path / "home"), tmp_path / "away")
    push(home, open_place(URL))
    description = f"/team/{home.path.name}/cache.json"
    _put(description, (tmp_path / "away" / home.path.name / "cache.json").read_bytes())
    with pytest.raises(IdentityMismatch, match="made from something else"):
        push(home, open_place(URL))
    apart = kit.store_at(tmp_path / "apart")
    kit.fill(apart, ROWS, shard_views=8, limit=2)
    with pytest.raises(InputError, match="planned here with 8 views a shard, and there with 4"):
        pull(only_offer(tmp_path / "home"), tmp_path / "apart")
    _put(description, (home.path / "cache.json").read_bytes())
    with pytest.raises(InputError, match="planned here with 8 views a shard, and there with 4"):
        push(apart, open_place(URL))
    assert verify(apart) == [] and apart.status().views_done == 16


def test_nothing_is_taken_from_a_place_by_the_name_it_has_there(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    push(home, open_place(URL))
    folder = f"/team/{home.path.name}"
    (part,) = [path.name for path in part_folders(home.path)]
    good = {name: fsspec.filesystem("memory").cat_file(name) for name in _stored()}
    for name in (
        f"{folder}/../../escaped",
        f"{folder}/part-../part.json",
        f"{folder}/{part}/_work/done/../../../x.json",
        f"{folder}/{part}/_work/done/99.json",
        f"{folder}/{part}/tokens/c.77.0.0.0",
        "/team/..-0123456789ab/cache.json",
        "/team/no cache/cache.json",
    ):
        MemoryFileSystem.store[name] = MemoryFileSystem.store[f"{folder}/cache.json"]
    (offer,), faults = offers(open_place(URL))
    assert ["..-0123456789ab" in str(faults[0]), "no cache" in str(faults[1])] == [True, True]
    assert len(faults) == 2 and all("not named after the cache" in str(fault) for fault in faults)
    sharing_kit.expect_copy(pull(offer, tmp_path / "away"), ROWS)
    assert sharing_kit.contents(tmp_path / "away") == sharing_kit.contents(tmp_path / "home")

    def offered_with(name: str, data: bytes) -> str:
        MemoryFileSystem.store.clear()
        for each, content in {**good, f"{folder}/{name}": data}.items():
            _put(each, content)
        found, faults = offers(open_place(URL))
        assert faults and not any(offer.parts for offer in found)
        return str(faults[0])

    table = json.loads(good[f"{folder}/{part}/part.json"])
    table["rows"]["tile"][0] = 1
    changed = {name: value for name, value in table.items() if name not in ("format", "digest")}
    assert "do not belong together" in offered_with(f"{part}/part.json", encode("part", 1, changed))
    listing = json.loads(good[f"{folder}/{part}/manifest.json"])
    listing["shards"]["-1"] = listing["shards"].pop("0")
    changed = {name: value for name, value in listing.items() if name not in ("format", "digest")}
    assert "incomplete" in offered_with(f"{part}/manifest.json", encode("manifest", 1, changed))
    assert "newer than this version" in offered_with(f"{part}/part.json", b'{"format": "frostgrid-part/99"}')
    assert "not JSON" in offered_with("cache.json", b"[" * 100_000)
    assert "not JSON" in offered_with(f"{part}/part.json", b'{"format": NaN}')
    for slug, words in (("../../pixels", "no name of a cache"), ("other", "not named after the cache in it")):
        described = {**json.loads(good[f"{folder}/cache.json"]), "slug": slug}
        changed = {name: value for name, value in described.items() if name not in ("format", "digest")}
        assert words in offered_with("cache.json", encode("cache", 1, changed))
    with pytest.raises(InputError, match="not the name of a folder"):
        offer_at(open_place(URL), f"../{home.path.name}")


def test_a_cache_that_grows_while_it_is_read_is_read_as_it_is_then(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS, limit=5)
    place = _Meddled(tmp_path / "home", "_work/done/", lambda: kit.fill(home, ROWS))
    (offer,), faults = offers(place)
    assert faults == [] and offer.parts[0].sealed and offer.status.shards_done == 6


class _Meddled(LocalPlace):
    """A folder in which something happens just before the first file with ``part`` in its name is read."""

    def __init__(self, folder: Path, part: str, act: Callable[[], object]) -> None:
        super().__init__(folder)
        self._part, self._act = part, act

    def read(self, name: str) -> bytes | None:
        if self._part in name:
            self._part = "\0"
            self._act()
        return super().read(name)


class LaxFileSystem(MemoryFileSystem):
    """A store that replaces whatever is there, also when asked not to; ``before`` runs before each name is put."""

    protocol = "lax"
    before: Callable[[str], None] = staticmethod(lambda path: None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        type(self).before(path)
        super().pipe_file(path, value)

    def put_file(
        self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any
    ) -> None:
        type(self).before(rpath)
        super().pipe_file(rpath, Path(lpath).read_bytes())


@pytest.mark.parametrize("shard", [0, 3, 5])
@pytest.mark.parametrize("at", ["tokens/c.{}.0.0.0", "_work/done/{}.json"])
@pytest.mark.parametrize("limit", [None, 4])
def test_two_pushes_to_a_store_that_refuses_nothing_agree_in_the_end(
    tmp_path: Path, shard: int, at: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("lax", LaxFileSystem, clobber=True)
    a = made(tmp_path / "a", ROWS)
    b = made(tmp_path / "b", ROWS, salt="another GPU", limit=limit)

    def meddle(path: str) -> None:
        if path.endswith(at.format(shard)):
            monkeypatch.setattr(LaxFileSystem, "before", staticmethod(lambda path: None))
            push(b, open_place("lax://team"), threads=1)

    monkeypatch.setattr(LaxFileSystem, "before", staticmethod(meddle))
    push(a, open_place("lax://team"), threads=1)
    offer = only_offer("lax://team")
    assert (
        offer.parts[0].sealed and verify_at(offer) == [] and not any("_work" in name for name in offer.files)
    )
    copied = pull(offer, tmp_path / "away")
    assert verify(copied.store) == [] and copied.store.status().views_done == len(ROWS)


def test_a_push_cut_between_shard_and_marker_is_taken_up_and_a_torn_object_is_replaced(
    tmp_path: Path,
) -> None:
    home = made(tmp_path / "home", ROWS)
    push(home, open_place(URL))
    folder = f"/team/{home.path.name}/{part_folders(home.path)[0].name}"
    memory = fsspec.filesystem("memory")
    shards = [f"{folder}/tokens/c.{n}.0.0.0" for n in range(6)]
    del MemoryFileSystem.store[f"{folder}/manifest.json"]
    other = made(tmp_path / "other", ROWS, salt="another GPU")
    memory.pipe_file(shards[1], kit.shard_files(other)[1].read_bytes())  # whole, somebody else's
    memory.pipe_file(shards[2], memory.cat_file(shards[2])[:-7])  # torn by a store that writes in place
    memory.pipe_file(shards[3], sharing_kit.flip(memory.cat_file(shards[3]), 300))
    pushed = push(home, open_place(URL))
    assert verify_at(only_offer(URL)) == [] and only_offer(URL).parts[0].sealed
    assert pushed.shards == 5
    assert memory.cat_file(shards[1]) == kit.shard_files(other)[1].read_bytes()


def test_what_is_lost_there_is_mended_unless_only_a_person_can(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    push(home, open_place(URL))
    folder = f"/team/{home.path.name}/{part_folders(home.path)[0].name}"
    del MemoryFileSystem.store[f"{folder}/tokens/c.1.0.0.0"]
    other = made(tmp_path / "other", ROWS, salt="another GPU")
    with pytest.raises(VerificationError, match=r"other bytes.*Remove memory://team/.*manifest.json"):
        push(other, open_place(URL))
    assert only_offer(URL).status.shards_done == 5
    del MemoryFileSystem.store[f"{folder}/manifest.json"]
    push(other, open_place(URL))
    assert verify_at(only_offer(URL)) == [] and only_offer(URL).parts[0].sealed
    del MemoryFileSystem.store[f"{folder}/tokens/c.2.0.0.0"]
    assert push(home, open_place(URL)).shards == 1
    assert verify_at(only_offer(URL)) == []
    # with markers only, the one there is replaced
    del MemoryFileSystem.store[f"{folder}/manifest.json"]
    (part,) = (load_part(path, home.key, home.spec) for path in part_folders(home.path))
    _put(f"{folder}/_work/done/4.json", part.records()[4].marker())
    del MemoryFileSystem.store[f"{folder}/tokens/c.4.0.0.0"]
    push(other, open_place(URL))
    assert verify_at(only_offer(URL)) == [] and only_offer(URL).parts[0].sealed


def test_a_full_disk_ends_a_pull_with_an_explanation_and_keeps_what_is_finished(
    tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    rows = kit.rows_of(12, 4)
    made(tmp_path / "home", rows, spec=sharing_kit.BIG)  # twelve shards of 130 kB
    root = small_disk("size=1m")
    with pytest.raises(StorageError, match=r"disk is full: 0\.\d MB are free"):
        pull(only_offer(tmp_path / "home"), root)
    store = GridStore.open(next(root.glob("pixels-*")))
    kept = kit.finished(store)
    assert 4 <= len(kept) < 12 and not list(root.rglob("*.partial"))
    whole = len(kept) + kit.expect_only_unmarked(store)
    small_disk("size=8m")
    copied = pull(only_offer(tmp_path / "home"), root)
    assert (copied.shards, copied.kept) == (12 - whole, whole)
    kit.expect_untouched(kept, store)
    sharing_kit.expect_copy(copied, rows)


def test_wherever_the_disk_becomes_full_a_pull_is_taken_up(
    tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    rows = kit.rows_of(4, 4)
    made(tmp_path / "home", rows, spec=sharing_kit.BIG)
    offer = only_offer(tmp_path / "home")
    unmarked = 0
    for pages in range(64, 132, 2):  # two shards' worth of sizes, in steps of less than a shard's documents
        root = small_disk(f"size={4 * pages}k") / str(pages)
        with pytest.raises(StorageError, match="disk is full"):
            pull(offer, root, threads=1)
        small_disk("size=8m")
        assert not list(root.rglob("*.partial"))
        for path in root.glob("pixels-*"):
            unmarked += kit.expect_only_unmarked(GridStore.open(path))
        sharing_kit.expect_copy(pull(offer, root), rows)
        shutil.rmtree(root)
    assert unmarked  # a shard that fits where its marker does not


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_merge_killed_before_any_of_its_file_operations_is_taken_up(memory_path: Path, stride: int) -> None:
    rows = kit.rows_of(3, 2)
    made(memory_path / "home", rows)
    offer = only_offer(memory_path / "home")
    step = trusted = 0
    while True:
        step += stride
        root = memory_path / str(step)
        killed = _killed_at(root, step, lambda root: pull(offer, root, threads=1))
        if not killed:
            break
        if (root / offer.folder / "cache.json").exists():
            store = GridStore.open(root / offer.folder)
            kept = kit.finished(store)
            trusted += kit.expect_nothing_wrong(store, rows)
            copied = pull(offer, root)
            kit.expect_untouched(kept, store)
        else:
            copied = pull(offer, root)
        sharing_kit.expect_copy(copied, rows)
    assert step > 50 and trusted * stride > 60


def test_a_web_server_is_read_and_not_written(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    handler = functools.partial(_Quiet, directory=str(tmp_path / "home"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        place = open_place(f"http://user:secret@127.0.0.1:{server.server_port}/")
        assert place.url == url and place.public() is True
        with pytest.raises(InputError, match="URL with a query") as caught:
            open_place(f"{url}/?signature=secret")
        assert "secret" not in str(caught.value)
        offer = only_offer(url)
        assert offer.status == home.status() and verify_at(offer) == []
        sharing_kit.expect_copy(pull(offer, tmp_path / "away"), ROWS)
        kit.shard_files(home)[1].unlink()
        with pytest.raises(DamagedGrid, match="it is gone"):
            pull(offer, tmp_path / "again")
        with pytest.raises(InputError, match="can only be read"):
            push(made(tmp_path / "other", ROWS, identity={"encoder": "other"}), place)
        assert offers(open_place(f"{url}/nowhere")) == ([], [])
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_places_are_told_apart_by_what_a_person_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_place("caches"), LocalPlace) and open_place("caches").url == str(
        tmp_path / "caches"
    )
    assert open_place("caches").folders() == [] and open_place("caches").files("x") == {}
    assert open_place(f"file://{tmp_path}").url == str(tmp_path) and open_place(tmp_path).public() is False
    assert isinstance(open_place(URL), FsspecPlace) and open_place(URL).public() is False
    with pytest.raises(InputError, match="no place of the kind nonsense://"):
        open_place("nonsense://x/y")
    with pytest.raises(InputError, match="chain of URLs"):
        open_place("simplecache::memory://x")


def test_every_place_keeps_the_same_promises(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 50_000)
    for place in (open_place(tmp_path / "local"), open_place("memory://promises")):
        assert place.send({"a/x/1": b"one", "a/x/2": big, "b/3": b"3"}) == []
        assert place.folders() == ["a", "b"] and place.files("a") == {"x/1": 3, "x/2": 12_800_000}
        assert place.send({"a/x/1": b"one", "a/x/2": big, "a/new": b"n"}, new=True) == []
        assert place.send({"a/y": b"y", "a/x/1": b"ONE", "a/z": b"z"}, new=True) == ["a/x/1", "a/z"]
        assert place.read("a/y") == b"y" and place.read("a/x/1") == b"one" and place.read("a/z") is None
        assert place.send({"a/x/1": b"ONE"}) == [] and place.read("a/x/1") == b"ONE"
        for start in (0, 5, 12_799_999, 12_800_000):
            blocks: list[bytes] = []
            place.fetch("a/x/2", blocks.append, start)
            assert b"".join(blocks) == big.read_bytes()[start:]
        place.remove(["a/x/1", "a/nothing"])
        assert "x/1" not in place.files("a")


def test_a_folder_that_may_not_be_read_is_told_in_words(memory_path: Path) -> None:
    from test_store_disk import _as_nobody

    memory_path.chmod(0o755)
    home = made(memory_path, ROWS)
    (home.path / "cache.json").chmod(0)

    def act() -> str:
        return "; ".join(f"{type(fault).__name__}: {fault}" for fault in offers(open_place(memory_path))[1])

    if (answer := _as_nobody(act)) != "":
        assert answer.startswith("AccessError") and str(home.path / "cache.json") in answer
    memory_path.chmod(0)
    assert "AccessError" in _as_nobody(lambda: _complaint(lambda: offers(open_place(memory_path))))
    memory_path.chmod(0o755)


def _complaint(act: Callable[[], object]) -> str:
    try:
        act()
    except AccessError as error:
        return f"AccessError: {error}"
    return "done"


def test_a_pulled_copy_is_offered_like_the_first(tmp_path: Path) -> None:
    home = made(tmp_path / "home", ROWS)
    moved = home.path.rename(tmp_path / "my copy")
    offer = offer_at(open_place(tmp_path), "my copy")
    assert offer.name == home.path.name
    away = pull(offer, tmp_path / "away").store
    assert away.path.name == home.path.name
    assert dataclasses.replace(
        only_offer(tmp_path / "away"), place=offer.place, folder="my copy", files={}
    ) == (dataclasses.replace(offer, files={}, parts=only_offer(tmp_path / "away").parts))
    assert push(GridStore.open(moved), open_place(URL)).shards == 6
    assert only_offer(URL).folder == home.path.name
