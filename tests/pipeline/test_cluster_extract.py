"""Extraction by real workers: the same grids as in one process, whatever is killed, and nothing computed twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
from cachekit import Home, parsed
from clusterkit import RealCluster
from encoder_rows import timm_model, tiny, write_row
from extractkit import (
    FEW,
    SHARD,
    VIEWS,
    Bench,
    Doing,
    expect_like,
    grids,
    shards,
    store_of,
    unchanged,
    until,
)
from packagekit import installed
from s3_server import BUCKET, S3
from safetensors.torch import save_file
from studykit import FOLDER, frostgrid, write_folder, write_study

from pipeline.cluster import extracting
from pipeline.cluster.connecting import connected
from pipeline.cluster.crew import Crew
from pipeline.cluster.shards import ShardsFailed
from pipeline.cluster.tasks import Task
from pipeline.console import Talk
from pipeline.journal import journal_of
from pipeline.journal_reading import read_journals
from stages.batching import Batches
from stages.encoders import load_encoder
from store import GridStore, verify
from store.errors import IdentityMismatch, StorageError
from store.places import open_place
from store.sharing import offers, pull, verify_at

URL = f"s3://{BUCKET}/team"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("bench")
    with installed(folder / "site-packages") as packages, pytest.MonkeyPatch.context() as patch:
        made = Bench(folder, packages)
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def alone(bench: Bench) -> Path:
    """The cache as one process extracts it."""
    said = bench.extract(bench.folder / "alone")
    assert f"counted: {VIEWS} views encoded, 0 kept" in said
    assert sum(bench.encoded().values()) == VIEWS
    return bench.folder / "alone"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server.s3_server() as running, s3_server.bucket(running) as wire:
        wire.strangers_may_read = False
        yield running


@pytest.fixture(scope="module")
def cluster(bench: Bench, server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Two workers that tests leave as they are; what they inherit leads to the bucket, too."""
    with RealCluster(tmp_path_factory.mktemp("cluster"), environment=bench.environment) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(bench: Bench) -> None:
    bench.slow(0)
    bench.limit(None)
    bench.refuse("")
    bench.encoded()


def test_a_cluster_makes_the_same_grids_as_one_process_and_encodes_each_view_once(
    bench: Bench, alone: Path, cluster: RealCluster, tmp_path: Path
) -> None:
    said = bench.extract(tmp_path / "cache", cluster.address)
    assert f"views: {VIEWS} drawn, 0 kept" in said
    assert f"counted: {VIEWS} views encoded, 0 kept" in said
    assert set(bench.encoded().values()) == {1}
    assert len(list(bench.logs.glob("*.log"))) >= 3  # ours and those of both workers
    expect_like(tmp_path / "cache", alone)
    with unchanged(tmp_path / "cache"):
        again = bench.extract(tmp_path / "cache", cluster.address)
    assert f"counted: 0 views encoded, {VIEWS} kept" in again
    assert not bench.encoded()


def test_workers_make_a_cache_in_a_bucket_without_a_folder_in_common(
    bench: Bench, alone: Path, cluster: RealCluster, server: S3
) -> None:
    said = bench.extract(URL, cluster.address, "first", bench.few)
    assert f"counted: {FEW} views encoded, 0 kept ({URL}/counted-" in said
    assert set(bench.encoded().values()) == {1}
    found, faults = offers(open_place(URL))
    assert not faults and [offer.slug for offer in found] == ["counted", "views"]
    for offer in found:
        assert offer.status.views_done == FEW and all(part.sealed for part in offer.parts)
        assert verify_at(offer) == []
    assert not [key for key in server.objects() if "_work" in key]
    assert shards(bench.folder / "copies-first") == 0  # the client has the tables only
    again = bench.extract(URL, cluster.address, "second", bench.few)  # somebody else, who has no copy
    assert f"counted: 0 views encoded, {FEW} kept" in again
    for offer in found:
        pull(offer, bench.folder / "pulled")
    for slug in ("views", "counted"):
        found_there = grids(bench.folder / "pulled", slug)
        assert found_there.items() <= grids(alone, slug).items() and len(found_there) == FEW


def test_a_shard_that_fails_three_times_is_named_and_the_others_are_finished(
    bench: Bench, alone: Path, cluster: RealCluster, tmp_path: Path
) -> None:
    store = store_of(alone, "counted")
    row = store.reader().views()[20]
    bench.refuse(str(store_of(alone, "views").reader().meta(_mask_key(alone, row))["pixels"]))
    with pytest.raises(ShardsFailed) as error:
        bench.extract(tmp_path / "cache", cluster.address)
    assert "1 task failed, the others are finished" in str(error.value)
    assert "counted, shard 2 of part-" in str(error.value) and "no tokens for this one" in str(error.value)
    status = store_of(tmp_path / "cache", "counted").status()
    assert status.views_done == VIEWS - SHARD
    results = bench.folder / "runs" / "counting"
    journal_of(results).flush()
    assert [name.rpartition("/")[2] for _, name in read_journals(results).failed] == ["2"]
    tried = bench.encoded()
    assert max(tried.values()) == 3 and sum(count > 1 for count in tried.values()) <= SHARD
    bench.refuse("")
    done = frostgrid(
        "extract",
        bench.study,
        *("--cache", tmp_path / "cache", "--runs", bench.folder / "runs", "--scheduler", cluster.address),
    )
    assert done.exit_code == 0, done.output
    assert f"counted: {SHARD} views encoded, {VIEWS - SHARD} kept" in done.stderr
    expect_like(tmp_path / "cache", alone)


def _mask_key(cache: Path, row):
    """Where the mask of a view is: keys of masks and of grids differ, their order does not."""
    features, masks = (store_of(cache, slug).reader().views() for slug in ("counted", "views"))
    return dict(zip(features, masks, strict=True))[row]


def test_the_claim_of_a_worker_that_its_cluster_has_lost_is_not_waited_for(
    bench: Bench, alone: Path, cluster: RealCluster, tmp_path: Path
) -> None:
    bench.extract(tmp_path / "cache", cluster.address)
    store = store_of(tmp_path / "cache", "counted")
    (part,) = store.path.glob("part-*")
    lost = [part / "tokens" / f"c.{shard}.0.0.0" for shard in (1, 4)]
    for path in lost:
        path.unlink()
    rows = [row for shard in (1, 4) for row in store.task(part.name, shard).rows]
    assert {task.shard for task in store.plan(rows)} == {1, 4}
    with connected(None, cluster.address, None, Talk(quiet=True)) as crew:
        assert crew is not None
        scheduler = crew.cluster
    for shard, about in ((1, {"cluster": scheduler, "worker": "tcp://10.0.0.9:4000"}), (4, {})):
        claim = {"host": "elsewhere", "boot": "", "space": "", "pid": 1, "start": "", "uuid": str(shard)}
        (part / "_work" / "lease" / f"{shard}.0").write_text(json.dumps({**claim, "about": about}))
    doing = Doing(bench.extract, tmp_path / "cache", cluster.address)
    until(lost[0].exists, doing)
    time.sleep(1)
    assert not lost[1].exists()  # of a worker that may be alive, for all anybody knows
    (part / "_work" / "lease" / "4.0").unlink()
    assert f"counted: {2 * SHARD} views encoded" in doing.result()
    expect_like(tmp_path / "cache", alone)


def test_two_clients_of_one_scheduler_share_every_shard(
    bench: Bench, alone: Path, cluster: RealCluster, tmp_path: Path
) -> None:
    bench.slow(0.1)
    both = [Doing(bench.extract, tmp_path / "cache", cluster.address, runs) for runs in ("one", "two")]
    for one in both:
        one.result()
    assert set(bench.encoded().values()) == {1}
    expect_like(tmp_path / "cache", alone)


def test_a_worker_and_then_the_scheduler_are_killed_and_only_what_was_under_way_is_done_again(
    bench: Bench, alone: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    bench.limit(4 * SHARD - 2)
    with RealCluster(tmp_path / "cluster", environment=bench.environment) as cluster:
        doing = Doing(bench.extract, cache, cluster.address)
        until(lambda: shards(cache) >= 2, doing)
        cluster.kill_worker(0)
        bench.limit(7 * SHARD - 2)  # fewer than there are
        until(lambda: shards(cache) >= 4, doing)
        cluster.kill_scheduler()
        with pytest.raises(StorageError, match=r"scheduler .* gone"):
            doing.result()
        cluster.stop()
        bench.limit(None)
        counts = bench.encoded()
        assert sum(counts.values()) - len(counts) <= SHARD  # the shard of the worker that was killed
        cluster.start_scheduler()
        cluster.start_worker()
        cluster.start_worker()
        cluster.wait(2)
        with unchanged(cache):
            said = bench.extract(cache, cluster.address)
    counts += bench.encoded()
    assert len(counts) == VIEWS and sum(counts.values()) - VIEWS <= 2 * SHARD
    assert "counted: 0 views" not in said and ", 0 kept" not in said.rpartition("counted")[2]
    expect_like(cache, alone)


def test_a_worker_that_is_killed_costs_its_shard_and_the_same_command_finishes(
    bench: Bench, alone: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def told() -> dict[str, int]:
        at = ("--cache", cache, "--runs", bench.folder / "runs", "--json")
        found: dict[str, int] = parsed(frostgrid("status", bench.study, *at))["encoders"][0]["shards"]
        return found

    bench.limit(4 * SHARD - 2)  # where both workers stop in the middle of a shard
    with RealCluster(tmp_path / "cluster", environment=bench.environment) as cluster:
        doing = Doing(bench.extract, cache, cluster.address)
        until(lambda: shards(cache) >= 2 and told()["running"] == 2, doing)
        cluster.kill_worker(0)
        bench.limit(None)
        said = doing.result()
    assert f"counted: {VIEWS} views encoded, 0 kept" in said
    counts = bench.encoded()
    assert len(counts) == VIEWS and sum(counts.values()) - VIEWS <= SHARD
    assert {**told(), "done": 0} == {"done": 0, "running": 0, "failed": 0, "to_do": 0, "lost": 0}
    expect_like(cache, alone)


@pytest.mark.slow
def test_a_worker_is_killed_while_two_clusters_fill_one_bucket(
    bench: Bench, alone: Path, server: S3, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/both"
    bench.slow(0.25)
    with (
        RealCluster(tmp_path / "one", environment=bench.environment) as one,
        RealCluster(tmp_path / "two", environment=bench.environment) as two,
    ):
        doing = [Doing(bench.extract, url, c.address, f"bucket-{n}") for n, c in enumerate((one, two))]
        until(lambda: sum("/tokens/c." in key for key in server.objects()) >= 2, *doing)
        one.kill_worker(0)
        for each in doing:
            each.result()
    counts = bench.encoded()
    assert len(counts) == VIEWS
    assert sum(counts.values()) - VIEWS <= SHARD
    found, faults = offers(open_place(url))
    assert not faults
    for offer in found:
        assert len(offer.parts) == 1 and offer.parts[0].sealed and verify_at(offer) == []
    assert not [key for key in server.objects() if "_work" in key]
    for offer in found:
        pull(offer, tmp_path / "pulled")
    for slug in ("views", "counted"):
        assert grids(tmp_path / "pulled", slug) == grids(alone, slug)


@pytest.mark.slow
def test_two_clusters_fill_one_folder(bench: Bench, alone: Path, tmp_path: Path) -> None:
    bench.slow(0.25)
    cache = tmp_path / "cache"
    with (
        RealCluster(tmp_path / "one", environment=bench.environment) as one,
        RealCluster(tmp_path / "two", environment=bench.environment) as two,
    ):
        doing = [Doing(bench.extract, cache, c.address, f"folder-{n}") for n, c in enumerate((one, two))]
        for each in doing:
            each.result()
    assert set(bench.encoded().values()) == {1}
    expect_like(cache, alone)
    assert verify(store_of(cache, "counted")) == []


def test_what_a_study_names_relative_to_the_client_is_found_by_workers_elsewhere(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields = tiny()
    write_row(tmp_path, fields)
    (tmp_path / "weights").mkdir()
    save_file(timm_model(fields).state_dict(), tmp_path / "weights" / "tiny.safetensors")
    write_folder(tmp_path / "data")
    text = FOLDER.format(root="data").replace('["stain"]', '["stain", "tiny.toml@2"]')
    study = write_study(
        tmp_path, text.replace("[train]", 'weights = { "tiny.toml" = "weights/tiny.safetensors" }\n[train]')
    )
    for cache, more in (("alone", ()), ("cache", ("--scheduler", cluster.address))):
        done = frostgrid("extract", study, "--cache", cache, "--runs", "runs", "--threads", "1", *more)
        assert done.exit_code == 0, done.output
        assert "tiny@2: 9 views encoded" in done.stderr
    for slug in ("views", "stain", "tiny-block2"):
        assert grids(Path("cache"), slug) == grids(Path("alone"), slug)
    done = frostgrid(
        *("extract", study, "--cache", "other", "--runs", "runs", "--scheduler", cluster.address),
        *("--encoder", "tiny.toml", "--weights", "nowhere.safetensors"),
    )
    assert done.exit_code == 2 and not list(tmp_path.glob("other/*/part-*"))


def test_a_worker_that_loads_another_encoder_than_the_cache_is_of_refuses_to_add_to_it(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    assert home.run("extract").exit_code == 0
    batches = Batches(load_encoder("pixels", tile_px=32), 4)
    with pytest.raises(IdentityMismatch, match=r"another than that of the cache: .*stain"):
        extracting.refuse_other(batches, GridStore.open(home.store("stain")))


def test_an_encoder_that_fails_to_load_in_whatever_way_is_named_and_the_next_is_extracted(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Crew.ask

    def failing(crew: Crew, task: Task) -> Any:
        if task.title == "loading stain":
            raise MemoryError("no room for it")
        return ask(crew, task)

    monkeypatch.setattr(Crew, "ask", failing)
    home = Home(tmp_path, text=FOLDER.replace('["stain"]', '["stain", "pixels"]'))
    done = home.run("extract", "--scheduler", cluster.address)
    assert done.exit_code == 1, done.output
    assert "1 task failed" in done.stderr and "loading stain: MemoryError: no room for it" in done.stderr
    assert "test_cluster_extract.py" in done.stderr  # where: it is a fault of ours
    assert home.store("pixels").is_dir() and not list(home.cache.glob("stain-*"))


def test_a_single_failure_ends_the_command_with_its_own_status() -> None:
    other = ("stain, shard 0", IdentityMismatch("It is another encoder", where="stain"))
    full = ("stain, shard 1", StorageError("The disk is full", where="cache"))
    assert ShardsFailed([other], "cache", stopped=False).exit_status == IdentityMismatch.exit_status == 2
    assert ShardsFailed([("x", ZeroDivisionError())], "cache", stopped=False).exit_status == 1
    assert ShardsFailed([other, full], "cache", stopped=False).exit_status == 1
