"""The table of encoders: rows read from TOML and checked, ours (table.toml) and a user's own alike."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stages.encoders.base import ComputeDtype
from store.errors import InputError, InputErrors

PosPolicy = Literal["timm", "hf", "offset0.1", "bilinear", "none"]
Positive = Annotated[int, Field(ge=1)]
Triple = tuple[float, float, float]
Spread = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


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


class _Row(_Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=64)]
    title: Annotated[str, Field(min_length=1)]
    patch: Positive
    d: Positive
    licence: str
    source: str


class FixedRow(_Row):
    """An encoder without weights, computed by the code that bears its name (fixed.py)."""

    family: Literal["fixed"]
    mean: Triple | None = None
    std: Spread | None = None


class TimmRow(_Row):
    """A vision transformer that timm builds; the fields are explained at the top of table.toml."""

    family: Literal["timm"]
    arch: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
    kwargs: TimmArgs = TimmArgs()
    key_map: Literal["identity"]
    allowed_leftover: tuple[str, ...] = ()
    prefix_tokens: Annotated[int, Field(ge=0)]
    depth: Positive
    checkpoint_grid: Positive
    no_embed_class: bool
    mean: Triple
    std: Spread
    pos_policy: PosPolicy
    compute_dtype: ComputeDtype
    gated: bool
    hub_repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: str | None = None
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    layer: Positive | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> TimmRow:
        if self.layer is not None and self.layer > self.depth:
            raise ValueError(f"layer {self.layer} of an encoder of {self.depth} blocks")
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
    if row.name in table():
        raise InputError(
            f"the name {row.name!r} belongs to an encoder of the table",
            where=path,
            remedy="Give your encoder another name, so that results cannot be confused.",
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
    shown = f" (given {given!r})" if isinstance(given, str | int | float | bool) else ""
    return InputError(f"{field}: {detail['msg'][:1].lower()}{detail['msg'][1:]}{shown}", where=source)
