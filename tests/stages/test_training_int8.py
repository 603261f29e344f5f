"""Training on a cache in the int8 form: the same values wherever they are kept, in half the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from training_problem import CPU, SPEC, blocks, equal, run, split

from stages.training.data import Features, ResidentFeatures, StreamedFeatures, token_values
from store import GridSpec, GridStore, ViewKey, ViewRow
from store.errors import InputError
from store.int8 import decode

INT8 = replace(SPEC, encoding="int8")
TILES, VIEWS = 6, 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GridStore:
    """The tokens of ``split(6, 3, 1)`` as int8; row number n is tile n, view 0."""
    root = tmp_path_factory.mktemp("int8")
    made = GridStore.at(root, "stub", {"encoding": "int8"}, INT8, {}, create=True)
    tokens, _ = blocks(TILES, VIEWS, 1)
    for task in made.plan(rows()):
        made.write(task, ((tokens[int(row.tile, 16)], None) for row in task.rows))
    return made


def rows() -> list[ViewRow]:
    return [ViewRow(f"{number:064x}", 0, f"tile_{number}", "") for number in range(TILES * VIEWS)]


def keys() -> list[ViewKey]:
    return [row.key for row in rows()]


def held(store: GridStore) -> Iterator[Features]:
    """All the ways in which the grids can be kept."""
    reader = store.reader()
    yield ResidentFeatures.read(reader, keys(), INT8, CPU)
    yield StreamedFeatures(reader, keys(), INT8, CPU)
    yield ResidentFeatures(torch.from_numpy(reader.read_many(keys())), SPEC, CPU)  # decoded by the reader


def test_resident_streamed_and_decoded_grids_are_the_same_to_the_bit(store: GridStore) -> None:
    order = [np.array(one, dtype=np.intp) for one in ([3, 1, 2], [17, 17, 0], [7])]
    wanted = [store.reader().read_many([keys()[row] for row in one]).astype(np.float32) for one in order]
    for features in held(store):
        for one, batch, values in zip(order, features.batches(order), wanted, strict=True):
            assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=torch.channels_last)
            assert batch.numpy().tobytes() == values.tobytes()
            assert torch.equal(features.gather(one), batch)


def test_training_ends_in_the_same_weights_however_the_grids_are_kept(store: GridStore) -> None:
    made = split(TILES, VIEWS, 1)
    results = [run(train=replace(made, features=features)) for features in held(store)]
    assert equal(results[0], results[1]) and equal(results[0], results[2])
    assert not equal(results[0], run(train=made))  # the values themselves are other ones than float16's


def test_the_grids_stay_packed_in_memory(store: GridStore) -> None:
    given: list[np.ndarray[Any, Any]] = []

    class Noting:
        def read_stored_many(self, keys: Any, out: Any = None, *, threads: int = 2) -> Any:
            given.append(out)
            return store.reader().read_stored_many(keys, out, threads=threads)

    features = ResidentFeatures.read(Noting(), keys(), INT8, CPU)
    (resident,) = given
    assert resident.nbytes == INT8.stored_nbytes * len(keys()) == features._grids.nbytes
    next(StreamedFeatures(Noting(), keys(), INT8, CPU, ahead=0).batches([np.array([1, 2])]))
    assert given[1].nbytes == 2 * INT8.stored_nbytes
    real = GridSpec("tokens", (1536, 37, 37), "float16", ("d", "h", "w"))
    assert replace(real, encoding="int8").stored_nbytes < 0.504 * real.stored_nbytes


@settings(max_examples=300, deadline=None)
@given(
    steps=hnp.arrays(np.uint8, (2, 3, 12)),
    tail=hnp.arrays(np.float32, (2, 3, 2), elements=st.floats(-65504, 65504, width=32)),
    power=st.integers(-40, 0),
)
def test_torch_decodes_any_stored_form_to_the_bits_of_the_reader(steps: Any, tail: Any, power: int) -> None:
    tail = tail * np.float32(2.0**power)
    stored = np.concatenate([steps, tail.astype("<f4").view(np.uint8)], axis=2)
    spec = GridSpec("tokens", (3, 4, 3), "float16", ("d", "h", "w"), "int8")
    wanted = decode(stored, np.empty((2, 3, 4, 3), np.float16)).astype(np.float32)
    found = token_values(torch.from_numpy(stored), spec, CPU)
    assert found.contiguous().numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("grids", "spec"),
    [
        (torch.zeros(2, 3, 72, dtype=torch.int8), INT8),
        (torch.zeros(2, 3, 64, dtype=torch.uint8), INT8),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float16), INT8),
        (torch.zeros(2, 3, 72, dtype=torch.uint8), SPEC),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), GridSpec("masks", (8, 8), "uint8", ("y", "x"))),
    ],
)
def test_grids_in_another_form_than_said_are_refused(grids: torch.Tensor, spec: GridSpec) -> None:
    with pytest.raises(InputError, match="no token grids"):
        ResidentFeatures(grids, spec, CPU)


def test_a_gpu_decodes_to_the_same_bits(store: GridStore) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", 0)
    wanted = torch.from_numpy(store.reader().read_many(keys()).astype(np.float32))
    every = np.arange(len(keys()))
    for features in (
        ResidentFeatures.read(store.reader(), keys(), INT8, device, on_device=True),
        StreamedFeatures(store.reader(), keys(), INT8, device),
    ):
        assert torch.equal(features.gather(every).cpu(), wanted)
