"""Small encoders for tests: a row as a user would write it, and a checkpoint with random, non-trivial weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch

TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "A tiny random transformer",
    "family": "timm",
    "arch": "vit_tiny_patch16_224",
    "kwargs": {"depth": 3, "num_heads": 2, "embed_dim": 32, "init_values": 1.0},
    "key_map": "identity",
    "patch": 8,
    "prefix_tokens": 1,
    "d": 32,
    "depth": 3,
    "checkpoint_grid": 4,
    "no_embed_class": False,
    "mean": [0.5, 0.4, 0.6],
    "std": [0.2, 0.3, 0.25],
    "pos_policy": "timm",
    "compute_dtype": "float16",
    "licence": "none",
    "gated": False,
    "files": ["model.safetensors"],
    "source": "random",
}


def tiny(**changes: Any) -> dict[str, Any]:
    """The fields of TINY with changes; a change to None leaves the field out."""
    return {key: value for key, value in {**TINY, **changes}.items() if value is not None}


def write_row(folder: Path, fields: dict[str, Any]) -> str:
    """Write a row as TOML and return its path, which is a reference."""
    lines = []
    for key, value in fields.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{name} = {json.dumps(item)}" for name, item in value.items())
            lines.append(f"{key} = {{ {inner} }}")
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    path = folder / f"{fields.get('name', 'row')}.toml"
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def randomised(model: Any, seed: int = 0) -> Any:
    """Give every parameter a random value of a size that matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + 0.02)
    return model.eval()


def timm_model(fields: dict[str, Any], px: int | None = None, **extra: Any) -> Any:
    """The row's architecture as timm alone builds it, at the checkpoint's grid unless ``px`` is given."""
    px = px or fields["patch"] * fields["checkpoint_grid"]
    model = timm.create_model(
        fields["arch"], num_classes=0, img_size=px, patch_size=fields["patch"], **fields["kwargs"], **extra
    )
    return randomised(model)


def views(count: int, px: int, seed: int = 0) -> torch.Tensor:
    """Random smooth uint8 RGB views (count, 3, px, px)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 5, 5), generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bilinear", align_corners=True)
    noise = torch.rand((count, 3, px, px), generator=generator) * 0.2
    return ((picture * 0.8 + noise) * 255).round().to(torch.uint8)


def prepared(images: torch.Tensor, fields: dict[str, Any]) -> torch.Tensor:
    """Normalise uint8 views that need no resizing, by the row's statistics."""
    mean, std = (torch.tensor(fields[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std
