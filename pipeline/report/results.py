"""The finished runs of a study, and their counts as CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import engine
from pipeline.finished import Finished
from pipeline.recorded import unreadable_runs
from pipeline.scoresheets import by_class, by_tile, write_csv
from pipeline.workspace import Workspace
from stages.encoders import canonical_name
from store.disk_errors import storage_errors
from store.durable import make_folder
from store.errors import InputError
from store.identity import fingerprint

HELD_OUT: tuple[Literal["val", "test"], ...] = ("val", "test")


@dataclass(frozen=True, eq=False)
class Collected:
    """The ``results`` of encoders; in sentences, runs that were ``left_out``, and others that are ``damaged``.

    What is damaged among the runs of ``results`` is told by these themselves.
    """

    results: list[Finished]
    left_out: list[str]
    damaged: list[str]


def collect(workspace: Workspace, seeds: int | None) -> Collected:
    """Find the finished runs of every encoder of the study, and of any other trained on it, as the study is now.

    A damaged run counts for nothing. Raises :class:`InputError` where there is no finished run, and the first
    :class:`VerificationError` where there are only damaged ones.
    """
    names = workspace.study.encoders.names
    results = [Finished.of(job) for job in engine.jobs(workspace, names, seeds)]
    seen = {result.encoder for result in results}
    left_out = []
    for reference in engine.trained_encoders(workspace):
        name = reference
        try:
            name = canonical_name(reference)
            if name in seen:
                continue
            seen.add(name)
            workspace.describe(reference)
            found = Finished.of(*engine.jobs(workspace, [reference], seeds))
        except InputError as error:
            left_out.append(f"Runs of {name} were left out: {error}")
            continue
        if found.runs or found.damaged:
            results.append(found)
    if not any(result.runs for result in results):
        for result in results:
            result.undamaged()
        raise InputError(
            "There is no finished run of this study",
            where=workspace.results,
            remedy="Run frostgrid extract and frostgrid train on it first (or frostgrid run).",
        )
    named = damaged_folders(results)
    damaged = [
        f"A run cannot be read and was left out: {error}"
        for folder, error in unreadable_runs(workspace).items()
        if folder not in named
    ]
    return Collected(results, left_out, damaged)


def damaged_folders(results: Sequence[Finished]) -> set[Path]:
    """Return the folders of the damaged runs that ``results`` name."""
    return {Path(error.where or "").parent for result in results for error in result.damaged.values()}


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


def environments_of(found: Finished) -> list[dict[str, Any]]:
    """Return the distinct environments of the runs."""
    told = (dict(run.environment) for run in found.runs.values())
    return list({json.dumps(one, sort_keys=True): one for one in told}.values())


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
