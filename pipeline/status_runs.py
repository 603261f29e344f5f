"""How far the runs of a study are: those that are asked for, and all others that lie in its results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.job import Job
from pipeline.journal_reading import Journals
from pipeline.recorded import EVERY_RUN, run_folders
from pipeline.workspace import Workspace
from stages.training.record import read_record
from store.errors import FrostgridError, VerificationError
from store.identity import canonical_json, differences

_OF_A_SEED = ("seed", "study", "encoder")  # what runs of one kind differ in
_OTHER = {
    "tokens": "another cache",
    "masks": "other masks",
    "tiles": "other tiles",
    "revision": "another version",
    "decoder_source": "another decoder of this name",
}


@dataclass(frozen=True)
class _Run:
    """A finished run by its ``run.json``; ``name``: its folder, relative to the study's results."""

    name: str
    seed: int
    identity: Mapping[str, Any]


class Recordings:
    """Every run in a study's results, and what the journals say of those that are not there yet."""

    def __init__(self, work: Workspace, journals: Journals) -> None:
        self._work, self._journals = work, journals
        self._asked: set[str] = set()
        self._like: dict[str, dict[str, Any]] = {}
        self._damaged: set[str] = set()
        self.faults: list[FrostgridError] = []

    def of(self, job: Job) -> dict[str, Any]:
        """Return the seeds of ``job`` that are done, running, failed, damaged and to do, as JSON-able values.

        Where the key of its cache is empty, a run made from any cache that fits counts. ``failures`` says why, by the
        names of the runs.
        """
        found: dict[str, Any] = {name: [] for name in ("done", "running", "failed", "damaged", "to_do")}
        found["failures"] = {}
        for seed in job.seeds:
            wanted = _as_stored(job.identity(seed))
            self._like.setdefault(job.slug, wanted)
            name = self._named(job, seed) if job.tokens.key else self._fitting(job, seed, wanted)
            self._asked.add(name)
            state = self._state(name)
            found[state].append(seed)
            if state == "failed":
                found["failures"][name] = self._journals.failed["run", name]
        return found

    def others(self) -> dict[str, Any]:
        """Return what there is beside the runs that were asked for: under other settings, of other data or encoders.

        ``recorded``: the finished ones, those that differ in the seed only together, with what tells them from the
        study as it is. ``running``, and ``failures`` with the reasons: names of runs that are not there.
        """
        groups: dict[bytes, list[_Run]] = {}
        for run in self._recorded.values():
            if run.name not in self._asked:
                shared = {name: value for name, value in run.identity.items() if name not in _OF_A_SEED}
                groups.setdefault(canonical_json([run.name.rpartition("/")[0], shared]), []).append(run)
        names = (name for kind, name in self._journals.under_way if kind == "run")
        return {
            "recorded": [self._group(runs) for _, runs in sorted(groups.items())],
            "running": sorted(name for name in names if self._is_other(name)),
            "failures": {
                name: why
                for (kind, name), why in self._journals.failed.items()
                if kind == "run" and self._is_other(name) and ("run", name) not in self._journals.under_way
            },
        }

    def _is_other(self, name: str) -> bool:
        return name not in self._asked and name not in self._recorded

    def _named(self, job: Job, seed: int) -> str:
        return job.run_folder(seed).relative_to(self._work.results).as_posix()

    def _fitting(self, job: Job, seed: int, wanted: Mapping[str, Any]) -> str:
        """Return a finished run that fits a job without a cache, else a name that no run has."""
        folder = job.folder.relative_to(self._work.results).as_posix()
        for run in self._recorded.values():
            if run.name.startswith(f"{folder}/") and run.seed == seed:
                left = {**run.identity, "tokens": wanted["tokens"]}
                if all(left.get(name) == value for name, value in wanted.items()):
                    return run.name
        return self._named(job, seed)

    def _state(self, name: str) -> str:
        if name in self._recorded:
            return "done"
        if name in self._damaged:
            return "damaged"
        if ("run", name) in self._journals.under_way:
            return "running"
        return "failed" if ("run", name) in self._journals.failed else "to_do"

    @cached_property
    def _recorded(self) -> dict[str, _Run]:
        found = {}
        for folder in run_folders(self._work.results, EVERY_RUN):
            name = folder.relative_to(self._work.results).as_posix()
            try:
                found[name] = _read(name, folder)
            except FrostgridError as fault:
                self._damaged.add(name)
                self.faults.append(fault)
        return found

    def _group(self, runs: list[_Run]) -> dict[str, Any]:
        first = runs[0]
        slug, decoder, _ = first.name.split("/")
        return {
            "encoder": str(first.identity.get("encoder", slug)),
            "decoder": decoder,
            "differs": list(self._differing(first, self._like[slug])) or ["its seeds"]
            if slug in self._like
            else ["its encoder"],
            "done": sorted(run.seed for run in runs),
        }

    def _differing(self, run: _Run, wanted: Mapping[str, Any]) -> Iterator[str]:
        """Yield in what a run differs from the one that the study asks for of its encoder, but for the seed."""
        found = {
            name: value for name, value in run.identity.items() if name in wanted and name not in _OF_A_SEED
        }
        asked = {name: wanted[name] for name in found}
        if found.get("encoding") != asked.get("encoding"):
            found.pop("tokens", None)  # which is another cache then, of course
            asked.pop("tokens", None)
        train = run.identity.get("study", {}).get("train", {})
        for one in differences(found, asked):
            top = one.field.partition(".")[0]
            if top == "tiles" and train.get("tiles") != self._work.study.train.tiles:
                yield f"train.tiles = {train.get('tiles') or 'all'}"
            elif top in _OTHER:
                yield _OTHER[top]
            else:
                yield f"{one.field.removeprefix('settings.')} = {one.stored}"


def _read(name: str, folder: Path) -> _Run:
    body = read_record(folder)
    identity, files = body.get("identity"), body.get("files")
    if not isinstance(identity, dict) or not isinstance(files, dict) or not isinstance(body.get("seed"), int):
        raise VerificationError(
            "The run.json is incomplete", where=folder, remedy="Remove the folder to train again."
        )
    if lost := sorted(name for name in files if not (folder / name).is_file()):
        raise VerificationError(
            f"The run has lost {', '.join(lost)}", where=folder, remedy="Remove the folder to train again."
        )
    return _Run(name, body["seed"], identity)


def _as_stored(identity: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(canonical_json(identity))
    return found
