"""A damaged file of a study's caches: training refuses it by name or is not touched by it, and verify finds it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cachekit import Home, cache, flip_bit

INT8 = '[cache]\nencoding = "int8"\n'
# What training reads beside the shards; all else is there for other programs, and for verify.
DOCUMENTS = ("cache.json", "part.json", "manifest.json")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    made.study.write_text(made.study.read_text() + INT8)
    for command in ("extract", "train"):
        done = made.run(command)
        assert done.exit_code == 0, done.output
    return made


def weights(home: Home, runs: Path) -> bytes:
    (found,) = runs.glob("small/stain/linear/seed-000-*/decoder.safetensors")
    return found.read_bytes()


def files_of(home: Home) -> Iterator[Path]:
    """Every file of both caches; of the shards the first, which holds a view that training asks for."""
    for store in (home.store(), home.store("views")):
        for path in sorted(store.rglob("*")):
            if path.is_file() and not (path.name.startswith("c.") and path.name[2] != "0"):
                yield path


def test_training_refuses_what_is_damaged_or_gives_the_same(home: Home, tmp_path: Path) -> None:
    good = weights(home, home.folder / "runs")
    refusals = others = 0
    for number, path in enumerate(files_of(home)):
        before = path.read_bytes()
        store = path.relative_to(home.cache).parts[0]
        inner = path.relative_to(home.cache / store).as_posix()
        shard = path.parent.name in ("tokens", "masks") and path.name.startswith("c.")
        at = 100 if shard else len(before) // 3  # in a chunk, not in what a shard says of itself
        for act in (lambda path=path, at=at: flip_bit(path, at), path.unlink):
            act()
            verified = cache("verify", home.cache / store)
            runs = tmp_path / str(number)
            trained = home.run("train", "--runs", runs)
            path.write_bytes(before)
            assert verified.exit_code in (2, 4), inner
            assert str(home.cache / store) in verified.stderr
            if trained.exit_code == 0:
                others += 1
                assert weights(home, runs) == good, inner
                assert not shard and path.name not in DOCUMENTS, inner
            else:
                refusals += 1
                assert trained.exit_code in (2, 4), trained.output
                assert trained.stderr.startswith("Error: ") and "Traceback" not in trained.stderr
                assert not list(runs.rglob("decoder.safetensors"))
                if shard:
                    assert (
                        "tile i" in trained.stderr
                        and "view" in trained.stderr
                        and str(path) in trained.stderr
                    )
                elif path.name != "cache.json":
                    assert store in trained.stderr or "frostgrid extract" in trained.stderr, trained.stderr
            shutil.rmtree(runs, ignore_errors=True)
    assert refusals >= 16 and others >= 16
    assert home.run("train", "--runs", tmp_path / "again").exit_code == 0
    assert weights(home, tmp_path / "again") == good
