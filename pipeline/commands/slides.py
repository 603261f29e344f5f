"""The commands that use a trained run on other images: predict and evaluate."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pipeline.commands.options import (
    F,
    LocalPath,
    batch_option,
    device_option,
    json_option,
    quiet_option,
    threads_option,
)
from pipeline.console import Talk, print_json, print_table
from store.errors import InputError

if TYPE_CHECKING:
    from pipeline.slide_windows import Windows
    from stages.encoders import AskedDtype
    from stages.slides.tissue import Threshold


class Finite(click.FloatRange):
    """A number within limits: neither infinite nor none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


run_argument = click.argument("run", type=click.Path(path_type=Path, file_okay=False), metavar="RUN")


def looks_with_a_run(command: F) -> F:
    """Give a command with a ``run_argument`` the options of how a run looks at images.

    It is called with windows and talk.
    """

    @functools.wraps(command)
    def with_windows(
        run: Path,
        weights: Path | None,
        device: str | None,
        dtype: AskedDtype | None,
        batch: int | None,
        threads: int,
        overlap: float,
        cache: Path | None,
        quiet: bool,
        **others: Any,
    ) -> Any:
        # torch takes seconds to load: not for --help
        from pipeline.slide_runs import TrainedRun
        from pipeline.slide_windows import Backbone, Windows
        from stages.encoders import usable_device

        if not run.is_dir():
            raise InputError(
                "There is no such run",
                where=run,
                remedy="Give the folder of a finished run: runs/STUDY/ENCODER/DECODER/seed-….",
            )
        talk, trained, target = Talk(quiet=quiet), TrainedRun(run), usable_device(device)
        backbone = Backbone(trained, talk, device=target, weights=weights, dtype=dtype or "auto", batch=batch)
        return command(Windows(trained, backbone, target, threads, overlap, cache), talk, **others)

    for decorate in (
        quiet_option,
        json_option,
        threads_option,
        batch_option,
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            default=None,
            help="Precision of the encoder. [default: that of the tokens the run was trained on]",
        ),
        device_option,
        click.option(
            "--weights",
            type=click.Path(path_type=Path, exists=True),
            help="Weights of the run's encoder, file or folder. "
            "[default: the study's, FROSTGRID_WEIGHTS, or the Hub's]",
        ),
        click.option(
            "--cache",
            type=LocalPath(file_okay=False),
            metavar="DIRECTORY",
            help="Keep the token grids of all windows there, so that another decoder needs no encoder.",
        ),
        click.option(
            "--overlap",
            type=click.FloatRange(0, 0.9),
            default=0.5,
            show_default=True,
            help="How far neighbouring windows overlap, as a share of their side.",
        ),
        click.option(
            "--study-mpp",
            type=Finite(0, min_open=True),
            default=None,
            help="µm a pixel of the tiles of the run's study, where that does not say it.",
        ),
    ):
        with_windows = decorate(with_windows)
    return cast(F, with_windows)


class _TissueType(click.ParamType):  # type: ignore[type-arg]
    """``auto``, ``all`` or a threshold."""

    name = "auto|all|THRESHOLD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Threshold:
        """Return the word or the number."""
        if value == "auto":
            return "auto"
        if value == "all":
            return "all"
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < 3:
            self.fail(f"{value!r} is neither auto, nor all, nor a number from 0 to 3", param, ctx)
        return number


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
    type=_TissueType(),
    default="auto",
    show_default=True,
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
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if len(outcomes) > 1:
        talk.say(f"{len(outcomes) - len(errors)} of {len(outcomes)} slides mapped, {len(errors)} failed")
    if errors:
        raise SystemExit(max(error.exit_status for error in errors))


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
    by name. Prints the pooled Dice.
    """
    from pipeline.slide_evaluation import evaluated, labelled_data, score_table, write_scores

    work = labelled_data(windows.run, data, windows.threads)
    score = evaluated(windows, work, split, study_mpp, talk)
    write_scores(score, output or score.default_folder)
    if as_json:
        print_json(score.to_json())
    else:
        click.echo(score.title)
        print_table(score_table(score))
