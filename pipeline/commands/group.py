"""The outermost group of commands: how a command ends that cannot do what it is asked."""

from __future__ import annotations

import sys
from typing import Any

import click

from pipeline.interrupts import LINE, STATUS, ending, raising
from store.errors import FrostgridError


class ExplainingGroup(click.Group):
    """Ends with the explained error and its exit status instead of a trace."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; an interrupt before or after the command proper ends the process with one line."""
        with ending():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            with raising():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(LINE, err=True)
            ctx.exit(STATUS)
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
