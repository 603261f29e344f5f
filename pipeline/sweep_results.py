"""What a sweep found: a file with every run of it, a summary of each combination, and a table to read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from pipeline import scoresheets
from pipeline.finished import Finished
from pipeline.job import Job
from pipeline.outcome import Outcome
from pipeline.sweeping import variants
from pipeline.workspace import Workspace

CSV = "sweep.csv"


def write_csv(work: Workspace) -> tuple[Path | None, list[str]]:
    """Write ``sweep.csv``: a row for each class of each run ever trained on the study as its data are now.

    Columns: encoder, decoder, everything in which the runs differ, decoder_parameters, seed, class, and the test
    split's dice (empty where the class is nowhere), intersection, prediction and truth. Returns where it is, or None
    where there is no run, and sentences on runs that were left out. Raises :class:`store.errors.StorageError`, and what
    is wrong with a damaged run.
    """
    everything, left_out = variants(work)
    found = [one.undamaged() for one in everything]
    if not found:
        return None, left_out
    path = work.results / CSV
    scoresheets.write_csv(path, _rows(found, work.dataset.classes))
    return path, left_out


def _rows(found: Sequence[Finished], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for variant in found:
        about = {"encoder": variant.encoder, "decoder": variant.decoder, **variant.factors}
        for seed, run in variant.runs.items():
            head = {**about, "decoder_parameters": variant.decoder_parameters, "seed": seed}
            yield from scoresheets.by_class(head, classes, run.result.best_counts("test"))


def summary(work: Workspace, jobs: Sequence[Job], outcome: Outcome | None) -> dict[str, Any]:
    """Return what is known of every combination, in the order of ``jobs``, as JSON-able values.

    Dice is the mean test Dice over classes: mean and sample standard deviation (None for one seed) over the finished
    seeds. ``outcome`` says what was done just now; None where nothing was.
    """
    rows = [_combination(job) for job in jobs]
    found: dict[str, Any] = {
        "study": work.study.name,
        "runs": sum(len(job.seeds) for job in jobs),
        "finished": sum(len(row["seeds"]) for row in rows),
        "combinations": rows,
    }
    if outcome is not None:
        found["trained"] = sum(map(len, outcome.trained))
        unread = [{"run": title, "why": str(error)} for title, error in outcome.unread]
        found["failed"] = unread + [{"run": one.title, "why": one.why} for one in outcome.failures]
    return found


def _combination(job: Job) -> dict[str, Any]:
    found = Finished.of(job).undamaged()
    dice = found.dice
    known = dice[~np.isnan(dice)]
    return {
        "encoder": found.encoder,
        "decoder": found.decoder,
        "decoder_options": dict(job.settings.options),
        "factors": dict(found.factors),
        "decoder_parameters": found.decoder_parameters if found.runs else None,
        "seeds": list(found.runs),
        "missing_seeds": [seed for seed in job.seeds if seed not in found.runs],
        "dice": {
            "mean": float(known.mean()) if len(known) else None,
            "std": float(known.std(ddof=1)) if len(known) > 1 else None,
            "by_seed": [None if math.isnan(value) else value for value in dice.tolist()],
        },
    }


def table(found: dict[str, Any]) -> Table:
    """The summary as a table: encoder, decoder, what is varied, test Dice (%) as mean ± std over seeds."""
    rows = found["combinations"]
    factors = [name for name in rows[0]["factors"] if name != "decoder"]
    decoders = "decoder" in rows[0]["factors"]
    shown = Table(
        title=f"{escape(found['study'])}: mean test Dice (%), mean ± std over seeds",
        caption=f"{found['finished']} of {found['runs']} runs finished",
    )
    for name in ("encoder", "decoder", *factors):
        shown.add_column(escape(name), overflow="fold")
    for name in ("Dice", "seeds", "decoder par."):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        dice, parameters = row["dice"], row["decoder_parameters"]
        spread = "" if dice["std"] is None else f" ± {100 * dice['std']:.2f}"
        shown.add_row(
            escape(row["encoder"]),
            escape(row["factors"]["decoder"] if decoders else row["decoder"]),
            *(escape(row["factors"][name]) for name in factors),
            "–" if dice["mean"] is None else f"{100 * dice['mean']:.2f}{spread}",
            f"{len(row['seeds'])} / {len(row['seeds']) + len(row['missing_seeds'])}",
            "–" if parameters is None else f"{parameters:,}",
        )
    return shown
