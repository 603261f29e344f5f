"""The damage matrix: every damage to every stored file is found by checking and by reading, here and elsewhere."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import sharing_kit
import storekit as kit
from damage import (
    FORMS,
    STATES,
    Damage,
    damages,
    hurt_rows,
    kind_of,
    shard_of,
    stored_files,
    written,
)
from fsspec.implementations.memory import MemoryFileSystem

from store import GridStore, ViewKey, verify
from store.errors import DamagedGrid, FrostgridError
from store.places import open_place
from store.sharing import offers, pull, push, verify_at

FOREIGN: dict[str, Any] = {"identity": {"encoder": "other"}, "salt": "other"}
KINDS = {
    *("cache.json", "zarr.json", "part.json", "group zarr.json", "array/zarr.json", "coordinate", "shard"),
}
SLOW = pytest.mark.slow
Row = tuple[str, str]  # kind of file, kind of damage


@dataclass
class Truth:
    """What a cache held before anything happened to it."""

    values: dict[ViewKey, bytes]
    stored: dict[ViewKey, bytes]

    @classmethod
    def of(cls, store: GridStore) -> Truth:
        reader = store.reader()
        views = reader.views()
        values, stored = reader.read_many(views), reader.read_stored_many(views)
        return cls(
            {key: grid.tobytes() for key, grid in zip(views, values, strict=True)},
            {key: grid.tobytes() for key, grid in zip(views, stored, strict=True)},
        )


def sentences(store: GridStore) -> list[str]:
    """What checking says, as a command that opens the cache first."""
    try:
        return verify(GridStore.open(store.path))
    except FrostgridError as error:
        return [str(error)]


def complaints(store: GridStore, truth: Truth) -> dict[ViewKey, str]:
    """Read every view in every way that training and exports do; returns what is said of those that cannot be read.

    Every view that can be is bit for bit what it was.
    """
    try:
        reader = GridStore.open(store.path).reader()
    except FrostgridError as error:
        return dict.fromkeys(truth.values, str(error))
    said: dict[ViewKey, str] = {}
    for read, held in ((reader.read_many, truth.values), (reader.read_stored_many, truth.stored)):
        try:
            for key, grid in zip(held, read(list(held), threads=1), strict=True):
                assert grid.tobytes() == held[key], "another grid than was written"
            continue
        except FrostgridError as error:
            assert "tile" in str(error), error
        for key, wanted in held.items():
            try:
                assert read([key], threads=1)[0].tobytes() == wanted, "another grid than was written"
            except FrostgridError as error:
                said[key] = str(error)
    return said


def expect_found(store: GridStore, truth: Truth, damage: Damage) -> None:
    """Checking names the file, and reading refuses what it could change, by tile, view and file."""
    kind, rows = kind_of(store, damage.path), hurt_rows(store, damage.path)
    opened_before = store.reader()
    before = damage.inflict()
    try:
        found, said = sentences(store), complaints(store, truth)
        for row in rows if kind == "shard" else ():
            try:
                assert opened_before.read(row.key).tobytes() == truth.values[row.key]
            except DamagedGrid as error:
                assert str(row) in str(error) and str(damage.path) in str(error)
    finally:
        damage.path.write_bytes(before)
    assert found, "checking finds nothing"
    assert said or not damage.read, "reading finds nothing"
    named = {damage.path}
    if kind in ("done marker", "reopened.json"):
        named |= set(kit.shard_files(store))  # which are as good as never finished
    if "edited" in damage.name or damage.name == "of another cache":
        named |= {store._parts()[0].folder}  # two files do not fit together, and either may be the wrong one
    assert any(str(path) in sentence for path in named for sentence in found), found
    assert all(str(store.path) in text for text in said.values())
    if kind in ("shard", "done marker"):
        assert any(str(row) in sentence for row in rows for sentence in found), found
        assert said.keys() <= {row.key for row in rows}
        file = damage.path if kind == "shard" else shard_of(store, damage.path)
        assert all(
            str(row) in said[row.key] and str(file) in said[row.key] for row in rows if row.key in said
        )


def one_of_each_kind(store: GridStore, files: list[Path]) -> list[Path]:
    """Of files of one kind the last, so of the shards the one that may hold fewer views than the others."""
    return list({kind_of(store, path): path for path in files}.values())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flips", [1, pytest.param(60, marks=SLOW)])
def test_every_damage_to_every_file_is_found_by_checking_and_by_reading(
    memory_path: Path, form: str, state: str, flips: int, record_property: Callable[[str, object], None]
) -> None:
    store = written(memory_path / "cache", FORMS[form], state)
    foreign = written(memory_path / "foreign", FORMS[form], state, **FOREIGN)
    truth = Truth.of(store)
    assert len(truth.values) == (16 if state == "reopened" else 24)
    files = stored_files(store)
    counts: Counter[Row] = Counter()
    missed = []
    for damage in damages(
        store, foreign, files if flips > 1 else one_of_each_kind(store, files), flips=flips
    ):
        counts[kind_of(store, damage.path), damage.name] += 1
        try:
            expect_found(store, truth, damage)
        except AssertionError as error:
            missed.append(f"{damage.path.relative_to(store.path)}: {damage.name}: {str(error)[:900]}")
    assert not missed, f"{len(missed)} of {counts.total()} were not found:\n" + "\n".join(missed)
    assert sentences(store) == [] and complaints(store, truth) == {}
    records = {"sealed": "manifest.json", "unsealed": "done marker", "reopened": "reopened.json"}
    assert {kind for kind, _ in counts} == {*KINDS, records[state]}
    record_property("damages", counts.total())


def test_checking_a_cache_that_is_being_written_finds_nothing_wrong(memory_path: Path) -> None:
    store = kit.store_at(memory_path)
    writers = [kit.start_writer(memory_path, rows=[16, 6], pause=0.002) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "go\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    looks = 0
    while any(writer.poll() is None for writer in writers):
        assert verify(store) == []
        looks += 1
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    assert verify(store) == [] and looks > 3


class Elsewhere:
    """A cache at a place that is no folder, and what it held."""

    def __init__(self, home: GridStore, url: str) -> None:
        push(home, open_place(url))
        self.url, self.home, self.truth = url, home, Truth.of(home)
        prefix = f"/{url.removeprefix('memory://')}/{home.path.name}/"
        stored = MemoryFileSystem.store
        self.objects = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}

    def content(self, name: str) -> bytes:
        return bytes(fsspec.filesystem("memory").cat_file(self.objects[name]))

    def put(self, name: str, data: bytes | None) -> None:
        if data is None:
            del MemoryFileSystem.store[self.objects[name]]
        else:
            fsspec.filesystem("memory").pipe_file(self.objects[name], data)

    def faults(self) -> list[str]:
        """What ``frostgrid cache verify`` of the place says: what is listed, what is read, and what is lacking."""
        found, faults = offers(open_place(self.url))
        said = [str(fault) for fault in faults] or ([] if found else ["there is no cache"])
        for offer in found:
            said += verify_at(offer)
            if offer.status.views_done < len(self.truth.values):
                said.append(f"only {offer.status.views_done} views are there [{offer.where('')}]")
        return said

    def pulled(self, root: Path) -> GridStore | None:
        """Whatever of it arrives at ``root``."""
        for offer in offers(open_place(self.url))[0]:
            with suppress(FrostgridError):
                pull(offer, root, threads=1)
            return GridStore.open(root / offer.name)
        return None


@pytest.fixture
def memory_place() -> Iterator[str]:
    yield "memory://matrix"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("form", "state", "every_file"),
    [
        ("int8", "unsealed", False),
        pytest.param("float16", "sealed", True, marks=SLOW),
        pytest.param("int8", "unsealed", True, marks=SLOW),
        pytest.param("uint8", "reopened", True, marks=SLOW),
    ],
)
def test_damage_elsewhere_is_found_there_and_nothing_wrong_arrives(
    memory_path: Path,
    memory_place: str,
    form: str,
    state: str,
    every_file: bool,
    record_property: Callable[[str, object], None],
) -> None:
    home = written(memory_path / "home", FORMS[form], state)
    there = Elsewhere(home, f"{memory_place}/ours")
    theirs = Elsewhere(written(memory_path / "f", FORMS[form], state, **FOREIGN), f"{memory_place}/theirs")
    assert there.faults() == []
    files = {kind_of(home, home.path / name): name for name in there.objects}
    spoilt = 0
    for name in there.objects if every_file else files.values():
        good = there.content(name)
        changes = [sharing_kit.flip(good, at) for at in (0, len(good) // 2, len(good) - 1)]
        for data in (*changes, good[: len(good) // 2], b"", None, theirs.content(name)):
            if data == good:
                continue
            spoilt += 1
            there.put(name, data)
            said, arrived = there.faults(), there.pulled(memory_path / str(spoilt))
            there.put(name, good)
            assert any(there.url in sentence for sentence in said), (name, data)
            if arrived is not None:
                held = Truth.of(arrived).values
                assert held.items() <= there.truth.values.items(), name
                assert verify(arrived) == []
                assert len(held) < len(there.truth.values) or kind_of(home, home.path / name) != "shard"
            shutil.rmtree(memory_path / str(spoilt), ignore_errors=True)
    assert spoilt > 45 and there.faults() == []
    record_property("damages", spoilt)


@pytest.mark.parametrize("state", ["unsealed", pytest.param("sealed", marks=SLOW)])
def test_checking_a_copy_in_another_folder_finds_as_much_as_checking_here(
    memory_path: Path, state: str
) -> None:
    store = written(memory_path / "cache", FORMS["int8"], state)
    foreign = written(memory_path / "foreign", FORMS["int8"], state, **FOREIGN)
    place = open_place(f"file://{memory_path / 'cache'}")
    for damage in damages(store, foreign, one_of_each_kind(store, stored_files(store)), flips=0):
        before = damage.inflict()
        found, faults = offers(place)
        here, there = sentences(store), {str(fault) for fault in faults}
        for offer in found:
            there.update(verify_at(offer))
        damage.path.write_bytes(before)
        # Where a cache.json is another's, elsewhere the name of the folder says so, and nothing more is looked at.
        assert len(there) >= len(set(here)) or (there and damage.path.name == "cache.json"), damage
