"""Converts a cache to int8 as a process of its own, which can be killed: ``converter.py CACHE ROOT``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from store import GridStore
from store.convert import convert

REPOSITORY = Path(__file__).parents[2]


def start(cache: Path, root: Path) -> subprocess.Popen[str]:
    """Start the process and wait until it is ready; it begins when a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(cache), str(root)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    """Let a started process begin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> int:
    """Wait for a process; returns its status."""
    assert process.stdin is not None and process.stdout is not None
    try:
        return process.wait(timeout=120)
    finally:
        process.stdin.close()
        process.stdout.close()


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    convert(GridStore.open(Path(sys.argv[1])), Path(sys.argv[2]), "int8")
