"""The commands that use a trained run on other images: predict and evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.looking import Finite, looks_with_a_run, run_argument
from pipeline.commands.options import LocalPath
from pipeline.console import Talk, print_json, print_table
from store.errors import FrostgridError, StorageError

if TYPE_CHECKING:
    from pipeline.slide_windows import Windows
    from stages.slides.tissue import Threshold


def _threshold(_ctx: click.Context, _param: click.Parameter, value: str) -> Threshold:
    """Return ``auto``, ``all`` or the number that was given."""
    if value == "auto":
        return "auto"
    if value == "all":
        return "all"
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 3:
        raise click.BadParameter(f"{value!r} is neither auto, nor all, nor a number from 0 to 3")
    return number


def _end_with(errors: Sequence[FrostgridError]) -> None:
    """Print errors that did not stop a command, and end it with the status of the worst."""
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if errors:
        raise SystemExit(max(error.exit_status for error in errors))


@click.command()
@run_argument
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SLIDE...")
@click.option(
    "--output",
    type=LocalPath(file_okay=False),
    default=Path("slides"),
    show_default=True,
    metavar="DIRECTORY",
    help="Where the results go, in a folder for each slide.",
)
@click.option(
    "--mpp", type=Finite(0, min_open=True), default=None, help="µm a pixel of slides that do not say it."
)
@click.option(
    "--tissue",
    callback=_threshold,
    default="auto",
    show_default=True,
    metavar="auto|all|THRESHOLD",
    help="Where to look: at what is stained (auto), more so than a threshold, or everywhere (all).",
)
@click.option(
    "--tolerance",
    type=Finite(0),
    default=None,
    help="µm that the outlines of annotations may be moved by smoothing. [default: two pixels of the map]",
)
@click.option(
    "--min-area",
    type=Finite(0),
    default=None,
    help="µm² below which annotations are dropped and holes filled. [default: the area of one token]",
)
@click.option("--probabilities", is_flag=True, help="Write class probabilities, too, as zarr.")
@looks_with_a_run
def predict(
    windows: Windows,
    talk: Talk,
    slides: Sequence[Path],
    output: Path,
    mpp: float | None,
    study_mpp: float | None,
    tissue: Threshold,
    tolerance: float | None,
    min_area: float | None,
    probabilities: bool,
    as_json: bool,
) -> None:
    """Map slides with a trained decoder: RUN is its folder, runs/STUDY/ENCODER/DECODER/seed-….

    Of each slide: map.ome.tif (classes, in colours), annotations.geojson (for QuPath), summary.csv (mm² a class) and
    thumbnail.png. Formats of openslide, TIFF, PNG and JPEG. A killed call goes on when it is repeated. A slide that
    cannot be read is told at the end, and the others are mapped; the exit status is then that of the worst.
    """
    from pipeline.slide_results import Wishes
    from pipeline.slides import SlideMaker

    wishes = Wishes(mpp, study_mpp, tissue, windows.overlap, tolerance, min_area, probabilities)
    outcomes = SlideMaker(windows, wishes, output, talk).all(slides)
    if as_json:
        print_json([outcome.to_json() for outcome in outcomes])
    else:
        for outcome in outcomes:
            if outcome.folder is not None:
                click.echo(outcome.folder)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(outcomes) > 1:
        talk.say(f"{len(outcomes) - len(errors)} of {len(outcomes)} slides mapped, {len(errors)} failed")
    _end_with(errors)


@click.command()
@run_argument
@click.argument("data", type=click.Path(path_type=Path), metavar="STUDY|FOLDER")
@click.option(
    "--split",
    type=click.Choice(["all", "train", "val", "test"]),
    default="all",
    show_default=True,
    help="Which images of the data set.",
)
@click.option(
    "--output",
    type=LocalPath(file_okay=False),
    default=None,
    metavar="DIRECTORY",
    help="Where results.csv and tiles.csv go. [default: evaluations/DATA/ENCODER-DECODER-SEED]",
)
@looks_with_a_run
def evaluate(
    windows: Windows,
    talk: Talk,
    data: Path,
    split: str,
    output: Path | None,
    study_mpp: float | None,
    as_json: bool,
) -> None:
    """Score a trained decoder on other labelled images, whole and of any size, brought to the run's resolution.

    They are those of a study file, or a folder that is laid out and labelled as the run's own data. Classes are matched
    by name. Prints the pooled Dice. An image that cannot be read is told at the end, and counts nowhere; the exit
    status is then that of the worst.
    """
    from pipeline.slide_evaluation import evaluated, labelled_data
    from pipeline.slide_scores import score_table, write_scores

    work = labelled_data(windows.run, data, windows.threads)
    score = evaluated(windows, work, split, study_mpp, talk)
    errors = list(score.errors)
    try:
        write_scores(score, output or score.default_folder)
    except StorageError as error:  # the scores are printed all the same
        errors.append(error)
    if as_json:
        print_json(score.to_json())
    else:
        click.echo(score.title)
        print_table(score_table(score))
    _end_with(errors)
