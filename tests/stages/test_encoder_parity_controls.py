"""Negative controls: the comparison with a reference sees each mistake that is easily made with these files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_parity import TOLERANCE, assert_parity, dinov2, encode, saved, write
from encoder_rows import prepared, row_fields, views
from safetensors.torch import load_file

from stages.encoders import keymaps
from stages.encoders.checkpoint import StateDict
from stages.encoders.keymaps import Mapped
from store.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def _reordered(order: str) -> Callable[[StateDict], Mapped]:
    def rule(state: StateDict) -> Mapped:
        tensors, unused = keymaps.hf_dinov2_reg(state)
        for name in (name for name in tensors if ".qkv." in name):
            parts = dict(zip("qkv", tensors[name].chunk(3), strict=True))
            tensors[name] = torch.cat([parts[letter] for letter in order])
        return Mapped(tensors, unused)

    return rule


def _swapped_halves(state: StateDict) -> Mapped:
    tensors, unused = keymaps.hf_dinov2_reg(state)
    for name in (name for name in tensors if ".fc1." in name):
        gate, value = tensors[name].chunk(2)
        tensors[name] = torch.cat([value, gate])
    return Mapped(tensors, unused)


def _unfolded(state: StateDict) -> Mapped:
    tensors, unused = keymaps.hf_dinov2_reg(state)
    return Mapped({**tensors, "cls_token": state["embeddings.cls_token"]}, unused)


def _without_layer_scale(state: StateDict) -> Mapped:
    tensors, unused = keymaps.hf_dinov2_reg(state)
    ones = {name: torch.ones_like(tensors[name]) for name in tensors if ".ls" in name}
    return Mapped({**tensors, **ones}, unused)


@pytest.fixture(scope="module")
def hibou(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, torch.Tensor]:
    """A narrow Hibou with three blocks: its row, its file, and the patch tokens of the reference at 518 px."""
    folder = tmp_path_factory.mktemp("hibou")
    fields = row_fields("hibou-b", 3, embed_dim=96)
    reference = dinov2(fields, 3, registers=4)
    with torch.no_grad():
        expected = reference(prepared(views(1, 518), fields)).last_hidden_state[:, 5:]
    return fields, saved(reference, folder), expected


@pytest.mark.parametrize(
    "wrong",
    [
        _reordered("kqv"),
        _reordered("qvk"),
        _reordered("vkq"),
        _swapped_halves,
        _unfolded,
        _without_layer_scale,
    ],
    ids=["k,q,v", "q,v,k", "v,k,q", "SwiGLU halves swapped", "class row not folded", "LayerScale dropped"],
)
def test_a_wrong_key_map_is_seen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hibou: tuple[dict[str, Any], Path, torch.Tensor],
    wrong: Callable[[StateDict], Mapped],
) -> None:
    fields, weights, expected = hibou
    assert_parity(encode(tmp_path, fields, weights, 518)[1], expected)
    monkeypatch.setitem(keymaps.KEY_MAPS, "hf_dinov2_reg", wrong)  # type: ignore[arg-type]
    _, tokens = encode(tmp_path, fields, weights, 518)
    with pytest.raises(AssertionError):
        assert_parity(tokens, expected)
    assert float((tokens.flatten(2).transpose(1, 2) - expected).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize("first", [0, 1, 4], ids=["class token kept", "registers kept", "one register kept"])
def test_a_prefix_token_that_is_kept_is_seen(
    tmp_path: Path, hibou: tuple[dict[str, Any], Path, torch.Tensor], first: int
) -> None:
    fields, weights, expected = hibou
    encoder, _ = encode(tmp_path, fields, weights, 518)
    images = prepared(views(1, 518), fields)
    with torch.no_grad():
        everything = encoder._model.forward_features(images)  # type: ignore[attr-defined]
    rasters = {
        start: everything[:, start : start + 37 * 37].transpose(1, 2).unflatten(2, (37, 37))
        for start in (first, 5)
    }
    assert_parity(rasters[5], expected)
    with pytest.raises(AssertionError):
        assert_parity(rasters[first], expected)


def test_a_dropped_layer_scale_or_a_missing_register_is_refused_before_any_token(
    tmp_path: Path, hibou: tuple[dict[str, Any], Path, torch.Tensor]
) -> None:
    fields, weights, _ = hibou
    state = load_file(weights)
    for part, words in (
        ("layer_scale", "6 missing"),
        ("register_tokens", "1 missing"),
        ("query", "6 missing"),
    ):
        cut = {name: tensor for name, tensor in state.items() if part not in name}
        path = write(cut, tmp_path / f"{part}.safetensors")
        with pytest.raises(InputError, match=words):
            encode(tmp_path, fields, path, 518)
