"""Runs in several processes: the same weights, one copy of the data, and nothing left of them however it ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cachekit import Home, refused
from gpukit import CurrentGpu

from pipeline import engine
from pipeline.budget import Room
from pipeline.job import Job
from pipeline.loading import Loaded, Shared, load
from pipeline.parallel import _serve, cores, perform_in_parallel, places
from pipeline.runs import Failure, RunTask
from pipeline.study import read_study
from pipeline.tilesets import TileSet
from stages.encoders import usable_device
from stages.training.data import StreamedFeatures
from stages.training.settings import TrainSettings
from store.errors import InputError, StorageError

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
CPU = torch.device("cpu")
ALL = str(cores())  # so many processes have one thread each
LONG = ("--set", "train.epochs=3000", "--seeds", "4")


@pytest.fixture(scope="module", autouse=True)
def _alone_on_one_thread(one_thread: None) -> None:
    """What runs in this process computes with as many threads as each of the others."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def finished(root: Path) -> list[Path]:
    """The weights of finished runs; those that are being written have another name."""
    return sorted(root.glob("*/*/*/seed-???-????????/decoder.safetensors"))


def weights(root: Path) -> dict[str, bytes]:
    return {str(path.parent.relative_to(root)): path.read_bytes() for path in finished(root)}


def started(home: Home, *arguments: str) -> subprocess.Popen[str]:
    """Start a command on the study in a process of its own, at the head of a group of its own."""
    at = ("--cache", str(home.cache), "--runs", str(home.folder / "runs"))
    code = "from pipeline.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, arguments[0], str(home.study), *at, *arguments[1:]],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FROSTGRID_TEST": str(home.folder)},
        start_new_session=True,
    )


def processes(home: Home) -> list[int]:
    """The processes that were started for the study, and theirs."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if f"FROSTGRID_TEST={home.folder}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_parallel_runs_have_the_weights_of_runs_alone(copy: Home) -> None:
    varied = ("--decoder", "linear", "--decoder", "single-scale:width=8", "--seeds", "2")
    assert copy.run("sweep", *varied, "--runs", copy.folder / "alone").exit_code == 0
    assert copy.run("sweep", *varied, "--runs", copy.folder / "beside", "--parallel", ALL).exit_code == 0
    alone = weights(copy.folder / "alone")
    assert len(alone) == 4
    assert weights(copy.folder / "beside") == alone


def job_of(home: Home, seeds: int) -> Job:
    work = engine.workspace(read_study(home.study), str(home.cache), home.folder / "new", 1)
    return next(engine.jobs(work, [], seeds))


def tiles_of(job: Job) -> TileSet:
    return TileSet.of(job.needs().values())


def tasks_of(job: Job) -> list[RunTask]:
    return [job.task(seed, job.selection(tiles_of(job))) for seed in job.seeds]


def loaded(job: Job) -> Loaded:
    return load(
        job.tokens,
        job.masks,
        tiles_of(job),
        CPU,
        Room("host", masks=True),
        encoder="stain",
        scratch=job.work.results,
        shared=True,
    )


@pytest.mark.slow
def test_streaming_processes_and_masks_in_a_file_give_the_same(copy: Home) -> None:
    job = job_of(copy, 2)
    data = loaded(job)
    assert isinstance(data.grids, Shared) and isinstance(data.masks, Shared)
    masks = Shared(data.masks.array.shape, "uint8", job.work.results)
    masks.array[:] = data.masks.array
    data = replace(data, grids=None, masks=masks)
    epochs: dict[int, list[int]] = {0: [], 1: []}
    failures: list[Failure] = []
    perform_in_parallel(
        tasks_of(job),
        data,
        [CPU, CPU],
        1,
        on_epoch=lambda task, epoch: epochs[task].append(epoch),
        on_failure=lambda task, failure: failures.append(failure),
    )
    assert failures == [] and epochs == {0: [1, 2], 1: [1, 2]}
    assert copy.run("train", "--seeds", "2", "--runs", copy.folder / "alone").exit_code == 0
    assert weights(copy.folder / "new") == weights(copy.folder / "alone")
    assert not [path for path in job.work.results.iterdir() if path.is_file()]  # the scratch file has no name


@pytest.mark.slow
def test_a_result_that_cannot_be_written_stops_the_work(copy: Home) -> None:
    job = job_of(copy, 2)
    job.folder.parent.mkdir(parents=True)
    job.folder.write_text("a file where a folder should be")
    tasks = tasks_of(job)
    with pytest.raises(StorageError, match="cannot be written"):
        perform_in_parallel(
            tasks, loaded(job), [CPU], 1, on_epoch=lambda *_: None, on_failure=lambda *_: None
        )


def test_a_process_that_is_killed_or_a_run_that_fails_costs_that_run_and_no_other(copy: Home) -> None:
    job = job_of(copy, 3)
    failures: dict[int, Failure] = {}

    def kill(task: int, epoch: int) -> None:
        if task == 0:
            (process,) = multiprocessing.active_children()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    tasks = tasks_of(job)
    tasks[0] = replace(tasks[0], settings=replace(job.settings, epochs=100_000))
    tasks[1] = replace(tasks[1], settings=TrainSettings("mlp", {"hidden": 8}, lr=1e38))
    perform_in_parallel(tasks, loaded(job), [CPU], 1, on_epoch=kill, on_failure=failures.__setitem__)
    why = "its process was ended by SIGKILL, as happens when memory runs out"
    assert failures.pop(0) == Failure("stain, linear, seed 0", why)
    assert failures.keys() == {1} and "Lower lr" in failures[1].why and not failures[1].trace
    assert [path.parent.name[:8] for path in job.folder.glob("*/run.json")] == ["seed-002"]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "parallel", [pytest.param((), marks=pytest.mark.slow), ("--parallel", "2")], ids=["alone", "parallel"]
)
def test_a_sweep_that_is_killed_goes_on_where_it_was_and_leaves_no_process(
    copy: Home, parallel: tuple[str, ...]
) -> None:
    if parallel and cores() < 2:
        pytest.skip("one core")
    runs = copy.folder / "runs"
    before = len(weights(runs))
    sweep = ("sweep", "--set", "train.epochs=40,41,42,43,44,45,46,4000", "--seeds", "1", *parallel)
    killed = started(copy, *sweep)
    eventually(lambda: len(weights(runs)) >= before + 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    eventually(lambda: processes(copy) == [])
    kept = {path: path.stat().st_mtime_ns for path in finished(runs)}
    assert before + 2 <= len(kept) < before + 8
    assert copy.run("sweep", *sweep[1:2], "train.epochs=40,41,42,43,44,45,46", "--seeds", "1").exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in finished(runs)}
    assert len(after) >= before + 7 and kept.items() <= after.items()
    assert (
        copy.run("sweep", *sweep[1:2], "train.epochs=40,41,42", "--runs", copy.folder / "again").exit_code
        == 0
    )
    again = weights(copy.folder / "again")
    assert len(again) == 3 and again.items() <= weights(runs).items()


def test_an_interrupt_ends_all_processes_at_once_and_says_so(copy: Home) -> None:
    if cores() < 2:
        pytest.skip("one core")
    running = started(copy, "sweep", *LONG, "--parallel", "2")
    spawned = re.compile(rb"multiprocessing\.spawn")

    def working() -> bool:
        commands = [Path(f"/proc/{one}/cmdline") for one in processes(copy)]
        return sum(bool(path.exists() and spawned.search(path.read_bytes())) for path in commands) == 2

    eventually(working)
    time.sleep(2)  # well into their work, or still loading: either has to end
    os.killpg(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Traceback" not in told, told
    eventually(lambda: processes(copy) == [])


def test_more_processes_than_cores_are_refused_and_threads_never_exceed_them(copy: Home) -> None:
    for count in range(1, cores() + 1):
        devices, threads = places(count, CPU)
        assert len(devices) == count and count * threads <= cores()
    with pytest.raises(InputError, match=f"more than the {cores()} cores"):
        places(cores() + 1, CPU)
    refused(copy.run("train", "--parallel", str(cores() + 1)), "--parallel", f"Give {cores()} or less")


def test_a_gpu_without_a_number_stands_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, device: SimpleNamespace(device=torch.device("cuda", 0)))
    asked = usable_device("cuda")  # as a command hands it on
    devices, threads = places(2, asked)
    assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert threads == max(1, cores() // 2)
    assert places(4, asked)[0][-1] == torch.device("cuda", 3)
    with pytest.raises(InputError, match="5 processes are more than the 4 GPUs"):
        places(5, asked)
    assert places(1, usable_device("cuda:2"))[0] == [torch.device("cuda", 2)]
    with pytest.raises(InputError, match="2 processes are more than the 1 GPUs"):
        places(2, usable_device("cuda:2"))


def test_a_process_asks_for_nothing_on_a_gpu_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    class Data:
        def features(self, device: torch.device, threads: int) -> None:
            asked.append((f"features with {threads} threads", CurrentGpu.now[-1]))

    class Work:
        title = "a run"

        def perform(self, *_: object) -> None:
            asked.append(("a run", CurrentGpu.now[-1]))

    monkeypatch.setattr(torch.cuda, "device", CurrentGpu)
    monkeypatch.setattr("pipeline.parallel._end_with_parent", lambda: None)
    told: list[tuple[str]] = []
    pipe: Any = SimpleNamespace(recv=iter([Work(), None]).__next__, send=told.append)
    data: Any = Data()
    _serve(pipe, data, torch.device("cuda", 3), 1)
    assert asked == [("features with 1 threads", 3), ("a run", 3)]
    assert told == [("ready",), ("done",)]


def test_a_process_with_one_thread_decodes_streamed_grids_with_one(copy: Home) -> None:
    data = replace(loaded(job_of(copy, 1)), grids=None)
    for given, decoding in ((1, 1), (2, 2), (8, 2)):
        features = data.features(CPU, given)
        assert isinstance(features, StreamedFeatures)
        assert features._threads == decoding
