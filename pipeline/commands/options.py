"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from pipeline.console import Talk
from pipeline.study import Study, read_study
from store.errors import InputError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace
    from stages.encoders import AskedDtype

F = TypeVar("F", bound=Callable[..., Any])


def study_of(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Study | None:
    """Read the study that an argument names; ``None`` where it is left out."""
    return None if value is None else read_study(value)


class LocalPath(click.Path):
    """A path on this machine, that need not exist; a URL is refused, which a path would quietly make a folder of."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if "://" in str(value):
            raise InputError(
                "This has to be a path on this machine",
                where=str(value),
                remedy="Give a path. frostgrid cache push sends caches to a URL.",
            )
        return super().convert(value, param, ctx)


def studies_of(_ctx: click.Context, _param: click.Parameter, value: Sequence[Path]) -> list[Study]:
    """Read the studies that an option names."""
    return [read_study(path) for path in value]


def studies_option(help: str) -> Callable[[F], F]:
    """Return the option ``--study``, which may be given several times."""
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option(
        "--study", "studies", multiple=True, type=path, callback=studies_of, metavar="FILE", help=help
    )


def optional_study_option(help: str) -> Callable[[F], F]:
    """Return the option ``--study``, which may be left out."""
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--study", type=path, callback=study_of, metavar="FILE", help=help)


def required_study_option(help: str) -> Callable[[F], F]:
    """Return the option ``--study``, which has to be given."""
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--study", type=path, callback=study_of, required=True, metavar="FILE", help=help)


study_argument = click.argument(
    "study", type=click.Path(path_type=Path, dir_okay=False), callback=study_of, metavar="STUDY"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress and no remarks on stderr.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Threads that read and render tiles.",
)
transfers_option = click.option(
    "--threads",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Files under way at the same time.",
)
cache_root_option = click.option(
    "--cache",
    "root",
    type=LocalPath(file_okay=False),
    default=Path("cache"),
    show_default=True,
    metavar="DIRECTORY",
    help="Folder of feature caches.",
)
runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of results.",
)
encoder_option = click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="NAME",
    help="Only this encoder (repeatable); NAME@BLOCK takes another block's output. [default: the study's]",
)
cache_option = click.option(
    "--cache",
    metavar="DIRECTORY|URL",
    help="Folder of feature caches, or the URL of one. [default: the study's cache.root]",
)
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


def bytes_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the bytes of an amount of memory as people write it: ``4GiB``, ``500MB`` or a number of bytes."""
    if value is None:
        return None
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    unit = units.get((match[2] or "B").upper()) if match else None
    if match is None or unit is None:
        raise click.BadParameter(f"{value!r} is no amount of memory, such as 4GiB or 500MB.", ctx, param)
    if (amount := int(float(match[1]) * unit)) < 1:
        raise click.BadParameter(
            f"{value!r} is not even a byte: give what there is to use, such as 4GiB.", ctx, param
        )
    return amount


memory_option = click.option(
    "--max-memory",
    "memory",
    default=None,
    callback=bytes_of,
    metavar="4GiB",
    help="Host memory to get along with: features are streamed, and batches worked on piece by piece, where they take "
    "more. [default: whatever there is]",
)
parallel_option = click.option(
    "--parallel",
    type=click.IntRange(1),
    default=None,
    metavar="N",
    help="Train N runs at a time, in processes that share the cores (or have a GPU each) and one copy of the features.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    metavar="N",
    help="Do the work in N processes of a dask cluster on this machine, which share its cores or have a GPU each.",
)
scheduler_option = click.option(
    "--scheduler",
    default=None,
    metavar="ADDRESS",
    help="Do the work on the dask cluster of this scheduler, such as tcp://host:8786. Its workers have to see the data "
    "and the caches.",
)


def with_crew(command: F) -> F:
    """Give a command the options that name a cluster; it is called with ``crew``, None where none is asked for.

    To be put below :func:`works_on_study`.
    """

    @functools.wraps(command)
    def with_cluster(
        workspace: Workspace, talk: Talk, workers: int | None, scheduler: str | None, **others: Any
    ) -> Any:
        if workers is None and scheduler is None:
            return command(workspace, talk, crew=None, **others)
        if others.get("parallel") is not None:
            raise InputError(
                "Runs are trained in processes that share one copy of the features, or by the workers of a cluster",
                where="--parallel",
                remedy="Leave it out, or --workers and --scheduler.",
            )
        from pipeline.cluster.connecting import connected

        with connected(workers, scheduler, others.get("device"), talk) as crew:
            return command(workspace, talk, crew=crew, **others)

    return cast(F, scheduler_option(workers_option(with_cluster)))


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
        stage_to: Path | None,
        dtype: AskedDtype | None = None,
        **others: Any,
    ) -> Any:
        from pipeline import engine  # torch takes seconds to load: not for --help or a misspelt study

        work = engine.workspace(study, cache, runs, threads, dtype or "auto", stage_to)
        return command(work, Talk(quiet=quiet), **others)

    for decorate in (
        quiet_option,
        threads_option,
        runs_option,
        click.option(
            "--stage-to",
            type=LocalPath(file_okay=False),
            metavar="DIRECTORY",
            help="Folder for copies of what is needed of caches at a URL. [default: cache]",
        ),
        cache_option,
        study_argument,
    ):
        with_workspace = decorate(with_workspace)
    return cast(F, with_workspace)
