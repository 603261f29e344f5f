"""Studies with their caches, for the tests of the cache commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from studykit import FOLDER, frostgrid, write_folder, write_study

from pipeline.journal_reading import FOLDER as JOURNALS
from store import GridSpec, GridStore, ViewRow


class Home:
    """A folder with a study on noisy images, as one person has it; ``cache`` and ``runs`` lie beside its data."""

    def __init__(self, folder: Path, data: Path | None = None, text: str = FOLDER) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if data is not None:
            shutil.copytree(data, folder / "data")
        elif not (folder / "data").is_dir():
            write_folder(folder / "data")
        self.study = write_study(folder, text.format(root=folder / "data"))

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def run(self, command: str, *more: str | Path) -> Result:
        """Run a command on the study, with caches and results in this folder."""
        given = () if "--cache" in more else ("--cache", self.cache)
        return frostgrid(command, self.study, *given, "--runs", self.folder / "runs", *more)

    def results(self) -> bytes:
        return (self.folder / "runs" / self.study.stem / "results.csv").read_bytes()

    def store(self, slug: str = "stain") -> Path:
        (found,) = self.cache.glob(f"{slug}-????????????")
        return found


def copy_results(folder: Path, to: Path) -> None:
    """Copy a home, or what lies in it, without the journals: those of this process are written and removed at will."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(JOURNALS), dirs_exist_ok=True)


def cache(*arguments: str | Path) -> Result:
    """Run a cache command in this process."""
    return frostgrid("cache", *arguments)


def parsed(result: Result, status: int = 0) -> Any:
    """Return the JSON that a command printed."""
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def refused(result: Result, *said: str, status: int = 2) -> None:
    """The command ended with the status, an explanation that says all this and how to go on, and no trace."""
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for text in said:
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def small_cache(root: Path, slug: str, provenance: dict[str, Any], views: int = 3) -> Path:
    """Write a small cache by hand, of an encoder with this provenance."""
    spec = GridSpec("tokens", (2, 2, 2), "float16", ("d", "h", "w"))
    store = GridStore.at(root, slug, {"encoder": {"encoder": slug}}, spec, provenance, create=True)
    rows = [ViewRow("0" * 64, view, "tile", "") for view in range(views)]
    for task in store.plan(rows):
        store.write(task, ((np.full((2, 2, 2), row.view, np.float16), None) for row in task.rows))
    return store.path


def flip_bit(path: Path, at: int = 100) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
