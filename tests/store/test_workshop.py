"""Shards made by machines that share nothing but a place: planned alike, claimed, sent, taken over, mended."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import storekit as kit

from store import GridStore, ShardTask, ViewRow
from store.errors import InputError, StorageError
from store.places import open_place
from store.places.place import Content, Place
from store.processes import Process
from store.sharing import claims, offer_at, push, verify_at
from store.sharing.claims import claim, holder_at
from store.sharing.workshop import Workshop, plan_there

FOLDER = "part/_work/lease"


@pytest.fixture
def place() -> Iterator[Place]:
    yield open_place(f"memory://{uuid4().hex}/caches")


def planned(store: GridStore, place: Place, rows: list[ViewRow]) -> list[ShardTask]:
    keys = {row.tile for row in rows}
    return plan_there(store, place, rows, lambda row: row.tile in keys)[0]


def make(shop: Workshop, task: ShardTask, **how: Any) -> bool:
    own = shop.task(task.part, task.shard)
    assert own == task
    with shop.lease(own, **how) as mine:
        if mine:
            shop.write(own, kit.grids(own))
        return mine


def test_of_many_that_claim_one_shard_one_holds_it_until_it_lets_go(tmp_path: Path) -> None:
    place = open_place(tmp_path)  # which can refuse a name that is taken
    barrier = threading.Barrier(4)

    def one(_: int) -> bool:
        barrier.wait()
        with claim(place, FOLDER, 3, about={"worker": "w"}) as mine:
            barrier.wait()
            found = holder_at(place, FOLDER, 3)
            assert found is not None and found.about == {"worker": "w"}
            barrier.wait()
            return mine

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(one, range(4))) == 1
    assert holder_at(place, FOLDER, 3) is None and not place.files("part")
    assert claims.BEAT_S * 4 < claims.STALE_S
    with claim(place, FOLDER, 3) as mine, claim(place, FOLDER, 4) as other:
        assert mine and other


def test_a_claim_shows_signs_of_life_and_counts_until_somebody_knows_better(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.05)
    with claim(place, FOLDER, 0):
        first = holder_at(place, FOLDER, 0)
        assert first is not None
        now = first
        while now.token == first.token:
            found = holder_at(place, FOLDER, 0)
            assert found is not None
            now = found
        with claim(place, FOLDER, 0, gone=[first.token]) as mine:
            assert not mine  # it has moved since
    far = {**Process.current().to_json(), "host": "elsewhere", "uuid": "x", "beat": 4}
    place.send({f"{FOLDER}/0.0": json.dumps(far).encode()})
    last = holder_at(place, FOLDER, 0)
    assert last is not None
    with claim(place, FOLDER, 0) as mine:
        assert not mine
    with claim(place, FOLDER, 0, gone=[last.token]) as mine:
        assert mine
        with claim(place, FOLDER, 0, gone=[last.token]) as other:
            assert not other
    assert not place.files("part")


def test_the_claim_of_a_process_that_has_died_on_this_machine_does_not_count(place: Place) -> None:
    here = Process.current()
    dead = Process(here.host, "an earlier boot", here.space, here.pid, here.start)
    place.send({f"{FOLDER}/0.0": json.dumps({**dead.to_json(), "uuid": "x"}).encode()})
    with claim(place, FOLDER, 0) as mine:
        assert mine


def test_two_machines_plan_the_same_shards_and_each_makes_some_of_them(place: Place, tmp_path: Path) -> None:
    rows = kit.rows_of(6, 4)
    stores = [kit.store_at(tmp_path / name) for name in ("one", "two")]
    first = planned(stores[0], place, rows)
    shops = [Workshop(place, stores[0].path.name, tmp_path / f"shop{n}") for n in range(2)]
    assert make(shops[0], first[0])
    assert planned(stores[1], place, rows) == first[1:]  # it goes on with what the other has begun
    for number, task in enumerate(first):
        assert make(shops[number % 2], task) == (number > 0)
    for shop in shops:
        assert not [path for path in shop.store.path.rglob("c.*") if path.is_file()]
    for store in stores:
        assert push(store, place).shards == 0
    offer = offer_at(place, stores[0].path.name)
    (part,) = offer.parts
    assert part.sealed and offer.status.views_done == len(rows) and verify_at(offer) == []
    assert not [name for name in offer.files if "_work" in name]
    assert planned(stores[1], place, rows) == []


def test_a_shard_that_was_lost_at_the_place_is_made_again(place: Place, tmp_path: Path) -> None:
    rows, store = kit.rows_of(6, 4), kit.store_at(tmp_path / "one")
    tasks = planned(store, place, rows)
    shop = Workshop(place, store.path.name, tmp_path / "shop")
    for task in tasks:
        assert make(shop, task)
    lost = next(name for name in place.files(store.path.name) if "/c.2." in name)
    place.remove([f"{store.path.name}/{lost}"])
    assert planned(store, place, rows) == [tasks[2]]
    assert make(Workshop(place, store.path.name, tmp_path / "other"), tasks[2])
    push(store, place)
    assert verify_at(offer_at(place, store.path.name)) == []


class Cut:
    """A place whose connection is cut once a shard is sent through it."""

    def __init__(self, place: Place) -> None:
        self._place, self.cut = place, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def send(self, files: Mapping[str, Content], *, new: bool = False) -> list[str]:
        if self.cut and any("/c." in name for name in files):
            self.cut = False
            raise StorageError("The connection broke off")
        return self._place.send(files, new=new)


def test_a_shard_that_could_not_be_sent_is_sent_later_and_not_made_again(
    place: Place, tmp_path: Path
) -> None:
    rows, store = kit.rows_of(6, 4), kit.store_at(tmp_path / "one")
    tasks = planned(store, place, rows)
    shop = Workshop(Cut(place), store.path.name, tmp_path / "shop")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="broke off"):
        make(shop, tasks[0])
    assert not make(shop, tasks[0])
    assert planned(store, place, rows) == tasks[1:]


def test_a_repository_of_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard by shard"):
        planned(kit.store_at(tmp_path), open_place("hf://datasets/somebody/something"), kit.rows_of(6, 4))
