"""Sweeps: one study under many decoders, settings and training sets, all answered from the same caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.choosing import UnclearCache
from pipeline.engine import chosen_encoders
from pipeline.finished import Finished
from pipeline.job import Job, settings_of
from pipeline.recorded import recorded_runs
from pipeline.study import Study, validated
from pipeline.varying import DEFAULT, Varied
from pipeline.workspace import Workspace
from stages.encoders import canonical_name
from stages.tiles.dataset import flatten, raise_all
from store.errors import InputError
from store.identity import canonical_json


def combinations(
    work: Workspace,
    encoders: Sequence[str],
    varied: Sequence[Varied],
    seeds: int | None,
    weights: Path | None,
) -> list[Job]:
    """Return a job for each encoder and each combination of values, the values of the last given varying fastest.

    Combinations that come to the same are one job. Raises :class:`store.errors.InputErrors` with every value that the
    study cannot have, :class:`InputError` for an encoder that is not known.
    """
    names = chosen_encoders(work.study, encoders, weights)
    twice = sorted({one.name for one in varied if sum(one.name == other.name for other in varied) > 1})
    if twice:
        raise InputError(
            f"{', '.join(twice)} is varied twice", where="--set", remedy="Give all values at once: KEY=V1,V2."
        )
    count = seeds or work.study.train.seeds
    faults: dict[str, InputError] = {}
    studies: list[tuple[Study, dict[str, str]]] = []
    for choice in product(*(one.values for one in varied)):
        said = dict(zip((one.name for one in varied), (value.text for value in choice), strict=True))
        try:
            studies.append((_changed(work.study, [value.changes for value in choice], said), said))
        except InputError as error:
            for fault in flatten(error):  # said once, not for each combination with it
                faults.setdefault(fault.what, fault)
    raise_all(list(faults.values()), "Nothing was trained. Correct these values.")
    unlike: dict[bytes, tuple[Study, dict[str, str]]] = {}
    for study, said in studies:
        unlike.setdefault(canonical_json(_settled(work, study)), (study, said))
    return [
        Job(work.of(study), name, reference, tuple(range(count)), weights or work.weights_of(name), said)
        for name, reference in names.items()
        for study, said in unlike.values()
    ]


def _changed(study: Study, changes: Sequence[Mapping[str, Any]], said: Mapping[str, str]) -> Study:
    where = ", ".join(f"{name} = {text}" for name, text in said.items())
    table: dict[str, Any] = study.resolved()
    for key, value in (item for one in changes for item in one.items()):
        *sections, field = key.split(".")
        target = table
        for section in sections:
            inner = target.get(section)
            if not isinstance(inner, dict):
                raise InputError(f"Unknown key '{key}'", where=where, remedy="Vary a key of [train].")
            target = inner
        target[field] = deepcopy(value)
    changed = validated(table, where)
    settings_of(changed)
    return changed


def _settled(work: Workspace, study: Study) -> dict[str, Any]:
    """Return what decides the runs of ``study`` on the tiles of ``work`` beside data, views and encoders.

    With every default, and what comes to the same said in the same way.
    """
    train = study.train.model_dump(mode="json", exclude={"seeds"})
    train["decoder_options"] = dict(settings_of(study).options)
    train["views"] = study.training_views
    if train["tiles"] == len(work.tiles["train"]):
        train["tiles"] = None
    return {
        "train": train,
        "cache": {"encoding": study.cache.encoding},
    }


def variants(work: Workspace) -> tuple[list[Finished], list[str]]:
    """Return every combination that was ever trained on the study as its data, split and views are now.

    The factors of their jobs are everything in which they differ from each other (``train.lr``, ``train.views``, …), ""
    where that does not apply. In the order of encoder, decoder and factors.

    Found by what the runs in the study's results say of themselves; those of other tiles or masks, and of encoders that
    are not known here, are left out. So are, with a sentence on each, those of which it is not clear from which cache
    they are, and those of settings or decoders that there are not here.
    """
    found: dict[bytes, tuple[str, Study, set[int]]] = {}
    left_out: dict[str, None] = {}
    recorded = list(recorded_runs(work))
    known = {reference for reference in {run.encoder for run in recorded} if _is_known(reference)}
    for run in recorded:
        if run.encoder not in known:
            continue
        try:
            study = validated(
                {
                    **work.study.resolved(),
                    "train": {**run.train, "seeds": work.study.train.seeds},
                    "cache": {**work.study.resolved()["cache"], "encoding": run.encoding},
                },
                work.results,
            )
            key = canonical_json([canonical_name(run.encoder), _settled(work, study)])
        except InputError as error:
            left_out[f"Runs of {run.encoder} were left out: {error}"] = None
        else:
            found.setdefault(key, (run.encoder, study, set()))[2].add(run.seed)
    kept = []
    for reference, study, trained in found.values():
        name = canonical_name(reference)
        job = Job(work.of(study), name, reference, tuple(sorted(trained)), work.weights_of(name))
        try:
            job.work.training_tiles()
        except InputError:  # trained on more tiles than the split has now
            continue
        try:
            finished = Finished.of(job)
        except UnclearCache as error:
            left_out[f"Runs of {name} were left out: {error}"] = None
            continue
        if finished.runs or finished.damaged:
            kept.append(finished)
    flat = [_factors(one.job) for one in kept]
    names = sorted({name for factors in flat for name in factors})
    differing = [name for name in names if len({factors.get(name, "") for factors in flat}) > 1]
    made = [
        replace(one, job=replace(one.job, factors={name: factors.get(name, "") for name in differing}))
        for one, factors in zip(kept, flat, strict=True)
    ]
    made.sort(key=lambda one: (one.encoder, one.decoder, [_natural(v) for v in one.factors.values()]))
    return made, list(left_out)


def _is_known(reference: str) -> bool:
    try:
        canonical_name(reference)
    except InputError:  # named by what reports on the encoders
        return False
    return True


def _factors(job: Job) -> dict[str, str]:
    """Return everything that a sweep can vary, as text; encoder and decoder are told apart from it."""
    settled = _settled(job.work, job.work.study)
    train = {**settled["train"], "tiles": len(job.tiles["train"])}
    options = train.pop("decoder_options")
    del train["decoder"]
    found = {f"train.{name}": value for name, value in train.items()}
    found |= {f"train.decoder_options.{name}": value for name, value in options.items()}
    found["cache.encoding"] = settled["cache"]["encoding"]
    return {name: DEFAULT if value is None else str(value) for name, value in found.items()}


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text
