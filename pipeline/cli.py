"""The ``frostgrid`` command."""

from __future__ import annotations

from pipeline.interrupts import ending

with ending():  # loading what follows takes a moment, in which people change their minds
    import click

    from pipeline.commands.cache import cache
    from pipeline.commands.compare import compare
    from pipeline.commands.data import data
    from pipeline.commands.group import ExplainingGroup
    from pipeline.commands.slides import evaluate, predict
    from pipeline.commands.status import status
    from pipeline.commands.study import extract, plan, report, run, train
    from pipeline.commands.sweep import sweep
    from pipeline.commands.tools import doctor, encoders


@click.group(cls=ExplainingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="frostgrid")
def main() -> None:
    """Which frozen foundation-model encoder segments my tissue best, and how sure are we?

    Stage one (extract) runs each frozen encoder once over every augmented view and caches the token grids; stage
    two (train) trains the decoder from that cache, seed by seed; report makes the tables and pictures.
    """


for _command in (
    extract,
    train,
    sweep,
    report,
    status,
    compare,
    run,
    plan,
    encoders,
    doctor,
    data,
    cache,
    predict,
    evaluate,
):
    main.add_command(_command)
