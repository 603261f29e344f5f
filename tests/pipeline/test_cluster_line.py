"""The line to a real scheduler: what it answers, and that it is found to be lost by whatever is asked when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clusterkit import RealCluster
from distributed import Client

from pipeline.cluster import connecting
from pipeline.cluster.connecting import connected
from pipeline.cluster.crew import Crew
from pipeline.cluster.line import Line
from pipeline.cluster.machines import Found, same_gpu, shares, too_many
from pipeline.console import Talk
from store.errors import InputError, StorageError


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[RealCluster]:
    """A scheduler without workers."""
    with RealCluster(tmp_path / "cluster", workers=0) as made:
        yield made


@contextmanager
def line_to(scheduler: RealCluster, patience: str) -> Iterator[tuple[Line, Client]]:
    client = Client(scheduler.address, timeout="60s", set_as_default=False)
    client._timeout = float(patience.removesuffix("s"))  # that it looks for a lost scheduler
    try:
        yield Line(client, scheduler.address), client
    finally:
        client.close()


def until(reached: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.02)


def refuses_all(line: Line, address: str) -> None:
    for ask in (line.workers, line.under_way, lambda: line.submit("key", len, ())):
        with pytest.raises(StorageError, match="The scheduler of the cluster is gone") as caught:
            ask()
        assert caught.value.where == address


def test_a_lost_scheduler_is_told_while_it_is_looked_for_and_after_that(scheduler: RealCluster) -> None:
    with line_to(scheduler, "1s") as (line, client):
        assert line.workers() == {} and line.under_way() == {}
        future = line.submit("key", len, (), worker="tcp://127.0.0.1:9")
        scheduler.kill_scheduler()
        refuses_all(line, scheduler.address)  # before the client has noticed, perhaps
        until(lambda: client.status != "running")
        refuses_all(line, scheduler.address)
        with pytest.raises(StorageError, match="What is finished is kept"):
            line.outcome(future)
        until(lambda: client.status == "closed")
        refuses_all(line, scheduler.address)
        line.cancel([future])


def test_a_scheduler_started_anew_at_the_same_address_is_another_one(scheduler: RealCluster) -> None:
    with line_to(scheduler, "120s") as (line, client):
        first = line.cluster
        scheduler.kill_scheduler()
        until(lambda: client.status != "running")
        scheduler.start_scheduler()
        until(lambda: client.status == "running")  # dask's client has found it
        with pytest.raises(StorageError, match="scheduler of the cluster is gone"):
            line.workers()
        with line_to(scheduler, "1s") as (new, _):
            assert new.cluster != first


def test_impossible_clusters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "PATIENCE", "500ms")
    made: list[str] = []
    init = Client.__init__

    def counting(client: Client, address: str, **options: Any) -> None:
        made.append(address)
        init(client, address, **options)

    monkeypatch.setattr(Client, "__init__", counting)
    for workers, address, said in (
        (10_000, None, "10000 processes are more than"),
        (1, "tcp://127.0.0.1:1", "Give one of them"),
        (None, "nonsense://x", "no address of a scheduler"),
        (None, "tls://127.0.0.1:9", "no address of a scheduler.*tls://127.0.0.1:9"),
        (None, "ucx://127.0.0.1:9", "no address of a scheduler"),
        (None, "inproc://x/1/2", "no address of a scheduler"),
        (None, "localhost", "no address of a scheduler.*such as tcp://host:8786"),
    ):
        with pytest.raises(InputError, match=said), connected(workers, address, "cpu", Talk(quiet=True)):
            pass
    with (
        pytest.raises(StorageError, match="No scheduler answers"),
        connected(None, "tcp://127.0.0.1:9", "cpu", Talk(quiet=True)),
    ):
        pass
    assert made == ["tcp://127.0.0.1:9"]  # one that is half made may hang the process when it is thrown away


@pytest.mark.parametrize(
    ("version", "said"),
    [("raise importlib.metadata.PackageNotFoundError", "none that"), ("return '0.0.7'", "0.0.7")],
)
def test_a_scheduler_without_the_same_frostgrid_is_refused(tmp_path: Path, version: str, said: str) -> None:
    (tmp_path / "other.py").write_text(
        f"import importlib.metadata\n\ndef version(_name):\n    {version}\n\nimportlib.metadata.version = version\n"
    )
    other = {"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": str(tmp_path / "other.py")}
    with (
        RealCluster(tmp_path / "cluster", workers=0, environment=other) as scheduler,
        pytest.raises(InputError, match=f"The frostgrid of the scheduler is {said}") as caught,
        connected(None, scheduler.address, "cpu", Talk(quiet=True)),
    ):
        pass
    assert caught.value.where == f"--scheduler {scheduler.address}"


def test_a_crew_is_not_connected_before_it_is_needed() -> None:
    asked: list[str] = []

    def connect() -> Line:
        asked.append("connect")
        raise StorageError("Nobody is there")

    crew = Crew(connect, "cpu", Talk(quiet=True), "--scheduler")
    assert (crew.workers, crew.gpus) == (0, False)
    crew.close()
    assert asked == []
    with pytest.raises(StorageError, match="Nobody is there"):
        crew.require()
    assert asked == ["connect"]


def found(host: str, cores: int, threads: int, gpu: str = "", first: int = 0) -> Found:
    return Found(host, tuple(range(first, first + cores)), threads, gpu, ())


def test_workers_of_a_machine_share_its_cores() -> None:
    assert shares({"a": found("x", 8, 8)}) == {"a": 8}
    assert shares({"a": found("x", 8, 8), "b": found("x", 8, 8)}) == {"a": 4, "b": 4}
    assert shares({"a": found("x", 8, 2), "b": found("y", 2, 4)}) == {"a": 2, "b": 2}
    assert shares({"a": found("x", 8, 8), "b": found("x", 8, 8, first=8)}) == {"a": 8, "b": 8}


def test_threads_are_never_more_than_the_cores_that_workers_have_between_them() -> None:
    many = shares({"a": found("x", 16, 16), **{f"b{n}": found("x", 16, 1) for n in range(8)}})
    assert many == {"a": 8, **{f"b{n}": 1 for n in range(8)}}
    assert shares({"a": found("x", 8, 8), "b": found("x", 4, 4)}) == {"a": 5, "b": 3}  # overlapping
    # Two that have the same pair of cores, and one that may use these, too.
    assert shares({"a": found("x", 2, 2), "b": found("x", 2, 2), "c": found("x", 8, 8)}) == {
        "a": 1,
        "b": 1,
        "c": 6,
    }
    assert shares({"a": found("x", 3, 4), "b": found("x", 1, 4)}) == {"a": 2, "b": 1}


def test_more_workers_than_cores_and_two_on_one_gpu_are_refused() -> None:
    assert not too_many({"a": found("x", 2, 1), "b": found("x", 2, 1), "c": found("y", 1, 1)})
    assert too_many({name: found("x", 2, 1) for name in "abcd"}).keys() == {"c", "d"}
    assert not too_many({"a": found("x", 2, 8), "b": found("x", 1, 1)})
    assert same_gpu({"a": found("x", 8, 1, "g"), "b": found("y", 8, 1, "h"), "c": found("x", 8, 1, "g")}) == {
        "c": "has the GPU that a has: start one worker a GPU, by CUDA_VISIBLE_DEVICES"
    }
    assert not same_gpu({"a": found("x", 8, 1), "b": found("x", 8, 1)})  # on their CPUs
