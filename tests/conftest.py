"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from packagekit import Packages

# Whoever starts the tests in the background hands down that Ctrl-C is ignored; commands under test must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that wait for each other spin, and two processes with two of them each spin away both cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data and weights; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("FROSTGRID_TEST_DATA", default))
    if not (folder / "data" / "SOURCES.md").is_file():
        pytest.skip(f"no real test data at {folder}; set FROSTGRID_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[Packages]:
    """Somewhere to install packages, with encoders or decoders in them."""
    from packagekit import installed  # which loads all encoders and decoders

    with installed(tmp_path / "site-packages") as packages:
        yield packages
