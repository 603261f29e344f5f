"""Ctrl-C at any early moment, sent to real processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cachekit import cache
from studykit import FOLDER, write_study

ARMED = "pipeline.interrupts"  # the line that -X importtime prints when this module has been loaded
SCRIPT = "import sys; from pipeline.cli import main; sys.exit(main())"  # as the console script does


def interrupted(arguments: list[str], pause: float, *, until: str = ARMED) -> tuple[int, list[str]]:
    """Start the command, send SIGINT ``pause`` seconds after ``until`` was loaded; return its status and stderr."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", SCRIPT, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        while until not in (line := process.stderr.readline()):
            assert line, "the module was never loaded"
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr.read().splitlines() if not line.startswith("import time:")]
    return process.returncode, said


@pytest.mark.parametrize("seed", range(6))
def test_an_interrupt_while_modules_are_loaded_is_one_line_and_status_130(seed: int) -> None:
    pause = random.Random(seed).uniform(0, 0.3)
    status, said = interrupted(["cache", "ls", "memory://nothing"], pause)
    assert (status, said) == (130, ["Interrupted."])


@pytest.mark.parametrize("seed", range(3))
def test_an_interrupt_while_torch_is_loaded_is_one_line_and_status_130(seed: int, tmp_path: Path) -> None:
    study = write_study(tmp_path, FOLDER.format(root=tmp_path), "small")
    pause = random.Random(seed).uniform(0, 0.5)
    status, said = interrupted(["plan", str(study)], pause, until="pipeline.cli")
    assert (status, said) == (130, ["Interrupted."])


def test_an_interrupt_of_a_running_command_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent by the process to itself in the middle of reading the caches."""
    from store.places import LocalPlace

    folders = LocalPlace.folders

    def pressing(self: LocalPlace) -> list[str]:
        signal.raise_signal(signal.SIGINT)
        return folders(self)

    monkeypatch.setattr(LocalPlace, "folders", pressing)
    ended = cache("ls", tmp_path)
    assert ended.exit_code == 130
    assert ended.stderr == "Interrupted.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
