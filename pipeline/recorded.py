"""What the runs in a study's results say of themselves, without reading more of them than that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workspace import Workspace

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
    return sorted(path for path in folder.glob(pattern) if _FOLDER.fullmatch(path.name))


def recorded_runs(work: Workspace) -> Iterator[Recorded]:
    """Yield every run in the study's results, whatever its settings; those that say nothing of use are left out."""
    for folder in run_folders(work.results, EVERY_RUN):
        # One that is damaged is named when the run is asked for.
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            document = json.loads((folder / "run.json").read_bytes())
            identity = document["identity"]
            encoder, study = identity["encoder"], identity["study"]
            if isinstance(encoder, str):
                encoding = str(study["cache"]["encoding"])
                yield Recorded(encoder, int(document["seed"]), dict(study["train"]), encoding)
