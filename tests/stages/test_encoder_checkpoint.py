"""Weight files: every honest form is read, everything else is refused with its remedy."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_rows import timm_model, tiny, views, write_row
from safetensors.torch import save_file

from stages.encoders import load_encoder
from stages.encoders.checkpoint import file_sha256, read_checkpoint
from store.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = timm_model(tiny()).state_dict()


def _encode(tmp_path: Path, weights: Path, **changes: Any) -> torch.Tensor:
    encoder = load_encoder(write_row(tmp_path, tiny(**changes)), tile_px=32, weights=weights)
    return encoder.encode(views(1, 32))


@pytest.fixture
def expected(tmp_path: Path) -> torch.Tensor:
    save_file(STATE, tmp_path / "expected.safetensors")
    return _encode(tmp_path, tmp_path / "expected.safetensors")


@pytest.mark.parametrize("wrap", [(), ("state_dict",), ("model",), ("teacher",), ("state_dict", "model")])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_load_whatever_they_are_wrapped_in(
    tmp_path: Path, expected: torch.Tensor, wrap: tuple[str, ...], prefix: str, zipped: bool
) -> None:
    content: Any = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    for key in wrap:
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(_encode(tmp_path, tmp_path / "model.pth"), expected)


def test_the_content_tells_the_form_not_the_name(tmp_path: Path, expected: torch.Tensor) -> None:
    save_file(STATE, tmp_path / "model.bin")
    assert torch.equal(_encode(tmp_path, tmp_path / "model.bin"), expected)


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in STATE.items()}
    save_file(halves, tmp_path / "half.safetensors")
    save_file({name: tensor.float() for name, tensor in halves.items()}, tmp_path / "full.safetensors")
    from_half = _encode(tmp_path, tmp_path / "half.safetensors")
    assert torch.equal(from_half, _encode(tmp_path, tmp_path / "full.safetensors"))


def test_the_fingerprint_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    assert file_sha256(tmp_path / "file") == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()


def test_leftover_tensors_are_dropped_only_where_the_row_allows_them(
    tmp_path: Path, expected: torch.Tensor
) -> None:
    save_file(
        {**STATE, "head.weight": torch.ones(3, 32), "head.bias": torch.ones(3)}, tmp_path / "m.safetensors"
    )
    with pytest.raises(InputError, match=r"2 unexpected \(head\.(bias|weight), head\.(bias|weight)\)"):
        _encode(tmp_path, tmp_path / "m.safetensors")
    assert torch.equal(_encode(tmp_path, tmp_path / "m.safetensors", allowed_leftover=["head.*"]), expected)


def test_another_architecture_is_refused_with_what_differs(tmp_path: Path) -> None:
    other = tiny(kwargs={"depth": 2, "num_heads": 2, "embed_dim": 48, "reg_tokens": 4})
    save_file(timm_model(other).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError) as caught:
        _encode(tmp_path, tmp_path / "other.safetensors")
    words = str(caught.value)
    for part in (
        "18 missing (blocks.",
        ", …)",
        "1 unexpected (reg_token)",
        "of another shape (",
        "cls_token (1, 1, 48) instead of (1, 1, 32)",
        "looks like another architecture",
        "other.safetensors",
    ):
        assert part in words, part


def test_a_layer_scale_that_the_row_forgot_is_not_ignored(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"6 unexpected \(blocks\.0\.ls1\.gamma"):
        _encode(tmp_path, tmp_path / "m.safetensors", kwargs={"depth": 3, "num_heads": 2, "embed_dim": 32})


@pytest.mark.parametrize("rows", [37, 38, 16])
def test_a_position_table_of_another_grid_is_refused(tmp_path: Path, rows: int) -> None:
    save_file({**STATE, "pos_embed": torch.zeros(1, rows, 32)}, tmp_path / "m.safetensors")
    with pytest.raises(
        InputError, match=rf"holds {rows} rows, tiny stores 17 \(1 for prefix tokens and 4×4 patches\)"
    ):
        _encode(tmp_path, tmp_path / "m.safetensors")


class _Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    content = {"state_dict": STATE, "extra": _Payload(touched)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"extra": _Payload(touched)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        InputError, match=r"would run code when loaded \(it asks for (posix|nt|os)\.system\)"
    ) as caught:
        read_checkpoint(path)
    assert "no unsafe fallback" in str(caught.value)
    assert str(path) in str(caught.value)
    assert not touched.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_of_another_protocol_is_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([_Payload(touched)], protocol=protocol))
    with pytest.raises(InputError, match="no unsafe fallback"):
        read_checkpoint(path)
    assert not touched.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(InputError, match="TorchScript archive, which holds code"):
        read_checkpoint(tmp_path / "script.pt")


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_truncated_anywhere_is_refused_whatever_its_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model"
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    lengths = {int(len(content) * share**3) for share in np.linspace(0.03, 0.9999, 80)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(InputError) as caught:
            read_checkpoint(path)
        if length > 400:  # below, the name of a tensor's class may be cut to that of something forbidden
            assert "truncated or damaged" in str(caught.value), length
            assert "Download or copy it again" in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_flipped_bits_never_raise_anything_but_a_refusal(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model"
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    content, refused = path.read_bytes(), 0
    for seed in range(60):
        chance = random.Random(seed)
        damaged = bytearray(content)
        damaged[int(len(content) * chance.random() ** 4)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except InputError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Log in</html>", "web page"),
        (b"II*\x00 this is an image, not weights at all", "not a checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "content", [torch.ones(3), {}, [torch.ones(3)], {"optimizer": {"lr": 0.1}, "w": torch.ones(1)}]
)
def test_a_file_without_tensors_by_name_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="not tensors by name"):
        read_checkpoint(tmp_path / "odd.pth")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.pth")
