"""How far a study is: of its caches, its runs and what others are doing, in whatever state they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cachekit import Home, flip_bit, parsed, refused
from studykit import SMALL_DEMO, frostgrid, write_study

from pipeline.journal import EVERY_S, MAX_WHY, Journal
from pipeline.journal_reading import STALE_S, VERSION, read_journals
from store.documents import decode, encode
from store.places import open_place
from store.sharing.claims import claim

MANY_SHARDS = SMALL_DEMO.replace("train = 4, val = 2, test = 4", "train = 20, val = 4, test = 6").replace(
    "per_tile = 3", "per_tile = 8"
)


def look(home: Home, *more: str | Path, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = parsed(home.run("status", "--json", *more), status)
    return found


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def elsewhere(code: str, *arguments: str | Path) -> None:
    """Run ``code`` in a process of its own."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, timeout=120)


FAILS = """
import sys
from pathlib import Path
from pipeline.journal import journal_of
journal = journal_of(Path(sys.argv[1]))
for name in sys.argv[3:]:
    journal.fail(sys.argv[2], name, f"the cosmic ray that hit {name}")
journal.flush()
"""


def test_everything_of_a_new_study_is_to_do_and_as_many_shards_as_are_written_then(tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    before = look(home)
    assert not home.cache.exists()
    assert not (home.folder / "runs").exists()
    assert before["views"]["views"] == {"stored": 0, "wanted": 9}
    (row,) = before["encoders"]
    assert (row["cache"], row["bytes"], row["views"]) == (None, 0, {"stored": 0, "wanted": 9})
    assert row["runs"]["to_do"] == [0]
    assert home.run("run").exit_code == 0
    after = look(home)
    for old, new in ((before["views"], after["views"]), (row, after["encoders"][0])):
        assert old["shards"] == {
            "done": 0,
            "running": 0,
            "failed": 0,
            "to_do": new["shards"]["done"],
            "lost": 0,
        }
        assert new["shards"] == {**old["shards"], "done": old["shards"]["to_do"], "to_do": 0}
        assert new["views"] == {"stored": 9, "wanted": 9}
    stored = [path.stat().st_size for path in home.store().glob("part-*/tokens/c.*")]
    assert after["encoders"][0]["bytes"] == sum(stored)
    assert after["encoders"][0]["runs"]["done"] == [0]
    journal = home.folder / "runs" / home.study.stem / "journal"
    until = time.monotonic() + 60
    while journal.exists() and time.monotonic() < until:  # it goes a moment after the work has ended
        time.sleep(0.05)
    assert not journal.exists()


def test_the_table_names_every_cache_and_changes_nothing(home: Home) -> None:
    before = contents(home.folder)
    shown = home.run("status")
    assert shown.exit_code == 0, shown.output
    assert "9 / 9" in shown.stdout
    for title in ("views", "stain", "linear"):
        assert title in shown.stdout
    assert contents(home.folder) == before


def test_more_seeds_and_more_tiles_than_are_done_are_to_do(copy: Home) -> None:
    assert look(copy, "--seeds", "3")["encoders"][0]["runs"]["to_do"] == [1, 2]
    copy.study.write_text(copy.study.read_text().replace("per_tile = 2", "per_tile = 4"))
    (row,) = look(copy)["encoders"]
    assert row["views"] == {"stored": 9, "wanted": 15}
    assert row["shards"]["to_do"] > 0
    assert row["runs"]["to_do"] == [0]


def test_runs_under_other_settings_are_shown_with_what_tells_them_apart(copy: Home) -> None:
    done = copy.run("sweep", "--set", "train.lr=1e-4,1e-2", "--set", "train.views=1", "--seeds", "2")
    assert done.exit_code == 0, done.output
    found = look(copy)
    assert found["encoders"][0]["runs"]["done"] == [0]
    others = found["other_runs"]["recorded"]
    assert [group["done"] for group in others] == [[0, 1], [0, 1]]
    assert sorted(group["differs"] for group in others) == [["lr = 0.01", "views = 1"], ["views = 1"]]
    assert "lr = 0.01" in copy.run("status").stdout


def test_runs_of_more_seeds_than_the_study_has_are_said_to_be_that(copy: Home) -> None:
    assert copy.run("train", "--seeds", "2").exit_code == 0
    (group,) = look(copy)["other_runs"]["recorded"]
    assert (group["differs"], group["done"]) == (["its seeds"], [1])


def test_a_run_is_found_without_its_cache(copy: Home) -> None:
    shutil.rmtree(copy.store())
    (row,) = look(copy)["encoders"]
    assert row["cache"] is None
    assert row["runs"]["done"] == [0]


def test_a_lost_shard_is_to_do_again(copy: Home) -> None:
    done = look(copy)["encoders"][0]["shards"]["done"]
    next(copy.store().glob("part-*/tokens/c.*")).unlink()
    (row,) = look(copy)["encoders"]
    assert row["shards"] == {"done": done - 1, "running": 0, "failed": 0, "to_do": 1, "lost": 1}
    assert "lost or cut" in copy.run("status").stdout


@pytest.mark.parametrize("file", ["cache.json", "part-*/part.json", "part-*/manifest.json"])
def test_a_damaged_cache_is_named_and_the_rest_is_shown(copy: Home, file: str) -> None:
    (path,) = copy.store().glob(file)
    flip_bit(path)
    found = look(copy, status=4)
    assert any(str(path) in fault for fault in found["damaged"])
    assert found["views"]["views"] == {"stored": 9, "wanted": 9}
    assert found["encoders"][0]["runs"]["done"] == [0]
    refused(copy.run("status"), "damaged", status=4)


def test_a_damaged_run_is_neither_done_nor_to_do(copy: Home) -> None:
    (record,) = copy.folder.glob("runs/*/*/*/seed-*/run.json")
    flip_bit(record)
    found = look(copy, status=4)
    assert found["encoders"][0]["runs"] == {
        "done": [],
        "running": [],
        "failed": [],
        "damaged": [0],
        "to_do": [],
    }
    assert any(str(record) in fault for fault in found["damaged"])


def test_a_run_that_has_lost_a_file_is_damaged(copy: Home) -> None:
    (weights,) = copy.folder.glob("runs/*/*/*/seed-*/decoder.safetensors")
    weights.unlink()
    assert look(copy, status=4)["encoders"][0]["runs"]["damaged"] == [0]


def test_a_cache_at_a_url_counts_without_a_copy_of_it(copy: Home, tmp_path: Path) -> None:
    url = (tmp_path / "place").as_uri()
    copy.cache.rename(tmp_path / "place")
    found = look(copy, "--cache", url, "--stage-to", tmp_path / "stage")
    (row,) = found["encoders"]
    assert (found["place"], row["views"]) == (str(tmp_path / "place"), {"stored": 9, "wanted": 9})
    assert row["shards"]["to_do"] == 0
    assert row["runs"]["done"] == [0]
    assert not (tmp_path / "stage").exists()


def test_shards_that_lie_in_either_place_count_once(copy: Home, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(copy.cache, place)
    for folder, shard in ((copy.store(), 0), (place / copy.store().name, 1)):
        next(folder.glob(f"part-*/tokens/c.{shard}.*")).unlink()
    (row,) = look(copy, "--cache", place.as_uri(), "--stage-to", copy.cache)["encoders"]
    assert row["views"] == {"stored": 9, "wanted": 9}
    assert row["shards"]["to_do"] == row["shards"]["lost"] == 0


def test_a_shard_that_somebody_claims_at_a_place_is_running(copy: Home, tmp_path: Path) -> None:
    place = tmp_path / "place"
    copy.cache.rename(place)
    (part,) = place.glob("stain-*/part-*")
    next(part.glob("tokens/c.1.*")).unlink()
    ask = ("--cache", place.as_uri(), "--stage-to", tmp_path / "stage")
    assert look(copy, *ask)["encoders"][0]["shards"]["to_do"] == 1
    leases = f"{part.parent.name}/{part.name}/_work/lease"
    (place / leases).mkdir(parents=True)
    with claim(open_place(place.as_uri()), leases, 1) as mine:
        assert mine
        shards = look(copy, *ask)["encoders"][0]["shards"]
        assert (shards["running"], shards["to_do"]) == (1, 0)
    assert look(copy, *ask)["encoders"][0]["shards"]["to_do"] == 1


def test_a_place_that_does_not_answer_is_said_and_what_is_here_is_shown(copy: Home) -> None:
    found = look(copy, "--cache", "http://127.0.0.1:9/caches", "--stage-to", copy.cache, status=4)
    assert found["damaged"]
    assert found["encoders"][0]["views"] == {"stored": 9, "wanted": 9}


def test_weights_that_are_not_at_hand_are_a_note_and_no_fault(tmp_path: Path) -> None:
    text = SMALL_DEMO.replace(
        'names = ["stain", "pixels"]', 'names = ["uni"]\nweights = { uni = "gone.bin" }'
    )
    study, folders = write_study(tmp_path, text), ("--cache", tmp_path / "c", "--runs", tmp_path / "r")
    shown = frostgrid("status", study, *folders, "--json")
    (row,) = parsed(shown)["encoders"]
    assert row["note"]
    assert row["shards"]["to_do"] > 0


def test_an_extraction_is_seen_while_it_runs_and_after_it_was_killed(tmp_path: Path) -> None:
    study = write_study(tmp_path, MANY_SHARDS)
    folders = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    ask = ("status", study, *folders, "--json")
    total = parsed(frostgrid(*ask))["views"]["shards"]["to_do"]
    work = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "extract", study, *folders],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: stopped_while_writing(work, tmp_path / "cache"), work)
        shards = parsed(frostgrid(*ask))["views"]["shards"]
        assert shards["running"] >= 1
        assert shards["done"] + shards["running"] + shards["to_do"] == total
    finally:
        work.kill()
        work.wait()
    after = parsed(frostgrid(*ask))["views"]["shards"]
    assert after == {**shards, "running": 0, "to_do": shards["to_do"] + shards["running"]}
    assert frostgrid("extract", study, *folders).exit_code == 0
    assert parsed(frostgrid(*ask))["views"]["shards"]["done"] == total


def test_a_run_is_seen_while_it_is_trained_and_after_it_was_killed(copy: Home) -> None:
    copy.study.write_text(copy.study.read_text().replace("epochs = 2", "epochs = 100000"))
    results = copy.folder / "runs" / copy.study.stem
    folders = ("--cache", copy.cache, "--runs", results.parent)
    work = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "train", copy.study, *folders],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: bool(read_journals(results).under_way), work)
        assert look(copy)["encoders"][0]["runs"]["running"] == [0]
    finally:
        work.kill()
        work.wait()
    found = look(copy)["encoders"][0]["runs"]
    assert (found["running"], found["to_do"]) == ([], [0])


def stopped_while_writing(work: subprocess.Popen[bytes], cache: Path) -> bool:
    """Stop the process if it holds a lease on a shard of views that is not finished; else let it go on."""
    if not list(cache.glob("views-*/part-*/_work/lease/*.0")):
        return False
    os.kill(work.pid, signal.SIGSTOP)
    for lease in cache.glob("views-*/part-*/_work/lease/*.0"):
        if not (lease.parents[1] / "done" / f"{lease.stem}.json").exists():
            return True
    os.kill(work.pid, signal.SIGCONT)
    return False


def until(true: Callable[[], bool], work: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert work.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_failed_counts_until_it_is_done(copy: Home) -> None:
    results = copy.folder / "runs" / copy.study.stem
    (run,) = results.glob("*/*/seed-*")
    next(copy.store().glob("part-*/tokens/c.1.*")).unlink()
    (part,) = (path.name for path in copy.store().glob("part-*"))
    shard = f"{copy.store().name}/{part}/1"
    kept = copy.folder / "kept"
    run.rename(kept)
    name = run.relative_to(results).as_posix()
    elsewhere(FAILS, results, "run", name)
    elsewhere(FAILS, results, "shard", shard, f"{copy.store().name}/{part}/0")
    found = look(copy, status=1)
    (row,) = found["encoders"]
    assert (row["shards"]["failed"], row["shards"]["to_do"]) == (1, 0)
    assert (row["runs"]["failed"], row["runs"]["to_do"]) == ([0], [])
    assert {(one["kind"], one["name"]) for one in found["failures"]} == {("run", name), ("shard", shard)}
    refused(copy.run("status"), "failed", status=1)
    assert "the cosmic ray" in copy.run("status").stdout
    kept.rename(run)
    assert copy.run("extract").exit_code == 0
    found = look(copy)
    assert found["failures"] == []
    assert found["encoders"][0]["runs"]["done"] == [0]


def test_a_run_of_another_variant_that_failed_is_named(copy: Home) -> None:
    elsewhere(FAILS, copy.folder / "runs" / copy.study.stem, "run", "stain/mlp/seed-007-01234567")
    assert look(copy, status=1)["failures"][0]["name"] == "stain/mlp/seed-007-01234567"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made._leave()


def settled(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_journal_says_what_is_under_way_and_goes_when_nothing_is(own: Journal, tmp_path: Path) -> None:
    own.begin("run", "a")
    settled(lambda: read_journals(tmp_path).under_way == {("run", "a")})
    own.end("run", "a")
    settled(lambda: not (tmp_path / "journal").exists())


def test_what_failed_is_no_longer_under_way_and_has_its_reason(own: Journal, tmp_path: Path) -> None:
    for number in range(3):
        own.begin("shard", f"c/part-1/{number}")
    own.fail("shard", "c/part-1/0", "too green")
    own.end("shard", "c/part-1/0")
    own.end("shard", "c/part-1/1")
    own.fail("run", "never begun", "x" * 10_000)
    own.flush()
    found = read_journals(tmp_path)
    assert found.under_way == {("shard", "c/part-1/2")}
    assert found.failed.keys() == {("shard", "c/part-1/0"), ("run", "never begun")}
    assert found.failed["shard", "c/part-1/0"] == "too green"
    assert len(found.failed["run", "never begun"]) <= MAX_WHY + 1


def test_a_reason_that_is_no_text_keeps_nothing_else_from_being_said(own: Journal, tmp_path: Path) -> None:
    own.fail("run", "a", "no such file: b\udcff.tif")
    own.fail("run", "b", "why")
    own.flush()
    assert read_journals(tmp_path).failed == {("run", "a"): r"no such file: b\udcff.tif", ("run", "b"): "why"}


def test_a_journal_is_written_again_where_its_folder_was_removed_or_could_not_be_written_to(
    own: Journal, tmp_path: Path
) -> None:
    own.fail("run", "a", "why")
    own.flush()
    shutil.rmtree(tmp_path / "journal")  # as another process does that takes it for one that is gone
    own.fail("run", "b", "why")
    own.flush()
    assert read_journals(tmp_path).failed.keys() == {("run", "a"), ("run", "b")}
    shutil.rmtree(tmp_path / "journal")
    (tmp_path / "journal").write_text("a file is in the way")
    own.begin("run", "c")
    own.flush()
    (tmp_path / "journal").unlink()
    settled(lambda: read_journals(tmp_path).under_way == {("run", "c")})


def test_what_is_tried_again_has_not_failed_also_where_the_second_try_is_killed(tmp_path: Path) -> None:
    elsewhere(FAILS, tmp_path, "run", "a", "b")
    assert set(read_journals(tmp_path).failed) == {("run", "a"), ("run", "b")}
    again = """
import os, sys, time
from pathlib import Path
from pipeline.journal import journal_of
journal = journal_of(Path(sys.argv[1]))
journal.begin("run", "a")
journal.flush()
os._exit(0)
"""
    elsewhere(again, tmp_path)
    found = read_journals(tmp_path)
    assert not found.under_way
    assert set(found.failed) == {("run", "b")}
    assert len(list((tmp_path / "journal").iterdir())) == 1  # the first one's is in the second one's


def test_a_journal_of_another_machine_counts_for_a_minute_after_its_last_sign(
    own: Journal, tmp_path: Path
) -> None:
    own.begin("run", "a")
    own.flush()
    body = decode("journal", VERSION, own.path.read_bytes(), own.path, "")
    body["process"]["host"] = "another"
    other = own.path.with_name("another-1-00000000.json")
    other.write_bytes(encode("journal", VERSION, {**body, "under_way": [["run", "b", 1.0]]}))
    assert read_journals(tmp_path).under_way == {("run", "a"), ("run", "b")}
    old = time.time() - STALE_S - 1
    os.utime(other, (old, old))
    assert read_journals(tmp_path).under_way == {("run", "a")}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b'{"format": "frostgrid-journal/99"}'])
def test_a_damaged_journal_is_named_and_no_other_suffers(own: Journal, tmp_path: Path, damage: bytes) -> None:
    own.fail("run", "a", "why")
    own.flush()
    other = own.path.with_name("other-1-00000000.json")
    other.write_bytes(damage)
    found = read_journals(tmp_path)
    assert found.failed == {("run", "a"): "why"}
    assert [str(other) in str(fault) for fault in found.faults] == ([True] if damage else [])


def test_work_goes_on_where_no_journal_can_be_written(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    results = home.folder / "runs" / home.study.stem
    results.mkdir(parents=True)
    (results / "journal").write_text("a file is in the way")
    done = home.run("run")
    assert done.exit_code == 0, done.output
    journal = Journal(results)
    journal.begin("run", "a")
    journal.fail("run", "b", "why")
    journal.flush()
    journal.end("run", "a")
    assert look(home)["encoders"][0]["runs"]["done"] == [0]


def test_many_units_cost_few_writes(own: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    monkeypatch.setattr(own, "_put", writes.append)
    started = time.monotonic()
    for number in range(5000):
        own.begin("shard", f"c/part-0/{number}")
        own.end("shard", f"c/part-0/{number}")
    assert len(writes) <= 2 + (time.monotonic() - started) / EVERY_S


def test_failures_of_dead_processes_are_kept_by_the_next_and_their_files_go(tmp_path: Path) -> None:
    for name in "abc":
        elsewhere(FAILS, tmp_path, "run", name)
    (last,) = (tmp_path / "journal").iterdir()
    assert set(read_journals(tmp_path).failed) == {("run", name) for name in "abc"}
    assert json.loads(last.read_text())["format"] == "frostgrid-journal/1"
