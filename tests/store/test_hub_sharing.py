"""Caches pushed to and pulled from a data set repository on a Hub, undisturbed and disturbed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dataset_hub import COLLEAGUE, OWNER, TOKEN, DatasetHub, hub_environment, use_dataset_hub
from huggingface_hub import close_session, constants
from huggingface_hub.utils._xet import abort_xet_session
from storekit import REPOSITORY, expect_all, fill, rows_of, store_at

from store import GridSpec, GridStore, ViewRow
from store.errors import AccessError, DamagedGrid, StorageError
from store.places import open_place
from store.places.hub import HubPlace
from store.sharing import arriving, offers, pull, push, verify_at
from store.verify import verify

NAME = f"{OWNER}/caches"
URL = f"hf://datasets/{NAME}"
SPEC = GridSpec(
    "tokens", (8, 16, 16), "float16", ("d", "h", "w")
)  # shards large enough for the Hub's storage
ROWS = rows_of(6, 4)
SHARDS = 6


@pytest.fixture(params=[True, False], ids=["LFS", "Xet"])
def hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[DatasetHub]:
    with DatasetHub() as server:
        use_dataset_hub(server, monkeypatch, tmp_path / "home", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param)
        monkeypatch.setattr(arriving, "_FIRST_PAUSE_S", 0.001)
        abort_xet_session()
        yield server
        close_session()


def small_batches() -> HubPlace:
    """The place, to which two shards are sent a commit, so that a push has several."""
    place = HubPlace(URL)
    place.batch_files = 2
    return place


def made(root: Path, rows: list[ViewRow] = ROWS, limit: int | None = None) -> GridStore:
    store = store_at(root, SPEC)
    fill(store, rows, limit=limit)
    return store


def pulled(root: Path) -> GridStore:
    (offer,), faults = offers(open_place(URL))
    assert faults == []
    return pull(offer, root).store


def expect_whole(store: GridStore) -> None:
    expect_all(store, ROWS)
    assert verify(store) == []


def test_a_cache_arrives_on_another_machine_as_it_was(hub: DatasetHub, tmp_path: Path) -> None:
    here = made(tmp_path / "here")
    seen: list[tuple[int, int]] = []
    copied = push(here, open_place(URL), on_progress=lambda done, total: seen.append((done, total)))
    assert (copied.shards, copied.kept) == (SHARDS, 0)
    assert seen[-1][0] == seen[-1][1] == copied.bytes
    tree = hub.repos[NAME].newest
    assert sum("manifest.json" in name for name in tree) == 1
    assert not [name for name in tree if "_work" in name]
    assert len(hub.repos[NAME].commits) <= 8  # of about 128 an hour
    (offer,), _ = offers(open_place(URL))
    assert verify_at(offer) == []
    expect_whole(pulled(tmp_path / "there"))
    commits = len(hub.repos[NAME].commits)
    assert push(here, open_place(URL)).shards == 0
    assert len(hub.repos[NAME].commits) == commits


def test_a_push_that_is_cut_shows_only_whole_shards_and_goes_on_from_there(
    hub: DatasetHub, tmp_path: Path
) -> None:
    here = made(tmp_path / "here")
    cuts = [("PUT" if constants.HF_HUB_DISABLE_XET else "POST", 5_000)] * 99
    hub.on("POST", "/commit/", lambda: hub.cuts.extend(cuts), skip=3)
    with pytest.raises(StorageError, match="connection"):
        push(here, small_batches())
    assert hub.cuts
    hub.cuts.clear()
    (offer,), faults = offers(open_place(URL))
    assert faults == []
    assert offer.status.shards_done == 4
    assert len([name for name in hub.repos[NAME].newest if "/tokens/c." in name]) == 4
    assert verify_at(offer) == []
    copied = push(here, small_batches())
    assert (copied.kept, copied.shards) == (4, SHARDS - 4)
    expect_whole(pulled(tmp_path / "there"))


def test_a_pull_that_is_cut_goes_on_where_it_was_cut(hub: DatasetHub, tmp_path: Path) -> None:
    push(made(tmp_path / "here"), open_place(URL))
    (offer,), _ = offers(open_place(URL))
    hub.cuts = [("GET", 5_000)] * 99
    hub.ranges.clear()
    expect_whole(pull(offer, tmp_path / "there", threads=1).store)
    assert hub.ranges == [None, "bytes=5000-", "bytes=10000-", "bytes=15000-"] * SHARDS


def test_a_pull_that_is_given_up_keeps_its_finished_shards(hub: DatasetHub, tmp_path: Path) -> None:
    push(made(tmp_path / "here"), open_place(URL))
    (offer,), _ = offers(open_place(URL))
    hub.on("GET", "/resolve/", lambda: hub.cuts.extend([("GET", 0)] * 99), skip=3)
    with pytest.raises(StorageError, match="Finished shards are kept"):
        pull(offer, tmp_path / "there", threads=1)
    hub.cuts.clear()
    copied = pull(offer, tmp_path / "there")
    assert (copied.kept, copied.shards) == (3, SHARDS - 3)
    expect_whole(copied.store)


def test_a_pull_keeps_to_the_cache_it_was_offered_while_others_push(hub: DatasetHub, tmp_path: Path) -> None:
    place = open_place(URL)
    push(made(tmp_path / "here", limit=3), place)
    (offer,), _ = offers(open_place(URL))
    push(made(tmp_path / "elsewhere"), open_place(URL))
    copied = pull(offer, tmp_path / "there")
    assert copied.shards == 3
    expect_whole(pulled(tmp_path / "there"))


def test_two_people_who_push_their_halves_at_once_make_one_cache(hub: DatasetHub, tmp_path: Path) -> None:
    first, second = store_at(tmp_path / "first", SPEC), store_at(tmp_path / "second", SPEC)
    tasks = first.plan(ROWS, shard_views=4)
    fill(first, ROWS, limit=4)
    fill(second, ROWS[-8:])
    assert len(tasks) == SHARDS
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda store: push(store, small_batches()), [first, second]))
    there = pulled(tmp_path / "there")
    expect_all(there, ROWS)


def test_a_push_that_is_killed_is_finished_by_the_next(hub: DatasetHub, tmp_path: Path) -> None:
    here = made(tmp_path / "here")
    script = (
        "import sys; from pathlib import Path; from store import GridStore; from store.places import open_place\n"
        "from store.sharing import push; place = open_place(sys.argv[2]); place.batch_files = 2\n"
        "push(GridStore.open(Path(sys.argv[1])), place)"
    )
    xet = str(int(constants.HF_HUB_DISABLE_XET))
    environment = hub_environment(hub, tmp_path / "home", HF_HUB_DISABLE_XET=xet)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(here.path), URL],
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
    )

    def kill() -> None:
        process.kill()
        process.wait()

    hub.hooks = [
        ("POST", "/commit/", then) for then in (int, int, int, kill)
    ]  # with what it sends half-way here
    assert process.wait(60) == -signal.SIGKILL
    (offer,), faults = offers(open_place(URL))
    assert faults == []
    done = offer.status.shards_done
    assert 0 < done < SHARDS
    copied = push(here, open_place(URL))
    assert (copied.kept, copied.shards) == (done, SHARDS - done)
    expect_whole(pulled(tmp_path / "there"))


def test_what_a_stranger_may_not_see_is_neither_pulled_nor_pushed_to(
    hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made(tmp_path / "here")
    push(here, open_place(URL))
    before = dict(hub.repos[NAME].branches)
    monkeypatch.setenv("HF_TOKEN", COLLEAGUE)
    with pytest.raises(AccessError, match="does not exist, or it is private"):
        offers(open_place(URL))
    with pytest.raises(AccessError):
        push(here, open_place(URL))
    hub.repos[NAME].readers.add("colleague")
    expect_whole(pulled(tmp_path / "there"))
    (tmp_path / "more").mkdir()
    more = made(tmp_path / "more", [*ROWS, *rows_of(6, 1, first_view=4)])
    with pytest.raises(AccessError, match="no right under which this repository may be written"):
        push(more, open_place(URL))
    assert hub.repos[NAME].branches == before


def test_a_shard_that_the_hub_spoiled_is_found_when_it_is_fetched(hub: DatasetHub, tmp_path: Path) -> None:
    push(made(tmp_path / "here"), open_place(URL))
    repo = hub.repos[NAME]
    name = next(name for name in repo.newest if name.endswith("c.2.0.0.0"))
    content = bytearray(repo.newest[name].content)
    content[1000] ^= 1
    hub.push(NAME, {name: bytes(content)})
    (offer,), _ = offers(open_place(URL))
    assert len(verify_at(offer)) == 1
    with pytest.raises(DamagedGrid, match="sha256"):
        pull(offer, tmp_path / "there")
