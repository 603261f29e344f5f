"""The commands that run a study: extract, train, report, run and plan."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import (
    batch_option,
    cached_dtype_option,
    compile_option,
    device_option,
    dtype_option,
    encoder_option,
    json_option,
    memory_option,
    parallel_option,
    seeds_option,
    weights_option,
    with_crew,
    works_on_study,
)
from pipeline.console import Talk, print_json, print_table
from store.errors import InputError, VerificationError

if TYPE_CHECKING:
    from pipeline.cluster.crew import Crew
    from pipeline.workspace import Workspace


@click.command()
@encoder_option
@weights_option
@device_option
@dtype_option
@batch_option
@compile_option
@works_on_study
@with_crew
def extract(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    device: str | None,
    batch: int | None,
    compiled: bool,
    crew: Crew | None,
) -> None:
    """Stage one: write the token grids of every view to the feature caches. Resumes where it was stopped."""
    from pipeline import engine

    engine.extract_all(
        workspace, encoders, talk, weights=weights, device=device, batch=batch, compile=compiled, crew=crew
    )


@click.command()
@encoder_option
@weights_option
@seeds_option
@parallel_option
@memory_option
@device_option
@cached_dtype_option
@works_on_study
@with_crew
def train(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    seeds: int | None,
    parallel: int | None,
    memory: int | None,
    device: str | None,
    crew: Crew | None,
) -> None:
    """Stage two: train the decoder from the cached grids, once a seed. Finished runs are kept."""
    from pipeline import engine

    engine.train_all(
        workspace,
        encoders,
        talk,
        weights=weights,
        seeds=seeds,
        device=device,
        processes=parallel,
        memory=memory,
        crew=crew,
    )


@click.command()
@click.option(
    "--encoder",
    metavar="NAME",
    help="The encoder whose weights --weights are. [default: the study's only one]",
)
@weights_option
@seeds_option
@cached_dtype_option
@json_option
@works_on_study
def report(
    workspace: Workspace,
    talk: Talk,
    encoder: str | None,
    weights: Path | None,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Print the table of Dice; write report.html, tables/, results.csv, tiles.csv and summary.json to runs/<study>/."""
    from pipeline.engine import given_weights

    if encoder is not None and weights is None:
        raise InputError(
            "A report is of all encoders, and --encoder says whose weights --weights are",
            where=f"--encoder {encoder}",
            remedy="Give --weights too, or leave it out.",
        )
    encoders = [] if encoder is None else [encoder]
    _report(given_weights(workspace, encoders, weights), seeds, as_json, talk)


@click.command()
@encoder_option
@weights_option
@seeds_option
@parallel_option
@memory_option
@device_option
@dtype_option
@batch_option
@compile_option
@json_option
@works_on_study
@with_crew
def run(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    seeds: int | None,
    parallel: int | None,
    memory: int | None,
    device: str | None,
    batch: int | None,
    compiled: bool,
    as_json: bool,
    crew: Crew | None,
) -> None:
    """Extract, train and report in one go; what is already there is kept."""
    from pipeline import engine
    from pipeline.runs import RunsFailed

    engine.extract_all(
        workspace, encoders, talk, weights=weights, device=device, batch=batch, compile=compiled, crew=crew
    )
    weighted = engine.given_weights(workspace, encoders, weights)
    try:
        engine.train_all(
            workspace,
            encoders,
            talk,
            weights=weights,
            seeds=seeds,
            device=device,
            processes=parallel,
            memory=memory,
            crew=crew,
        )
    except (RunsFailed, VerificationError):  # the second, of a cache or a run that cannot be read
        with suppress(InputError, VerificationError):  # the others are worth a report, if there are any
            _report(weighted, seeds, as_json, talk)
        raise
    _report(weighted, seeds, as_json, talk)


def _report(workspace: Workspace, seeds: int | None, as_json: bool, talk: Talk) -> None:
    from pipeline.report import make_report
    from pipeline.report.tables import dice_table

    summary = make_report(workspace, seeds, talk)
    if as_json:
        print_json(summary)
    else:
        print_table(dice_table(summary))
        click.echo(summary["answer"])
    damaged = [one["what"] for one in summary["damaged"]] + summary["damaged_elsewhere"]
    if damaged:
        raise VerificationError(
            f"{len(damaged)} damaged run(s) were left out of the report, such as: {damaged[0]}",
            where=workspace.results,
            remedy="The report is written; train them again for one of all runs.",
        )


@click.command()
@seeds_option
@json_option
@works_on_study
def plan(
    workspace: Workspace,
    talk: Talk,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Say what a study needs before anything runs: tiles, views, bytes of each cache, arithmetic."""
    from pipeline.needs import plan as needed
    from pipeline.report.tables import plan_table

    needs = needed(workspace, seeds)
    if as_json:
        print_json(needs)
    else:
        print_table(plan_table(needs))
