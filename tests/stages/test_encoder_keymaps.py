"""Key maps: what a rule takes, what it leaves, and that a file which is not exactly right is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_rows import lively, row_fields, timm_model, views, write_row
from safetensors.torch import save_file

from stages.encoders import load_encoder
from stages.encoders.checkpoint import StateDict
from stages.encoders.keymaps import KEY_MAPS
from store.errors import InputError


def _numbered(*names: str) -> StateDict:
    return {name: torch.full((2, 2), float(number)) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("rule", "renamed"),
    [
        ("identity", {"blocks.0.norm1.weight": "blocks.0.norm1.weight"}),
        ("strip:visual.trunk.", {"visual.trunk.norm.bias": "norm.bias"}),
        ("strip:trunk.", {"trunk.blocks.11.mlp.fc2.weight": "blocks.11.mlp.fc2.weight"}),
        (
            "strip:visual.",
            {"visual.blocks.0.ls1.weight": "blocks.0.ls1.gamma", "visual.norm.weight": "norm.weight"},
        ),
        (
            "hf_vit",
            {
                "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
                "vit.encoder.layer.10.layernorm_before.weight": "blocks.10.norm1.weight",
                "encoder.layer.1.layernorm_after.bias": "blocks.1.norm2.bias",
                "encoder.layer.1.attention.output.dense.weight": "blocks.1.attn.proj.weight",
                "encoder.layer.1.intermediate.dense.bias": "blocks.1.mlp.fc1.bias",
                "encoder.layer.1.output.dense.bias": "blocks.1.mlp.fc2.bias",
                "model.layernorm.weight": "norm.weight",
            },
        ),
        (
            "hf_dinov2",
            {
                "dinov2.encoder.layer.3.norm2.bias": "blocks.3.norm2.bias",
                "encoder.layer.3.mlp.fc1.weight": "blocks.3.mlp.fc1.weight",
                "encoder.layer.4.mlp.weights_in.weight": "blocks.4.mlp.fc1.weight",
                "encoder.layer.4.mlp.weights_out.bias": "blocks.4.mlp.fc2.bias",
                "encoder.layer.4.layer_scale2.lambda1": "blocks.4.ls2.gamma",
            },
        ),
        ("hf_dinov2_reg", {"dinov2_with_registers.embeddings.register_tokens": "reg_token"}),
        (
            "hf_clip_vision",
            {
                "vision_model.pre_layrnorm.weight": "norm_pre.weight",
                "vision_model.post_layernorm.bias": "norm.bias",
                "encoder.layers.7.self_attn.out_proj.bias": "blocks.7.attn.proj.bias",
                "encoder.layers.7.layer_norm2.weight": "blocks.7.norm2.weight",
            },
        ),
        (
            "dinov2_native",
            {
                "blocks.0.mlp.w12.bias": "blocks.0.mlp.fc1.bias",
                "blocks.0.mlp.w3.weight": "blocks.0.mlp.fc2.weight",
            },
        ),
        (
            "dinov3_native",
            {
                "blocks.0.mlp.w1.bias": "blocks.0.mlp.fc1_g.bias",
                "blocks.0.mlp.w2.bias": "blocks.0.mlp.fc1_x.bias",
                "blocks.0.mlp.w3.bias": "blocks.0.mlp.fc2.bias",
                "blocks.0.ls2.gamma": "blocks.0.gamma_2",
                "storage_tokens": "reg_token",
            },
        ),
    ],
)
def test_a_rule_renames_and_keeps_values(rule: str, renamed: dict[str, str]) -> None:
    state = _numbered(*renamed)
    tensors, unused = KEY_MAPS[rule](dict(state))
    assert unused == ()
    assert {theirs: name for theirs, name in renamed.items() if tensors[name] is state[theirs]} == renamed


def test_query_key_and_value_are_joined_in_this_order_whatever_the_order_of_the_file() -> None:
    names = [f"encoder.layer.0.attention.attention.{part}.weight" for part in ("value", "query", "key")]
    tensors, unused = KEY_MAPS["hf_dinov2"](_numbered(*names))
    assert unused == ()
    assert list(tensors) == ["blocks.0.attn.qkv.weight"]
    assert tensors["blocks.0.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("fault", ["missing", "of another shape"])
def test_parts_that_do_not_belong_together_are_not_joined(fault: str) -> None:
    names = [f"encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    state = _numbered(*names)
    if fault == "missing":
        del state[names[1]]
    else:
        state[names[1]] = torch.zeros(2, 3)
    tensors, _ = KEY_MAPS["hf_clip_vision"](state)
    assert "blocks.0.attn.qkv.weight" not in tensors
    assert len(tensors) == len(state)


def test_the_class_position_is_folded_exactly_in_float32_from_a_file_in_float16() -> None:
    token = torch.full((1, 1, 4), 1000.0, dtype=torch.float16)
    table = torch.full((1, 5, 4), 0.125, dtype=torch.float16)
    state = {"embeddings.cls_token": token, "embeddings.position_embeddings": table}
    tensors, _ = KEY_MAPS["hf_dinov2_reg"](state)
    assert tensors["cls_token"].flatten().tolist() == [1000.125] * 4
    assert tensors["pos_embed"].shape == (1, 4, 4)
    plain, _ = KEY_MAPS["hf_dinov2"](state)
    assert plain["pos_embed"].shape == (1, 5, 4)
    native = {"cls_token": token, "pos_embed": table}
    assert KEY_MAPS["dinov2_native"](dict(native)).tensors["pos_embed"].shape == (1, 5, 4)
    native["register_tokens"] = torch.zeros(1, 4, 4)
    assert KEY_MAPS["dinov2_native"](dict(native)).tensors["pos_embed"].shape == (1, 4, 4)


def test_clips_class_token_and_table_get_the_axes_that_timm_gives_them() -> None:
    state = {
        "vision_model.embeddings.class_embedding": torch.arange(4.0),
        "vision_model.embeddings.position_embedding.weight": torch.arange(20.0).reshape(5, 4),
    }
    tensors, _ = KEY_MAPS["hf_clip_vision"](state)
    assert (tensors["cls_token"].shape, tensors["pos_embed"].shape) == ((1, 1, 4), (1, 5, 4))
    assert torch.equal(tensors["pos_embed"].flatten(), torch.arange(20.0))


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [
        ("strip:visual.", "visual.blocks.0.ls1.weight", "visual.blocks.0.ls1.gamma"),
        ("hf_dinov2", "encoder.layer.0.mlp.fc1.weight", "encoder.layer.0.mlp.weights_in.weight"),
        ("hf_vit", "layernorm.weight", "vit.layernorm.weight"),
        ("dinov2_native", "blocks.0.mlp.w3.weight", "blocks.0.mlp.fc2.weight"),
    ],
)
def test_two_tensors_for_one_place_are_never_chosen_between(rule: str, first: str, second: str) -> None:
    for names in ((first, second), (second, first)):
        tensors, unused = KEY_MAPS[rule](_numbered(*names))
        assert len(tensors) == len(unused) == 1


def _file(fields: dict[str, Any], folder: Path, prefix: str, **extra: torch.Tensor) -> Path:
    state = {
        f"{prefix}{name}": tensor for name, tensor in timm_model(fields, None, lively).state_dict().items()
    }
    save_file({**state, **extra}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(
    ("name", "prefix", "extra"),
    [
        ("conch", "visual.trunk.", "visual.head.proj.weight"),
        ("conch", "visual.trunk.", "blocks.0.ls1.gamma"),
        ("conch-v1.5", "trunk.", "attn_pool_caption.query"),
        ("keep", "visual.", "visual.head.weight"),
        ("uni", "", "head.weight"),
        ("imagenet-vitb16", "", "head_dist.weight"),
        ("gpfm", "", "mask_token"),
    ],
)
def test_a_tensor_that_the_row_does_not_allow_is_refused(
    tmp_path: Path, name: str, prefix: str, extra: str
) -> None:
    fields = row_fields(name, 1, embed_dim=32)
    weights = _file(fields, tmp_path, prefix, **{extra: torch.ones(2)})
    with pytest.raises(InputError, match="1 unexpected") as caught:
        load_encoder(write_row(tmp_path, fields), tile_px=224, weights=weights)
    assert extra.removeprefix(prefix or "!") in str(caught.value)


@pytest.mark.parametrize("name", ["phikon", "hibou-b", "conch", "conch-v1.5", "keep", "plip"])
def test_a_file_in_timms_own_names_is_not_taken_for_the_published_one(tmp_path: Path, name: str) -> None:
    fields = row_fields(name, 1, embed_dim=32)
    with pytest.raises(InputError, match="missing"):
        load_encoder(write_row(tmp_path, fields), tile_px=224, weights=_file(fields, tmp_path, ""))


def test_a_position_table_without_a_row_for_the_class_token_is_refused(tmp_path: Path) -> None:
    fields = row_fields("openmidnight", 1, embed_dim=32)
    weights = _file(fields, tmp_path, "")
    load_encoder(write_row(tmp_path, fields), tile_px=224, weights=weights).encode(views(1, 224))
    state = dict(timm_model(fields, None, lively).state_dict())
    state["register_tokens"] = state.pop("reg_token")
    save_file(state, weights)
    with pytest.raises(InputError, match=r"position table holds 255 rows, openmidnight-cut stores 256"):
        load_encoder(write_row(tmp_path, fields), tile_px=224, weights=weights)
