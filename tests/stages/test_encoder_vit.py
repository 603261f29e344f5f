"""Tokens: the right block, the right tokens, the right geometry, against timm and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_rows import prepared, randomised, timm_model, tiny, views, write_row
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.encoders import Encoder, TokenGrid, describe_encoder, load_encoder
from store.errors import InputError
from store.identity import canonical_json, fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

REGISTERS = tiny(
    kwargs={
        "depth": 3,
        "num_heads": 2,
        "embed_dim": 32,
        "init_values": 1.0,
        "reg_tokens": 4,
        "no_embed_class": True,
    },
    prefix_tokens=5,
    no_embed_class=True,
)


def _load(folder: Path, fields: dict[str, Any], tile_px: int = 32, at: str = "", **options: Any) -> Encoder:
    weights = folder / "weights.safetensors"
    save_file(timm_model(fields).state_dict(), weights)
    return load_encoder(write_row(folder, fields) + at, tile_px=tile_px, weights=weights, **options)


@pytest.fixture(scope="session")
def dinov2(shared: Path) -> Path:
    folder = shared / "weights" / "dinov2-s14"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no weights at {folder}")
    return folder


@pytest.mark.parametrize("fields", [tiny(), REGISTERS], ids=["class token", "registers"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_each_blocks_tokens_are_timms_final_normed_ones(
    tmp_path: Path, fields: dict[str, Any], layer: int
) -> None:
    images = views(2, 32)
    tokens = _load(tmp_path, fields, at=f"@{layer}").encode(images)
    with torch.no_grad():
        (expected,) = timm_model(fields).get_intermediate_layers(
            prepared(images, fields), n=[layer - 1], norm=True, reshape=True
        )
    assert tokens.shape == (2, 32, 4, 4)
    assert tokens.dtype == torch.float32
    assert tokens.is_contiguous()
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_the_last_block_is_forward_features_without_its_prefix_tokens(tmp_path: Path) -> None:
    images = views(2, 32)
    tokens = _load(tmp_path, REGISTERS).encode(images)
    with torch.no_grad():
        everything = timm_model(REGISTERS).forward_features(prepared(images, REGISTERS))
    rows = tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows, everything[:, 5:], atol=1e-5, rtol=0)
    assert float((rows - everything[:, 1:17]).abs().max()) > 0.1  # what keeping the registers would give


def test_blocks_above_the_chosen_one_are_not_computed(tmp_path: Path) -> None:
    calls: list[int] = []
    encoder = _load(tmp_path, tiny(), at="@2")
    model = encoder._model  # type: ignore[attr-defined]
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    encoder.encode(views(1, 32))
    assert calls == [0, 1]
    assert encoder.parameters == sum(p.numel() for p in timm_model(tiny()).parameters())


@pytest.mark.parametrize("fields", [tiny(), REGISTERS], ids=["class token", "registers"])
@pytest.mark.parametrize("px", [16, 48, 72])
def test_another_size_equals_timms_own_dynamic_size(tmp_path: Path, fields: dict[str, Any], px: int) -> None:
    images = views(2, px)
    tokens = _load(tmp_path, fields, px).encode(images)
    model = timm_model(fields, dynamic_img_size=True)
    with torch.no_grad():
        expected = model.forward_features(prepared(images, fields))[:, fields["prefix_tokens"] :]
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=0)


def _to_timm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a DINOv2 file as transformers writes it, renamed for timm by hand."""
    out = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        out[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
    blocks = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    for number in range(blocks):
        theirs, ours = f"encoder.layer.{number}", f"blocks.{number}"
        for kind in ("weight", "bias"):
            parts = [
                state[f"{theirs}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")
            ]
            out[f"{ours}.attn.qkv.{kind}"] = torch.cat(parts)
            out[f"{ours}.attn.proj.{kind}"] = state[f"{theirs}.attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{ours}.{name}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
        for scale in ("1", "2"):
            out[f"{ours}.ls{scale}.gamma"] = state[f"{theirs}.layer_scale{scale}.lambda1"]
    return out


def test_the_hf_policy_reproduces_transformers_dinov2_at_every_size(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=8, image_size=48
    )
    reference = randomised(transformers.Dinov2Model(config))
    reference.save_pretrained(tmp_path / "theirs")
    weights = tmp_path / "model.safetensors"
    save_file(_to_timm_names(load_file(tmp_path / "theirs" / "model.safetensors")), weights)
    fields = tiny(
        arch="vit_small_patch14_dinov2",
        kwargs={"depth": 2, "num_heads": 4, "embed_dim": 48},
        d=48,
        depth=2,
        checkpoint_grid=6,
        pos_policy="hf",
    )
    for px in (32, 48, 80):
        images = views(2, px)
        with torch.no_grad():
            expected = reference(prepared(images, fields)).last_hidden_state[:, 1:].transpose(1, 2)
        tokens = load_encoder(write_row(tmp_path, fields), tile_px=px, weights=weights).encode(images)
        assert float((tokens.flatten(2) - expected).abs().max()) < 1e-4
        if px != 48:
            other = write_row(tmp_path, {**fields, "pos_policy": "timm"})
            wrong = load_encoder(other, tile_px=px, weights=weights).encode(images)
            assert float((wrong.flatten(2) - expected).abs().max()) > 1e-2


@pytest.mark.parametrize(("tile_px", "side"), [(224, 16), (512, 37)])
def test_real_weights_load_strictly_and_give_the_grid_of_the_tile(
    dinov2: Path, tile_px: int, side: int
) -> None:
    encoder = load_encoder("dinov2-s14", tile_px=tile_px, weights=dinov2)
    tokens = encoder.encode(views(1, tile_px))
    assert (encoder.grid, encoder.parameters) == (TokenGrid(384, side, side), 22_056_192)
    assert tokens.shape == (1, 384, side, side)
    assert encoder.identity["pos_policy"] == ("hf" if side == 16 else "none")


def test_blocks_of_the_real_encoder_differ_and_are_timms(dinov2: Path, shared: Path) -> None:
    timm = pytest.importorskip("timm")
    picture = Image.open(next((shared / "data" / "he_glas" / "images").glob("*.png"))).convert("RGB")
    images = torch.from_numpy(np.array(picture.resize((518, 518)))).permute(2, 0, 1)[None]
    sixth, last = (
        load_encoder(name, tile_px=518, weights=dinov2.parent).encode(images)
        for name in ("dinov2-s14", "dinov2-s14@12")
    )
    assert float((sixth - last).abs().mean()) > 0.5
    model = timm.create_model("vit_small_patch14_dinov2", img_size=518, num_classes=0).eval()
    model.load_state_dict(load_file(dinov2 / "model.safetensors"), strict=True)
    fields = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    with torch.no_grad():
        expected = model.get_intermediate_layers(prepared(images, fields), n=[5, 11], norm=True, reshape=True)
    for ours, theirs in zip((sixth, last), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_the_identity_holds_what_changes_tokens_and_nothing_else(tmp_path: Path) -> None:
    reference = _load(tmp_path, tiny())
    keys = {
        "plain": fingerprint(reference.identity),
        "block": fingerprint(_load(tmp_path, tiny(), at="@2").identity),
        "tile": fingerprint(_load(tmp_path, tiny(), 48).identity),
        "resized": fingerprint(_load(tmp_path, tiny(), 44).identity),
        "padded": fingerprint(_load(tmp_path, tiny(), 44, fit="pad").identity),
        "policy": fingerprint(_load(tmp_path, tiny(pos_policy="hf"), 44).identity),
        "statistics": fingerprint(_load(tmp_path, tiny(mean=[0.5, 0.5, 0.5])).identity),
        "precision": fingerprint(_load(tmp_path, tiny(), dtype="bfloat16").identity),
    }
    assert len(set(keys.values())) == len(keys)
    save_file({**timm_model(tiny()).state_dict(), "norm.bias": torch.ones(32)}, tmp_path / "w2.safetensors")
    other = load_encoder(write_row(tmp_path, tiny()), tile_px=32, weights=tmp_path / "w2.safetensors")
    assert fingerprint(other.identity) not in keys.values()
    for same in (
        _load(tmp_path, tiny(), fit="pad"),  # 32 px needs no fitting
        _load(tmp_path, tiny(pos_policy="hf")),  # nor a resized table
        _load(tmp_path, tiny(licence="other", title="Other", source="elsewhere", share="allowed")),
        _load(tmp_path, tiny(), at="@3"),
    ):
        assert fingerprint(same.identity) == keys["plain"]
    canonical_json(reference.provenance)
    assert (reference.provenance["licence"], reference.provenance["share"]) == ("none", "unclear")
    assert str(tmp_path) not in json.dumps([dict(reference.identity), dict(reference.provenance)])


def test_resizing_scales_the_whole_view_as_pillow_does(tmp_path: Path) -> None:
    images = views(1, 44)
    resized = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((48, 48), Image.Resampling.BICUBIC)
    enlarged = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    ours = _load(tmp_path, tiny(), 44).encode(images)
    theirs = _load(tmp_path, tiny(), 48).encode(enlarged)
    assert float((ours - theirs).abs().max()) < 0.05  # pillow rounds to whole grey levels
    assert float((ours - theirs).abs().max()) < 0.1 * float(ours.std())


def test_padding_reflects_at_the_bottom_and_right(tmp_path: Path) -> None:
    images = views(1, 44)
    mirrored = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (0, 4), (0, 4)), mode="reflect"))
    ours = _load(tmp_path, tiny(), 44, fit="pad").encode(images)
    assert torch.equal(ours, _load(tmp_path, tiny(), 48).encode(mirrored))


def test_the_cpu_computes_in_float32_unless_another_dtype_is_asked_for(tmp_path: Path) -> None:
    images = views(1, 32)
    plain = _load(tmp_path, tiny())
    asked = _load(tmp_path, tiny(), dtype="bfloat16")
    assert (plain.identity["compute_dtype"], asked.identity["compute_dtype"]) == ("float32", "bfloat16")
    exact, rounded = plain.encode(images), asked.encode(images)
    assert rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).abs().mean()) < 0.1


def test_tokens_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file(
        {**timm_model(tiny()).state_dict(), "norm.bias": torch.full((32,), torch.nan)},
        tmp_path / "nan.safetensors",
    )
    encoder = load_encoder(write_row(tmp_path, tiny()), tile_px=32, weights=tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match="not finite"):
        encoder.encode(views(1, 32))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 3, 32, 31), torch.uint8), ((3, 32, 32), torch.uint8), ((1, 3, 32, 32), torch.float32)],
)
def test_views_of_another_shape_or_dtype_are_refused(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match="views must be uint8"):
        _load(tmp_path, tiny()).encode(torch.zeros(shape, dtype=dtype))


def test_a_device_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for device in ("cuda:99", "warp"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
            _load(tmp_path, tiny(), device=device)


def test_a_view_is_brought_to_the_size_that_is_asked_for_as_pillow_does(tmp_path: Path) -> None:
    images = views(1, 64)
    resized = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    halved = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    encoder = _load(tmp_path, tiny(), 64, fit="pad", input_px=32)
    assert encoder.grid == TokenGrid(32, 4, 4)
    size = {name: encoder.identity[name] for name in ("tile_px", "input_px", "fit", "pos_policy")}
    assert size == {"tile_px": 64, "input_px": 32, "fit": "resize", "pos_policy": "none"}
    ours, theirs = encoder.encode(images), _load(tmp_path, tiny(), 32).encode(halved)
    assert float((ours - theirs).abs().max()) < 0.1 * float(ours.std())  # pillow rounds to whole grey levels
    assert _load(tmp_path, tiny(), 32, input_px=32).identity == _load(tmp_path, tiny(), 32).identity


@pytest.mark.parametrize(
    ("name", "policy"), [("conch", "none"), ("conch-v1.5", "offset0.1"), ("pixels", None)]
)
def test_a_512_px_tile_runs_at_the_448_px_of_its_authors(name: str, policy: str | None) -> None:
    about = describe_encoder(name, tile_px=512, input_px=448)
    assert (about.run_px, about.grid.h, about.grid.w, about.fit) == (448, 28, 28, "resize")
    assert about.identity.get("pos_policy") == policy
    assert describe_encoder(name, tile_px=512).grid.h == 32
    for wrong in (450, 8):
        with pytest.raises(InputError, match=f"an input of {wrong} px is no multiple of the encoder's patch"):
            describe_encoder(name, tile_px=512, input_px=wrong)
