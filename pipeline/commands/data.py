"""The commands on data sets: check, preview, split, score and get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import json_option, study_argument, works_on_study
from pipeline.console import Talk, print_json, print_table
from pipeline.study import Study
from store.errors import InputError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


@click.group()
def data() -> None:
    """Check, look at, split, score and download data sets."""


@data.command("check")
@study_argument
@json_option
def data_check(study: Study, as_json: bool) -> None:
    """Report sizes, classes, patients, duplicates, and every fault at once. Exit status 2 where there is one."""
    from pipeline.report.tables import check_table
    from pipeline.study_data import dataset_of
    from stages.tiles.check import check

    found = check(dataset_of(study), needs_mpp=study.data.mpp is not None)
    if as_json:
        print_json(found.as_json())
    else:
        print_table(check_table(found))
    if found.faults:
        for fault in found.faults:
            click.echo(f"Error: {InputError(fault.what, where=fault.where, remedy=fault.remedy)}", err=True)
        raise SystemExit(2)


@data.command("preview")
@click.option("--tiles", type=click.IntRange(1), default=4, show_default=True, help="How many tiles.")
@click.option(
    "--views", type=click.IntRange(1), default=4, show_default=True, help="Augmented views of each."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: runs/<study>/preview.png]"
)
@works_on_study
def data_preview(
    workspace: Workspace,
    talk: Talk,
    tiles: int,
    views: int,
    out: Path | None,
) -> None:
    """Draw tiles beside their masks, and some augmented views of each (the paper's Figure 2)."""
    from pipeline.report.pictures import preview

    path = out or workspace.results / "preview.png"
    preview(workspace, path, tiles=tiles, views=views)
    click.echo(path)


@data.command("split")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: runs/<study>/split.json]"
)
@works_on_study
def data_split(workspace: Workspace, talk: Talk, out: Path | None) -> None:
    """Write the study's split as JSON, to be shared or given back as data.split."""
    path = out or workspace.results / "split.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace.split.write(path)
    click.echo(path)


@data.command("score")
@click.argument("predictions", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("truth", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
def data_score(predictions: Path, truth: Path, as_json: bool) -> None:
    """Score predicted label images (TIFF, 0 to 5) as the PUMA challenge does its tissue.

    PREDICTIONS: files named like those in TRUTH, or a folder with the challenge's predictions.json.
    """
    from pipeline.report.tables import puma_table
    from stages.puma_scores import pairs_of, scores, unpredicted

    pairs = pairs_of(predictions, truth)
    found = {**scores(pairs), "not_scored": unpredicted(pairs, truth)}
    if left := found["not_scored"]:
        click.echo(
            f"{len(left)} of {len(left) + len(pairs)} true label images have no prediction and are in no score, such "
            f"as {left[0]}",
            err=True,
        )
    if as_json:
        print_json(found)
    else:
        print_table(puma_table(found))


@data.command("get")
@click.argument("name", type=click.Choice(["puma"]))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--base-url", default="https://zenodo.org", show_default=True, help="Where Zenodo, or a mirror, answers."
)
@click.option("--quiet", is_flag=True, help="No progress.")
def data_get(name: str, folder: Path, base_url: str, quiet: bool) -> None:
    """Download a public data set into FOLDER; a cut download goes on where it stopped."""
    from stages.tiles.download import get_puma

    talk = Talk(quiet=quiet)
    with talk.bar(f"Downloading {name}", "bytes") as update:
        found = get_puma(folder, base_url=base_url, progress=lambda file, done, total: update(done, total))
    for kind, count in found.files.items():
        click.echo(f"{found.root}: {count} {kind} ({found.source})")
