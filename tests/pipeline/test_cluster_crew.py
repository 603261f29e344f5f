"""Handing tasks to real workers: lost ones, failing ones, too many of them, and a scheduler that is gone."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clustertasks
import pytest
from clusterkit import RealCluster

from pipeline.cluster.connecting import connected
from pipeline.cluster.crew import AHEAD, LEAST, Crew
from pipeline.cluster.equipping import Found, same_gpu, shares, too_many
from pipeline.cluster.tasks import Task
from pipeline.console import Talk
from pipeline.runs import Failure
from store.errors import InputError, StorageError

HERE = {"PYTHONPATH": str(Path(__file__).parent)}  # so that workers can import the tasks


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Two workers that tests leave as they are."""
    with RealCluster(tmp_path_factory.mktemp("cluster"), environment=HERE) as made:
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
        on_failure=lambda _, failure: failures.append(failure),
    )
    return results, failures


def lines(folder: Path) -> list[str]:
    """Return what all workers have noted."""
    return [line for log in sorted(folder.glob("*.log")) for line in log.read_text().splitlines()]


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
    assert most <= max(LEAST, AHEAD * 2)


def test_a_task_is_tried_three_times_but_faults_of_the_input_once(crew: Crew, tmp_path: Path) -> None:
    kinds = ("input", "storage", "other")
    tasks = [Task(f"{tmp_path}-{k}", k, clustertasks.fail, (tmp_path, k, k)) for k in kinds]
    results, failures = performed(crew, [*tasks, noting(tmp_path, "sound")])
    assert results == ["sound"]
    why = {failure.title: failure.why for failure in failures}
    assert why["input"] == "The image is empty [a.png]. Remove it."
    assert why["storage"] == "The disk is full [/data]. Free some space."
    assert why["other"] == "ZeroDivisionError: by zero"
    (trace,) = (failure.trace for failure in failures if failure.trace)
    assert "clustertasks.py" in trace
    tries = Counter(line for line in lines(tmp_path) if line.startswith("begin"))
    assert tries == {"begin input": 1, "begin storage": 3, "begin other": 3, "begin sound": 1}


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


def found(host: str, cores: int, threads: int, gpu: str = "", first: int = 0) -> Found:
    return Found(host, tuple(range(first, first + cores)), threads, gpu, ())


def test_workers_of_a_machine_share_its_cores() -> None:
    assert shares({"a": found("x", 8, 8)}) == {"a": 8}
    assert shares({"a": found("x", 8, 8), "b": found("x", 8, 8)}) == {"a": 4, "b": 4}
    assert shares({"a": found("x", 8, 2), "b": found("y", 2, 4)}) == {"a": 2, "b": 2}
    assert shares({"a": found("x", 8, 8), "b": found("x", 8, 8, first=8)}) == {"a": 8, "b": 8}


def test_more_workers_than_cores_and_two_on_one_gpu_are_refused() -> None:
    assert not too_many({"a": found("x", 2, 1), "b": found("x", 2, 1), "c": found("y", 1, 1)})
    assert too_many({name: found("x", 2, 1) for name in "abcd"}).keys() == {"c", "d"}
    assert same_gpu({"a": found("x", 8, 1, "g"), "b": found("y", 8, 1, "h"), "c": found("x", 8, 1, "g")}) == {
        "c": "has the GPU that a has: start one worker a GPU, by CUDA_VISIBLE_DEVICES"
    }
    assert not same_gpu({"a": found("x", 8, 1), "b": found("x", 8, 1)})  # on their CPUs


def test_lost_workers_and_a_lost_scheduler_cost_what_was_under_way_only(tmp_path: Path) -> None:
    # one death of its worker is enough here for the scheduler to give a task up
    with (
        RealCluster(
            tmp_path / "cluster", environment={**HERE, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
        ) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        deadly = Task("deadly", "deadly", clustertasks.die, (tmp_path, "deadly"))
        results, failures = performed(crew, [deadly, *(noting(tmp_path, f"a{n}", 0.1) for n in range(8))])
        assert sorted(results) == sorted(f"a{n}" for n in range(8))
        (failure,) = failures
        assert failure.title == "deadly"
        assert "worker that had it died" in failure.why

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
        for _ in range(3):  # whatever the client is doing about it
            with pytest.raises(StorageError, match="scheduler of the cluster is gone"):
                crew.has(made.address)
            time.sleep(0.2)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_its_task_only(tmp_path: Path) -> None:
    with (
        RealCluster(tmp_path / "cluster", environment=HERE) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        victim = made.workers[0].pid

        def kill_when_busy() -> None:
            while f"{victim}.log" not in {log.name for log in tmp_path.glob("*.log")}:
                time.sleep(0.01)
            os.kill(victim, 9)

        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        results, failures = performed(crew, [noting(tmp_path, f"t{n}", 0.3) for n in range(12)])
        killer.join()
        assert sorted(results) == sorted(f"t{n}" for n in range(12))
        assert not failures
        ended = Counter(line for line in lines(tmp_path) if line.startswith("end"))
        assert ended == Counter(f"end t{n}" for n in range(12))  # what was finished was not done again


def test_two_clients_of_one_scheduler_share_equal_tasks(cluster: RealCluster, tmp_path: Path) -> None:
    found: list[list[str]] = [[], []]

    def client(number: int) -> None:
        with connected(None, cluster.address, None, Talk(quiet=True)) as crew:
            assert crew is not None
            tasks = [noting(tmp_path, f"t{n}", 0.2) for n in range(6)]
            found[number] = performed(crew, tasks)[0]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(names) for names in found] == [[f"t{n}" for n in range(6)]] * 2
    begun = Counter(line for line in lines(tmp_path) if line.startswith("begin"))
    assert sum(begun.values()) < 12


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
    elsewhere = (
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs none "{tmp_path / "cache"}" && exec "$@"',
        "sh",
    )
    if subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount another disk for one process")
    with (
        RealCluster(tmp_path / "cluster", workers=1, threads=4, environment=HERE) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        crew.require(folders=[tmp_path / "cache"])
        performed(crew, [noting(tmp_path, f"a{n}", 0.05) for n in range(6)])
        noted = lines(tmp_path)
        assert [line.split()[0] for line in noted] == [
            "begin",
            "end",
        ] * 6  # one at a time, whatever its threads
        assert [line.split()[1] for line in noted[::2]] == [line.split()[1] for line in noted[1::2]]
        made.start_worker()
        blind = made.start_worker(*elsewhere)
        made.wait(3)
        performed(crew, [noting(tmp_path, f"b{n}", 0.2) for n in range(40)])
        assert crew.workers == 2
        workers = {int(log.stem) for log in tmp_path.glob("*.log")}
        assert workers == {one.pid for one in made.workers} - {blind.pid}
        with pytest.raises(InputError, match="does not see the folder"):
            crew.require(folders=[tmp_path / "cache"])


def test_an_own_cluster_leaves_no_process(tmp_path: Path) -> None:
    with connected(1, None, "cpu", Talk(quiet=True)) as crew:
        assert crew is not None
        process, _ = crew.ask(Task("own", "own", clustertasks.kept, ("a",)))
        assert process != os.getpid()
    until = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def test_impossible_clusters_are_refused() -> None:
    for workers, scheduler, said in (
        (10_000, None, "10000 processes are more than"),
        (1, "tcp://127.0.0.1:1", "Give one of them"),
        (None, "nonsense://x", "no address of a scheduler"),
    ):
        with pytest.raises(InputError, match=said), connected(workers, scheduler, "cpu", Talk(quiet=True)):
            pass
    with (
        pytest.raises(StorageError, match="No scheduler answers"),
        connected(None, "tcp://127.0.0.1:9", "cpu", Talk(quiet=True)),
    ):
        pass
