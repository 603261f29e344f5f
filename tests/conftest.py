"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data and weights; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("FROSTGRID_TEST_DATA", default))
    if not (folder / "data" / "SOURCES.md").is_file():
        pytest.skip(f"no real test data at {folder}; set FROSTGRID_TEST_DATA to the folder that holds it")
    return folder
