"""The optional CSV table of a folder data set: patient, split and resolution of each image."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.tiles.dataset import SPLITS
from stages.tiles.images import reading
from store.errors import InputError

_NAME_COLUMNS = ("name", "image")
_SAVE_AGAIN = "Save the table as CSV (UTF-8) with a header line."


@dataclass(frozen=True)
class Row:
    """What the table says of one image; empty cells are ``None``. ``mpp`` in µm per pixel."""

    patient: str | None = None
    split: str | None = None
    mpp: float | None = None


def read_table(
    path: Path, ids: Mapping[str, str], *, patient_column: str, name_column: str | None
) -> tuple[dict[str, Row], list[InputError]]:
    """Return the rows by image id, and every fault of the table.

    ``ids``: image file name to id; a row names its image with or without extension, in the column ``name_column`` or
    else ``name`` or ``image``. Comma, semicolon or tab separates, by the header line. Faults: a row whose image does
    not exist, an image without row, two rows of one image, a split that is none of train, val, test, an mpp that is no
    positive number. Raises ``InputError`` where the file cannot be read as a table with these columns.
    """
    header, lines = _lines(path)
    column = _name_column(path, header, name_column)
    if patient_column != "patient" and patient_column not in header:
        raise InputError(
            f"the table has no column {patient_column!r}; its columns are {', '.join(header)}",
            where=path,
            remedy='Correct "patient_column" in the study.',
        )
    known = {**{id: id for id in ids.values()}, **ids}
    rows: dict[str, Row] = {}
    faults: list[InputError] = []
    for number, line in lines:
        where = f"{path}, line {number}"
        if len(line) != len(header):
            faults.append(_fault(f"the row has {len(line)} cells, the header {len(header)}", where))
            continue
        cells = {name: cell.strip() for name, cell in zip(header, line, strict=True)}
        id = known.get(cells[column])
        if id is None:
            faults.append(_fault(f"there is no image {cells[column]!r}", where))
        elif id in rows:
            faults.append(_fault(f"image {id!r} has a second row", where))
        else:
            rows[id], problems = _row(cells, patient_column)
            faults += [_fault(f"{problem} of image {id!r}", where) for problem in problems]
    faults += [
        _fault(f"image {id!r} has no row in the table", path)
        for id in sorted(set(ids.values()) - rows.keys())
    ]
    return rows, faults


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    if not lines:
        raise InputError("the table is empty", where=path, remedy=_SAVE_AGAIN)
    header = [cell.strip() for cell in lines[0][1]]
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise InputError(f"the table has column {twice[0]!r} twice", where=path, remedy="Rename one of them.")
    return header, lines[1:]


def _name_column(path: Path, header: Sequence[str], wanted: str | None) -> str:
    found = [name for name in ([wanted] if wanted else _NAME_COLUMNS) if name in header]
    if len(found) == 1:
        return found[0]
    looked_for = repr(wanted) if wanted else " or ".join(map(repr, _NAME_COLUMNS))
    has = f"both {' and '.join(found)}" if found else f"no column {looked_for}"
    raise InputError(
        f"the table has {has}; its columns are {', '.join(header)}",
        where=path,
        remedy='Say which column names the images with "name_column" in the study.',
    )


def _row(cells: Mapping[str, str], patient_column: str) -> tuple[Row, list[str]]:
    problems = []
    split, mpp = cells.get("split") or None, None
    if split is not None and split not in SPLITS:
        problems.append(f"split {split!r} is none of {', '.join(SPLITS)}")
    if cells.get("mpp"):
        try:
            mpp = float(cells["mpp"])
        except ValueError:
            mpp = math.nan
        if not (math.isfinite(mpp) and mpp > 0):
            problems.append(f"mpp {cells['mpp']!r} is not a positive number")
    return Row(cells.get(patient_column) or None, split, mpp), problems


def _fault(what: str, where: str | Path) -> InputError:
    return InputError(what, where=where, remedy="Correct the table.")
