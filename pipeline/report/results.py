"""The finished runs of a study, and their counts as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline import engine
from pipeline.finished import Finished, without_weights
from pipeline.scoresheets import by_class, by_tile, write_csv
from pipeline.workspace import Workspace
from stages.training.record import StoredRun
from store.disk_errors import storage_errors
from store.durable import make_folder
from store.errors import InputError, VerificationError

HELD_OUT: tuple[Literal["val", "test"], ...] = ("val", "test")


@dataclass(frozen=True, eq=False)
class Result(Finished):
    """The finished runs of one encoder under one decoder; the seeds without one; what was damaged, by seed."""

    missing: tuple[int, ...]
    damaged: Mapping[int, VerificationError]

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
                done[seed] = without_weights(run) if done else run  # one decoder is enough for the gallery
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
    classes = workspace.dataset.classes
    names = {split: [tile.name for tile in workspace.tiles[split]] for split in HELD_OUT}
    counted = [
        ({"encoder": result.encoder, "decoder": result.decoder, "seed": seed, "split": split}, run, split)
        for result in results
        for seed, run in result.runs.items()
        for split in HELD_OUT
    ]
    with storage_errors(workspace.results):
        make_folder(workspace.results)
    write_csv(
        workspace.results / "results.csv",
        (
            row
            for head, run, split in counted
            for row in by_class(head, classes, run.result.best_counts(split))
        ),
    )
    write_csv(
        workspace.results / "tiles.csv",
        (
            row
            for head, run, split in counted
            for row in by_tile(head, classes, names[split], run.result.best_counts(split))
        ),
    )
