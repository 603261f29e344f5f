"""The commands that look at what there is: encoders and doctor."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import cache_option, json_option, optional_study_option, study_of
from pipeline.console import print_json, print_table
from pipeline.study import Study
from store.errors import InputError


@click.command()
@click.option("--px", type=click.IntRange(16), default=512, show_default=True, help="Tile side in pixels.")
@optional_study_option("Those of this study only, at its sizes and with its weights.")
@json_option
def encoders(px: int, study: Study | None, as_json: bool) -> None:
    """List the encoders: parameters, width, patch, token grid, MB and GFLOP a view, licence, where weights are."""
    from pipeline.report.tables import encoder_rows, encoder_table

    px = px if study is None else study.data.tile_px
    rows = encoder_rows(px, study)
    if as_json:
        print_json(rows)
    else:
        print_table(encoder_table(rows, px))


@click.command()
@click.argument(
    "study",
    type=click.Path(path_type=Path, dir_okay=False),
    required=False,
    callback=study_of,
    metavar="[STUDY]",
)
@cache_option
@json_option
def doctor(study: Study | None, cache: str | None, as_json: bool) -> None:
    """Say what this machine has and may do, and what STUDY still lacks. Exit status 2 where it cannot run as it is."""
    from pipeline import engine
    from pipeline.doctor import examine
    from pipeline.doctor_report import doctor_report

    work = None if study is None else engine.workspace(study, cache, Path("runs"), threads=1)
    if work is None and "://" in (cache or ""):
        raise InputError(
            "What a place elsewhere holds, frostgrid cache ls tells", where=cache, remedy="Name a study."
        )
    found = examine(work.cache if work else Path(cache or "cache"), work)
    if as_json:
        print_json(found)
    else:
        for part in doctor_report(found):
            click.echo(part) if isinstance(part, str) else print_table(part)
    if not found["usable"]:
        raise SystemExit(2)
