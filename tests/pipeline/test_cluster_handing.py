"""Which worker gets a task, and that another does it where that one is lost, blind, slow, or somebody else's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clustertasks
import pytest
from clusterkit import RealCluster
from distributed import Client, Future

from pipeline.cluster import handing
from pipeline.cluster.connecting import connected
from pipeline.cluster.crew import Crew
from pipeline.cluster.doubts import Doubt
from pipeline.cluster.line import Line
from pipeline.cluster.tasks import Common, Task
from pipeline.console import Talk

HERE = Path(__file__).parent
KNOWN = {"PYTHONPATH": str(HERE), "DASK_DISTRIBUTED__WORKER__PRELOAD": "clustertasks"}

# Somebody else's command, which has a task held up.
OTHER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import clustertasks
from pipeline.cluster.connecting import connected
from pipeline.cluster.tasks import Common, Task
from pipeline.console import Talk
folder = Path({folder!r})
with connected(None, {address!r}, None, Talk(quiet=True)) as crew:
    crew.ask(Task("shared", "shared", clustertasks.held, ("shared",), Common("shared-folder", folder)))
"""


@contextmanager
def crew_of(folder: Path, **options: Any) -> Iterator[tuple[RealCluster, Crew]]:
    """Yield a cluster of its own for a test, and what asks its workers."""
    environment = KNOWN | options.pop("environment", {})
    with (
        RealCluster(folder / "cluster", environment=environment, **options) as made,
        connected(None, made.address, None, Talk(quiet=True)) as crew,
    ):
        assert crew is not None
        yield made, crew


def performed(crew: Crew, tasks: Any) -> tuple[list[Any], dict[str, BaseException]]:
    """Perform tasks and return their results, and what was wrong by their titles."""
    results: list[Any] = []
    errors: dict[str, BaseException] = {}
    crew.perform(
        tasks,
        on_done=lambda _, result: results.append(result),
        on_failure=lambda task, error: errors.update({task.title: error}),
    )
    return results, errors


def begun(folder: Path) -> dict[int, list[str]]:
    """What each worker, by its process, has begun with."""
    logs = {int(log.stem): log.read_text().splitlines() for log in folder.glob("*.log")}
    return {pid: [line.split()[1] for line in log if line.startswith("begin")] for pid, log in logs.items()}


def eventually(reached: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_tasks_with_something_in_common_go_to_every_worker_whatever_its_threads(tmp_path: Path) -> None:
    folder = Common(f"{tmp_path}", tmp_path)
    tasks = [Task(f"{tmp_path}-t{n}", f"t{n}", clustertasks.note, (f"t{n}", 0.5), folder) for n in range(8)]
    with crew_of(tmp_path, threads=4) as (_, crew):
        results, errors = performed(crew, tasks)
        assert not errors and sorted(results) == [f"t{n}" for n in range(8)]
        done = {pid: len(names) for pid, names in begun(tmp_path).items()}
        assert sum(done.values()) == 8 and len(done) == 2 and min(done.values()) >= 2
        alone = [
            Task(f"{tmp_path}-u{n}", f"u{n}", clustertasks.note, (tmp_path, f"u{n}", 0.5)) for n in range(8)
        ]
        assert len(performed(crew, alone)[0]) == 8
        more = {pid: len(names) - done[pid] for pid, names in begun(tmp_path).items()}
        assert sum(more.values()) == 8 and min(more.values()) >= 2


def test_a_task_of_which_workers_die_takes_no_other_along(tmp_path: Path) -> None:
    folder = Common(f"{tmp_path}", tmp_path)
    others = [Task(f"t{n}", f"t{n}", clustertasks.note, (f"t{n}", 0.3), folder) for n in range(12)]
    deadly = Task("deadly", "deadly", clustertasks.die, ("deadly",), folder)
    with crew_of(tmp_path, workers=4, threads=4) as (_, crew):
        results, errors = performed(crew, [*others[:2], deadly, *others[2:]])
    assert errors.keys() == {"deadly"} and sorted(results) == sorted(one.title for one in others)
    assert "each worker that had it died" in str(errors["deadly"])
    counts = Counter(name for names in begun(tmp_path).values() for name in names)
    assert counts == {"deadly": 3, **{one.title: 1 for one in others}}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_task_that_was_somebody_elses_is_done_after_they_and_their_workers_have_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """The other one is killed while both wait for the task; or does not answer, and its worker died before we came."""
    monkeypatch.setattr(handing, "STRANDED_S", 1.0)

    def wanted(dask_scheduler: Any) -> list[int]:
        return [
            len(task.who_wants) for task in dask_scheduler.tasks.values() if "shared-any" in str(task.key)
        ]

    with crew_of(tmp_path, threads=4) as (made, crew), Client(made.address, set_as_default=False) as watch:
        command = OTHER.format(here=str(HERE), folder=str(tmp_path), address=made.address)
        other = subprocess.Popen([sys.executable, "-c", command])

        def replace() -> None:
            for _ in range(2):  # all, before there is another one to which the task might go
                made.kill_worker()
            for _ in range(2):
                made.start_worker()
            made.wait(2)

        try:
            eventually(lambda: bool(begun(tmp_path)))
            if stopped:
                other.send_signal(signal.SIGSTOP)
                replace()
            with ThreadPoolExecutor(1) as us:
                folder = Common("shared-folder", tmp_path)
                task = Task("shared", "shared", clustertasks.held, ("shared",), folder)
                result = us.submit(crew.ask, task)
                if not stopped:
                    eventually(lambda: watch.run_on_scheduler(wanted) == [2])
                    other.kill()
                    replace()
                (tmp_path / "go").touch()
                assert result.result(timeout=120) == "shared"
        finally:
            other.kill()
            other.wait()
    assert list(begun(tmp_path).values()) == [["shared"], ["shared"]]


@pytest.mark.parametrize("sick", [1, 2])
def test_what_one_worker_finds_fault_with_is_tried_by_another_and_what_two_do_is_believed(
    tmp_path: Path, sick: int
) -> None:
    tasks = [
        Task(f"t{n}", f"t{n}", clustertasks.doubt, (tmp_path, f"t{n}", sick), reads=("shelf",))
        for n in range(8)
    ]
    sound = Task("sound", "sound", clustertasks.note, (tmp_path, "sound"), reads=("book",))
    with crew_of(tmp_path, workers=3) as (_, crew):
        results, errors = performed(crew, [*tasks, sound])
    names = sorted(one.title for one in tasks)
    counts = Counter(name for found in begun(tmp_path).values() for name in found)
    if sick == 1:  # it gets no other task on that shelf
        assert sorted(results) == sorted([*names, "sound"]) and not errors
        assert sum(counts.values()) == 8 + 1 + 1
    else:
        failed = [error for error in errors.values() if isinstance(error, Doubt)]
        assert len(failed) == len(errors) >= 6 and {str(one.error) for one in failed} == {
            "The shelf is empty [shelf]."
        }
        assert "sound" in results and sorted([*results, *errors]) == sorted([*names, "sound"])
        assert sum(counts.values()) <= 2 + 1 + 2  # the two, the sound one, and what the third had meanwhile


def test_a_worker_on_which_everything_fails_fails_no_task_that_another_can_do(tmp_path: Path) -> None:
    names = [f"t{n}" for n in range(8)]
    with crew_of(tmp_path) as (_, crew):
        results, errors = performed(
            crew, [Task(name, name, clustertasks.sick, (tmp_path, name)) for name in names]
        )
    assert not errors and sorted(results) == names
    tried = Counter(name for found in begun(tmp_path).values() for name in found)
    assert max(tried.values()) == 2  # once on the sick one


def test_what_tasks_have_in_common_may_be_large(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    table = Common(f"{tmp_path}", bytes(12_000_000))
    with crew_of(tmp_path) as (_, crew):
        assert len(crew.ask(Task("large", "large", clustertasks.same, (), table))) == 12_000_000
    assert not [one for one in recwarn if "graph" in str(one.message)]


def test_the_only_worker_there_is_is_believed(tmp_path: Path) -> None:
    tasks = [
        Task(f"t{n}", f"t{n}", clustertasks.doubt, (tmp_path, f"t{n}", 1), reads=("shelf",)) for n in range(4)
    ]
    with crew_of(tmp_path, workers=1) as (_, crew):
        results, errors = performed(crew, tasks)
    assert not results and errors.keys() == {one.title for one in tasks}
    assert list(begun(tmp_path).values()) == [["t0"]]


def test_a_result_that_takes_long_to_come_keeps_no_other_worker_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Line.outcome

    def slow(self: Line, future: Future[Any]) -> Any:
        if "-long" in str(future.key):
            eventually(lambda: len(done) == 6)
        return ours(self, future)

    monkeypatch.setattr(Line, "outcome", slow)
    done: list[str] = []
    names = ["long", *(f"t{n}" for n in range(6))]
    with crew_of(tmp_path) as (_, crew):
        crew.perform(
            [Task(f"x-{name}", name, clustertasks.note, (tmp_path, name)) for name in names],
            on_done=lambda task, _: done.append(task.title),
            on_failure=lambda _, error: pytest.fail(str(error)),
        )
    assert sorted(done) == sorted(names) and done[-1] == "long"


def test_a_worker_for_which_there_was_no_core_is_taken_when_another_goes(tmp_path: Path) -> None:
    with crew_of(tmp_path, environment={"ONE_CORE": "1"}) as (made, crew):
        assert performed(
            crew, [Task(f"a{n}", f"a{n}", clustertasks.note, (tmp_path, f"a{n}")) for n in range(4)]
        )[0]
        assert crew.workers == 1
        (first,) = begun(tmp_path)
        made.kill_worker([one.pid for one in made.workers].index(first))
        assert crew.ask(Task("b", "b", clustertasks.note, (tmp_path, "b"))) == "b"
        assert len(begun(tmp_path)) == 2
