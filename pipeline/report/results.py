"""The finished runs of a study, and their counts as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline import engine
from pipeline.finished import Finished
from pipeline.recorded import unreadable_runs
from pipeline.scoresheets import by_class, by_tile, write_csv
from pipeline.workspace import Workspace
from stages.encoders import canonical_name
from stages.training.record import RUN
from store.disk_errors import storage_errors
from store.durable import make_folder
from store.errors import InputError
from store.identity import fingerprint

HELD_OUT: tuple[Literal["val", "test"], ...] = ("val", "test")


def collect(workspace: Workspace, seeds: int | None) -> list[Finished]:
    """Find the finished runs of every encoder of the study, and of any other trained on it, as the study is now.

    A damaged run counts for nothing and is kept as what was found; :func:`left_out` says of which runs nothing is
    found. Raises :class:`InputError` where there is no finished run, and the first :class:`VerificationError` where
    there are only damaged ones.
    """
    others, _ = _known_encoders(workspace)
    results = [
        Finished.of(job) for job in engine.jobs(workspace, [*workspace.study.encoders.names, *others], seeds)
    ]
    if not any(result.runs for result in results):
        for result in results:
            result.undamaged()
        raise InputError(
            "There is no finished run of this study",
            where=workspace.results,
            remedy="Run frostgrid extract and frostgrid train on it first (or frostgrid run).",
        )
    return results


def left_out(workspace: Workspace, results: Sequence[Finished]) -> tuple[list[str], list[str]]:
    """Return sentences on runs of which ``results`` say nothing: of encoders not known here, and unreadable ones."""
    _, gone = _known_encoders(workspace)
    unknown = [f"The runs of {name} were left out: {error}" for name, error in gone.items()]
    unread = [folder for folder in unreadable_runs(workspace) if folder not in damaged_folders(results)]
    damaged = [f"A run is damaged and was left out: {folder / RUN} cannot be read" for folder in unread]
    return unknown, damaged


def damaged_folders(results: Sequence[Finished]) -> set[Path]:
    """Return the folders of the damaged runs that ``results`` name."""
    return {Path(error.where or "").parent for result in results for error in result.damaged.values()}


def _known_encoders(workspace: Workspace) -> tuple[list[str], dict[str, InputError]]:
    """Return the encoders of all runs in the results, and those that are not installed here with what says so."""
    known: list[str] = []
    gone: dict[str, InputError] = {}
    for reference in engine.trained_encoders(workspace):
        try:
            canonical_name(reference)
            workspace.describe(reference)
        except InputError as error:
            gone[reference] = error
        else:
            known.append(reference)
    return known, gone


def stored_runs(workspace: Workspace, found: Finished) -> list[dict[str, Any]]:
    """Return of each run its seed, its folder below the results, its fingerprint and its best epoch, for JSON."""
    return [
        {
            "seed": seed,
            "folder": run.folder.relative_to(workspace.results).as_posix(),
            "fingerprint": fingerprint(run.identity),
            "best_epoch": run.result.best_epoch,
        }
        for seed, run in found.runs.items()
    ]


def write_results(workspace: Workspace, results: Sequence[Finished]) -> None:
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
