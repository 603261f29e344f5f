"""The table of encoders: rows read from TOML and checked, ours (table.toml) and a user's own alike."""

from __future__ import annotations

import difflib
import json
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stages.encoders.base import ComputeDtype, Sharing
from store.errors import InputError, InputErrors

PosPolicy = Literal["timm", "hf", "offset0.1", "bilinear", "rope", "none"]
KeyMap = Literal[
    "identity",
    "strip:visual.trunk.",
    "strip:trunk.",
    "strip:visual.",
    "hf_vit",
    "hf_dinov2",
    "hf_dinov2_reg",
    "hf_clip_vision",
    "dinov2_native",
    "dinov3_native",
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=64)]
Positive = Annotated[int, Field(ge=1)]
Revision = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$", max_length=255)]
_Mean = Annotated[float, Field(ge=0, le=1)]
_Std = Annotated[float, Field(gt=0, le=1)]
Centre = tuple[_Mean, _Mean, _Mean]
Spread = tuple[_Std, _Std, _Std]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TimmArgs(_Strict):
    """What a row may change of a timm architecture: numbers and named layers, nothing that reads files."""

    depth: Positive | None = None
    num_heads: Positive | None = None
    embed_dim: Positive | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    init_values: float | None = None
    qkv_bias: bool | None = None
    reg_tokens: Annotated[int, Field(ge=0)] | None = None
    no_embed_class: bool | None = None
    mlp_layer: Literal["SwiGLUPacked"] | None = None
    act_layer: Literal["SiLU", "GELU"] | None = None
    norm_layer: Literal["LayerNorm1e-6"] | None = None


class _Row(_Strict):
    name: Name
    title: Annotated[str, Field(min_length=1)]
    aliases: tuple[Name, ...] = ()
    patch: Positive
    d: Positive
    licence: str
    share: Sharing = "unclear"
    source: str


class FixedRow(_Row):
    """An encoder without weights, computed by the code that bears its name (fixed.py)."""

    family: Literal["fixed"]
    mean: Centre | None = None
    std: Spread | None = None


class TimmRow(_Row):
    """A vision transformer that timm builds; the fields are explained at the top of table.toml."""

    family: Literal["timm"]
    arch: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
    kwargs: TimmArgs = TimmArgs()
    key_map: KeyMap
    allowed_leftover: tuple[str, ...] = ()
    prefix_tokens: Annotated[int, Field(ge=0)]
    depth: Positive
    checkpoint_grid: Positive | None = None
    no_embed_class: bool | None = None
    channels_apart: bool = False
    mean: Centre
    std: Spread
    pos_policy: PosPolicy
    compute_dtype: ComputeDtype
    gated: bool
    hub_repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Revision | None = None
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    layer: Positive | None = None
    paper: Annotated[str, Field(pattern=r"^\d+(\.\d)?[MB] / (\d+|–)$")] | None = None
    paper_note: str = ""

    @model_validator(mode="after")
    def _fields_agree(self) -> TimmRow:
        if self.layer is not None and self.layer > self.depth:
            raise ValueError(f"layer {self.layer} of an encoder of {self.depth} blocks")
        has_table = self.pos_policy != "rope"
        if (self.checkpoint_grid is None) == has_table or (self.no_embed_class is None) == has_table:
            raise ValueError(
                "checkpoint_grid and no_embed_class: give both, or neither where pos_policy is rope"
            )
        if self.channels_apart and self.d % 3:
            raise ValueError(f"d {self.d} of an encoder that joins the tokens of three channels")
        if (self.hub_repo is None) != (self.revision is None):
            raise ValueError("hub_repo and revision go together: give both or neither")
        if any(Path(file).is_absolute() or ".." in Path(file).parts for file in self.files):
            raise ValueError("files are named relative to their folder, without '..'")
        return self

    @property
    def default_layer(self) -> int:
        """The block (1-based) whose output is used when none is asked for."""
        return self.depth if self.layer is None else self.layer

    @property
    def width(self) -> int:
        """Width of the transformer's own tokens: ``d``, or a third of it where each channel is encoded alone."""
        return self.d // 3 if self.channels_apart else self.d

    @property
    def position_prefix(self) -> int:
        """How many rows of the position table belong to prefix tokens."""
        return 0 if self.no_embed_class else self.prefix_tokens


EncoderRow = TimmRow | FixedRow
_ROW: TypeAdapter[EncoderRow] = TypeAdapter(Annotated[EncoderRow, Field(discriminator="family")])


@cache
def table() -> dict[str, EncoderRow]:
    """Return the rows of table.toml by name, in the order of the file."""
    source = resources.files(__package__) / "table.toml"
    rows = [
        _validated(fields, "table.toml") for fields in tomllib.loads(source.read_text("utf-8"))["encoder"]
    ]
    return {row.name: row for row in rows}


def spelling(name: str) -> str:
    """Return how a name is compared with others: in lower case, ``-`` for ``_``."""
    return name.lower().replace("_", "-")


@cache
def spellings() -> dict[str, str]:
    """Return the name of the table's row for every name and alias, by :func:`spelling`."""
    return {spelling(known): row.name for row in table().values() for known in (row.name, *row.aliases)}


def read_row(path: Path) -> EncoderRow:
    """Return the row that a user's TOML file holds.

    Raises ``InputError`` where the file cannot be read or its name is one of ours, and ``InputErrors`` with every
    field that is missing, unknown (naming the nearest known one) or of a wrong value.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"the encoder's file cannot be read ({error.strerror})", where=path, remedy="Check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"the encoder's file is not TOML: {error}", where=path, remedy="Correct the line that is named."
        ) from None
    row = _validated(fields, str(path))
    if spelling(row.name) in spellings():
        raise InputError(
            f"the name {row.name!r} belongs to an encoder of the table",
            where=path,
            remedy="Give your encoder another name, so that results cannot be confused.",
        )
    if row.aliases:
        raise InputError(
            "only encoders of the table have aliases; this one is called by its file",
            where=path,
            remedy="Leave aliases out.",
        )
    return row


def _validated(fields: dict[str, Any], source: str) -> EncoderRow:
    try:
        return _ROW.validate_python(fields)
    except ValidationError as error:
        faults = [_fault(detail, source) for detail in error.errors()]
        raise InputErrors(
            faults, remedy="Correct these fields; stages/encoders/table.toml explains each of them."
        ) from None


def _fault(detail: ErrorDetails, source: str) -> InputError:
    path = [str(part) for part in detail["loc"] if part not in ("timm", "fixed")]
    field = ".".join(path) or "row"
    if detail["type"] == "extra_forbidden":
        known = (
            TimmArgs.model_fields
            if path[:1] == ["kwargs"]
            else {**TimmRow.model_fields, **FixedRow.model_fields}
        )
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"; nearest known: {near[0]}" if near else ""
        return InputError(f"unknown field {field!r}{hint}", where=source)
    given = detail["input"]
    if detail["type"] == "union_tag_not_found":
        return InputError('family: field required, "timm" for a vision transformer', where=source)
    if detail["type"] == "tuple_type" and isinstance(given, str):
        return InputError(f"{field}: give a list, as in {field} = [{json.dumps(given)}]", where=source)
    shown = f" (given {given!r})" if isinstance(given, str | int | float | bool) else ""
    of = "; mean and std are of RGB scaled to [0, 1]" if path[:1] in (["mean"], ["std"]) else ""
    return InputError(f"{field}: {detail['msg'][:1].lower()}{detail['msg'][1:]}{shown}{of}", where=source)
