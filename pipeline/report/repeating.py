"""Everything needed to make a result again: the commands, the study with every default, fingerprints and versions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any


def repeating(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the last section of the page shows.

    ``commands``: what makes all of it, but for the ``caches`` of which it is said in sentences; ``study``: the resolved
    study as TOML, ``environments`` the distinct ones of all runs, ``runs`` their folders and fingerprints, ``tokens``
    the key of each cache with its encoder.
    """
    environments: dict[str, dict[str, Any]] = {}
    for row in [*summary["results"], *summary["ablations"]]:
        for one in row["environments"]:
            environments[json.dumps(one, sort_keys=True)] = one
    study = f"{summary['study']['name']}.toml"
    seeds = 1 + max(max(row["seeds"]) for row in summary["results"])  # some in between may be missing
    asked = max(len(row["seeds"]) + len(row["missing_seeds"]) for row in summary["results"])
    outside = [row["reference"] for row in summary["results"] if not row["in_study"]]
    varied = summary["ablations"]
    swept = [row["reference"] for row in varied if not row["in_study"] and row["reference"] not in outside]
    commands = [["extract", study], ["train", study, "--seeds", str(seeds)]]
    if outside:
        encoders = _asked(outside)
        commands += [["extract", study, *encoders], ["train", study, *encoders, "--seeds", str(seeds)]]
    if swept:
        commands.append(["extract", study, *_asked(dict.fromkeys(swept))])
    for row in varied:
        count = 1 + max(run["seed"] for run in row["runs"])
        commands += [row["before"]] if row["before"] else []
        commands.append(["sweep", study, *row["options"], "--seeds", str(count)])
    encodings = {
        text.partition("=")[2]
        for row in varied
        for text in row["options"]
        if text.startswith("cache.encoding=") and not row["before"]
    }
    commands.append(["report", study, "--seeds", str(asked)])
    runs = [(row["encoder"], run) for row in summary["results"] for run in row["runs"]]
    runs += [
        (f"{row['encoder']}, {row['factor']} {row['value']}", run) for row in varied for run in row["runs"]
    ]
    caches = {row["tokens"]: row["reference"] for row in [*reversed(varied), *reversed(summary["results"])]}
    return {
        "commands": list(dict.fromkeys(shlex.join(["frostgrid", *command]) for command in commands)),
        "study": as_toml({key: value for key, value in summary["study"].items() if key != "name"}),
        "environments": list(environments.values()),
        "caches": [
            f"The caches of cache.encoding={encoding} are made apart: with encoding = {encoding!r} under [cache], by "
            "frostgrid extract."
            for encoding in sorted(encodings)
        ],
        "tokens": [(reference, key) for key, reference in reversed(caches.items())],
        "runs": list({run["folder"]: (name, run) for name, run in reversed(runs)}.values())[::-1],
    }


def _asked(references: Iterable[str]) -> list[str]:
    return [part for name in references for part in ("--encoder", name)]


def as_toml(tables: Mapping[str, Any]) -> str:
    """Return a resolved study as TOML that reads back as the same study; what is None is left out."""
    lines: list[str] = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{_key(key)} = {_value(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's numbers, true, false and texts are TOML's too, but for the letters that JSON need not escape
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    plain = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
    return key if plain else json.dumps(key, ensure_ascii=False)
