"""Finished runs on disk: complete or absent, and refused when damaged."""

from __future__ import annotations

import csv
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from training_problem import CLASSES, equal, run

from stages.training.record import environment, load_run, write_run
from stages.training.result import RunResult
from store.errors import InputError, StorageError, VerificationError

FILES = ["confusions.npz", "decoder.safetensors", "losses.csv", "run.json"]


@pytest.fixture(scope="module")
def result() -> RunResult:
    return run()


def write(folder: Path, result: RunResult, **identity: Any) -> Path:
    write_run(folder, result, identity=identity, environment=environment(torch.device("cpu")))
    return folder


def test_a_run_is_read_back_to_the_bit(tmp_path: Path, result: RunResult) -> None:
    stored = load_run(write(tmp_path / "runs" / "a", result, encoder="stub", lr=1e-4))
    assert equal(stored.result, result)
    assert stored.identity == {"encoder": "stub", "lr": 1e-4}
    assert stored.environment["torch"] == torch.__version__
    for name in ("seed", "classes", "val_names", "test_names", "parameters", "seconds"):
        assert getattr(stored.result, name) == getattr(result, name)


def test_the_environment_has_the_version_of_triton_where_it_is_installed() -> None:
    installed = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    assert environment(torch.device("cpu")).get("triton") == installed.get("triton")


def test_the_files_are_plain_ones(tmp_path: Path, result: RunResult) -> None:
    folder = write(tmp_path / "a", result)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    body = json.loads((folder / "run.json").read_text())
    assert (body["seed"], body["classes"]) == (0, list(CLASSES))
    assert body["best_epoch"] == result.best_epoch
    rows = list(csv.reader((folder / "losses.csv").read_text().splitlines()))
    assert rows[0] == ["epoch", "loss", "lr"] and len(rows) == 1 + len(result.losses)
    with np.load(folder / "confusions.npz") as arrays:
        assert np.array_equal(arrays["val"], result.val_confusions)
    assert safetensors.torch.load_file(folder / "decoder.safetensors").keys() == result.weights.keys()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_run_is_refused_and_the_file_named(
    tmp_path: Path, result: RunResult, name: str, damage: str
) -> None:
    path = write(tmp_path / "a", result) / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    with pytest.raises(VerificationError, match=name):
        load_run(tmp_path / "a")


def test_a_number_changed_by_hand_is_noticed(tmp_path: Path, result: RunResult) -> None:
    path = write(tmp_path / "a", result) / "run.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    with pytest.raises(VerificationError, match=r"run\.json"):
        load_run(tmp_path / "a")


def test_a_run_that_was_never_finished_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        load_run(tmp_path / "a")


def test_a_finished_run_is_not_overwritten(tmp_path: Path, result: RunResult) -> None:
    folder = write(tmp_path / "a", result, mine=1)
    with pytest.raises(InputError, match="exists already"):
        write(folder, result, mine=2)
    assert load_run(folder).identity == {"mine": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            write(tmp_path / "a", result)
    assert list(tmp_path.iterdir()) == []
    load_run(write(tmp_path / "a", result))
