"""The ``frostgrid`` command."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from pipeline.console import Talk, print_json, print_table
from pipeline.study import Study, read_study
from store.errors import FrostgridError, InputError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace
    from stages.encoders import AskedDtype

F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """Ends with the explained error and its exit status instead of a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FrostgridError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_status)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output left: nothing to report, nobody to report it to
            ctx.exit(1)
        except OSError as error:
            if error.filename is None:
                raise
            what = f"{error.strerror} [{error.filename}]"
            click.echo(f"Error: {what}. Check the path, its rights and the free space.", err=True)
            ctx.exit(1)


def _study(_ctx: click.Context, _param: click.Parameter, value: Path) -> Study:
    return read_study(value)


study_argument = click.argument(
    "study", type=click.Path(path_type=Path, dir_okay=False), callback=_study, metavar="STUDY"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
encoder_option = click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME",
    help="Only this encoder (repeatable); NAME@BLOCK takes another block's output. [default: the study's]",
)


cache_option = click.option(
    "--cache", metavar="DIRECTORY", help="Folder of feature caches. [default: the study's cache.root]"
)


def works_on_study(command: F) -> F:
    """Give a command the STUDY argument and the options of caches and runs; it is called with workspace and talk.

    Its --dtype, where it has one, goes to the workspace.
    """

    @functools.wraps(command)
    def with_workspace(
        study: Study,
        cache: str | None,
        runs: Path,
        threads: int,
        quiet: bool,
        dtype: AskedDtype | None = None,
        **others: Any,
    ) -> Any:
        from pipeline import engine  # torch takes seconds to load: not for --help or a misspelt study

        work = engine.workspace(study, cache, runs, threads, dtype or "auto")
        return command(work, Talk(quiet=quiet), **others)

    for decorate in (
        click.option("--quiet", is_flag=True, help="No progress and no remarks on stderr."),
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=os.cpu_count() or 1,
            show_default="all cores",
            help="Threads that read and render tiles.",
        ),
        click.option(
            "--runs",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("runs"),
            show_default=True,
            help="Folder of results.",
        ),
        cache_option,
        study_argument,
    ):
        with_workspace = decorate(with_workspace)
    return cast(F, with_workspace)


device_option = click.option(
    "--device", default=None, metavar="cpu|cuda|cuda:N", help="[default: cuda where there is one, else cpu]"
)
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True),
    help="Weights file, or folder of them, for the one encoder named with --encoder.",
)
batch_option = click.option(
    "--batch",
    type=click.IntRange(1),
    default=None,
    help="Views encoded at a time, to begin with: halved when memory runs out. [default: as many as fit a GPU, else 4]",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default=None,
    help="Precision of the encoder. [default: float32 on a CPU, the authors' advice on a GPU]",
)
cached_dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default=None,
    help="Precision whose caches are meant, where there are several. [default: whichever there is]",
)
compile_option = click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Let torch.compile translate the encoders first: minutes at the start, faster from then on.",
)
seeds_option = click.option(
    "--seeds", type=click.IntRange(1), default=None, help="Seeds 0 … N−1. [default: the study's]"
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="frostgrid")
def main() -> None:
    """Which frozen foundation-model encoder segments my tissue best, and how sure are we?

    Stage one (extract) runs each frozen encoder once over every augmented view and caches the token grids; stage
    two (train) trains the decoder from that cache, seed by seed; report makes the tables and pictures.
    """


@main.command()
@encoder_option
@weights_option
@device_option
@dtype_option
@batch_option
@compile_option
@works_on_study
def extract(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    device: str | None,
    batch: int | None,
    compiled: bool,
) -> None:
    """Stage one: write the token grids of every view to the feature caches. Resumes where it was stopped."""
    from pipeline import engine

    engine.extract_all(
        workspace, encoders, talk, weights=weights, device=device, batch=batch, compile=compiled
    )


@main.command()
@encoder_option
@weights_option
@seeds_option
@device_option
@cached_dtype_option
@works_on_study
def train(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    seeds: int | None,
    device: str | None,
) -> None:
    """Stage two: train the decoder from the cached grids, once a seed. Finished runs are kept."""
    from pipeline import engine

    engine.train_all(workspace, encoders, talk, weights=weights, seeds=seeds, device=device)


@main.command()
@seeds_option
@cached_dtype_option
@json_option
@works_on_study
def report(
    workspace: Workspace,
    talk: Talk,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Print the table of Dice; write results.csv, tiles.csv, summary.json and pictures to runs/<study>/."""
    _report(workspace, seeds, as_json, talk)


@main.command()
@encoder_option
@weights_option
@seeds_option
@device_option
@dtype_option
@batch_option
@compile_option
@json_option
@works_on_study
def run(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    seeds: int | None,
    device: str | None,
    batch: int | None,
    compiled: bool,
    as_json: bool,
) -> None:
    """Extract, train and report in one go; what is already there is kept."""
    from pipeline import engine

    engine.extract_all(
        workspace, encoders, talk, weights=weights, device=device, batch=batch, compile=compiled
    )
    engine.train_all(workspace, encoders, talk, weights=weights, seeds=seeds, device=device)
    _report(workspace, seeds, as_json, talk)


def _report(workspace: Workspace, seeds: int | None, as_json: bool, talk: Talk) -> None:
    from pipeline.report import make_report
    from pipeline.report.tables import dice_table

    summary = make_report(workspace, seeds, talk)
    if as_json:
        print_json(summary)
    else:
        print_table(dice_table(summary))


@main.command()
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
    from pipeline import engine
    from pipeline.report.tables import plan_table

    needs = engine.plan(workspace, seeds)
    if as_json:
        print_json(needs)
    else:
        print_table(plan_table(needs))


@main.command()
@click.option("--px", type=click.IntRange(16), default=512, show_default=True, help="Tile side in pixels.")
@json_option
def encoders(px: int, as_json: bool) -> None:
    """List the encoders: parameters, width, patch, token grid, MB and GFLOP a view, licence, where weights are."""
    from pipeline.report.tables import encoder_rows, encoder_table

    rows = encoder_rows(px)
    if as_json:
        print_json(rows)
    else:
        print_table(encoder_table(rows, px))


@main.command()
@click.argument(
    "study",
    type=click.Path(path_type=Path, dir_okay=False),
    required=False,
    callback=lambda ctx, param, value: None if value is None else _study(ctx, param, value),
    metavar="[STUDY]",
)
@cache_option
@json_option
def doctor(study: Study | None, cache: str | None, as_json: bool) -> None:
    """Say what this machine has and may do, and what STUDY still lacks. Exit status 2 where it cannot run as it is."""
    from pipeline import engine
    from pipeline.doctor import doctor_report, examine

    work = None if study is None else engine.workspace(study, cache, Path("runs"), threads=1)
    found = examine(work.cache if work else Path(cache or "cache"), work)
    if as_json:
        print_json(found)
    else:
        for part in doctor_report(found):
            click.echo(part) if isinstance(part, str) else print_table(part)
    if not found["usable"]:
        raise SystemExit(2)


@main.group()
def data() -> None:
    """Check, look at, split and download data sets."""


@data.command("check")
@study_argument
@json_option
def data_check(study: Study, as_json: bool) -> None:
    """Report sizes, classes, patients, duplicates, and every fault at once. Exit status 2 where there is one."""
    from pipeline.report.tables import check_table
    from pipeline.workspace import dataset_of
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


@main.group()
def cache() -> None:
    """Look after feature caches."""


@cache.command("verify")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
def cache_verify(folder: Path, as_json: bool) -> None:
    """Read every grid of one cache: checksums, completeness, finite values. Exit status 4 where one is bad."""
    from store import GridStore, verify

    store = GridStore.open(folder)
    status = store.status()
    faults = [str(fault) for fault in verify(store)]
    if status.views_done < status.views_planned:
        lacking = status.views_planned - status.views_done
        faults.append(
            f"{lacking} of {status.views_planned} planned views are not written [{folder}]. "
            "Extract again to complete the cache."
        )
    if as_json:
        print_json({"cache": str(folder), "faults": faults})
    elif not faults:
        click.echo(f"{folder}: all {status.views_done} views are there and whole")
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    if faults:
        raise SystemExit(4)
