"""The commands that look at caches: ls, info and diff."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import json_option, quiet_option, studies_option
from pipeline.console import Talk, print_json, print_table
from pipeline.study import Study, read_study
from store.errors import FrostgridError, InputError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

STUDIES = Path("studies")


@click.command()
@click.argument("place", default="cache", metavar="[PLACE]")
@studies_option("Say which caches this study can use (repeatable). [default: every one in ./studies]")
@json_option
@quiet_option
def ls(place: str, studies: Sequence[Study], as_json: bool, quiet: bool) -> None:
    """List the caches at PLACE (a folder or a URL; default: cache), and which studies they fit.

    Exit status 4 where one cannot be read.
    """
    from pipeline.commands.cache_tables import caches_table
    from pipeline.describing import listed
    from pipeline.naming import place_at
    from store.sharing import offers

    talk = Talk(quiet=quiet)
    works = _workspaces(studies, talk)
    at = place_at(place)
    found, faults = offers(at)
    if not found and not faults and at.read("cache.json") is not None:
        raise InputError(
            "This is one cache, not a place of several",
            where=place,
            remedy="frostgrid cache info describes it.",
        )
    rows = [listed(offer, works) for offer in found]
    if as_json:
        print_json({"place": place, "caches": rows, "faults": [str(fault) for fault in faults]})
    elif rows:
        print_table(caches_table(place, rows))
    elif not faults:
        click.echo(f"{place}: no caches")
    _end(faults)


@click.command()
@click.argument("cache", metavar="FOLDER|URL")
@json_option
@quiet_option
def info(cache: str, as_json: bool, quiet: bool) -> None:
    """Tell what is known of one cache: what made it, its licence, parts, tiles, views, bytes, and what int8 cost it.

    Exit status 4 where a part of it cannot be read.
    """
    from pipeline.commands.cache_tables import cache_table
    from pipeline.describing import described
    from pipeline.naming import cache_at

    offer = cache_at(cache)
    about = described(offer)
    if as_json:
        print_json(about)
    else:
        print_table(cache_table(about))
    _end(offer.faults)


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--values",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Compare the values of at most so many of the views whose stored bytes differ.",
)
@json_option
@quiet_option
def diff(a: str, b: str, values: int, as_json: bool, quiet: bool) -> None:
    """Tell two caches (folders or URLs) apart: in what made them, in tiles, in views, in what is stored of each view.

    Exit status 0 where both are made in the same way and hold the same views with the same recorded checksums, 4 where
    they differ. Whether the files still are what was recorded, frostgrid cache verify reads.
    """
    from pipeline.comparing import compare, sentences
    from pipeline.naming import cache_at

    found = compare(cache_at(a), cache_at(b), values)
    if as_json:
        print_json({"a": a, "b": b, **found})
    else:
        for line in sentences(found, a, b):
            click.echo(line)
    if not found["same"]:
        raise SystemExit(4)


def _workspaces(studies: Sequence[Study], talk: Talk) -> list[Workspace]:
    """Return the studies that were named; else all in ./studies that can be read here, saying which cannot."""
    if not studies and not STUDIES.is_dir():
        return []
    from pipeline.sharing import workspaces

    found = list(studies)
    faults: list[FrostgridError] = []
    for path in [] if studies else sorted(STUDIES.glob("*.toml")):
        try:
            found.append(read_study(path))
        except FrostgridError as fault:
            faults.append(fault)
    works, impossible = workspaces(found)
    if studies and impossible:
        raise impossible[0]
    for left_out in [*faults, *impossible]:
        talk.say(f"left out: {left_out}")
    return works


def _end(faults: Sequence[FrostgridError]) -> None:
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    if faults:
        raise SystemExit(4)
