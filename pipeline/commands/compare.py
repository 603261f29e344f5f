"""The command that compares two studies, or two caches: compare."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.cache_looks import diff
from pipeline.commands.options import (
    cache_option,
    json_option,
    quiet_option,
    runs_option,
    seeds_option,
    threads_option,
    weights_option,
)
from pipeline.console import Talk, print_json
from pipeline.study import read_study
from store.errors import InputError, VerificationError


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--encoder",
    metavar="NAME",
    help="The encoder whose weights --weights are. [default: the studies' only one]",
)
@weights_option
@seeds_option
@cache_option
@runs_option
@threads_option
@json_option
@quiet_option
@click.pass_context
def compare(
    context: click.Context,
    a: str,
    b: str,
    encoder: str | None,
    weights: Path | None,
    seeds: int | None,
    cache: str | None,
    runs: Path,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the finished runs of two study files: what the studies say differently, and what it did to Dice.

    Differences are B minus A, over the seeds that both have, with their 95 % interval over the test images that both
    have. Damaged runs are left out and end it with status 4. Of two caches (folders or
    URLs) it tells what frostgrid cache diff tells. --weights tells which runs are meant where an encoder has caches of
    several weights.
    """
    studies = [path.lower().endswith(".toml") for path in (a, b)]
    if encoder is not None and weights is None:
        raise InputError(
            "All encoders of the studies are compared, and --encoder says whose weights --weights are",
            where=f"--encoder {encoder}",
            remedy="Give --weights too, or leave it out.",
        )
    if not any(studies):
        asked = {"--weights": weights, "--seeds": seeds, "--cache": cache}
        if given := [name for name, value in asked.items() if value is not None]:
            raise InputError(
                "Caches are compared whole, and have no runs",
                where=" ".join(given),
                remedy=f"Leave {'it' if len(given) == 1 else 'them'} out, or give two study files (.toml).",
            )
        context.invoke(diff, a=a, b=b, as_json=as_json, quiet=quiet)
        return
    if not all(studies):
        raise InputError(
            "A study cannot be compared with a cache",
            where=b if studies[0] else a,
            remedy="Give two study files (.toml), or two caches.",
        )
    from pipeline import engine
    from pipeline.contrasting import contrast, sentences

    works = [engine.workspace(read_study(Path(path)), cache, runs, threads) for path in (a, b)]
    encoders = [] if encoder is None else [encoder]
    one, other = (engine.given_weights(work, encoders, weights) for work in works)
    found = contrast(one, other, seeds)
    if as_json:
        print_json(found)
    else:
        for line in sentences(found):
            click.echo(line)
        if not found["encoders"]:
            Talk(quiet=quiet).say("no encoder has finished runs of both")
    if damaged := [one for side in found["damaged"] for one in side]:
        raise VerificationError(
            f"{len(damaged)} run(s) were left out of the comparison, such as: {damaged[0]}",
            where=f"{a}, {b}",
            remedy="Train them again for one of all runs.",
        )
