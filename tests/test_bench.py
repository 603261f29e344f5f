"""The benchmarks run from end to end; what they measure is not tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
STORE = {
    "store/single-views",
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
    assert not [path for path in (tmp_path / "data" / "small").iterdir() if path.is_dir()]
