"""What the comparisons with independent references share: one measure, one way in, and how references write files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_rows import lively, prepared, timm_model, views, write_row
from safetensors.torch import save_file

from stages.encoders import Encoder, load_encoder
from stages.encoders.checkpoint import StateDict

TOLERANCE = 1e-4


def assert_parity(tokens: torch.Tensor, expected: torch.Tensor) -> float:
    """Compare (B, d, h, w) tokens with (B, h·w, d) expected ones; return the largest difference."""
    rows = tokens.flatten(2).transpose(1, 2)
    assert rows.shape == expected.shape
    assert float(expected.std()) > 0.3
    assert float(expected.std(1).mean()) > 0.1  # the patches differ from one another
    largest = float((rows - expected).abs().max())
    assert largest < TOLERANCE
    return largest


def encode(folder: Path, fields: dict[str, Any], weights: Path, px: int) -> tuple[Encoder, torch.Tensor]:
    encoder = load_encoder(write_row(folder, fields), tile_px=px, weights=weights)
    return encoder, encoder.encode(views(1, px))


def write(state: StateDict, path: Path) -> Path:
    """Write a state in the format of the name: safetensors, else torch.save."""
    tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def dinov2(fields: dict[str, Any], heads: int, *, registers: int = 0) -> Any:
    transformers = pytest.importorskip("transformers")
    family = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{family}Config")(
        hidden_size=fields["d"],
        num_hidden_layers=fields["depth"],
        num_attention_heads=heads,
        image_size=fields["patch"] * fields["checkpoint_grid"],
        patch_size=fields["patch"],
        use_swiglu_ffn=registers > 0 or fields["d"] == 1536,
        **({"num_register_tokens": registers} if registers else {}),
    )
    return lively(getattr(transformers, f"{family}Model")(config))


def dynamic(fields: dict[str, Any], px: int) -> tuple[Any, torch.Tensor]:
    """The row's model as timm alone runs it at any size, and its patch tokens of one view."""
    native = None if "checkpoint_grid" in fields else 224
    model = timm_model(fields, native, lively, dynamic_img_size=True)
    return model, patch_tokens(model, fields, prepared(views(1, px), fields))


def patch_tokens(model: Any, fields: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        tokens: torch.Tensor = model.forward_features(images)
    return tokens[:, fields["prefix_tokens"] :]
