"""Tables, statistics and the page of a study's finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.console import Talk
from pipeline.finished import Finished
from pipeline.report.ablations import ABLATION, ablations
from pipeline.report.contents import SHEETS, sheets
from pipeline.report.gallery import Gallery, Pictures, gallery
from pipeline.report.page import page
from pipeline.report.results import collect, write_results
from pipeline.report.sheets import Figures, Sheet, as_csv, as_latex, as_markdown
from pipeline.report.summary import summarise, write_summary
from pipeline.report.swept import swept
from pipeline.workspace import Workspace
from store.disk_errors import storage_errors
from store.durable import make_folder, put_replacing
from store.errors import FrostgridError

FORMS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}


def make_report(workspace: Workspace, seeds: int | None, talk: Talk) -> dict[str, Any]:
    """Write ``results.csv``, ``tiles.csv``, ``summary.json``, ``tables/`` and ``report.html``; return the summary.

    Only runs that belong to the study as it is now are counted, and those of its sweeps; what is missing or damaged is
    said, there and here; ``damaged_elsewhere`` holds sentences on damaged runs that are none of the table's. Raises
    :class:`store.errors.InputError` when there is no finished run at all.
    """
    collected = collect(workspace, seeds)
    found = collected.results
    varied = swept(workspace, found, seeds)
    summary = summarise(workspace, found, varied.ablated)
    summary["damaged_elsewhere"] = [*varied.damaged, *collected.damaged]
    elsewhere = [*summary["damaged_elsewhere"], *collected.left_out, *varied.notes]
    summary["notes"] += dict.fromkeys(elsewhere)
    write_results(workspace, found)
    write_summary(workspace, summary)
    tables = sheets(summary)
    _write_tables(workspace, {**tables, **{one.sheet.name: one.sheet for one in ablations(Figures(summary))}})
    galleries, lacking = _galleries(workspace, found, summary, talk)
    path = workspace.results / "report.html"
    with storage_errors(path):
        put_replacing(path, page(summary, tables, found, galleries, lacking).encode())
    for note in summary["notes"]:
        talk.say(note)
    talk.say(f"wrote {path}, tables/, results.csv, tiles.csv and summary.json")
    return summary


def _galleries(
    workspace: Workspace, results: Sequence[Finished], summary: dict[str, Any], talk: Talk
) -> tuple[list[Gallery], dict[str, str]]:
    """Return the galleries in the order of the summary, and why an encoder has none."""
    by_name = {result.encoder: result for result in results}
    pictures = Pictures(workspace)
    galleries, lacking = [], {}
    for row in summary["results"]:
        try:
            galleries.append(gallery(workspace, by_name[row["encoder"]], pictures))
        except FrostgridError as error:  # without a cache, say: every figure is at hand all the same
            lacking[row["encoder"]] = str(error)
            talk.say(f"no pictures of {row['encoder']}: {error}")
    return galleries, lacking


def _write_tables(workspace: Workspace, tables: dict[str, Sheet]) -> None:
    folder = workspace.results / "tables"
    with storage_errors(folder):
        make_folder(folder)
        for name, sheet in tables.items():
            for suffix, written in FORMS.items():
                put_replacing(folder / f"{name}.{suffix}", written(sheet).encode())
        for path in folder.iterdir():  # of an earlier report, which had more to show
            ours = path.stem in SHEETS or path.stem.startswith(ABLATION)
            if ours and path.stem not in tables and path.suffix.removeprefix(".") in FORMS:
                path.unlink()
