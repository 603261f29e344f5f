"""From the variants that a sweep trained to factors: which runs differ in one thing only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.finished import Finished
from pipeline.recorded import EVERY_RUN, run_folders
from pipeline.report.ablations import Ablated
from pipeline.report.results import Result
from pipeline.report.summary import clusters_of
from pipeline.sweeping import variants
from pipeline.workspace import Workspace
from stages.evidence import assess
from store.errors import VerificationError

DECODER, OPTIONS = "decoder", "train.decoder_options."


def swept(
    workspace: Workspace, results: Sequence[Result], seeds: int | None = None
) -> tuple[list[Ablated], list[str]]:
    """Return every factor that was varied with its values, and a sentence where a damaged run forbids it.

    A factor's values stand beside one another where all else is the same. ``results``: the study's own runs, from
    which everything that a line has in common with the study is known and not said. ``seeds`` as for
    :func:`pipeline.report.results.collect`; None for all that were trained.
    """
    own = {run.folder for result in results for run in result.runs.values()}
    damaged = {Path(error.where or "").parent for result in results for error in result.damaged.values()}
    if own | damaged >= set(run_folders(workspace.results, EVERY_RUN)):
        return [], []
    try:
        found = variants(workspace, seeds)
    except VerificationError as error:
        return [], [f"No ablations are shown, as one of the runs is damaged: {error}"]
    base = next((one for one in found if any(run.folder in own for run in one.runs.values())), None)
    usual = {} if base is None else _settings(base)
    groups: dict[tuple[str, str], dict[str, Finished]] = {}
    for one in found:
        settings = _settings(one)
        for factor in settings:
            if settings[factor] == "":
                continue
            rest = {
                name: value
                for name, value in settings.items()
                if name != factor and not (factor == DECODER and name.startswith(OPTIONS))
            }
            line = ", ".join(
                [one.encoder, *(f"{n} {v}" for n, v in rest.items() if v not in ("", usual.get(n, "")))]
            )
            groups.setdefault((factor, line), {})[_value(one, factor, settings, found)] = one
    return [
        _ablated(workspace, factor, value, line, one)
        for (factor, line), members in groups.items()
        if len(members) > 1
        for value, one in members.items()
    ], []


def _settings(one: Finished) -> dict[str, str]:
    return {DECODER: one.decoder, **one.factors}


def _value(one: Finished, factor: str, settings: Mapping[str, str], found: Sequence[Finished]) -> str:
    """Name a value; a decoder with its options where it was trained with several."""
    options = {name: value for name, value in settings.items() if name.startswith(OPTIONS) and value}
    if factor != DECODER or not options:
        return settings[factor]
    several = {
        name
        for name in options
        if len({other.factors.get(name) for other in found if other.decoder == one.decoder}) > 1
    }
    said = [f"{name.removeprefix(OPTIONS)} {options[name]}" for name in sorted(several)]
    return " ".join([one.decoder, *([f"({', '.join(said)})"] if said else [])])


def _ablated(workspace: Workspace, factor: str, value: str, line: str, one: Finished) -> Ablated:
    clusters, _ = clusters_of(workspace.tiles["test"])
    interval = assess({line: one.test_counts}, clusters).mean[line]
    return Ablated(
        factor,
        _number(value),
        line,
        tuple(one.dice.tolist()),
        one.decoder_parameters,
        None if interval is None else (interval.low, interval.high),
    )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
