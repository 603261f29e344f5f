"""The benchmarks run from end to end; what they measure is not tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bench.allocator import set_allocator
from bench.harness import BENCHMARKS, Result, Setting, in_turn
from bench.run import main, met

REPOSITORY = Path(__file__).parents[1]
STORE = {
    "store/single-views",
    "store/random-batches",
    "store/whole-cache",
    "store/whole-cache-touched",
    "store/writer-cpu",
    "store/writer-memory",
    "store/million-views-open",
    "store/million-views-list",
    "store/streaming",
    "store/streaming-to-cpu",
}


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True)


def test_every_benchmark_of_the_store_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"decoder/forward": {"ratio": 2.0}}))
    done = bench(
        "--small", "--rounds", "1", "--only", "store", "--folder", tmp_path / "data", "--output", output
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results.pop("decoder/forward") == {"ratio": 2.0}  # of another group, so it stays
    machine = results.pop("machine")
    assert machine["cores"] >= 1 and machine["threads"] == 2 and machine["zarr"].startswith("3.")
    assert set(results) == STORE
    for name, line in results.items():
        assert line["ratio"] > 0 and len(line["what"]) > 60 and line["target"] and name in done.stdout, name
        if "ours_mb" not in line:
            assert line["ours_s"] > 0 and line["reference_s"] > 0, name
    single = results["store/single-views"]
    assert single["ratio"] == pytest.approx(single["reference_s"] / single["ours_s"], rel=0.01)
    assert not any("met" in line for line in results.values())  # tiny sizes are not judged
    assert not [path for path in (tmp_path / "data" / "small").iterdir() if path.is_dir()]


def test_a_missed_target_is_printed_and_written_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = {
        "x/more": (2.6, ">= 2.5"),
        "x/less": (0.8, "<= 0.7"),
        "x/none": (0.4, "none: it takes seconds"),
    }
    for name, (ratio, target) in targets.items():
        result = Result(ratio, "a made-up figure", target)
        monkeypatch.setitem(BENCHMARKS, name, lambda setting, result=result: result)
    output = tmp_path / "results.json"
    before = {"y/before": {"ratio": 0.3, "target": ">= 0.4"}, "y/none": {"ratio": 1, "target": "none"}}
    output.write_text(json.dumps(before))
    done = CliRunner().invoke(main, ["--only", "x", "--folder", str(tmp_path), "--output", str(output)])
    assert done.exit_code == 0, done.output
    ends = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert ends["x/more"].endswith("wanted >= 2.5: reached")
    assert ends["x/less"].endswith("wanted <= 0.7: MISSED")
    assert ends["x/none"].endswith("it takes seconds")
    written = json.loads(output.read_text())
    assert [written[name].get("met") for name in (*targets, *before)] == [True, False, None, False, None]


def test_the_file_says_of_every_target_whether_it_is_met() -> None:
    results = json.loads((REPOSITORY / "bench" / "results.json").read_text(encoding="utf-8"))
    results.pop("machine")
    for name, line in results.items():
        assert line.get("met") == met(line["ratio"], line["target"]), name


def test_few_rounds_are_no_measurement(tmp_path: Path) -> None:
    few = ["--rounds", "4", "--folder", str(tmp_path), "--output", str(tmp_path / "results.json")]
    done = CliRunner().invoke(main, few)
    assert done.exit_code == 2 and "give 5 or more" in done.output
    assert not (tmp_path / "results.json").exists()


def test_what_a_stock_process_never_does_falls_into_the_run_that_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []
    library = SimpleNamespace(mallopt=lambda *_: 1, malloc_trim=lambda _: done.append("trim"))
    monkeypatch.setattr("bench.allocator._kept", None)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2"))

    def run(*, kept: bool) -> None:
        set_allocator(kept=kept)
        done.append("kept" if kept else "stock")

    in_turn(Setting(tmp_path, 2, small=True), partial(run, kept=True), partial(run, kept=False), settle=True)
    # warm-up; then of each round what settles, and what is measured
    assert done == [
        *("kept", "trim", "stock"),
        *("kept", "kept", "trim", "stock", "stock"),
        *("stock", "stock", "kept", "kept"),
    ]


def test_a_target_that_says_nothing_is_refused() -> None:
    assert met(5, "<= 5 s") and not met(5.1, "<= 5") and met(1, "none") is None
    with pytest.raises(ValueError, match="about twice"):
        met(2.0, "about twice")
