"""From the variants that a sweep trained to factors: which runs differ in one thing only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.finished import Finished
from pipeline.recorded import EVERY_RUN, run_folders
from pipeline.report.ablations import Ablated
from pipeline.report.results import damaged_folders, environments_of, stored_runs
from pipeline.report.summary import clusters_of
from pipeline.sweeping import variants
from pipeline.varying import DEFAULT
from pipeline.workspace import Workspace
from stages.decoders import decoder_options
from stages.encoders import canonical_name
from stages.evidence import assess
from stages.evidence.words import seeds_text

DECODER, OPTIONS = "decoder", "train.decoder_options."


@dataclass
class Swept:
    """What was varied, factor by factor; in sentences, what of it is left out, and which runs are damaged."""

    ablated: list[Ablated] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def swept(workspace: Workspace, results: Sequence[Finished], seeds: int | None = None) -> Swept:
    """Return every factor that was varied with its values, all of them over the same seeds.

    A factor's values stand beside one another where all else is the same. ``results``: the study's own runs, from
    which everything that a line has in common with the study is known and not said. ``seeds`` as for
    :func:`pipeline.report.results.collect`.
    """
    own = {run.folder for result in results for run in result.runs.values()}
    named = damaged_folders(results)
    made = Swept()
    if own | named >= set(run_folders(workspace.results, EVERY_RUN)):
        return made
    count = seeds or workspace.study.train.seeds
    everything, made.notes = variants(workspace)
    highest = max((seed for one in everything for seed in one.runs), default=0)
    if highest >= count:
        made.notes.append(
            f"There are runs of more than the {count} seeds that are shown: frostgrid report --seeds {highest + 1} "
            "shows them all."
        )
    for one in everything:
        for error in one.damaged.values():
            if Path(error.where or "").parent not in named:
                made.damaged.append(f"A run of a sweep is damaged and was left out: {error}")
    shown = [one.over(range(count)) for one in everything]
    shown = [one for one in shown if one.runs]
    base = next((one for one in shown if any(run.folder in own for run in one.runs.values())), None)
    usual = {} if base is None else _settings(base)
    for (factor, rest), members in _groups(shown).items():
        if len(members) > 1:
            _add(made, workspace, factor, _line(rest, usual), members, usual)
    return made


_Rest = tuple[tuple[str, str], ...]


def _groups(found: Sequence[Finished]) -> dict[tuple[str, _Rest], dict[str, Finished]]:
    """Return the values of each factor, by all else that their runs have in common: the encoder and other settings."""
    groups: dict[tuple[str, _Rest], dict[str, Finished]] = {}
    for one in found:
        settings = _settings(one)
        for factor in settings:
            if settings[factor] == "":  # another decoder's option
                continue
            rest = {
                name: value
                for name, value in settings.items()
                if name != factor and not (factor == DECODER and name.startswith(OPTIONS))
            }
            key = factor, (("encoder", one.encoder), *sorted(rest.items()))
            groups.setdefault(key, {})[_value(one, factor, settings, found)] = one
    return groups


def _line(rest: _Rest, usual: Mapping[str, str]) -> str:
    (_, encoder), *others = rest
    return ", ".join([encoder, *(f"{name} {v}" for name, v in others if v not in ("", usual.get(name, "")))])


def _add(
    made: Swept,
    workspace: Workspace,
    factor: str,
    line: str,
    members: Mapping[str, Finished],
    usual: Mapping[str, str],
) -> None:
    """Add a line of a factor, over the seeds that all of its values have."""
    common = set.intersection(*(set(one.runs) for one in members.values()))
    if not common:
        made.notes.append(f"{factor} of {line} is not shown: no seed was trained with all of its values.")
        return
    if any(len(one.runs) > len(common) for one in members.values()):
        made.notes.append(
            f"{factor} of {line} is shown over {seeds_text(sorted(common))} alone, which all of its values have."
        )
    clusters, _ = clusters_of(workspace.tiles["test"])
    for value, whole in members.items():
        one = whole.over(common)
        interval = assess({line: one.test_counts}, clusters).mean[line]
        made.ablated.append(
            Ablated(
                factor,
                _number(value),
                line,
                tuple(one.dice.tolist()),
                one.decoder_parameters,
                None if interval is None else (interval.low, interval.high),
                _options(workspace, one, usual),
                _before(workspace, one),
                stored_runs(workspace, one),
                one.job.reference,
                one.encoder in map(canonical_name, workspace.study.encoders.names),
                next(iter(one.runs.values())).identity["tokens"],
                environments_of(one),
            )
        )


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


def _options(workspace: Workspace, one: Finished, usual: Mapping[str, str]) -> tuple[str, ...]:
    """Return the options of ``frostgrid sweep`` that make these runs of the study."""
    train = workspace.study.train
    plain = decoder_options(one.decoder, train.decoder_options if train.decoder == one.decoder else {})
    chosen = one.job.settings.options.items()
    set_to = {n: DEFAULT if v is None else v for n, v in chosen if v != plain[n]}
    decoder = ":".join([one.decoder, *([",".join(f"{n}={v}" for n, v in set_to.items())] if set_to else [])])
    given = ["--encoder", one.job.reference, "--decoder", decoder]
    for name, value in one.factors.items():
        if not name.startswith(OPTIONS) and value not in ("", DEFAULT, usual.get(name, "")):
            given += ["--set", f"{name}={value}"]
    return tuple(given)


def _before(workspace: Workspace, one: Finished) -> tuple[str, ...]:
    """Return the command that makes the cache of these runs, where extracting the study's views does not.

    Nothing where no command is known: of float16 beside a study's int8, and of caches at a URL.
    """
    wanted, usual = one.job.work.study.cache.encoding, workspace.study.cache.encoding
    exact = one.job.exact_tokens() if (wanted, usual) == ("int8", "float16") else None
    if exact is None or workspace.origin is not None:
        return ()
    return "cache", "convert", f"{workspace.study.cache.root}/{exact.path.name}", "--to", "int8"


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
