"""Vision transformers through timm: a row, a weights file and a tile size become an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.encoders.architecture import build, fill_computed_buffers, parameters, shallow, stored_shapes
from stages.encoders.base import (
    EXTRACTOR_REVISION,
    AskedDtype,
    ComputeDtype,
    Description,
    Fit,
    TokenGrid,
    checked_tokens,
    checked_views,
)
from stages.encoders.checkpoint import Shape, StateDict, covered, file_sha256, read_checkpoint, read_shapes
from stages.encoders.compiling import compiled
from stages.encoders.hub import WeightsFile, locate
from stages.encoders.inputs import fitted, normalised, run_px
from stages.encoders.keymaps import KEY_MAPS
from stages.encoders.positions import baked, needs_resizing, stored_grid
from stages.encoders.table import TimmRow
from store.errors import InputError


def describe(
    row: TimmRow, layer: int, name: str, *, tile_px: int, fit: Fit, input_px: int | None = None
) -> Description:
    """Return what is known without weights. Raises ``InputError`` where the row or a size is impossible.

    With ``input_px`` the view is resized to that side, whatever ``fit`` says.
    """
    px = run_px(tile_px, row.patch, input_px)
    fit = fit if input_px is None else "resize"
    side = px // row.patch
    if row.checkpoint_grid is not None:
        needs_resizing(row.pos_policy, row.checkpoint_grid, side, patch=row.patch, name=row.name)
    return Description(
        name=name,
        title=row.title,
        family=row.family,
        grid=TokenGrid(row.d, side, side),
        tile_px=tile_px,
        run_px=px,
        fit=fit,
        patch=row.patch,
        parameters=parameters(row),
        layer=layer,
        depth=row.depth,
        licence=row.licence,
        gated=row.gated,
        repo=row.hub_repo,
        identity={
            "encoder": row.name,
            "family": row.family,
            "extractor": EXTRACTOR_REVISION,
            "arch": row.arch,
            "kwargs": row.kwargs.model_dump(exclude_none=True),
            "key_map": row.key_map,
            "patch": row.patch,
            "layer": layer,
            "pos_policy": "none" if side == row.checkpoint_grid else row.pos_policy,
            "tile_px": tile_px,
            "input_px": px,
            "fit": "none" if tile_px == px else fit,
            "mean": list(row.mean),
            "std": list(row.std),
            **({"channels": "apart"} if row.channels_apart else {}),
        },
        share=row.share,
    )


def flop(row: TimmRow, layer: int, px: int) -> int:
    """Return the FLOP of encoding one view of ``px`` pixels up to block ``layer``; a multiply-add is two.

    Counted on the meta device, where nothing is computed, and of one block: the others are like it.
    """
    model = build(shallow(row), px)
    readings: list[int] = []  # before and after the block, each time that it runs
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.blocks[0].register_forward_pre_hook(lambda *_: readings.append(-counter.get_total_flops()))
        model.blocks[0].register_forward_hook(lambda *_: readings.append(counter.get_total_flops()))
        _tokens(model, torch.empty(1, 3, px, px, device="meta"), row)
    return int(counter.get_total_flops()) + (layer - 1) * sum(readings)


def load(
    row: TimmRow,
    layer: int,
    name: str,
    *,
    tile_px: int,
    weights: Path | None,
    revision: str | None,
    fit: Fit,
    input_px: int | None,
    device: torch.device,
    dtype: AskedDtype,
) -> TimmEncoder:
    """Load the encoder, following the loader contract: strict, counted, hashed, positions baked for the run grid.

    ``dtype`` "auto" is float32 on the CPU and the authors' advice on a GPU, by autocast over float32 weights.
    Raises ``InputError`` or ``AccessError`` where the weights cannot be found, read or used.
    """
    description = describe(row, layer, name, tile_px=tile_px, fit=fit, input_px=input_px)
    file = locate(row, weights, revision)
    sha256 = file.sha256 or file_sha256(file.path)
    state = _state_for_run(row, read_checkpoint(file.path), description.grid.h, file.path)
    model = build(row, description.run_px)
    fill_computed_buffers(model)
    model.load_state_dict(state, strict=True, assign=True)
    model.blocks = model.blocks[:layer]  # what lies above is never computed, nor kept in memory
    compute = _compute_dtype(dtype, device, row.compute_dtype)
    return TimmEncoder(row, description, model.to(device), device, compute, file, sha256)


def check(row: TimmRow, path: Path) -> None:
    """Raise ``InputError`` where a weights file is not that of the encoder, as far as its header tells."""
    _named_state(row, read_shapes(path), path)


def _tokens(model: Any, images: torch.Tensor, row: TimmRow) -> torch.Tensor:
    """Return the (B, prefix + h·w, d) final-normed tokens of (B, 3, px, px) normalised images."""
    if not row.channels_apart:
        tokens: torch.Tensor = model.forward_features(images)
        return tokens
    return torch.cat([model.forward_features(channel) for channel in torch.split(images, 1, dim=1)], dim=-1)


def _named_state(row: TimmRow, read: StateDict, path: Path) -> StateDict:
    """Return the tensors of a file by timm's name: complete, and all of the shapes that the row stores."""
    wanted: dict[str, Shape] = dict(stored_shapes(row))
    if row.checkpoint_grid is not None:
        wanted["pos_embed"] = (1, None, row.width)
    mapped = KEY_MAPS[row.key_map](read)
    state = covered(
        mapped.tensors,
        wanted,
        unused=mapped.unused,
        allowed_leftover=row.allowed_leftover,
        name=row.name,
        where=path,
    )
    side, prefix = row.checkpoint_grid, row.position_prefix
    rows = state["pos_embed"].shape[1] if side is not None else 0
    if side is not None and stored_grid(rows, prefix) != side:
        raise InputError(
            f"the position table holds {rows} rows, {row.name} stores {side * side + prefix} ({prefix} for prefix "
            f"tokens and {side}×{side} patches)",
            where=path,
            remedy="This file was made for another input size; give the file that belongs to this encoder.",
        )
    return state


def _state_for_run(row: TimmRow, read: StateDict, run: int, path: Path) -> StateDict:
    """Return the float32 tensors for a model at side ``run``: named by the key map, complete, positions baked."""
    state = {key: tensor.float() for key, tensor in _named_state(row, read, path).items()}
    if row.checkpoint_grid is not None:
        state["pos_embed"] = baked(
            state["pos_embed"],
            prefix_rows=row.position_prefix,
            stored=row.checkpoint_grid,
            run=run,
            policy=row.pos_policy,
        )
    return state


def _compute_dtype(asked: AskedDtype, device: torch.device, advice: ComputeDtype) -> ComputeDtype:
    if asked != "auto":
        return asked
    return advice if device.type == "cuda" else "float32"


class TimmEncoder:
    """A frozen vision transformer; see :class:`stages.encoders.base.Encoder`."""

    def __init__(
        self,
        row: TimmRow,
        description: Description,
        model: Any,
        device: torch.device,
        compute: ComputeDtype,
        file: WeightsFile,
        sha256: str,
    ) -> None:
        self._row, self._description, self._model = row, description, model
        self._device, self._compute = device, compute
        self.name = description.name
        self.grid = description.grid
        self.parameters = description.parameters
        self.identity: Mapping[str, Any] = {
            **description.identity,
            "weights": sha256,
            "compute_dtype": compute,
        }
        self.provenance: Mapping[str, Any] = {
            "title": row.title,
            "licence": row.licence,
            "share": row.share,
            "source": row.source,
            "weights_file": file.path.name,
            "hub_repo": file.repo,
            "hub_commit": file.commit,
            "weights_checked": file.checked,  # against what the Hub promised; None: not from there
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "torch": torch.__version__,
            "timm": timm.__version__,
        }

    def compile(self) -> None:
        """Translate the forward pass by torch.compile, when it first runs; recorded in ``provenance``."""
        self._model.forward_features = compiled(self._model.forward_features, self.name)
        self.provenance = {**self.provenance, "compiled": True}

    @torch.inference_mode()
    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, tile_px, tile_px) uint8 RGB views to (B, d, h, w) float32 final-normed patch tokens.

        Raises ``ValueError`` for views of another shape or dtype, ``InputError`` for tokens that are not finite.
        """
        row, grid = self._row, self.grid
        views = checked_views(views, self._description.tile_px).to(self._device, non_blocking=True)
        images = normalised(fitted(views, self._description.run_px, self._description.fit), row.mean, row.std)
        lower = self._compute != "float32"
        with torch.autocast(self._device.type, dtype=getattr(torch, self._compute), enabled=lower):
            tokens = _tokens(self._model, images, row)
        if tokens.shape[1:] != (row.prefix_tokens + grid.h * grid.w, grid.d):
            raise RuntimeError(f"{self.name} gave {tuple(tokens.shape)} for a grid of {grid}")
        raster = tokens[:, row.prefix_tokens :].transpose(1, 2).reshape(-1, grid.d, grid.h, grid.w)
        return checked_tokens(raster, grid, self.name, self._compute)
