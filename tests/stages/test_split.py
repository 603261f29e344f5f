from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tiles.check import class_counts
from stages.tiles.dataset import ImageRecord
from stages.tiles.folder import FolderDataset
from stages.tiles.split import Split, make_split
from store.errors import InputError, InputErrors

Counts = dict[str, np.ndarray]


def pool(*sizes: int, classes: int = 3, seed: int = 0) -> tuple[list[ImageRecord], Counts]:
    """Return patients of the given numbers of images, each with random class pixels."""
    rng = np.random.default_rng(seed)
    records = [
        ImageRecord(f"p{p}_{n}", None, None, patient=f"p{p}")
        for p, size in enumerate(sizes)
        for n in range(size)
    ]
    return records, {record.id: rng.integers(1, 1000, classes) for record in records}


def patients_of(records: list[ImageRecord], ids: tuple[str, ...]) -> set[str | None]:
    by_id = {record.id: record.patient for record in records}
    return {by_id[id] for id in ids}


def assert_apart(records: list[ImageRecord], split: Split) -> None:
    parts = [patients_of(records, ids) - {None} for _, ids in split.parts()]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    ids = [id for _, part in split.parts() for id in part]
    assert len(ids) == len(set(ids))


@given(
    sizes=st.lists(st.integers(1, 7), min_size=3, max_size=12),
    wanted=st.tuples(st.integers(1, 12), st.integers(0, 6), st.integers(0, 6)),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_numbers_are_met_with_patients_apart_or_refused_rightly(sizes, wanted, seed) -> None:
    records, counts = pool(*sizes)
    try:
        split = make_split(records, counts, *wanted, seed)
    except InputError:
        # Right only if no assignment of patients to the three sides has room: try them all, up to size classes.
        reached = {(0, 0, 0)}
        for size in sizes:
            reached |= {
                tuple(
                    min(w, r + size * (s == side)) for s, (r, w) in enumerate(zip(have, wanted, strict=True))
                )
                for have in reached
                for side in range(3)
            }
        assert tuple(wanted) not in reached
        return
    assert tuple(len(ids) for _, ids in split.parts()) == wanted
    assert_apart(records, split)


def test_the_same_seed_gives_the_same_split_in_any_order_and_another_seed_another() -> None:
    records, counts = pool(4, 3, 5, 2, 6, 1, 3)
    split = make_split(records, counts, 8, 3, 5, 0)
    assert make_split(records[::-1], dict(reversed(counts.items())), 8, 3, 5, 0) == split
    assert make_split(records, counts, 8, 3, 5, 1) != split
    assert split.seed == 0


def test_class_shares_of_each_part_come_near_those_of_the_pool() -> None:
    rng = np.random.default_rng(3)
    records = [ImageRecord(f"i{n:03d}", None, None) for n in range(100)]
    counts = {record.id: rng.dirichlet([0.4, 0.3, 0.1]) * 1e6 for record in records}
    counts = {id: pixels.astype(int) for id, pixels in counts.items()}
    whole = sum(counts.values())
    whole = whole / whole.sum()
    for seed in range(3):
        split = make_split(records, counts, 15, 5, 10, seed)
        for name, ids in split.parts():
            part = sum(counts[id] for id in ids)
            assert np.abs(part / part.sum() - whole).max() < 0.02, name


def test_a_rare_class_reaches_training_first() -> None:
    records, counts = pool(*[1] * 30, classes=2)
    counts = {id: np.array([100, 0]) for id in counts}
    counts["p17_0"] = np.array([90, 10])
    for seed in range(5):
        assert "p17_0" in make_split(records, counts, 15, 5, 10, seed).train


def test_a_class_that_no_image_has_is_named() -> None:
    records, counts = pool(*[1] * 6)
    counts = {id: pixels * np.array([1, 1, 0]) for id, pixels in counts.items()}
    with pytest.raises(
        InputError, match=r"class Necrosis has no pixel in the training images \(no image has any\)"
    ):
        make_split(records, counts, 3, 1, 1, 0, classes=("Tumour", "Stroma", "Necrosis"))


def test_too_many_images_asked_for_says_how_many_there_are() -> None:
    records, counts = pool(*[1] * 6)
    with pytest.raises(InputError, match=r"4 \+ 2 \+ 1 = 7 cannot be met: there are 6 images"):
        make_split(records, counts, 4, 2, 1, 0)
    with pytest.raises(InputError, match="train = 9 cannot be met: there are 6 images"):
        make_split(records, counts, 9, 0, 0, 0)
    with pytest.raises(InputError, match="train = 0 cannot be met"):
        make_split(records, counts, 0, 1, 1, 0)


def test_patients_that_leave_no_room_are_explained_with_what_is_possible() -> None:
    records, counts = pool(10, 4, 3)
    with pytest.raises(InputError) as caught:
        make_split(records, counts, 9, 4, 4, 0)
    text = str(caught.value)
    assert "9/4/4 images cannot be met with patients apart: there are 17 images of 3 patients" in text
    assert "val at most 3 or test at most 3" in text
    assert make_split(records, counts, 9, 4, 3, 0).val[0].startswith("p1")


def test_images_without_patient_stand_alone() -> None:
    records, counts = pool(5, 5)
    records = [replace(record, patient=None) for record in records]
    split = make_split(records, counts, 5, 2, 3, 0)
    assert split.patients == {}
    assert_apart(records, split)


def test_a_table_that_fixes_the_split_is_honoured_and_thinned_to_the_numbers() -> None:
    records, counts = pool(4, 4, 4)
    records = [
        replace(record, split=("train", "val", "test")[int(str(record.patient)[1])]) for record in records
    ]
    split = make_split(records, counts, 3, 1, 2, 0)
    for name, ids in split.parts():
        assert {record.split for record in records if record.id in ids} == {name}
    assert [len(ids) for _, ids in split.parts()] == [3, 1, 2]
    assert [len(ids) for _, ids in make_split(records, counts, None, None, None, 0).parts()] == [4, 4, 4]
    with pytest.raises(
        InputError, match="val = 5 cannot be met: there are 4 images that the table gives to val"
    ):
        make_split(records, counts, 3, 5, 2, 0)


def test_a_table_that_tears_a_patient_apart_or_is_half_filled_is_refused() -> None:
    records, counts = pool(2, 2, 2)
    torn = [replace(r, split="train" if r.id in ("p0_0", "p1_0") else "test") for r in records]
    with pytest.raises(InputError, match="one patient to several splits: p0, p1"):
        make_split(torn, counts, 1, 0, 1, 0)
    half = [replace(records[0], split="train"), *records[1:]]
    with pytest.raises(InputError, match="5 of 6 images have no split in the table"):
        make_split(half, counts, 1, 1, 1, 0)
    with pytest.raises(InputError, match="test is missing"):
        make_split(records, counts, 1, 1, None, 0)


def test_a_split_file_gives_back_what_was_written(tmp_path: Path) -> None:
    records, counts = pool(3, 3, 3)
    split = make_split(records, counts, 3, 2, 2, 7)
    path = tmp_path / "deep" / "split.json"
    split.write(path)
    assert Split.read(path, records) == split
    content = json.loads(path.read_text())
    assert content["format"] == "frostgrid-split-1"
    assert content["seed"] == 7
    assert content["patients"][split.train[0]] == split.train[0][:2]
    assert [entry.name for entry in path.parent.iterdir()] == ["split.json"]


def test_a_split_file_is_held_against_the_images_there_are_all_faults_at_once() -> None:
    records, _ = pool(2, 2, 2)
    text = json.dumps(
        {
            "format": "frostgrid-split-1",
            "train": ["p0_0", "gone_1"],
            "val": ["p0_1", "p1_0"],
            "test": ["p1_0", "gone_2"],
        }
    )
    with pytest.raises(InputErrors) as caught:
        Split.from_json(text, records, where="my-split.json")
    said = str(caught.value)
    assert "train lists 'gone_1', which is no image" in said
    assert "test lists 'gone_2', which is no image" in said
    assert "image 'p1_0' is in val and again in test" in said
    assert "patient 'p0' is on 2 sides: p0_0 in train, p0_1 in val" in said
    assert "my-split.json" in said


def test_patients_that_only_the_file_knows_are_kept_apart_too() -> None:
    records = [ImageRecord(id, None, None) for id in ("a", "b", "c")]
    content = {"format": "frostgrid-split-1", "train": ["a"], "val": ["b"], "test": ["c"]}
    assert Split.from_json(json.dumps(content), records).train == ("a",)
    content["patients"] = {"a": "P", "c": "P"}
    with pytest.raises(InputError, match="patient 'P' is on 2 sides"):
        Split.from_json(json.dumps(content), records)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "format is None"),
        ('{"format": "frostgrid-split-9"}', "format is 'frostgrid-split-9'"),
        ('{"format": "frostgrid-split-1", "train": ["a"], "val": 3, "test": []}', "must be lists"),
        ('{"format": "frostgrid-split-1", "train": [], "val": [], "test": []}', "train is empty"),
        ('{"format": "frostgrid-split-1", "train": ["a"], "val": [], "test": [], "seed": "x"}', "no integer"),
        (
            '{"format": "frostgrid-split-1", "train": ["a"], "val": [], "test": [], "patients": [1]}',
            "must be",
        ),
    ],
)
def test_what_is_no_split_file_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Split.from_json(text, [ImageRecord("a", None, None)])


def test_a_missing_split_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist .*none\.json"):
        Split.read(tmp_path / "none.json", [])


def test_a_class_absent_from_training_says_where_it_is() -> None:
    _, counts = pool(1, 1, 1)
    counts["p0_0"][2] = 0
    split = Split(("p0_0",), ("p1_0",), ("p2_0",))
    with pytest.raises(InputError, match=r"class C has no pixel .*it is in 2 other images, e\.g\. p1_0"):
        split.check_classes(counts, ("A", "B", "C"))


def test_real_glands_are_split_15_5_10_with_patients_apart_and_classes_balanced(shared: Path) -> None:
    dataset = FolderDataset(
        shared / "data/he_glas", {"Stroma": [0], "Benign": [1], "Malignant": [2]}, table="meta.csv"
    )
    records = list(dataset.records())
    counts = class_counts(dataset, records)
    whole = sum(counts.values()) / sum(int(pixels.sum()) for pixels in counts.values())
    for seed in range(4):
        split = make_split(records, counts, 15, 5, 10, seed, classes=dataset.classes)
        assert Counter({name: len(ids) for name, ids in split.parts()}) == {"train": 15, "val": 5, "test": 10}
        assert_apart(records, split)
        for name, ids in split.parts():
            part = sum(counts[id] for id in ids)
            assert np.abs(part / part.sum() - whole).max() < 0.06, (seed, name)
            assert len(patients_of(records, ids)) >= 2
