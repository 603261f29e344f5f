"""The finished runs of a study, and their counts as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import engine
from pipeline.job import Job
from pipeline.workspace import Workspace
from stages.metrics import pooled_dice
from stages.training.record import StoredRun
from store.durable import put_replacing, storage_errors
from store.errors import InputError, VerificationError

HELD_OUT: tuple[Literal["val", "test"], ...] = ("val", "test")


@dataclass(frozen=True)
class Result:
    """The finished runs of one encoder under one decoder, by seed; the seeds without one; what was damaged, by seed."""

    job: Job
    runs: dict[int, StoredRun]
    missing: tuple[int, ...]
    damaged: dict[int, VerificationError]

    @property
    def encoder(self) -> str:
        """The encoder's canonical name."""
        return self.job.encoder

    @property
    def decoder(self) -> str:
        """The decoder's name."""
        return self.job.settings.decoder

    @property
    def slug(self) -> str:
        """The name its files have."""
        return f"{self.job.slug}-{self.decoder}"


def collect(workspace: Workspace, seeds: int | None) -> list[Result]:
    """Find the finished runs of every encoder of the study, and of any other trained on it, as the study is now.

    A damaged run counts for nothing and is kept as what was found. Raises :class:`InputError` where there is no
    finished run, and the first :class:`VerificationError` where there are only damaged ones.
    """
    names = [*workspace.study.encoders.names, *engine.trained_encoders(workspace)]
    results = []
    for job in engine.jobs(workspace, names, seeds):
        done: dict[int, StoredRun] = {}
        damaged: dict[int, VerificationError] = {}
        for seed in job.seeds:
            try:
                run = job.finished(seed)
            except VerificationError as error:
                damaged[seed] = error
                continue
            if run is not None:
                # one decoder is enough for the gallery: weights of many runs would fill the memory
                done[seed] = run if not done else replace(run, result=replace(run.result, weights={}))
        missing = tuple(seed for seed in job.seeds if seed not in done and seed not in damaged)
        results.append(Result(job, done, missing, damaged))
    if not any(result.runs for result in results):
        for result in results:
            for found in result.damaged.values():
                raise found
        raise InputError(
            "There is no finished run of this study",
            where=workspace.results,
            remedy="Run frostgrid extract and frostgrid train on it first (or frostgrid run).",
        )
    return results


def write_results(workspace: Workspace, results: Sequence[Result]) -> None:
    """Write ``results.csv`` (pooled, a row a class) and ``tiles.csv`` (a row a tile and class)."""
    workspace.results.mkdir(parents=True, exist_ok=True)
    _write_csv(workspace.results / "results.csv", _pooled_rows(workspace, results))
    _write_csv(workspace.results / "tiles.csv", _tile_rows(workspace, results))


def _write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(first), lineterminator="\r\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)
    with storage_errors(path):
        put_replacing(path, text.getvalue().encode())


def _runs(results: Sequence[Result]) -> Iterator[tuple[dict[str, Any], StoredRun]]:
    for result in results:
        for seed, run in result.runs.items():
            yield {"encoder": result.encoder, "decoder": result.decoder, "seed": seed}, run


def _pooled_rows(workspace: Workspace, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for head, run in _runs(results):
        for split in HELD_OUT:
            counts = run.result.best_counts(split)
            dice = pooled_dice(counts)
            for index, name in enumerate(workspace.dataset.classes):
                yield {
                    **head,
                    "split": split,
                    "class": name,
                    "dice": "" if math.isnan(dice[index]) else repr(float(dice[index])),
                    **_counts(counts.sum(axis=0)[index]),
                }


def _tile_rows(workspace: Workspace, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for head, run in _runs(results):
        for split in HELD_OUT:
            for tile, counts in zip(workspace.tiles[split], run.result.best_counts(split), strict=True):
                for index, name in enumerate(workspace.dataset.classes):
                    yield {**head, "split": split, "class": name, "tile": tile.name, **_counts(counts[index])}


def _counts(counts: NDArray[np.int64]) -> dict[str, int]:
    intersection, prediction, truth = (int(count) for count in counts)
    return {"intersection": intersection, "prediction": prediction, "truth": truth}
