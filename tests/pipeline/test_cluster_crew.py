"""Handing tasks to real workers: lost ones, failing ones, too many of them, and a scheduler that is gone."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import clustertasks
import dask
import psutil
import pytest
from cachekit import Home
from clusterkit import RealCluster
from distributed import Client
from s3_server import CREDENTIALS

from pipeline.cluster.connecting import connected
from pipeline.cluster.crew import Crew
from pipeline.cluster.tasks import Common, Task
from pipeline.console import Talk
from pipeline.parallel import explained
from pipeline.runs import Failure
from store.errors import FrostgridError, InputError, StorageError

HERE = {
    "PYTHONPATH": str(Path(__file__).parent),  # so that workers can import the tasks
    "DASK_DISTRIBUTED__WORKER__PRELOAD": "clustertasks",
}
NO_CREDENTIALS = {**CREDENTIALS, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Two workers that tests leave as they are."""
    with RealCluster(tmp_path_factory.mktemp("cluster"), environment={**HERE, **NO_CREDENTIALS}) as made:
        yield made


@pytest.fixture
def crew(cluster: RealCluster) -> Iterator[Crew]:
    with connected(None, cluster.address, None, Talk(quiet=True)) as made:
        assert made is not None
        yield made


def performed(crew: Crew, tasks: Any) -> tuple[list[Any], list[Failure]]:
    """Perform tasks and return their results and their failures."""
    results: list[Any] = []
    failures: list[Failure] = []
    crew.perform(
        tasks,
        on_done=lambda _, result: results.append(result),
        on_failure=lambda task, error: failures.append(explained(task.title, error)),
    )
    return results, failures


def lines(folder: Path) -> list[str]:
    """Return what all workers have noted."""
    return [line for log in sorted(folder.glob("*.log")) for line in log.read_text().splitlines()]


def eventually(reached: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.05)


def noting(folder: Path, name: str, seconds: float = 0.0) -> Task:
    return Task(f"{folder}-{name}", name, clustertasks.note, (folder, name, seconds))


def test_each_task_is_done_once_and_gives_its_result(crew: Crew, tmp_path: Path) -> None:
    results, failures = performed(crew, [noting(tmp_path, f"t{n}") for n in range(20)])
    assert sorted(results) == sorted(f"t{n}" for n in range(20))
    assert not failures
    assert Counter(lines(tmp_path)) == Counter(f"{what} t{n}" for n in range(20) for what in ("begin", "end"))


def test_tasks_are_taken_from_the_iterable_only_as_workers_come_free(crew: Crew, tmp_path: Path) -> None:
    taken = finished = most = 0

    def tasks() -> Iterator[Task]:
        nonlocal taken, most
        for number in range(60):
            taken += 1
            most = max(most, taken - finished)
            yield noting(tmp_path, f"t{number}")

    def done(_task: Task, _result: Any) -> None:
        nonlocal finished
        finished += 1

    crew.perform(tasks(), on_done=done, on_failure=lambda _, failure: pytest.fail(str(failure)))
    assert finished == 60
    assert most <= 2


def test_a_task_is_tried_three_times_but_faults_of_the_input_once(crew: Crew, tmp_path: Path) -> None:
    kinds = ("input", "storage", "other", "timeout")
    tasks = [Task(f"{tmp_path}-{k}", k, clustertasks.fail, (tmp_path, k, k)) for k in kinds]
    results, failures = performed(crew, [*tasks, noting(tmp_path, "sound")])
    assert results == ["sound"]
    why = {failure.title: failure.why for failure in failures}
    assert why["input"] == "The image is empty [a.png]. Remove it."
    assert why["storage"] == "The disk is full [/data]. Free some space."
    assert why["other"] == "ZeroDivisionError: by zero"
    assert why["timeout"] == "TimeoutError: nobody answers"
    traces = [failure.trace for failure in failures if failure.trace]
    assert len(traces) == 2 and all("clustertasks.py" in trace for trace in traces)
    tries = Counter(line for line in lines(tmp_path) if line.startswith("begin"))
    more = {"begin storage": 3, "begin other": 3, "begin timeout": 3}
    assert tries == {"begin input": 1, "begin sound": 1, **more}


def test_one_task_that_is_asked_raises_what_it_raised(crew: Crew, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        crew.ask(Task(f"{tmp_path}-asked", "asked", clustertasks.fail, (tmp_path, "asked", "input")))
    assert str(caught.value) == "The image is empty [a.png]. Remove it."
    assert caught.value.where == "a.png"


def test_a_worker_keeps_one_object_a_slot_and_nothing_of_another_command(crew: Crew) -> None:
    def asked(number: int) -> tuple[int, str]:
        found: tuple[int, str] = crew.ask(Task(f"kept-{number}", "kept", clustertasks.kept, ("a",)))
        return found

    crew.require()
    first = {asked(number) for number in range(6)}
    assert len(first) == len({process for process, _ in first})
    crew.require()  # as the next command does: files may have changed between them
    assert not first & {asked(number) for number in range(6, 12)}


def test_tasks_use_the_threads_that_are_due_and_have_a_folder(crew: Crew) -> None:
    assert crew.ask(Task("around", "around", clustertasks.around)) == (1, 1, "cpu", True)


def test_lost_workers_and_a_lost_scheduler_cost_what_was_under_way_only(tmp_path: Path) -> None:
    # One death of its worker is enough here for the scheduler to give a task up, but not for us.
    often = {**HERE, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with (
        RealCluster(tmp_path / "cluster", workers=4, environment=often) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        deadly = Task("deadly", "deadly", clustertasks.die, (tmp_path, "deadly"))
        results, failures = performed(crew, [deadly, *(noting(tmp_path, f"a{n}", 0.1) for n in range(8))])
        assert sorted(results) == sorted(f"a{n}" for n in range(8))
        (failure,) = failures
        assert failure.title == "deadly"
        assert "worker that had it died" in failure.why
        tries = Counter(lines(tmp_path))
        assert tries["begin deadly"] == 3 and sum(tries.values()) == 3 * 2 + 8 * 2

        done: list[str] = []

        def note(task: Task, _result: Any) -> None:
            done.append(task.title)
            if len(done) == 3:
                made.kill_scheduler()

        with pytest.raises(StorageError, match="What is finished is kept"):
            crew.perform(
                (noting(tmp_path, f"c{n}", 0.05) for n in range(100)),
                on_done=note,
                on_failure=lambda _, failure: pytest.fail(str(failure)),
            )
        assert 3 <= len(done) < 100


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_its_task_only(tmp_path: Path) -> None:
    with (
        RealCluster(tmp_path / "cluster", environment=HERE) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        deadly = Task("once", "once", clustertasks.die_once, (tmp_path, "once"))
        tasks = [noting(tmp_path, f"t{n}", 0.1) for n in range(8)]
        results, failures = performed(crew, [*tasks[:4], deadly, *tasks[4:]])
        names = ["once", *(f"t{n}" for n in range(8))]
        assert sorted(results) == sorted(names)
        assert not failures
        began = Counter(line for line in lines(tmp_path) if line.startswith("begin"))
        assert began == {f"begin {name}": 2 if name == "once" else 1 for name in names}


def test_two_clients_of_one_scheduler_share_equal_tasks(cluster: RealCluster, tmp_path: Path) -> None:
    names = ["t0", "t1"]

    def wanted(dask_scheduler: Any) -> list[int]:
        return [len(task.who_wants) for task in dask_scheduler.tasks.values() if "-t" in str(task.key)]

    def client(_number: int) -> list[str]:
        with connected(None, cluster.address, None, Talk(quiet=True)) as crew:
            assert crew is not None
            tasks = [Task(f"{tmp_path}-{n}", n, clustertasks.held, (tmp_path, n)) for n in names]
            return sorted(performed(crew, tasks)[0])

    with ThreadPoolExecutor(2) as clients, Client(cluster.address, set_as_default=False) as watch:
        found = clients.map(client, range(2))
        eventually(lambda: watch.run_on_scheduler(wanted) == [2, 2])
        (tmp_path / "go").touch()
        assert list(found) == [names, names]
    assert Counter(line for line in lines(tmp_path) if line.startswith("begin")) == {
        f"begin {name}": 1 for name in names
    }


def test_a_scheduler_needs_no_torch(crew: Crew, cluster: RealCluster, tmp_path: Path) -> None:
    def loaded(_number: int) -> list[str]:
        import sys

        return sorted({"torch", "clustertasks"} & sys.modules.keys())

    common = Common(f"{tmp_path}-common", Task("inside", "inside", clustertasks.nothing))
    results, _ = performed(crew, [Task(f"{tmp_path}-own", "own", clustertasks.same, common=common)])
    assert results == [common.value]
    with Client(cluster.address, set_as_default=False) as client:
        assert client.run_on_scheduler(loaded, 0) == []
        assert all("torch" in names for names in client.run(loaded, 0).values())


def test_what_workers_have_to_see_is_proven_before_anything_runs(crew: Crew, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    crew.require(folders=[tmp_path / "cache"], files=[tmp_path / "weights", tmp_path])
    assert list((tmp_path / "cache").iterdir()) != []  # the proof is there as long as it is needed
    crew.require()
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(InputError, match=r"does not reach s3://bucket.*no usable credentials"):
        crew.require(urls=["s3://bucket-that-is-not-there-7f3a/caches"])
    with pytest.raises(InputError, match="cannot be read"):
        crew.require(files=[tmp_path / "none"])


def test_workers_that_join_later_are_made_ready_or_get_no_tasks(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    if subprocess.run(
        ["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody mount another disk for one process")
    with (
        RealCluster(tmp_path / "cluster", workers=1, threads=4, environment=HERE) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        crew.require(folders=[tmp_path / "cache"])
        performed(crew, [noting(tmp_path, f"a{n}", 0.05) for n in range(6)])
        noted = [line.split() for line in lines(tmp_path)]
        assert [what for what, _ in noted] == ["begin", "end"] * 6  # one at a time, whatever its threads
        assert [name for _, name in noted[::2]] == [name for _, name in noted[1::2]]
        made.start_worker()
        blind = made.start_worker(hidden=tmp_path / "cache")
        made.wait(3)

        def tasks() -> Iterator[Task]:
            """Tasks until another worker has done one, and some more."""
            ends, number = time.monotonic() + 120, 0
            while len(list(tmp_path.glob("*.log"))) < 2 and time.monotonic() < ends:
                number += 1
                yield noting(tmp_path, f"b{number}", 0.1)
            yield from (noting(tmp_path, f"c{n}", 0.1) for n in range(8))

        performed(crew, tasks())
        assert crew.workers == 2
        workers = {int(log.stem) for log in tmp_path.glob("*.log")}
        assert workers == {one.pid for one in made.workers} - {blind.pid}
        with pytest.raises(InputError, match="does not see the folder"):
            crew.require(folders=[tmp_path / "cache"])


def test_an_own_cluster_leaves_no_process() -> None:
    with connected(1, None, "cpu", Talk(quiet=True)) as crew:
        assert crew is not None
        process, _ = crew.ask(Task("own", "own", clustertasks.kept, ("a",)))
        assert process != os.getpid()
    eventually(lambda: not psutil.pid_exists(process))


def test_an_own_cluster_is_not_started_for_nothing(home: Home) -> None:
    with dask.config.set({"distributed.scheduler.preload": ["no_such_module"]}):  # so it cannot be
        with (
            pytest.raises(FrostgridError, match="did not start"),
            connected(1, None, "cpu", Talk(quiet=True)) as crew,
        ):
            assert crew is not None
            crew.require()
        for command in (("sweep", "--dry-run", "--set", "train.lr=1e-3"), ("run",), ("sweep",)):
            done = home.run(*command, "--workers", "1")
            assert done.exit_code == 0, done.output
