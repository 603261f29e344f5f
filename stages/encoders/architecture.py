"""Building a row's vision transformer without weights: it costs nothing and tells all shapes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from torch.utils._python_dispatch import TorchDispatchMode

from stages.encoders.table import TimmRow, table
from store.errors import InputError, InputErrors

_MLP_LAYERS: Mapping[str, Any] = {"SwiGLUPacked": SwiGLUPacked}
_ACTIVATIONS: Mapping[str, type[torch.nn.Module]] = {"SiLU": torch.nn.SiLU, "GELU": torch.nn.GELU}
_NORM_LAYERS: Mapping[str, Any] = {"LayerNorm1e-6": partial(LayerNorm, eps=1e-6)}


_FILLING: frozenset[str] = frozenset(
    f"aten::{name}_" for name in ("uniform", "normal", "erfinv", "clamp", "fill", "zero", "mul", "add", "div")
)


class _WithoutValues(TorchDispatchMode):
    """Leave out the drawing of first weights: meta tensors have no values, yet it takes four fifths of building."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


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
    for field, layers in (
        ("mlp_layer", _MLP_LAYERS),
        ("act_layer", _ACTIVATIONS),
        ("norm_layer", _NORM_LAYERS),
    ):
        if field in kwargs:
            kwargs[field] = layers[kwargs[field]]
    if row.channels_apart:
        kwargs["in_chans"] = 1
    try:
        with torch.device("meta"), _WithoutValues():  # type: ignore[no-untyped-call]
            model = timm.create_model(
                row.arch,
                pretrained=False,
                num_classes=0,
                img_size=px,
                patch_size=row.patch,
                dynamic_img_size=False,
                **kwargs,
            )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"timm cannot build {row.arch} as {row.name} wants it: {error}",
            where=f"{row.name}: kwargs",
            remedy="Correct the arguments of the row.",
        ) from error
    return model.eval().requires_grad_(False)


def fill_computed_buffers(model: Any) -> None:
    """Give the buffers that no file holds, such as rotary positions, their values on the CPU.

    For a model of :func:`build`, before its weights are loaded. Raises ``InputError`` for one that timm cannot compute.
    """
    for name, module in model.named_modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            if not hasattr(module, "init_non_persistent_buffers"):
                raise InputError(
                    f"{name} of {type(model).__name__} holds values that no weights file brings",
                    remedy="Take an architecture whose positions are learned or rotary.",
                )
            module.to_empty(device="cpu", recurse=False)
            module.init_non_persistent_buffers()


@cache
def stored_shapes(row: TimmRow) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every tensor of the row's checkpoint, by timm's name.

    Raises ``InputErrors`` where what timm builds is not what the row says: width, depth, prefix tokens, positions.
    """
    model = build(row, (row.checkpoint_grid or 1) * row.patch)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    width = getattr(model, "embed_dim", None)
    built = {
        "d": 3 * width if row.channels_apart and width else width,
        "depth": len(getattr(model, "blocks", ())),
        "prefix_tokens": getattr(model, "num_prefix_tokens", None),
        "patch": shapes.get("patch_embed.proj.weight", (0,))[-1],
    }
    if row.checkpoint_grid is not None:
        built["no_embed_class"] = getattr(model, "no_embed_class", None)
        built["checkpoint_grid"] = getattr(getattr(model, "patch_embed", None), "grid_size", (None,))[0]
    faults = [
        InputError(f"{field} is {getattr(row, field)!r} in the row, {value!r} in {row.arch}", where=row.name)
        for field, value in built.items()
        if getattr(row, field) != value
    ]
    rotary = getattr(model, "rope", None) is not None
    if ("pos_embed" in shapes, rotary) != (row.pos_policy != "rope", row.pos_policy == "rope"):
        wanted = "rotary positions alone" if row.pos_policy == "rope" else "a learned position table alone"
        faults.append(InputError(f"{row.arch} has not {wanted}, as its pos_policy says", where=row.name))
    if not isinstance(getattr(model, "norm", None), torch.nn.LayerNorm):
        faults.append(InputError(f"{row.arch} has no final norm", where=row.name))
    if faults:
        raise InputErrors(faults, remedy="Correct the row, or take the architecture that it describes.")
    return shapes


@cache
def parameters(row: TimmRow) -> int:
    """Return the number of weights of the row's encoder.

    A row of the table is counted with one block, since all have the same shapes; a user's is built whole and
    compared with what it says, as those of the table are where weights are loaded. Raises ``InputErrors`` as
    :func:`stored_shapes` does.
    """
    if table().get(row.name) is not row:
        return sum(torch.Size(shape).numel() for shape in stored_shapes(row).values())
    model = build(shallow(row), (row.checkpoint_grid or 1) * row.patch)
    return _count(model) + (row.depth - 1) * _count(model.blocks[0])


def shallow(row: TimmRow) -> TimmRow:
    """Return the row with one block: every block is like another, so that one tells of up to forty."""
    return row.model_copy(update={"kwargs": row.kwargs.model_copy(update={"depth": 1})})


def _count(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())
