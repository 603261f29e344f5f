"""Small encoders for tests: a row as a user would write it, and a checkpoint with random, non-trivial weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import LayerNorm, SwiGLUPacked

from stages.encoders.table import TimmRow, table

LAYERS: dict[Any, Any] = {
    "SwiGLUPacked": SwiGLUPacked,
    "SiLU": torch.nn.SiLU,
    "LayerNorm1e-6": partial(LayerNorm, eps=1e-6),
}

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


def row_fields(name: str, depth: int, **changes: Any) -> dict[str, Any]:
    """The fields of a row of the table, as a user's own row ``<name>-cut`` of ``depth`` blocks with ``changes``.

    A change of ``embed_dim`` narrows the transformer: to that width, in heads of 32.
    """
    row = table()[name]
    assert isinstance(row, TimmRow)
    fields = row.model_dump(mode="json", exclude_none=True)
    for own in ("aliases", "paper", "paper_note", "hub_repo", "revision", "layer"):
        fields.pop(own, None)
    kwargs = {**fields["kwargs"], "depth": depth}
    width = changes.pop("embed_dim", None)
    if width:
        kwargs.update(embed_dim=width, num_heads=width // 32)
        fields["d"] = 3 * width if row.channels_apart else width
    return {**fields, "name": f"{name}-cut", "depth": depth, "kwargs": kwargs, **changes}


def randomised(model: Any, seed: int = 0) -> Any:
    """Give every parameter a random value of a size that matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + 0.02)
    return model.eval()


def lively(model: Any, seed: int = 0) -> Any:
    """Give every parameter a random value by which a deep model stays as sensitive to its input as a trained one.

    Matrices keep the size of what passes them; tokens and position tables are white noise of unit size; biases, norms
    and LayerScales scatter around one half.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "token" in name or "pos" in name.split(".")[-1] or "position" in name:
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.5 + 0.5 * noise)
    return model.eval()


def timm_model(fields: dict[str, Any], px: int | None = None, fill: Any = randomised, **extra: Any) -> Any:
    """The row's architecture as timm alone builds it, at the checkpoint's grid unless ``px`` is given."""
    px = px or fields["patch"] * fields["checkpoint_grid"]
    kwargs = {key: LAYERS.get(value, value) for key, value in fields["kwargs"].items()}
    if fields.get("channels_apart"):
        kwargs["in_chans"] = 1
    model = timm.create_model(
        fields["arch"], num_classes=0, img_size=px, patch_size=fields["patch"], **kwargs, **extra
    )
    return fill(model)


def views(count: int, px: int, seed: int = 0) -> torch.Tensor:
    """Random smooth uint8 RGB views (count, 3, px, px)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(
        (count, 3, 5, 5), generator=generator
    ).double()  # or a few would round by number of threads
    picture = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bilinear", align_corners=True)
    noise = torch.rand((count, 3, px, px), generator=generator) * 0.2
    return ((picture * 0.8 + noise) * 255).round().to(torch.uint8)


def prepared(images: torch.Tensor, fields: dict[str, Any]) -> torch.Tensor:
    """Normalise uint8 views that need no resizing, by the row's statistics."""
    mean, std = (torch.tensor(fields[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std
