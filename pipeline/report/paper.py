"""The figures of the paper, to stand beside ours."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pipeline.study import Study


@cache
def paper() -> Mapping[str, Any]:
    """Return ``paper.toml``: the tables' titles and classes, and the encoders' rows."""
    return tomllib.loads((files("pipeline.report") / "paper.toml").read_text(encoding="utf-8"))


def table_of(study: Study, classes: tuple[str, ...]) -> str | None:
    """Return which table of the paper a study's figures belong beside; None where none does.

    PUMA with the paper's three merged classes has Table 1. The data of Table 2 are private: a study of a folder has it
    where its name says so (``upv`` or ``anxa5``) and its classes are the paper's.
    """
    named = any(word in study.name.lower() for word in ("upv", "anxa5"))
    fitting = {"table_1": study.data.kind == "puma", "table_2": study.data.kind == "folder" and named}
    for name, fits in fitting.items():
        if fits and set(classes) == set(paper()["tables"][name]["classes"]):
            return name
    return None


def row_of(encoder: str) -> Mapping[str, Any] | None:
    """Return the paper's row of an encoder; None for one, or a block of one, that it has not."""
    return next((row for row in paper()["encoders"] if row["encoder"] == encoder), None)


def beside(table: str | None, encoder: str, dice: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return the paper's Dice of an encoder and what ours are more or less, all as shares of 1.

    ``dice``: ours by class, and as ``average`` their mean.
    """
    row = row_of(encoder)
    if table is None or row is None:
        return None
    found = {}
    for name, (mean, std) in row[table].items():
        ours = dice[name]
        found[name] = {
            "mean": mean / 100,
            "std": std / 100,
            "difference": None if ours is None else ours - mean / 100,
        }
    return found
