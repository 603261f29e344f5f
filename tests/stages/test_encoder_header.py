"""A weights file judged by its header: as loading would judge it, without reading what it holds."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_parity import dinov2, saved
from encoder_rows import row_fields, timm_model, tiny, write_row
from safetensors.torch import save_file

from stages.encoders import check_weights, load_encoder
from stages.encoders.checkpoint import read_checkpoint, read_shapes
from store.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = timm_model(tiny()).state_dict()
WITHOUT_NORM = {name: tensor for name, tensor in STATE.items() if not name.startswith("norm.")}


def written(path: Path, state: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=path.suffix == ".pth")
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_the_header_tells_names_and_shapes_and_no_values(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / name, STATE)
    shapes = read_shapes(file)
    assert {key: tensor.shape for key, tensor in shapes.items()} == {
        key: tensor.shape for key, tensor in read_checkpoint(file).items()
    }
    assert all(tensor.is_meta for tensor in shapes.values())


def test_of_a_file_of_many_gigabytes_only_the_header_is_read(tmp_path: Path) -> None:
    """Its values are a hole in the file: they take no room on the disk, and would take 40 GB of memory."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**10], "data_offsets": [0, 4 * 10**10]}}).encode()
    file = tmp_path / "w.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + 4 * 10**10)
    assert read_shapes(file)["w"].shape == (10**10,)


def test_of_a_pytorch_file_little_is_read(tmp_path: Path) -> None:
    counters = Path("/proc/self/io")
    if not counters.is_file():
        pytest.skip("this system does not count what a process reads")

    def read() -> int:
        return int(counters.read_text().split()[1])

    file = written(tmp_path / "w.pth", {"w": torch.zeros(5_000_000)})
    before = read()
    assert read_shapes(file)["w"].shape == (5_000_000,)
    assert read() - before < 1_000_000
    before = read()
    read_checkpoint(file)
    assert read() - before > 20_000_000  # what would be counted if it were read


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize(
    ("state", "words"),
    [
        (WITHOUT_NORM, r"2 missing \(norm\.(weight|bias), norm\.(weight|bias)\)"),
        ({**STATE, "head.weight": torch.ones(3, 32)}, r"1 unexpected \(head\.weight\)"),
        (
            {**STATE, "norm.weight": torch.ones(48)},
            r"of another shape \(norm\.weight \(48,\) instead of \(32,\)\)",
        ),
        ({**STATE, "pos_embed": torch.zeros(1, 38, 32)}, "holds 38 rows, tiny stores 17"),
    ],
)
def test_what_loading_would_refuse_shows_in_the_header(
    tmp_path: Path, name: str, state: dict[str, torch.Tensor], words: str
) -> None:
    row = write_row(tmp_path, tiny())
    file = written(tmp_path / name, state)
    with pytest.raises(InputError, match=words) as early:
        check_weights(row, file)
    with pytest.raises(InputError) as late:
        load_encoder(row, tile_px=32, weights=file)
    assert str(early.value) == str(late.value)
    assert check_weights(row, written(tmp_path / name, STATE)) == file


@pytest.mark.parametrize(("name", "heads", "registers"), [("phikon-v2", 16, 0), ("hibou-b", 12, 4)])
def test_a_key_map_works_on_names_and_shapes_alone(
    tmp_path: Path, name: str, heads: int, registers: int
) -> None:
    """Joined query, key and value; the class token's position folded."""
    fields = row_fields(name, 1)
    file = saved(dinov2(fields, heads, registers=registers), tmp_path / "theirs")
    assert check_weights(write_row(tmp_path, fields), file) == file


def test_a_file_that_is_cut_or_no_checkpoint_is_refused_by_its_header(tmp_path: Path) -> None:
    row = write_row(tmp_path, tiny())
    for name in ("w.safetensors", "w.pth"):
        file = written(tmp_path / name, STATE)
        file.write_bytes(file.read_bytes()[:-20_000])
        with pytest.raises(InputError, match="truncated or damaged"):
            check_weights(row, file)
    (tmp_path / "page.bin").write_text("<html>Log in</html>")
    with pytest.raises(InputError, match="web page"):
        check_weights(row, tmp_path / "page.bin")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
        (np.float64(0.5), r"numpy\.\S*multiarray\.scalar"),
    ],
)
def test_a_training_checkpoint_holds_python_objects_and_is_not_called_malicious(
    tmp_path: Path, extra: Any, named: str
) -> None:
    torch.save({"model": STATE, "args": extra}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=rf"holds Python objects \({named}\) beside its tensors") as caught:
        read_checkpoint(tmp_path / "checkpoint.pth")
    assert "run code" not in str(caught.value)
    assert "bare state_dict" in str(caught.value.remedy)
