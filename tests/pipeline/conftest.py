"""Lets these tests use the helpers of other tests (the local Hub, the tiny encoders, the S3 server) and one study."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cachekit import Home, copy_results

for folder in ("stages", "store"):
    sys.path.append(str(Path(__file__).parents[1] / folder))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A study whose caches are extracted and whose decoders are trained; tests leave it as it is."""
    made = Home(tmp_path_factory.mktemp("home"))
    done = made.run("run")
    assert done.exit_code == 0, done.output
    return made


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Home:
    """A copy of that folder, to be changed or damaged."""
    copy_results(home.folder, tmp_path / "copy")
    return Home(tmp_path / "copy")
