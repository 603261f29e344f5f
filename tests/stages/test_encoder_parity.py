"""Tokens against transformers and the authors' own files, written to disk by the reference in its own file format.

Every parameter is random and matters. Each comparison runs at the encoder's native size and at that of a 512 px tile
(518 where the patch is 14), in float32. test_encoder_parity_controls.py shows that it sees each usual mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from encoder_parity import assert_parity, dinov2, dynamic, encode, patch_tokens, saved, write
from encoder_rows import lively, prepared, row_fields, timm_model, views
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")


def _vit(fields: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=fields["d"],
        num_hidden_layers=fields["depth"],
        num_attention_heads=12,
        intermediate_size=4 * fields["d"],
        layer_norm_eps=1e-6,
        image_size=fields["patch"] * fields["checkpoint_grid"],
        patch_size=fields["patch"],
    )
    return lively(transformers.ViTModel(config))


def _clip(fields: dict[str, Any], *, whole: bool) -> Any:
    transformers = pytest.importorskip("transformers")
    vision = {
        "num_hidden_layers": fields["depth"],
        "patch_size": 32,
        "image_size": 224,
        "hidden_act": "quick_gelu",
    }
    if not whole:
        return lively(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)))
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tokens = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(vision_config=vision, text_config={**text, **tokens})
    return lively(transformers.CLIPModel(config))


@pytest.mark.parametrize("px", [224, 512])
def test_phikon_is_transformers_vit_model(tmp_path: Path, px: int) -> None:
    fields = row_fields("phikon", 2)
    reference = _vit(fields)
    _, tokens = encode(tmp_path, fields, saved(reference, tmp_path / "theirs"), px)
    with torch.no_grad():
        output = reference(prepared(views(1, px), fields), interpolate_pos_encoding=True)
    assert_parity(tokens, output.last_hidden_state[:, 1:])


@pytest.mark.parametrize(
    ("name", "heads", "depth", "px"),
    [
        ("phikon-v2", 16, 2, 224),
        ("phikon-v2", 16, 1, 512),
        ("midnight-12k", 24, 1, 224),
        ("midnight-12k", 24, 1, 518),
    ],
)
def test_phikon_v2_and_midnight_are_transformers_dinov2_model(
    tmp_path: Path, name: str, heads: int, depth: int, px: int
) -> None:
    fields = row_fields(name, depth)
    reference = dinov2(fields, heads)
    _, tokens = encode(tmp_path, fields, saved(reference, tmp_path / "theirs"), px)
    with torch.no_grad():
        expected = reference(prepared(views(1, px), fields)).last_hidden_state[:, 1:]
    assert_parity(tokens, expected)


@pytest.mark.parametrize(
    ("name", "heads", "depth", "px"),
    [("hibou-b", 12, 2, 224), ("hibou-b", 12, 2, 518), ("hibou-l", 16, 2, 224), ("hibou-l", 16, 1, 518)],
)
def test_hibou_is_transformers_dinov2_with_registers_model(
    tmp_path: Path, name: str, heads: int, depth: int, px: int
) -> None:
    fields = row_fields(name, depth)
    reference = dinov2(fields, heads, registers=4)
    _, tokens = encode(tmp_path, fields, saved(reference, tmp_path / "theirs"), px)
    with torch.no_grad():
        expected = reference(prepared(views(1, px), fields)).last_hidden_state[:, 5:]
    assert_parity(tokens, expected)


@pytest.mark.parametrize("px", [224, 512])
@pytest.mark.parametrize("name", ["plip", "quiltnet-b32"])
def test_plip_is_transformers_clip_vision_model_with_its_final_norm(
    tmp_path: Path, name: str, px: int
) -> None:
    whole = (
        name == "plip"
    )  # with the text tower, as the authors' file; the other without, as CLIPVisionModel writes
    fields = row_fields(name, 2)
    reference = _clip(fields, whole=whole)
    state = load_file(saved(reference, tmp_path / "theirs"))
    weights = write(state, tmp_path / "pytorch_model.bin")
    _, tokens = encode(tmp_path, fields, weights, px)
    tower = getattr(reference, "vision_model", reference)
    with torch.no_grad():
        hidden = tower(prepared(views(1, px), fields), interpolate_pos_encoding=True).last_hidden_state
        expected = tower.post_layernorm(hidden)[:, 1:]
    assert any(key.startswith("text_model.") for key in state) == whole
    assert_parity(tokens, expected)
    assert float((tokens.flatten(2).transpose(1, 2) - hidden[:, 1:]).abs().max()) > 0.1


@pytest.mark.parametrize("px", [448, 512])
def test_conch_is_the_trunk_inside_a_nested_vision_language_file(tmp_path: Path, px: int) -> None:
    fields = row_fields("conch", 2, embed_dim=96)
    model, expected = dynamic(fields, px)
    state = {f"module.visual.trunk.{name}": tensor for name, tensor in model.state_dict().items()}
    for other in (
        "visual.attn_pool_contrast.query", "visual.attn_pool_contrast.attn.in_proj_weight", "visual.ln_contrast.weight",
        "visual.proj_contrast", "visual.attn_pool_caption.ln_k.bias", "visual.ln_caption.bias", "logit_scale",
        "text.token_embedding.weight", "text.transformer.resblocks.0.ln_1.weight", "text_decoder.text_projection",
    ):  # fmt: skip
        state[f"module.{other}"] = torch.ones(2, 2)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "pytorch_model.bin")
    _, tokens = encode(tmp_path, fields, tmp_path / "pytorch_model.bin", px)
    assert_parity(tokens, expected)


@pytest.mark.parametrize(
    ("name", "px"),
    [("conch-v1.5", 224), ("conch-v1.5", 448), ("conch-v1.5", 512), ("dinov2-b14", 518), ("dinov2-b14", 224)],
)
def test_a_table_is_resized_by_the_authors_offset_where_they_do_so(
    tmp_path: Path, name: str, px: int
) -> None:
    fields = row_fields(name, 2, embed_dim=96)
    model = timm_model(fields, None, lively)
    state = dict(model.state_dict())
    if name == "conch-v1.5":
        state = {f"trunk.{key}": tensor for key, tensor in state.items()}
        state |= {"attn_pool_contrast.query": torch.ones(1, 768), "ln_contrast.bias": torch.ones(768)}
    weights = write(state, tmp_path / "pytorch_model_vision.bin")
    _, tokens = encode(tmp_path, fields, weights, px)
    at_size = timm_model(fields, px, lively)
    loaded = {**model.state_dict(), "pos_embed": _offset_positions(model.pos_embed, px // fields["patch"])}
    at_size.load_state_dict(loaded, strict=True)
    images = prepared(views(1, px), fields)
    assert_parity(tokens, patch_tokens(at_size, fields, images))
    if px != fields["patch"] * fields["checkpoint_grid"]:
        _, plain = dynamic(fields, px)
        with pytest.raises(AssertionError):
            assert_parity(tokens, plain)


def _offset_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """DINO's resizing of a (1, 1 + n², d) table: by the factor (side + 0.1)/n, bicubic."""
    patches = positions[:, 1:]
    stored = round(patches.shape[1] ** 0.5)
    if stored == side:
        return positions
    picture = patches.reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(picture, scale_factor=((side + 0.1) / stored,) * 2, mode="bicubic")
    return torch.cat([positions[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("px", [224, 512])
@pytest.mark.parametrize("scale", ["weight", "gamma"])
def test_keep_is_the_tower_under_visual_whatever_its_layer_scale_is_called(
    tmp_path: Path, px: int, scale: str
) -> None:
    fields = row_fields("keep", 2, embed_dim=96)
    model, expected = dynamic(fields, px)
    state = {f"visual.{name.replace('gamma', scale)}": tensor for name, tensor in model.state_dict().items()}
    state |= {"visual_head.0.weight": torch.ones(3, 96), "text.embeddings.LayerNorm.weight": torch.ones(8)}
    state |= {"logit_scale": torch.tensor(1.0), "text.embeddings.position_ids": torch.arange(4)[None]}
    _, tokens = encode(tmp_path, fields, write(state, tmp_path / "model.safetensors"), px)
    assert_parity(tokens, expected)
