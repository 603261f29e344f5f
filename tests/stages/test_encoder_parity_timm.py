"""Tokens against timm run at its own dynamic sizes: files in timm's names, rotary positions, native DINO files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from encoder_parity import assert_parity, dynamic, encode, patch_tokens, write
from encoder_rows import lively, prepared, row_fields, timm_model, views, write_row
from timm.models import eva, vision_transformer

from stages.encoders import load_encoder
from stages.encoders.checkpoint import StateDict
from stages.encoders.table import TimmRow, table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("px", ["native", "tile"])
@pytest.mark.parametrize(
    "name",
    [
        "uni", "uni2-h", "virchow", "virchow2", "prov-gigapath", "h-optimus-0", "kaiko-vitl14", "lunit-vits8",
        "h0-mini", "gpfm", "dinov2-l14-reg4", "imagenet-vitb16", "dinov3-s16", "dinov3-l16",
    ],
)  # fmt: skip
def test_files_in_timms_names_give_timms_own_tokens_at_any_size(tmp_path: Path, name: str, px: str) -> None:
    fields = row_fields(name, 2, embed_dim=96)
    side = 224 if px == "native" else 518 if fields["patch"] == 14 else 512
    model, expected = dynamic(fields, side)
    state = model.state_dict()
    if fields.get("allowed_leftover"):
        state = {**state, "head.weight": torch.ones(10, 96), "head.bias": torch.ones(10)}
    weights = write(state, tmp_path / fields["files"][0])
    _, tokens = encode(tmp_path, fields, weights, side)
    assert_parity(tokens, expected)


def test_every_row_in_timms_names_is_of_a_family_compared_above() -> None:
    compared = {
        "vit_large_patch16_224", "vit_giant_patch14_224", "vit_huge_patch14_224", "vit_giant_patch14_dinov2",
        "vit_giant_patch14_reg4_dinov2", "vit_large_patch14_reg4_dinov2", "vit_small_patch8_224",
        "vit_base_patch14_reg4_dinov2", "vit_large_patch14_dinov2", "vit_base_patch16_224",
        "vit_small_patch16_dinov3", "vit_large_patch16_dinov3",
    }  # fmt: skip
    same_but_for_width = {
        "vit_small_patch16_224": "vit_base_patch16_224", "vit_base_patch8_224": "vit_small_patch8_224",
        "vit_small_patch14_dinov2": "vit_large_patch14_dinov2",
        "vit_base_patch14_dinov2": "vit_large_patch14_dinov2",
        "vit_base_patch16_dinov3": "vit_large_patch16_dinov3",
    }  # fmt: skip
    rows = [row for row in table().values() if isinstance(row, TimmRow) and row.key_map == "identity"]
    assert {same_but_for_width.get(row.arch, row.arch) for row in rows} == compared


def test_a_lower_block_of_a_rotary_encoder_is_timms_final_normed_one(tmp_path: Path) -> None:
    fields = row_fields("dinov3-s16", 3, embed_dim=96)
    model = timm_model(fields, 224, lively, dynamic_img_size=True)
    weights = write(model.state_dict(), tmp_path / "model.safetensors")
    encoder = load_encoder(f"{write_row(tmp_path, fields)}@2", tile_px=160, weights=weights)
    with torch.no_grad():
        images = prepared(views(1, 160), fields)
        _, (expected,) = model.forward_intermediates(images, indices=[1], norm=True, output_fmt="NLC")
    assert_parity(encoder.encode(views(1, 160)), expected)


@pytest.mark.parametrize("name", ["virchow2", "plip", "dinov3-l16", "genbio-pathfm"])
def test_every_family_computes_in_bfloat16_near_float32(tmp_path: Path, name: str) -> None:
    fields = row_fields(name, 2, embed_dim=96, key_map="identity")
    model = timm_model(fields, None if "checkpoint_grid" in fields else 224, lively)
    weights = write(model.state_dict(), tmp_path / "model.safetensors")
    exact, rounded = (
        load_encoder(write_row(tmp_path, fields), tile_px=224, weights=weights, dtype=dtype).encode(
            views(1, 224)
        )
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < float((exact - rounded).abs().mean()) < 0.02 * float(exact.std())


@pytest.mark.parametrize("px", [224, 512])
def test_genbio_encodes_each_channel_alone_and_joins_red_green_blue(tmp_path: Path, px: int) -> None:
    fields = row_fields("genbio-pathfm", 2, embed_dim=96)
    model = timm_model(fields, 224, lively, dynamic_img_size=True)
    native = {_dinov3_name(name): tensor for name, tensor in model.state_dict().items()}
    native["rope_embed.periods"] = torch.ones(8, dtype=torch.bfloat16)
    theirs = eva.checkpoint_filter_fn(dict(native), model)
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in model.state_dict().items())
    _, tokens = encode(tmp_path, fields, write(native, tmp_path / "model.pth"), px)
    images = prepared(views(1, px), fields)
    expected = torch.cat(
        [patch_tokens(model, fields, images[:, channel, None]) for channel in range(3)], dim=-1
    )
    assert tokens.shape[1] == 3 * 96
    assert_parity(tokens, expected)
    with pytest.raises(AssertionError):
        assert_parity(tokens, expected.roll(96, dims=-1))


def _dinov3_name(name: str) -> str:
    name = name.replace("gamma_", "ls").replace("reg_token", "storage_tokens")
    name = re.sub(r"(ls[12])$", r"\1.gamma", name)
    return name.replace("fc1_g", "w1").replace("fc1_x", "w2").replace("mlp.fc2", "mlp.w3")


@pytest.mark.parametrize("px", [224, 518])
@pytest.mark.parametrize("name", ["openmidnight", "gpfm"])
def test_native_dinov2_files_are_read_as_timm_reads_them(tmp_path: Path, name: str, px: int) -> None:
    fields = row_fields(name, 2, embed_dim=96, key_map="dinov2_native", allowed_leftover=["mask_token"])
    source = timm_model(fields, None, lively)
    native = _dinov2_native(source.state_dict())
    weights = write(native, tmp_path / "teacher_checkpoint_load.pt")
    reference = timm_model(fields, None, lambda model: model.eval(), dynamic_img_size=True)
    reference.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(native), reference), strict=True)
    _, tokens = encode(tmp_path, fields, weights, px)
    expected = patch_tokens(reference, fields, prepared(views(1, px), fields))
    assert_parity(tokens, expected)


def _dinov2_native(state: StateDict) -> StateDict:
    """The tensors under facebookresearch/dinov2's names; with registers, the class token's position taken out of it."""
    out = {"mask_token": torch.zeros(1, 96)}
    swiglu = "reg_token" in state
    for name, tensor in state.items():
        if swiglu:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        out[name.replace("reg_token", "register_tokens")] = tensor
    if swiglu:
        position = torch.randn((1, 1, 96), generator=torch.Generator().manual_seed(7))
        out["cls_token"] = out["cls_token"] - position
        out["pos_embed"] = torch.cat([position, out["pos_embed"]], dim=1)
    return out
