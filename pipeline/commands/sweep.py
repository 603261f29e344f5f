"""The command that trains one study in many ways: sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import (
    cached_dtype_option,
    device_option,
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
from store.errors import FrostgridError

if TYPE_CHECKING:
    from pipeline.cluster.crew import Crew
    from pipeline.workspace import Workspace


@click.command()
@encoder_option
@click.option(
    "--decoder",
    "decoders",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="A decoder with its options (repeatable), e.g. single-scale:width=64. [default: the study's]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=V1,V2,…",
    help="Values of a key of the study (repeatable), e.g. train.lr=1e-3,1e-4, train.tiles=2,5, "
    "cache.encoding=float16,int8.",
)
@weights_option
@seeds_option
@click.option("--dry-run", is_flag=True, help="Only list the combinations and what is done of them.")
@parallel_option
@memory_option
@device_option
@cached_dtype_option
@json_option
@works_on_study
@with_crew
def sweep(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    decoders: Sequence[str],
    settings: Sequence[str],
    weights: Path | None,
    seeds: int | None,
    dry_run: bool,
    parallel: int | None,
    memory: int | None,
    device: str | None,
    as_json: bool,
    crew: Crew | None,
) -> None:
    """Train a study under every combination of encoders, decoders and settings, from the caches there are.

    Each combination is a run a seed, kept with the study's others: what is finished is never trained again, and an
    interrupted sweep goes on. Writes runs/<study>/sweep.csv.
    """
    from pipeline import sweep_results
    from pipeline.engine import given_weights
    from pipeline.grouping import check_jobs
    from pipeline.sweeping import combinations
    from pipeline.trainer import train_jobs
    from pipeline.varying import parse_decoders, parse_setting
    from stages.encoders import usable_device

    target = usable_device("cpu" if crew else device)  # of a cluster each worker knows its own
    varied = [*parse_decoders(decoders, workspace.study), *map(parse_setting, settings)]
    jobs = combinations(workspace, encoders, varied, seeds, weights)
    workspace = given_weights(workspace, encoders, weights)
    outcome, unwritten = None, None
    if dry_run:
        check_jobs(jobs)
    else:
        workspace.keep_split()
        outcome = train_jobs(jobs, talk, target, processes=parallel, memory=memory, crew=crew)
        try:
            path, left_out = sweep_results.write_csv(workspace)
            for line in left_out:
                talk.say(line)
            if path:
                talk.say(f"wrote {path}")
        except FrostgridError as error:
            unwritten = error  # for a run of another sweep, perhaps: what this one found is shown in any case
    found = sweep_results.summary(workspace, jobs, outcome)
    if as_json:
        print_json(found)
    else:
        print_table(sweep_results.table(found))
    if outcome is not None:
        if unwritten is not None and (outcome.failures or outcome.unread):
            click.echo(f"{sweep_results.CSV} was not written: {unwritten}", err=True)
        outcome.raise_failures(workspace.results)
    if unwritten is not None:
        raise unwritten
