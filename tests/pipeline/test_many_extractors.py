"""Several processes extract one study into one cache at once: complete, right, and hardly a view encoded twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from studykit import frostgrid, write_study

from store import GridStore, verify

REPOSITORY = Path(__file__).parents[2]
DEMO = """
[data]
kind = "demo"
size_px = {size}
tile_px = {tile}
split = {{ train = 12, val = 4, test = 8, seed = 0 }}
[views]
per_tile = {views}
[encoders]
names = ["{encoders}"]
"""
# All that takes time before the work, then a word and a wait, so that they begin at one moment.
COMMAND = """
import sys
import pipeline.engine, stages.encoders.vit
from pipeline.cli import main
print("ready", flush=True)
sys.stdin.readline()
main()
"""


def start(study: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    """A process that will extract the study as the command does; it waits for a line."""
    arguments = ["extract", study, "--cache", folder / "cache", "--runs", folder / "runs", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments), *more],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def let_go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def counted(said: str) -> dict[str, tuple[int, int]]:
    """What a command says it computed and kept, by encoder, and of the views."""
    lines = re.findall(r"^(\S+): (\d+) (?:views encoded|drawn), (\d+) kept", said, re.MULTILINE)
    return {name: (int(computed), int(kept)) for name, computed, kept in lines}


def expect_whole(folder: Path, views: int, encoders: list[str]) -> None:
    """Every cache is complete, sealed, clean, of one part, and nothing is left over."""
    stores = [GridStore.open(path) for path in sorted((folder / "cache").glob("*-????????????"))]
    assert sorted(store.slug for store in stores) == sorted([*encoders, "views"])
    for store in stores:
        status = store.status()
        assert (status.parts, status.views_done, status.views_planned) == (1, views, views)
        assert verify(store) == []
        assert not list(store.path.rglob("_work"))
    assert not list(folder.rglob("*.partial"))


def grids(folder: Path, slug: str) -> dict[tuple[str, int], bytes]:
    (path,) = (folder / "cache").glob(f"{slug}-????????????")
    reader = GridStore.open(path).reader()
    return {(key.tile, key.view): reader.read(key).tobytes() for key in reader.views()}


@pytest.mark.parametrize("many", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_that_extract_at_once_share_the_work(
    tmp_path: Path, many: int, record_property: Callable[[str, object], None]
) -> None:
    encoders = ["pixels"] if many == 2 else ["stain", "pixels"]
    per_tile = 8 * many
    study = write_study(
        tmp_path, DEMO.format(size=96, tile=64, views=per_tile, encoders='", "'.join(encoders))
    )
    views = 12 * per_tile + 12
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = [start(study, together) for _ in range(many)]
    let_go(processes)
    said = []
    for process in processes:
        said.append(process.communicate(timeout=300)[1])
        assert process.returncode == 0, said[-1]
    found = [counted(text) for text in said]
    expect_whole(together, views, encoders)
    shared_work = 0
    for name in [*encoders, "views"]:
        computed = [each[name][0] for each in found]
        record_property(name, f"{computed} of {views}")
        # Each counts its own; one that takes over a shard just as its owner finishes it encodes it a second time.
        assert views <= sum(computed) <= views + 8 * many, (name, computed)
        shared_work += sum(count > 0 for count in computed) > 1
    assert shared_work, "they did not work at the same time"
    once = frostgrid("extract", study, "--cache", alone / "cache", "--runs", alone / "runs")
    assert once.exit_code == 0, once.output
    for name in [*encoders, "views"]:
        assert grids(together, name) == grids(alone, name)


@pytest.mark.slow
def test_a_real_encoder_in_four_processes_one_of_which_is_killed(
    shared: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    weights = shared / "weights" / "dinov2-s14"
    study = write_study(tmp_path, DEMO.format(size=256, tile=224, views=4, encoders="dinov2-s14"))
    views = 12 * 4 + 12
    processes = [start(study, tmp_path, "--weights", str(weights)) for _ in range(4)]
    let_go(processes)
    victim, *others = processes
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list(tmp_path.glob("cache/dinov2-*/part-*/tokens/c.*[0-9]")):
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    victim.communicate()
    computed = []
    for process in others:
        said = process.communicate(timeout=500)[1]
        assert process.returncode == 0, said
        computed.append(counted(said)["dinov2-s14"][0])
    expect_whole(tmp_path, views, ["dinov2-s14"])
    record_property("dinov2-s14", f"{computed} of {views}, a fourth was killed")
    assert sum(computed) <= views + 8
