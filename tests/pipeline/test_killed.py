from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from studykit import write_study

MANY_SHARDS = """
[data]
kind = "demo"
size_px = 192
tile_px = 160
split = { train = 14, val = 6, test = 10, seed = 0 }
[views]
per_tile = 10
[encoders]
names = ["stain", "pixels"]
"""


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_extraction_killed_at_random_moments_ends_in_the_same_grids_and_repeats_no_committed_shard(
    tmp_path: Path, kills: int, record_property: Callable[[str, object], None]
) -> None:
    script = Path(__file__).parent / "killed_extraction.py"
    study = write_study(tmp_path, MANY_SHARDS)
    done = subprocess.run(
        [sys.executable, script, study, tmp_path, str(kills)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    record_property("found", found)
    assert found["grids"] == 3 * 156
    assert found["differing"] == 0
    assert found["rewritten"] == []
    assert found["faults"] == []
    assert found["kills"] > kills / 2  # they did fall into the work
    assert found["kills_that_committed"] >= 2
    assert found["committed_before_the_last"] >= 5
