"""What the runs in a study's results say of themselves, without reading more of them than that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Recorded:
    """A run by its ``run.json``: the encoder as it was asked for, the seed, the study's ``[train]``, the encoding."""

    encoder: str
    seed: int
    train: dict[str, Any]
    encoding: str


def recorded_runs(work: Workspace) -> Iterator[Recorded]:
    """Yield every run in the study's results, whatever its settings; those that say nothing of use are left out."""
    for path in sorted(work.results.glob("*/*/seed-*/run.json")):
        with suppress(
            OSError, ValueError, KeyError, TypeError, RecursionError
        ):  # named when the run is asked for
            document = json.loads(path.read_bytes())
            identity = document["identity"]
            encoder, study = identity["encoder"], identity["study"]
            if isinstance(encoder, str):
                encoding = str(study["cache"]["encoding"])
                yield Recorded(encoder, int(document["seed"]), dict(study["train"]), encoding)
