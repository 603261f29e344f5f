"""The options of how a run looks at images, which predict and evaluate share."""

from __future__ import annotations

import functools
import math
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
from pipeline.console import Talk
from store.errors import InputError

if TYPE_CHECKING:
    from stages.encoders import AskedDtype


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
