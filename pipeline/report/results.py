"""From finished runs to numbers: every Dice comes from stored counts."""

from __future__ import annotations

import csv
import json
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
from stages.metrics import mean_dice, pooled_dice
from stages.training.record import StoredRun
from store.errors import InputError

HELD_OUT: tuple[Literal["val", "test"], ...] = ("val", "test")


@dataclass(frozen=True)
class Result:
    """The finished runs of one encoder under one decoder, by seed, and the seeds that have none."""

    job: Job
    runs: dict[int, StoredRun]
    missing: tuple[int, ...]

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
    """Find the finished runs of every encoder of the study, and of any other trained on it, as the study is now."""
    names = [*workspace.study.encoders.names, *engine.trained_encoders(workspace)]
    results = []
    for job in engine.jobs(workspace, names, seeds):
        done: dict[int, StoredRun] = {}
        for seed in job.seeds:
            if (run := job.finished(seed)) is not None:
                # one decoder is enough for the picture: weights of many runs would fill the memory
                done[seed] = run if not done else replace(run, result=replace(run.result, weights={}))
        results.append(Result(job, done, tuple(seed for seed in job.seeds if seed not in done)))
    if not any(result.runs for result in results):
        raise InputError(
            "There is no finished run of this study",
            where=workspace.results,
            remedy="Run frostgrid extract and frostgrid train on it first (or frostgrid run).",
        )
    return results


def summarise(workspace: Workspace, results: Sequence[Result]) -> dict[str, Any]:
    """Return the summary: per encoder and decoder the test Dice per class and its mean, mean and std over seeds.

    Dice is pooled over all test pixels of a class (None where prediction and truth both lack the class); std is the
    sample standard deviation (n − 1), None for one seed. Sorted by mean Dice, the best first.
    """
    classes = workspace.dataset.classes
    rows: list[dict[str, Any]] = []
    for result in results:
        if not result.runs:
            continue
        about = result.job.about
        per_class = np.array([pooled_dice(run.result.best_counts("test")) for run in result.runs.values()])
        mean = np.array([mean_dice(run.result.best_counts("test")) for run in result.runs.values()])
        rows.append(
            {
                "encoder": result.encoder,
                "decoder": result.decoder,
                "encoder_parameters": about.parameters,
                "decoder_parameters": next(iter(result.runs.values())).result.parameters,
                "grid": [about.grid.d, about.grid.h, about.grid.w],
                "seeds": sorted(result.runs),
                "missing_seeds": list(result.missing),
                "dice": {name: _spread(per_class[:, index]) for index, name in enumerate(classes)},
                "mean_dice": _spread(mean),
            }
        )
    rows.sort(key=_order)
    return {
        "study": workspace.study.resolved(),
        "classes": list(classes),
        "images": {name: len(getattr(workspace.split, name)) for name in ("train", "val", "test")},
        "tiles": {name: len(tiles) for name, tiles in workspace.tiles.items()},
        "results": rows,
    }


def _order(row: dict[str, Any]) -> tuple[float, str]:
    return -(row["mean_dice"]["mean"] or 0.0), row["encoder"]


def _spread(values: NDArray[np.float64]) -> dict[str, float | None]:
    present = values[~np.isnan(values)]
    return {
        "mean": float(present.mean()) if present.size else None,
        "std": float(present.std(ddof=1)) if present.size > 1 else None,
    }


def write_results(workspace: Workspace, results: Sequence[Result], summary: dict[str, Any]) -> None:
    """Write ``results.csv`` (pooled, a row a class), ``tiles.csv`` (a row a tile and class) and ``summary.json``."""
    folder = workspace.results
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "results.csv", _pooled_rows(workspace, results))
    _write_csv(folder / "tiles.csv", _tile_rows(workspace, results))
    (folder / "summary.json").write_text(
        json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def _write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)


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
