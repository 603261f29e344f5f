"""What the runs in a study's results say of themselves, without reading more of them than that."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workspace import Workspace
from stages.training.record import RUN, read_record
from store.errors import FrostgridError, VerificationError

EVERY_RUN = "*/*/seed-*"  # below a study's results
_FOLDER = re.compile(r"seed-\d{3,}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Recorded:
    """A run by its ``run.json``: the encoder as it was asked for, the seed, the study's ``[train]``, the encoding."""

    encoder: str
    seed: int
    train: dict[str, Any]
    encoding: str


def run_folders(folder: Path, pattern: str) -> list[Path]:
    """Return the folders of runs that ``pattern`` finds below ``folder``, but for those that are being written."""
    # Path.glob raises where a folder goes meanwhile, as those of journals do.
    found = (folder / name for name in glob.glob(pattern, root_dir=folder))  # noqa: PTH207
    return sorted(path for path in found if _FOLDER.fullmatch(path.name))


def recorded_runs(work: Workspace) -> Iterator[Recorded]:
    """Yield every run in the study's results, whatever its settings; not those of :func:`unreadable_runs`."""
    for folder in run_folders(work.results, EVERY_RUN):
        with suppress(FrostgridError):
            yield _recorded(folder)


def unreadable_runs(work: Workspace) -> dict[Path, FrostgridError]:
    """Return the folders of runs in the study's results whose ``run.json`` does not say what they are, and why."""
    found = {}
    for folder in run_folders(work.results, EVERY_RUN):
        try:
            _recorded(folder)
        except FrostgridError as error:
            found[folder] = error
    return found


def _recorded(folder: Path) -> Recorded:
    document = read_record(folder)
    try:
        identity = document["identity"]
        encoder, study = str(identity["encoder"]), identity["study"]
        encoding = str(study["cache"]["encoding"])
        return Recorded(encoder, int(document["seed"]), dict(study["train"]), encoding)
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(
            "The file does not say of which encoder and settings the run is",
            where=folder / RUN,
            remedy="Remove the folder and train this run again.",
        ) from error
