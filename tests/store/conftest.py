"""Folders on file systems of the kinds a cache may lie on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where flushing costs nothing, for tests that write hundreds of stores."""
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=base))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount (first call) or remount a file system of its own with the given options; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    point = tmp_path / "disk"
    point.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        flags = f"remount,{options}" if mounted else options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(point)], capture_output=True, text=True
        )
        if done.returncode and not mounted:
            pytest.skip(f"this machine does not mount: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(options)
        return point

    yield mount
    if mounted:
        subprocess.run(["umount", str(point)], check=True)
