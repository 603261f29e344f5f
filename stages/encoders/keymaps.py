"""Rules that turn the tensor names of a published file into timm's; one rule serves many encoders.

A rule sees every tensor of a file. What it does not know, or what would take the place of another tensor, it leaves
unused, so that the loader can refuse it or let it go. Values stay as they are but for two things: query, key and value
are joined in this order, and the position of the class token is folded into it where timm has no row for it.

SwiGLU needs no reordering: files and timm alike hold the gate first, then the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from stages.encoders.checkpoint import StateDict


class Mapped(NamedTuple):
    """The tensors of a file by timm's name, and the file's names (less a prefix of all) that no tensor was made of."""

    tensors: StateDict
    unused: tuple[str, ...]


_KIND: Final = r"(weight|bias)"
_BLOCK: Final = r"encoder\.layer\.(\d+)\."
_HF_PREFIX: Final = r"(?:(?:vit|dinov2|dinov2_with_registers|model)\.)?"

_HF_COMMON: Final = (
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (rf"embeddings\.patch_embeddings\.projection\.{_KIND}", r"patch_embed.proj.\1"),
    (rf"{_BLOCK}attention\.attention\.(query|key|value)\.{_KIND}", r"blocks.\1.attn.\2.\3"),
    (rf"{_BLOCK}attention\.output\.dense\.{_KIND}", r"blocks.\1.attn.proj.\2"),
    (rf"layernorm\.{_KIND}", r"norm.\1"),
)
_HF_VIT: Final = (
    *_HF_COMMON,
    (rf"{_BLOCK}layernorm_before\.{_KIND}", r"blocks.\1.norm1.\2"),
    (rf"{_BLOCK}layernorm_after\.{_KIND}", r"blocks.\1.norm2.\2"),
    (rf"{_BLOCK}intermediate\.dense\.{_KIND}", r"blocks.\1.mlp.fc1.\2"),
    (rf"{_BLOCK}output\.dense\.{_KIND}", r"blocks.\1.mlp.fc2.\2"),
)
_HF_DINOV2: Final = (
    *_HF_COMMON,
    (rf"{_BLOCK}(norm1|norm2|mlp\.fc1|mlp\.fc2)\.{_KIND}", r"blocks.\1.\2.\3"),
    (rf"{_BLOCK}mlp\.weights_in\.{_KIND}", r"blocks.\1.mlp.fc1.\2"),
    (rf"{_BLOCK}mlp\.weights_out\.{_KIND}", r"blocks.\1.mlp.fc2.\2"),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
)
_HF_DINOV2_REG: Final = (*_HF_DINOV2, (r"embeddings\.register_tokens", r"reg_token"))

_CLIP_BLOCK: Final = r"encoder\.layers\.(\d+)\."
_HF_CLIP_VISION: Final = (
    (r"embeddings\.class_embedding", r"cls_token"),
    (r"embeddings\.position_embedding\.weight", r"pos_embed"),
    (r"embeddings\.patch_embedding\.weight", r"patch_embed.proj.weight"),
    (rf"pre_layrnorm\.{_KIND}", r"norm_pre.\1"),
    (rf"post_layernorm\.{_KIND}", r"norm.\1"),
    (rf"{_CLIP_BLOCK}self_attn\.q_proj\.{_KIND}", r"blocks.\1.attn.query.\2"),
    (rf"{_CLIP_BLOCK}self_attn\.k_proj\.{_KIND}", r"blocks.\1.attn.key.\2"),
    (rf"{_CLIP_BLOCK}self_attn\.v_proj\.{_KIND}", r"blocks.\1.attn.value.\2"),
    (rf"{_CLIP_BLOCK}self_attn\.out_proj\.{_KIND}", r"blocks.\1.attn.proj.\2"),
    (rf"{_CLIP_BLOCK}layer_norm([12])\.{_KIND}", r"blocks.\1.norm\2.\3"),
    (rf"{_CLIP_BLOCK}(mlp\.fc[12])\.{_KIND}", r"blocks.\1.\2.\3"),
)

_AS_IS: Final = (r"(.+)", r"\1")
_DINOV2_NATIVE: Final = (
    (rf"(blocks\.\d+\.mlp)\.w12\.{_KIND}", r"\1.fc1.\2"),
    (rf"(blocks\.\d+\.mlp)\.w3\.{_KIND}", r"\1.fc2.\2"),
    (r"register_tokens", r"reg_token"),
    _AS_IS,
)
_DINOV3_NATIVE: Final = (
    (rf"(blocks\.\d+\.mlp)\.w1\.{_KIND}", r"\1.fc1_g.\2"),
    (rf"(blocks\.\d+\.mlp)\.w2\.{_KIND}", r"\1.fc1_x.\2"),
    (rf"(blocks\.\d+\.mlp)\.w3\.{_KIND}", r"\1.fc2.\2"),
    (r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),
    (r"storage_tokens", r"reg_token"),
    _AS_IS,
)


def identity(state: StateDict) -> Mapped:
    """Return the tensors as they are: the file is written in timm's names."""
    return Mapped(state, ())


def strip_visual_trunk(state: StateDict) -> Mapped:
    """Map a vision-language file whose image tower is timm's under ``visual.trunk.``."""
    return _renamed(state, ((r"visual\.trunk\.(.+)", r"\1"),))


def strip_trunk(state: StateDict) -> Mapped:
    """Map an image tower whose transformer is timm's under ``trunk.``."""
    return _renamed(state, ((r"trunk\.(.+)", r"\1"),))


def strip_visual(state: StateDict) -> Mapped:
    """Map timm's names under ``visual.``, with a LayerScale that transformers made call its ``gamma`` ``weight``."""
    scale = (r"visual\.(blocks\.\d+\.ls[12])\.weight", r"\1.gamma")
    return _renamed(state, (scale, (r"visual\.(.+)", r"\1")))


def hf_vit(state: StateDict) -> Mapped:
    """Map a file of transformers' ``ViTModel``."""
    return _joined_qkv(_renamed(state, _HF_VIT, _HF_PREFIX))


def hf_dinov2(state: StateDict) -> Mapped:
    """Map a file of transformers' ``Dinov2Model``, with a GELU or a SwiGLU MLP."""
    return _joined_qkv(_renamed(state, _HF_DINOV2, _HF_PREFIX))


def hf_dinov2_reg(state: StateDict) -> Mapped:
    """Map a file of transformers' ``Dinov2WithRegistersModel``; its class token has a position, timm's has none."""
    return _folded_class_position(_joined_qkv(_renamed(state, _HF_DINOV2_REG, _HF_PREFIX)))


def hf_clip_vision(state: StateDict) -> Mapped:
    """Map the image tower of a file of transformers' ``CLIPModel`` (or ``CLIPVisionModel``)."""
    mapped = _joined_qkv(_renamed(state, _HF_CLIP_VISION, r"(?:vision_model\.)?"))
    token, table = mapped.tensors.get("cls_token"), mapped.tensors.get("pos_embed")
    if token is not None and token.ndim == 1:
        mapped.tensors["cls_token"] = token[None, None]
    if table is not None and table.ndim == 2:
        mapped.tensors["pos_embed"] = table[None]
    return mapped


def dinov2_native(state: StateDict) -> Mapped:
    """Map a file of facebookresearch/dinov2; with registers, its class token has a position, timm's has none."""
    mapped = _renamed(state, _DINOV2_NATIVE)
    return _folded_class_position(mapped) if "register_tokens" in state else mapped


def dinov3_native(state: StateDict) -> Mapped:
    """Map a file of facebookresearch/dinov3 (rotary positions, so there is no table to fold)."""
    return _renamed(state, _DINOV3_NATIVE)


KEY_MAPS: Final[Mapping[str, Callable[[StateDict], Mapped]]] = {
    "identity": identity,
    "strip:visual.trunk.": strip_visual_trunk,
    "strip:trunk.": strip_trunk,
    "strip:visual.": strip_visual,
    "hf_vit": hf_vit,
    "hf_dinov2": hf_dinov2,
    "hf_dinov2_reg": hf_dinov2_reg,
    "hf_clip_vision": hf_clip_vision,
    "dinov2_native": dinov2_native,
    "dinov3_native": dinov3_native,
}


def _renamed(state: StateDict, rules: Sequence[tuple[str, str]], prefix: str = "") -> Mapped:
    """Rename by the first of ``rules`` (pattern, name) that matches a whole name after an optional ``prefix``."""
    patterns = [(re.compile(prefix + pattern), name) for pattern, name in rules]
    tensors: StateDict = {}
    unused = []
    for key, tensor in state.items():
        name = next((found.expand(name) for regex, name in patterns if (found := regex.fullmatch(key))), None)
        if name is None or name in tensors:
            unused.append(re.sub(rf"^{prefix}", "", key))
        else:
            tensors[name] = tensor
    return Mapped(tensors, tuple(unused))


def _joined_qkv(mapped: Mapped) -> Mapped:
    """Join query, key and value on their rows, in this order; three that do not belong together stay as they are."""
    tensors = mapped.tensors
    for query in [name for name in tensors if ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if len({tensors[part].shape if part in tensors else None for part in parts}) == 1:
            joined = torch.cat([tensors.pop(part) for part in parts])
            tensors[query.replace(".query.", ".qkv.")] = joined
    return mapped


def _folded_class_position(mapped: Mapped) -> Mapped:
    """Add the first row of the position table to the class token and take it from the table; exact in float32."""
    tensors = mapped.tensors
    token, table = tensors.get("cls_token"), tensors.get("pos_embed")
    if (
        token is None
        or table is None
        or not token.ndim == table.ndim == 3
        or token.shape[::2] != table.shape[::2]
    ):
        return mapped  # the loader names what is missing, and the shapes that it wants
    tensors["cls_token"] = token.float() + table[:, :1].float()
    tensors["pos_embed"] = table[:, 1:]
    return mapped
