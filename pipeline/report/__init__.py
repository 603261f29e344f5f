"""Tables and pictures of a study's finished runs."""

from __future__ import annotations

from typing import Any

from pipeline.console import Talk
from pipeline.report.pictures import predictions_picture
from pipeline.report.results import collect, summarise, write_results
from pipeline.workspace import Workspace
from store.errors import FrostgridError


def make_report(workspace: Workspace, seeds: int | None, talk: Talk) -> dict[str, Any]:
    """Write ``results.csv``, ``tiles.csv``, ``summary.json`` and a picture per encoder; return the summary.

    Only runs that belong to the study as it is now are counted; what is missing is said. Raises
    :class:`store.errors.InputError` when there is no finished run at all.
    """
    found = collect(workspace, seeds)
    summary = summarise(workspace, found)
    write_results(workspace, found, summary)
    for result in found:
        if result.runs:
            path = workspace.results / f"{result.slug}.png"
            try:
                predictions_picture(workspace, result, path)
                talk.say(f"wrote {path}")
            except (
                FrostgridError
            ) as error:  # every figure is at hand without the cache, only the picture is not
                talk.say(f"no picture of {result.encoder}: {error}")
        if result.missing:
            talk.say(
                f"{result.encoder}: no finished run for seed(s) {', '.join(map(str, result.missing))}; "
                f"train them with: frostgrid train STUDY --encoder {result.encoder}"
            )
    talk.say(f"wrote {workspace.results / 'results.csv'}, tiles.csv and summary.json")
    return summary
