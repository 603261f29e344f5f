"""``--workers``: a cluster that a command starts for itself on this machine, and that ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from cachekit import Home, parsed

from pipeline.parallel import cores
from store import GridStore

SCRIPT = "import sys; from pipeline.cli import main; sys.exit(main())"  # as the console script does
TWO = pytest.mark.skipif(cores() < 2, reason="two workers need two cores")


def weights(root: Path) -> dict[str, bytes]:
    files = root.glob("*/*/*/seed-???-????????/decoder.safetensors")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def eventually(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 120
    while not reached():
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.02)


@TWO
def test_two_workers_of_its_own_give_what_one_process_gives(home: Home, tmp_path: Path) -> None:
    alone, there = (
        Home(tmp_path / "alone", home.folder / "data"),
        Home(tmp_path / "there", home.folder / "data"),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(cores() // 2)  # as many as each worker has
    try:
        assert alone.run("run", "--seeds", "3").exit_code == 0
    finally:
        torch.set_num_threads(before)
    done = there.run("run", "--seeds", "3", "--workers", "2")
    assert done.exit_code == 0, done.output
    for slug in ("views", "stain"):
        ours, theirs = (GridStore.open(one.store(slug)).reader() for one in (there, alone))
        assert ours.views() == theirs.views()
        assert all(ours.read(key).tobytes() == theirs.read(key).tobytes() for key in ours.views())
    assert len(weights(there.folder / "runs")) == 3
    assert weights(there.folder / "runs") == weights(alone.folder / "runs")
    assert there.results() == alone.results()
    told = parsed(there.run("status", "--seeds", "3", "--json"))["encoders"][0]
    assert told["shards"] == {"done": 2, "running": 0, "failed": 0, "to_do": 0, "lost": 0}
    assert told["runs"] == {"done": [0, 1, 2], "running": [], "failed": [], "damaged": [], "to_do": []}


@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_ends_the_command_and_its_workers_with_one_line(copy: Home, late: bool) -> None:
    """Sent to all of its processes, as a terminal does: while the workers start, or while one trains."""
    there = copy.folder / "there"
    long = ("--set", "train.epochs=400", "--seeds", "40", "--workers", "1")
    command = ["sweep", copy.study, "--cache", copy.cache, "--runs", there, *long]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if late:
            eventually(lambda: len(weights(there)) >= 1, process)
        else:
            eventually(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2, process)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "Interrupted.\n"
    ends = time.monotonic() + 60
    while [one for one in psutil.process_iter() if _group(one.pid) == process.pid]:  # some are just ending
        assert time.monotonic() < ends
        time.sleep(0.05)
    if late:
        assert len(weights(there)) >= 1 and not list(there.rglob("*.partial"))


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
