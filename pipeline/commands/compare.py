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
)
from pipeline.console import Talk, print_json
from pipeline.study import read_study
from store.errors import InputError


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
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
    seeds: int | None,
    cache: str | None,
    runs: Path,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the finished runs of two study files: what the studies say differently, and what it did to Dice.

    Differences are B minus A, with their 95 % interval over the test images that both have. Of two caches (folders or
    URLs) it tells what frostgrid cache diff tells.
    """
    studies = [path.lower().endswith(".toml") for path in (a, b)]
    if not any(studies):
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

    one, other = (engine.workspace(read_study(Path(path)), cache, runs, threads) for path in (a, b))
    found = contrast(one, other, seeds)
    if as_json:
        print_json(found)
        return
    for line in sentences(found):
        click.echo(line)
    if not found["encoders"]:
        Talk(quiet=quiet).say("no encoder has finished runs of both")
