"""Caches in other forms and back, and what a folder of caches could do without."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from cachekit import Home, cache, flip_bit, parsed, refused, small_cache
from studykit import FOLDER, write_study

from store import GridStore, ViewRow


def test_a_cache_of_half_the_size_says_what_it_cost_and_is_trained_from(copy: Home) -> None:
    made = parsed(cache("convert", copy.store(), "--to", "int8", "--max-error", "0.5", "--json"))
    assert made["bytes"] == sum(path.stat().st_size for path in Path(made["to"]).glob("part-*/tokens/c.*"))
    assert 0 < made["int8_error"]["mean_rms"] <= made["int8_error"]["max_rms"] < 0.5
    about = parsed(cache("info", made["to"], "--json"))
    assert about["encoding"] == "int8"
    assert about["int8_error"] == made["int8_error"]
    assert "of a channel's σ" in cache("info", made["to"]).stdout
    small = write_study(copy.folder, copy.study.read_text() + '\n[cache]\nencoding = "int8"\n', "small")
    trained = copy.run("train")
    assert trained.exit_code == 0, trained.output
    assert "1 seed(s) trained" in trained.stderr
    rows = {
        row["cache"]: row["fits"]
        for row in parsed(cache("ls", copy.cache, "--study", small, "--json"))["caches"]
    }
    assert rows[Path(made["to"]).name] == ["small"]
    assert sorted(rows.values()) == [[], ["small"], ["small"]]


def test_an_error_beyond_the_limit_is_refused_naming_the_view(home: Home, tmp_path: Path) -> None:
    at = ("--to", "int8", "--cache", tmp_path / "to")
    refused(cache("convert", home.store(), *at, "--max-error", "0.0001"), "tile i", "view")
    refused(cache("convert", home.store("views"), *at), "uint8")
    refused(cache("convert", home.store(), "--to", "int4"))
    refused(cache("convert", home.store(), "--to", "int8", "--cache", "s3://bucket/x"), "on this machine")
    refused(cache("convert", tmp_path / "none", *at), "no cache here")


@pytest.mark.parametrize("form", ["h5", "zip"])
def test_an_exported_file_comes_back_as_the_same_cache(form: str, home: Home, tmp_path: Path) -> None:
    file = tmp_path / f"stain.{form}"
    made = parsed(cache("export", home.store(), file, "--json"))
    assert (made["path"], made["bytes"]) == (str(file), file.stat().st_size)
    back = Home(tmp_path / "back", home.folder / "data")
    read = parsed(cache("import", file, "--cache", back.cache, "--json"))
    assert (read["views_done"], read["views_planned"]) == (9, 9)
    assert cache("diff", home.store(), back.store()).exit_code == 0
    assert cache("diff", home.store("views"), back.store("views")).exit_code == 0
    assert "stain: 0 views encoded, 9 kept" in back.run("run").stderr
    assert back.results() == home.results()
    refused(cache("export", home.store(), file), "never replaces")


def test_an_exported_file_holds_the_masks_and_only_what_was_asked_for(home: Home, tmp_path: Path) -> None:
    assert cache("export", home.store(), tmp_path / "with.h5").exit_code == 0
    assert cache("export", home.store(), tmp_path / "without.h5", "--no-masks").exit_code == 0
    with h5py.File(tmp_path / "with.h5") as whole, h5py.File(tmp_path / "without.h5") as bare:
        assert whole["features"].shape == (9, 49, 2, 2)
        assert whole["masks"].shape == (9, 32, 32)
        assert "masks" not in bare
    fewer = write_study(tmp_path, home.study.read_text().replace("per_tile = 2", "per_tile = 1"), "small")
    at = ("--study", fewer, "--runs", home.folder / "runs", "--gzip")
    cut = parsed(cache("export", home.store(), tmp_path / "cut.h5", *at, "--json"))
    assert (cut["views"], cut["masks"]) == (6, 6)


def test_pooled_features_lie_as_mil_tools_want_them(home: Home, tmp_path: Path) -> None:
    made = cache("export", home.store(), tmp_path / "pooled", "--pooled")
    assert made.exit_code == 0, made.output
    files = sorted((tmp_path / "pooled").glob("*.h5"))
    assert len(files) == 6
    with h5py.File(files[0]) as file:
        assert file["features"].shape[-1] == 49
        assert file["coords"].shape[-1] == 2
    lonely = tmp_path / "lonely" / home.store().name
    shutil.copytree(home.store(), lonely)
    refused(cache("export", lonely, tmp_path / "other", "--pooled"), "views store", "--masks")
    given = cache("export", lonely, tmp_path / "other", "--pooled", "--masks", home.store("views"))
    assert given.exit_code == 0, given.output


def test_export_and_import_refuse_what_cannot_be(home: Home, tmp_path: Path) -> None:
    refused(cache("export", home.store(), tmp_path / "x.tar"), ".h5", ".zip")
    refused(cache("export", home.store(), "s3://bucket/x.zip"), "on this machine")
    refused(cache("export", home.store(), tmp_path / "x.zip", "--study", home.study), "--study")
    refused(cache("export", home.store(), tmp_path / "x.zip", "--gzip"), "--gzip")
    refused(
        cache("export", home.store(), tmp_path / "x.h5", "--masks", home.store("views"), "--no-masks"),
        "contradict",
    )
    refused(cache("export", tmp_path, tmp_path / "x.h5"), "no cache here")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    assert cache("import", tmp_path / "bad.zip", "--cache", tmp_path / "c").exit_code in (2, 4)
    assert cache("import", home.study, "--cache", tmp_path / "c").exit_code == 2
    assert not list(tmp_path.glob("x.*"))
    assert cache("export", home.store(), tmp_path / "x.h5").exit_code == 0
    flip_bit(tmp_path / "x.h5", (tmp_path / "x.h5").stat().st_size // 2)
    damaged = cache("import", tmp_path / "x.h5", "--cache", tmp_path / "c")
    assert damaged.exit_code == 4, damaged.output


def test_gc_removes_nothing_unless_told_to(copy: Home) -> None:
    left = _leave_partial(copy.store())
    listed = parsed(cache("gc", copy.cache, "--json"))
    (found,) = listed["found"]
    assert (found["kind"], found["removed"]) == ("leftover", False)
    assert found["bytes"] == 11
    assert left.exists()
    told = cache("gc", copy.cache)
    assert "nothing was removed" in told.stderr
    assert left.exists()
    assert parsed(cache("gc", copy.cache, "--yes", "--json"))["found"][0]["removed"]
    assert not left.exists()
    assert "nothing to remove" in cache("gc", copy.cache).stdout
    assert cache("verify", copy.store()).exit_code == 0


def _leave_partial(folder: Path) -> Path:
    """Have a process that has ended by now leave a temporary file behind."""
    code = (
        "import sys; from pathlib import Path; from store.durable import new_partial;"
        "path = new_partial(Path(sys.argv[1]) / 'x'); path.write_bytes(b'half a shard'[:11]); print(path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def _doubled(store: GridStore) -> None:
    """Write the first views of a store again, as a part of their own."""
    from store.parts import create_part

    reader = store.reader()
    rows: list[ViewRow] = [reader.row(key) for key in reader.views()[:4]]
    create_part(store.path, store.key, store.spec, rows, 4)
    (task,) = [task for task in _open_tasks(store) if len(task.rows) == 4]
    store.write(task, ((reader.read(row.key), None) for row in task.rows))


def _open_tasks(store: GridStore):
    from store.rows import ShardTask

    return [
        ShardTask(part.name, shard, part.shard_rows(shard))
        for part in store._parts()
        for shard in range(part.shards)
        if part.record(shard) is None
    ]


def test_gc_removes_a_part_that_another_part_holds_as_well(copy: Home) -> None:
    store = GridStore.open(copy.store())
    _doubled(store)
    assert store.status().parts == 2
    (found,) = parsed(cache("gc", copy.cache, "--json"))["found"]
    assert found["kind"] == "part"
    assert "4 views" in found["reason"]
    assert cache("gc", copy.cache, "--yes").exit_code == 0
    assert GridStore.open(copy.store()).status().parts == 1
    assert GridStore.open(copy.store()).status().views_done == 9
    assert cache("verify", copy.store()).exit_code == 0
    assert copy.run("train").exit_code == 0


def test_gc_keeps_the_second_copy_of_views_whose_first_is_damaged(copy: Home) -> None:
    _doubled(GridStore.open(copy.store()))
    big = max(copy.store().glob("part-*"), key=lambda part: len(list(part.glob("tokens/c.*"))))
    flip_bit(next(big.glob("tokens/c.0.*")))
    refused(cache("gc", copy.cache, "--yes"), "damaged", "frostgrid cache verify", status=4)
    assert GridStore.open(copy.store()).status().parts == 2


def test_gc_removes_a_whole_cache_only_by_its_name(copy: Home, tmp_path: Path) -> None:
    unused = small_cache(copy.cache, "old", {})
    assert parsed(cache("gc", copy.cache, "--json"))["found"] == []  # without a study nothing is unused
    used = ("--study", copy.study)
    (found,) = parsed(cache("gc", copy.cache, *used, "--json"))["found"]
    assert (found["kind"], found["path"]) == ("cache", unused.name)
    assert "small" in found["reason"]
    assert cache("gc", copy.cache, *used, "--yes").exit_code == 0
    assert unused.is_dir()
    refused(
        cache("gc", copy.cache, *used, "--remove", copy.store().name, "--yes"), "A study uses", unused.name
    )
    refused(cache("gc", copy.cache, *used, "--remove", "nothing", "--yes"), "no such cache")
    refused(cache("gc", copy.cache, "--remove", unused.name, "--yes"), "--study")
    assert unused.is_dir()
    assert cache("gc", copy.cache, *used, "--remove", unused.name).exit_code == 0
    assert unused.is_dir()
    assert cache("gc", copy.cache, *used, "--remove", unused.name, "--yes").exit_code == 0
    assert not unused.exists()
    assert sorted(path.name for path in copy.cache.iterdir()) == sorted(
        [copy.store().name, copy.store("views").name]
    )


def test_gc_leaves_alone_what_it_cannot_read_and_what_is_not_here(copy: Home, tmp_path: Path) -> None:
    (copy.store() / "cache.json").write_text("{}")
    found = cache("gc", copy.cache, "--study", copy.study, "--yes")
    refused(found, copy.store().name, status=4)
    assert copy.store().is_dir()
    refused(cache("gc", "s3://bucket/x"), "this machine")
    refused(cache("gc", tmp_path / "none"), "no such folder")


def test_a_writer_that_is_alive_keeps_its_temporary_file(copy: Home) -> None:
    from store.durable import new_partial

    mine = new_partial(copy.store() / "x")
    mine.write_bytes(b"not done yet")
    assert parsed(cache("gc", copy.cache, "--yes", "--json"))["found"] == []
    assert mine.exists()


def test_a_removal_that_is_killed_leaves_a_leftover_and_no_half_cache(tmp_path: Path) -> None:
    """Killed between taking the name away and removing the files, which a removal does in this order."""
    made = small_cache(tmp_path / "cache", "old", {})
    code = (
        "import sys, os, signal; from pathlib import Path; import store.clean as clean;"
        "clean.remove_abandoned = lambda path: os.kill(os.getpid(), signal.SIGKILL);"
        "clean.remove(clean.Superfluous(Path(sys.argv[1]), '', 0))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True)
    assert killed.returncode == -9
    assert not made.exists()
    (found,) = parsed(cache("gc", tmp_path / "cache", "--json"))["found"]
    assert found["kind"] == "leftover"
    assert cache("ls", tmp_path / "cache").exit_code == 0
    assert cache("gc", tmp_path / "cache", "--yes").exit_code == 0
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_printed_as_json_is_nothing_but_json(home: Home) -> None:
    for command in (["ls", home.cache], ["info", home.store()], ["gc", home.cache]):
        parsed(cache(*command, "--json"))


def test_a_study_may_say_where_its_caches_lie(home: Home, tmp_path: Path) -> None:
    for root, said in (
        ('""', "give a folder"),
        ('"s3://"', "s3://bucket/folder"),
        ('"S 3://x"', "s3://bucket/folder"),
        ('"s3://me:secret@host/x"', "password"),
    ):
        study = write_study(tmp_path, FOLDER.format(root=tmp_path) + f"\n[cache]\nroot = {root}\n", "at")
        from studykit import frostgrid

        result = frostgrid("plan", study)
        refused(result, "cache.root", said)
        assert "secret" not in result.output
