"""Which images train, validate and test: written once, given back exactly, patients never on two sides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import SPLITS, ImageRecord, raise_all
from stages.tiles.images import reading
from stages.tiles.split_search import Candidate, assign, search
from store.disk_errors import storage_errors
from store.durable import put_replacing
from store.errors import InputError

FORMAT = "frostgrid-split-1"

_RESTARTS = 24


@dataclass(frozen=True)
class Split:
    """Image ids of the three parts. ``patients`` holds the known ones by image id, ``seed`` the seed of the choice."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    seed: int | None = None
    patients: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield (``train``, ids), (``val``, ids), (``test``, ids)."""
        return ((name, getattr(self, name)) for name in SPLITS)

    def to_json(self) -> str:
        """Return the split as the text of a split file."""
        content = {"format": FORMAT, "seed": self.seed, **dict(self.parts()), "patients": dict(self.patients)}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, records: Sequence[ImageRecord], *, where: str | Path = "split") -> Split:
        """Read the text of a split file and hold it against the images there are.

        Raises ``InputErrors`` (naming ``where``) for another format, ids that no record has, an image or a patient on
        two sides, and an empty part. A patient is the record's, or the file's where the record has none.
        """
        content = _parsed(text, where)
        train, val, test = (tuple(content[name]) for name in SPLITS)
        split = cls(train, val, test, content["seed"], content["patients"])
        known = {record.id: record.patient for record in records}
        faults = [
            f"{name} lists {id!r}, which is no image of the data set"
            for name, ids in split.parts()
            for id in ids
            if id not in known
        ]
        faults += _on_two_sides(split, known)
        faults += [f"{name} is empty" for name, ids in split.parts() if not ids]
        remedy = "Correct the split file, or let `frostgrid data split` write a new one."
        raise_all([InputError(fault, where=where, remedy=remedy) for fault in faults], remedy)
        return split

    def write(self, path: Path) -> None:
        """Write the split file at ``path``, replacing it in one step, whoever else is writing it. ``StorageError``."""
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            put_replacing(path, self.to_json().encode())

    @classmethod
    def read(cls, path: Path, records: Sequence[ImageRecord]) -> Split:
        """Read the split file at ``path``; see :meth:`from_json`. Raises ``InputError`` where it cannot be read."""
        with reading(path):
            text = path.read_text(encoding="utf-8")
        return cls.from_json(text, records, where=path)

    def check_classes(self, class_counts: Mapping[str, NDArray[Any]], classes: Sequence[str] = ()) -> None:
        """Raise ``InputError`` for each class without a pixel in the training part: nothing could learn it.

        ``class_counts``: (C,) pixels of each class by image id; ``classes``: their names for the message.
        """
        totals = np.sum([class_counts[id] for id in self.train], axis=0)
        names = classes or [f"class {index}" for index in range(len(totals))]
        faults = []
        for index in map(int, np.flatnonzero(totals == 0)):
            holders = [id for id, counts in class_counts.items() if counts[index] > 0]
            has = (
                f"it is in {len(holders)} other images, e.g. {holders[0]}" if holders else "no image has any"
            )
            faults.append(
                InputError(
                    f"class {names[index]} has no pixel in the training images ({has})",
                    where="data.split",
                    remedy="Train on more images or another seed, or merge the class with another.",
                )
            )
        raise_all(faults, "Choose training images that hold every class.")


def make_split(
    records: Sequence[ImageRecord],
    class_counts: Mapping[str, NDArray[Any]],
    train: int | None,
    val: int | None,
    test: int | None,
    seed: int,
    *,
    classes: Sequence[str] = (),
) -> Split:
    """Choose images for training, validation and test whose class shares come near those of all ``records``.

    ``class_counts``: (C,) pixels of each class by image id. ``train``, ``val``, ``test`` count images; not all need be
    used. Images of one patient never lie on two sides, though not all of them need be chosen; an image without patient
    stands alone. Where every record has a ``split``, images stay on that side, and ``None`` takes all of a side. The
    same arguments give the same split on every machine, whatever the order of ``records``. Raises ``InputError`` saying
    which number cannot be met and what is available, and for a class that cannot be had in training.

    Source: paper, section 3.1 (15, 5 and 10 images, balanced and representative).
    """
    pool = [
        Candidate(
            record.id,
            record.patient,
            tuple(int(pixels) for pixels in class_counts[record.id]),
            None if record.split is None else SPLITS.index(record.split),
        )
        for record in sorted(records, key=lambda record: record.id)
    ]
    needs = _needs(pool, (train, val, test))
    if assign(pool, needs, seed) is None:
        raise _not_apart(pool, needs, seed)
    chosen = search(pool, needs, seed, restarts=_RESTARTS)
    parts = [tuple(sorted(pool[index].id for index in part)) for part in chosen]
    used = {id for part in parts for id in part}
    patients = {c.id: c.patient for c in pool if c.id in used and c.patient is not None}
    split = Split(parts[0], parts[1], parts[2], seed, patients)
    split.check_classes(class_counts, classes)
    return split


def _needs(pool: Sequence[Candidate], wanted: Sequence[int | None]) -> tuple[int, int, int]:
    """Return the three numbers, or say which of them is more than there is."""
    fixed = [candidate for candidate in pool if candidate.side is not None]
    if fixed and len(fixed) < len(pool):
        without = [candidate.id for candidate in pool if candidate.side is None]
        raise InputError(
            f"{len(without)} of {len(pool)} images have no split in the table, e.g. {without[0]}",
            where="data.table",
            remedy="Fill in the column for every image, or take it out.",
        )
    available = [sum(c.side in (None, side) for c in pool) for side in range(3)]
    needs = []
    for side, (name, number) in enumerate(zip(SPLITS, wanted, strict=True)):
        if number is None and not fixed:
            raise InputError(f"{name} is missing", where="data.split", remedy="Give the number of images.")
        needs.append(available[side] if number is None else number)
        if needs[-1] < (name == "train") or needs[-1] > available[side]:
            of = f"images that the table gives to {name}" if fixed else "images in the data set"
            raise InputError(
                f"{name} = {needs[-1]} cannot be met: there are {available[side]} {of}",
                where="data.split",
                remedy="Ask for at least 1 training image, and for no more than there are.",
            )
    if not fixed and sum(needs) > len(pool):
        numbers = " + ".join(map(str, needs))
        raise InputError(
            f"train + val + test = {numbers} = {sum(needs)} cannot be met: there are {len(pool)} images",
            where="data.split",
            remedy="Ask for fewer images.",
        )
    return needs[0], needs[1], needs[2]


def _not_apart(pool: Sequence[Candidate], needs: tuple[int, int, int], seed: int) -> InputError:
    """Say how far each number would have to come down for patients to stay apart."""
    patients: dict[str, set[int | None]] = {}
    for candidate in pool:
        if candidate.patient is not None:
            patients.setdefault(candidate.patient, set()).add(candidate.side)
    torn = sorted(patient for patient, sides in patients.items() if len(sides) > 1)
    if torn:
        return InputError(
            f"the table gives images of one patient to several splits: {', '.join(torn)}",
            where="data.table",
            remedy="Give all images of a patient to one split.",
        )
    most = []
    for side, name in enumerate(SPLITS):
        for number in range(needs[side] - 1, -1, -1):
            fewer = (*needs[:side], number, *needs[side + 1 :])
            if assign(pool, (fewer[0], fewer[1], fewer[2]), seed) is not None:
                most.append(f"{name} at most {number}")
                break
    reach = f"with the other two kept, {' or '.join(most)} can be met" if most else "no one number makes room"
    return InputError(
        f"{'/'.join(map(str, needs))} images cannot be met with patients apart: there are {len(pool)} images of "
        f"{len(patients)} patients; {reach}",
        where="data.split",
        remedy="Ask for fewer images."
        if most
        else "Images of at least three patients are needed: correct the patients, or leave them out.",
    )


def _parsed(text: str, where: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"the split is not JSON ({error})", where=where, remedy="Write it again.") from error
    tag = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or tag != FORMAT:
        raise InputError(
            f"the file's format is {tag!r}, not {FORMAT!r}",
            where=where,
            remedy="Give a file of `frostgrid data split`.",
        )
    lists = all(_texts(content.get(name)) for name in SPLITS)
    patients = content.setdefault("patients", {})
    seed = content.setdefault("seed", None)
    if not lists or not isinstance(patients, dict) or not _texts(list(patients.values())):
        raise InputError(
            "train, val and test must be lists of image ids, patients an object of texts",
            where=where,
            remedy="Correct the file.",
        )
    if seed is not None and type(seed) is not int:
        raise InputError(f"seed {seed!r} is no integer", where=where, remedy="Correct the file.")
    return content


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _on_two_sides(split: Split, known: Mapping[str, str | None]) -> list[str]:
    seen: dict[str, str] = {}
    sides: dict[str, dict[str, str]] = {}
    faults = []
    for name, ids in split.parts():
        for id in ids:
            if id in seen:
                faults.append(f"image {id!r} is in {seen[id]} and again in {name}")
            seen[id] = name
            patient = known.get(id) or split.patients.get(id)
            if patient is not None:
                sides.setdefault(patient, {}).setdefault(name, id)
    faults += [
        f"patient {patient!r} is on {len(places)} sides: {', '.join(f'{id} in {name}' for name, id in places.items())}"
        for patient, places in sides.items()
        if len(places) > 1
    ]
    return faults
