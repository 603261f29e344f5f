"""The command that looks how far a study is: status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.options import (
    cached_dtype_option,
    encoder_option,
    json_option,
    seeds_option,
    weights_option,
    works_on_study,
)
from pipeline.console import Talk, print_json, print_table

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


@click.command()
@encoder_option
@weights_option
@seeds_option
@cached_dtype_option
@json_option
@works_on_study
def status(
    workspace: Workspace,
    talk: Talk,
    encoders: Sequence[str],
    weights: Path | None,
    seeds: int | None,
    as_json: bool,
) -> None:
    """Show what is done, running, failed and to do, also while others work on it. Changes nothing.

    Exit status 1 where something failed and was not tried again, 4 where something is damaged, 0 otherwise, be there
    work left or not.
    """
    from pipeline.status import raise_trouble
    from pipeline.status import status as look
    from pipeline.status_tables import status_parts

    found = look(workspace, encoders, seeds, weights=weights)
    if as_json:
        print_json(found)
    else:
        for part in status_parts(found):
            if isinstance(part, str):
                click.echo(part)
            else:
                print_table(part)
    raise_trouble(found)
