"""Building a row's vision transformer without weights: it costs nothing and tells all shapes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

import timm
import torch
from timm.layers.mlp import SwiGLUPacked

from stages.encoders.table import TimmRow
from store.errors import InputError, InputErrors

_MLP_LAYERS: Mapping[str, Any] = {"SwiGLUPacked": SwiGLUPacked}
_ACTIVATIONS: Mapping[str, type[torch.nn.Module]] = {"SiLU": torch.nn.SiLU, "GELU": torch.nn.GELU}


def build(row: TimmRow, px: int) -> Any:
    """Return timm's model of ``row`` for inputs of ``px`` pixels, on the meta device (shapes, no values).

    Raises ``InputError`` where timm does not know the architecture or an argument of it.
    """
    if not timm.is_model(row.arch):
        near = difflib.get_close_matches(row.arch, timm.list_models("*vit*"), n=2)
        raise InputError(
            f"timm {timm.__version__} has no architecture {row.arch!r}",
            where=f"{row.name}: arch",
            remedy=f"Did you mean {' or '.join(near)}?" if near else "See timm.list_models().",
        )
    kwargs = row.kwargs.model_dump(exclude_none=True)
    if "mlp_layer" in kwargs:
        kwargs["mlp_layer"] = _MLP_LAYERS[kwargs["mlp_layer"]]
    if "act_layer" in kwargs:
        kwargs["act_layer"] = _ACTIVATIONS[kwargs["act_layer"]]
    try:
        with torch.device("meta"):
            model = timm.create_model(
                row.arch, pretrained=False, num_classes=0, img_size=px, patch_size=row.patch, **kwargs
            )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"timm cannot build {row.arch} as {row.name} wants it: {error}",
            where=f"{row.name}: kwargs",
            remedy="Correct the arguments of the row.",
        ) from error
    return model.eval().requires_grad_(False)


@cache
def stored_shapes(row: TimmRow) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every tensor of the row's checkpoint, by timm's name.

    Raises ``InputErrors`` where what timm builds is not what the row says: width, depth, prefix tokens, position rows.
    """
    model = build(row, row.checkpoint_grid * row.patch)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    built = {
        "d": getattr(model, "embed_dim", None),
        "depth": len(getattr(model, "blocks", ())),
        "prefix_tokens": getattr(model, "num_prefix_tokens", None),
        "no_embed_class": getattr(model, "no_embed_class", None),
        "patch": shapes.get("patch_embed.proj.weight", (0,))[-1],
        "checkpoint_grid": getattr(getattr(model, "patch_embed", None), "grid_size", (None,))[0],
    }
    faults = [
        InputError(f"{field} is {getattr(row, field)!r} in the row, {value!r} in {row.arch}", where=row.name)
        for field, value in built.items()
        if getattr(row, field) != value
    ]
    if "pos_embed" not in shapes or not isinstance(getattr(model, "norm", None), torch.nn.LayerNorm):
        faults.append(
            InputError(f"{row.arch} has no learned position table or no final norm", where=row.name)
        )
    if faults:
        raise InputErrors(faults, remedy="Correct the row, or take the architecture that it describes.")
    return shapes


def parameters(row: TimmRow) -> int:
    """Return the number of weights of the row's encoder."""
    return sum(torch.Size(shape).numel() for shape in stored_shapes(row).values())
