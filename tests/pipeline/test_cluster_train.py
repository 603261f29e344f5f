"""Sweeps on a dask cluster of real processes: the same results, whatever is killed, and nothing trained twice."""

from __future__ import annotations

import json
import os
import pickle
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cachekit import Home, cache, flip_bit, parsed, refused
from clusterkit import RealCluster
from distributed import Client
from s3_server import BUCKET, CREDENTIALS, S3, Wire, s3_server

from pipeline import engine
from pipeline.budget import PROCESS_BYTES, STREAMED_BATCHES
from pipeline.cluster.learning import Address, Source
from pipeline.job import Job
from pipeline.journal import journal_of
from pipeline.journal_reading import read_journals
from pipeline.study import read_study
from pipeline.sweeping import combinations
from pipeline.tilesets import TileSet
from stages.training.footprint import OVERHEAD, step_bytes
from stages.training.record import load_run

PLACE = f"s3://{BUCKET}/lab"
VARIED = ("--decoder", "linear", "--decoder", "mlp:hidden=4", "--seeds", "2")
LONG = ("--set", "train.epochs=600,601,602", "--seeds", "2")  # six runs that take a moment


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(scope="module")
def wire(server: S3) -> Iterator[Wire]:
    """The way to the bucket."""
    wire = Wire((server.host, server.port))
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def cluster(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A scheduler and two workers of one thread each, who know the way to the bucket."""
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": wire.url}
    with RealCluster(tmp_path_factory.mktemp("cluster"), environment=environment) as running:
        yield running


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What runs in this process computes with as many threads as each worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(root: Path) -> dict[str, bytes]:
    """Those of finished runs; the folders of those that are being written have another name."""
    files = root.glob("*/*/*/seed-???-????????/decoder.safetensors")
    return {str(path.parent.relative_to(root)): path.read_bytes() for path in files}


def written(root: Path) -> dict[str, int]:
    """When finished runs were written."""
    files = root.glob("*/*/*/seed-???-????????/run.json")
    return {str(path.parent.relative_to(root)): path.stat().st_mtime_ns for path in files}


def fill_the_disk(log: Path | None) -> None:
    """Have a worker find that its disk is full when it writes a run, and leave a line in ``log``; no more with None."""
    import errno

    from stages.training import record

    def full(folder: Path, _files: object) -> bool:
        assert log is not None
        with log.open("a") as file:
            file.write(f"{folder}\n")
        raise OSError(errno.ENOSPC, "No space left on device")

    record.put_folder, record.standing = (
        (full, record.put_folder) if log else (record.standing, None)  # type: ignore[attr-defined]
    )


def job_of(home: Home) -> Job:
    work = engine.workspace(read_study(home.study), str(home.cache), home.folder / "new", 1)
    return combinations(work, [], [], 1, None)[0]


def eventually(true: Callable[[], bool], seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


@contextmanager
def meanwhile(when: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as something is so, while the block goes on; it has to be so before the block ends."""
    done = threading.Event()

    def watch() -> None:
        eventually(when)
        act()
        done.set()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert done.is_set()


@contextmanager
def finished_tasks(cluster: RealCluster) -> Iterator[list[str]]:
    """The keys of the runs that workers have ended in the block, as often as each was."""
    found: list[str] = []
    with Client(cluster.address, set_as_default=False) as client:
        before = len(client.get_task_stream())  # from now on they are kept
        yield found
        rows = client.get_task_stream()[before:]
        found += [row["key"] for row in rows if row["key"].startswith("frostgrid-run")]


def test_a_sweep_on_a_cluster_gives_what_it_gives_in_this_process(copy: Home, cluster: RealCluster) -> None:
    alone, there = copy.folder / "alone", copy.folder / "there"
    assert copy.run("sweep", *VARIED, "--runs", alone).exit_code == 0
    done = copy.run("sweep", *VARIED, "--runs", there, "--scheduler", cluster.address, "--json")
    assert parsed(done)["trained"] == 4
    assert len(weights(alone)) == 4 and weights(there) == weights(alone)
    for runs in (alone, there):
        assert copy.run("report", "--runs", runs).exit_code == 0
    for name in ("results.csv", "sweep.csv", "tiles.csv"):
        assert (there / "small" / name).read_bytes() == (alone / "small" / name).read_bytes()
    record = load_run(there / next(iter(weights(there))))
    assert (record.environment["host"], record.environment["threads"]) == (platform.node(), 1)
    again = copy.run("sweep", *VARIED, "--runs", there, "--scheduler", cluster.address, "--json")
    assert parsed(again)["trained"] == 0
    assert not list(there.rglob(".frostgrid-probe*")) and not list(there.rglob("*.partial"))


def test_workers_without_a_shared_folder_copy_features_once_and_send_the_runs_back(
    copy: Home, cluster: RealCluster, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": wire.url}.items():
        monkeypatch.setenv(name, value)
    assert copy.run("extract", "--encoder", "pixels").exit_code == 0
    stores = [copy.store(slug) for slug in ("stain", "pixels", "views")]
    sent = cache("push", *stores, PLACE, "--i-have-the-rights")
    assert sent.exit_code == 0, sent.output
    alone, there, copies = (copy.folder / name for name in ("alone", "there", "copies"))
    both = (*VARIED, "--encoder", "stain", "--encoder", "pixels")
    assert copy.run("sweep", *both, "--runs", alone).exit_code == 0
    wire.mend()
    at = ("--cache", PLACE, "--stage-to", copies, "--runs", there, "--scheduler", cluster.address)
    assert parsed(copy.run("sweep", *both, *at, "--json"))["trained"] == 8
    assert len(weights(alone)) == 8 and weights(there) == weights(alone)
    for runs in (alone, there):
        assert copy.run("report", "--runs", runs).exit_code == 0
    for name in ("sweep.csv", "results.csv"):
        assert (there / "small" / name).read_bytes() == (alone / "small" / name).read_bytes()
    for store in stores[:2]:
        shards = [path for path in store.rglob("c.*") if path.parent.name == "tokens"]
        asked = [path for verb, path in wire.requests if verb == "GET" and f"{store.name}/" in path]
        asked = [path for path in asked if "/tokens/c." in path]
        # Once a worker; once more where one has gone on to the other encoder and then takes a run from its fellow.
        assert len(set(asked)) == len(shards) and len(asked) <= 3 * len(shards)
    assert len(list(copies.glob("*/cache.json"))) == 3  # known here, and nothing of their content
    assert not [path for path in copies.rglob("c.*") if path.parent.name in ("tokens", "masks")]
    (scratch, *_) = cluster.folder.rglob("pulled")
    assert len(list(scratch.iterdir())) == 2  # of one encoder at a time, and the masks
    missing = "s3://caches/nothing"
    refused(copy.run("sweep", "--cache", missing, *at[2:]), "There is no cache of stain", "cache push")


def test_a_worker_that_is_killed_costs_the_run_it_had(copy: Home, cluster: RealCluster) -> None:
    alone, there = copy.folder / "alone", copy.folder / "there"
    killed: list[str] = []

    def kill_a_busy_one() -> None:
        with Client(cluster.address, set_as_default=False) as client:
            worker, process = next(iter(client.run(os.getpid).items()))
            ends = time.monotonic() + 60
            while not killed:
                assert time.monotonic() < ends, "the sweep was over before a worker was seen in a run"
                os.kill(process, signal.SIGSTOP)  # in the middle of a run, unless it was between two
                time.sleep(0.2)
                killed.extend(str(key) for key in client.processing()[worker])
                if not killed:
                    os.kill(process, signal.SIGCONT)
                    time.sleep(0.05)
        cluster.kill_worker([one.pid for one in cluster.workers].index(process))

    with finished_tasks(cluster) as tasks, meanwhile(lambda: len(written(there)) >= 1, kill_a_busy_one):
        done = copy.run("sweep", *LONG, "--runs", there, "--scheduler", cluster.address, "--json")
    cluster.start_worker()
    assert parsed(done)["trained"] == 6
    assert len({task.partition("-again")[0] for task in tasks}) == 6
    assert len(tasks) <= 7  # one may end with its answer unheard: then whoever is next finds its folder
    (had,) = killed
    assert f"{had}-again1" in tasks  # and no other was begun twice
    assert sum("-again" in task for task in tasks) == 1
    assert copy.run("sweep", *LONG, "--runs", alone).exit_code == 0
    assert weights(there) == weights(alone)
    cluster.wait(2)


def test_a_run_that_fails_is_named_with_why_and_the_others_go_on(copy: Home, cluster: RealCluster) -> None:
    there = copy.folder / "there"
    at = ("--runs", there, "--scheduler", cluster.address)
    varied = ("--decoder", "linear", "--decoder", "mlp", "--set", "train.lr=1e38,1e-3", "--seeds", "1")
    with finished_tasks(cluster) as tasks:
        done = copy.run("sweep", *varied, *at, "--json")
    refused(
        done,
        "2 of 4 runs failed",
        "stain, mlp, decoder = mlp, train.lr = 1e+38, seed 0",
        "stain, linear, decoder = linear, train.lr = 1e+38, seed 0",
        "Lower lr",
        status=1,
    )
    assert json.loads(done.stdout)["trained"] == 2
    assert sorted(name.split("/")[2] for name in weights(there)) == ["linear", "mlp"]
    journal_of(there / "small").flush()
    assert len(read_journals(there / "small").failed) == 2
    assert sorted(Counter(tasks).values()) == [1, 1, 1, 1]  # what diverges does so each time


def test_results_that_nobody_can_write_stop_the_work_and_no_run_is_trained_twice(
    copy: Home, cluster: RealCluster
) -> None:
    there = copy.folder / "there"
    (there / "small/stain").mkdir(parents=True)
    (there / "small/stain/linear").write_text("a file where a folder should be")
    with finished_tasks(cluster) as tasks:
        done = copy.run(
            "sweep", "--decoder", "linear", "--seeds", "6", "--runs", there, "--scheduler", cluster.address
        )
    refused(done, "The finished run cannot be written", "small/stain/linear", status=1)
    assert 1 <= len(tasks) <= 2 and set(Counter(tasks).values()) == {1}  # those that were under way
    alone = copy.run("sweep", "--decoder", "linear", "--seeds", "6", "--runs", there)
    refused(alone, "The finished run cannot be written", status=1)  # as in this process


def test_a_run_that_its_worker_cannot_write_is_written_by_the_command(
    copy: Home, cluster: RealCluster
) -> None:
    alone, there = copy.folder / "alone", copy.folder / "there"
    assert copy.run("sweep", *VARIED, "--runs", alone).exit_code == 0
    with Client(cluster.address, set_as_default=False) as client:
        client.run(fill_the_disk, copy.folder / "log")
        try:
            done = copy.run("sweep", *VARIED, "--runs", there, "--scheduler", cluster.address, "--json")
        finally:
            client.run(fill_the_disk, None)
    assert parsed(done)["trained"] == 4
    assert len((copy.folder / "log").read_text().splitlines()) == 4
    assert weights(there) == weights(alone)


def test_a_cache_that_cannot_be_read_is_told_once_for_all_runs_on_it(
    copy: Home, cluster: RealCluster
) -> None:
    shard = next(path for path in copy.store().rglob("c.*") if path.parent.name == "tokens")
    flip_bit(shard, 300)
    at = ("--runs", copy.folder / "there", "--scheduler", cluster.address)
    done = copy.run("sweep", *VARIED, *at)
    refused(done, str(shard), status=4)
    assert done.stderr.count(str(shard)) == 1
    assert not weights(copy.folder / "there")


def test_so_is_one_that_is_found_to_be_damaged_while_it_trains(copy: Home, cluster: RealCluster) -> None:
    shard = next(path for path in copy.store().rglob("c.*") if path.parent.name == "tokens")
    flip_bit(shard, 300)
    job = job_of(copy)
    budget = STREAMED_BATCHES * job.settings.batch * job.tokens.spec.stored_nbytes
    least = budget + int(OVERHEAD * step_bytes(job.settings, job.geometry, 1)) + 1 + PROCESS_BYTES
    at = ("--runs", copy.folder / "there", "--scheduler", cluster.address, "--max-memory", f"{least}B")
    done = copy.run("sweep", "--decoder", "linear", "--seeds", "4", *at)
    refused(done, str(shard), status=4)
    assert done.stderr.count(str(shard)) == 1
    assert not weights(copy.folder / "there")


def test_memory_is_a_limit_for_each_worker(copy: Home, cluster: RealCluster) -> None:
    job = job_of(copy)
    waiting = STREAMED_BATCHES * job.settings.batch * job.tokens.spec.stored_nbytes
    least = waiting + int(OVERHEAD * step_bytes(job.settings, job.geometry, 1)) + 1 + PROCESS_BYTES
    pieces = []
    for runs, more in (("alone", ()), ("there", ("--scheduler", cluster.address))):
        done = copy.run("train", "--max-memory", f"{least}B", "--runs", copy.folder / runs, *more)
        assert done.exit_code == 0, done.output
        (name,) = weights(copy.folder / runs)
        pieces.append(load_run(copy.folder / runs / name).environment["tiles_at_once"])
    assert pieces == [1, 1]
    assert weights(copy.folder / "alone") == weights(copy.folder / "there")
    little = ("--max-memory", "400MiB", "--runs", copy.folder / "little")
    refused(copy.run("train", *little, "--scheduler", cluster.address), "on a single tile takes about")
    assert not (copy.folder / "little" / "small" / "stain").exists()  # nothing was tried


def test_a_task_stays_small_however_many_tiles_a_study_has(copy: Home) -> None:
    job = job_of(copy)
    (tile, *_) = job.tiles["train"]
    many = [replace(tile, name=f"t{n}", key=f"{n:064x}", mask_key=f"{n + 1:064x}") for n in range(20_000)]
    job.tiles = {"train": many[:-2000], "val": many[-2000:-1000], "test": many[-1000:]}
    tiles = TileSet.of(job.needs().values())
    task = replace(job.task(0, job.selection(tiles)), folder=job.run_folder(0))
    source = Source("stain", Address("", ""), Address("", ""))
    assert len(pickle.dumps((source, task))) < 8_000
    assert len(pickle.dumps(tiles)) < 200 * len(many)
    keys, rows = tiles.view_keys, tiles.rows(*task.selection["val"])
    assert [keys[row] for row in rows.ravel()] == [(t.key, 0) for t in job.tiles["val"]]
    few = tiles.positions(many[5:50:7])
    assert tiles.names_of(few) == tuple(t.name for t in many[5:50:7])
    assert [[keys[row] for row in views] for views in tiles.rows(few, 2)] == [
        [(t.key, 0), (t.key, 1)] for t in many[5:50:7]
    ]


def test_a_scheduler_that_is_killed_ends_the_command_and_the_next_goes_on(
    copy: Home, cluster: RealCluster
) -> None:
    there = copy.folder / "there"
    at = ("--runs", there, "--scheduler", cluster.address)
    with meanwhile(lambda: len(written(there)) >= 1, cluster.kill_scheduler):
        done = copy.run("sweep", *LONG, *at)
    refused(done, "scheduler", "is gone", "What is finished is kept", status=1)
    cluster.stop()
    kept = written(there)
    assert 1 <= len(kept) < 6
    cluster.start_scheduler()
    for _ in range(2):
        cluster.start_worker()
    cluster.wait(2)
    again = parsed(copy.run("sweep", *LONG, *at, "--json"))
    assert again["finished"] == 6 and again["trained"] == 6 - len(kept)
    assert kept.items() <= written(there).items()
