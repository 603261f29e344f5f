"""A study file: one TOML that fixes a benchmark, validated before anything is computed."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from store.errors import InputError, InputErrors
from store.int8 import MAX_ERROR

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Label = int | str
Revision = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$", max_length=255)]
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


class Section(BaseModel):
    """A table of the study file: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitSection(Section):
    """How many images go to training, validation and test, and the seed of the choice.

    A number left out is all images of that side where the data set's table has a column ``split``, else the paper's
    15, 5 or 10 (section 3.1).
    """

    train: PositiveInt | None = None
    val: PositiveInt | None = None
    test: PositiveInt | None = None
    seed: int = 0

    def numbers(self, *, sides_known: bool) -> tuple[int | None, int | None, int | None]:
        """Return the numbers of images to choose; None means all of a side, which ``sides_known`` allows."""
        if sides_known:
            return self.train, self.val, self.test
        return self.train or 15, self.val or 5, self.test or 10


class DataSection(Section):
    """Images, masks, classes and how tiles are cut from them.

    ``classes`` maps each class to its labels: integers of a label mask, ``"#rrggbb"`` of a colour mask, or names of
    GeoJSON annotations. Resolution: ``scale`` (tile pixels per source pixel), or ``mpp`` (µm of a tile pixel) together
    with each image's own mpp.
    """

    kind: Literal["puma", "folder", "demo"]
    root: str | None = None
    tile_px: PositiveInt = 512
    tiles: Literal["center", "grid"] = "center"
    scale: Annotated[float, Field(gt=0)] | None = None
    mpp: Annotated[float, Field(gt=0)] | None = None
    image_mpp: Annotated[float, Field(gt=0)] | None = None
    classes: dict[str, list[Label]] = Field(default_factory=dict)
    ignore: list[Label] = Field(default_factory=list)
    unlabelled: str = "ignore"
    draw_order: list[str] | None = None
    images: str = "images"
    masks: str = "masks"
    mask_suffix: str = ""
    table: str | None = None
    name_column: str | None = None
    patient_column: str = "patient"
    size_px: PositiveInt = 256
    seed: int = 0
    split: SplitSection | str = SplitSection()

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        if self.kind != "demo" and self.root is None:
            raise ValueError("root is missing: the folder that holds the images")
        if self.kind != "demo" and len(self.classes) < 2:
            raise ValueError("classes needs at least two entries, e.g. { Tumour = [1], Stroma = [2] }")
        if self.kind == "demo" and self.classes:
            raise ValueError("classes is fixed for the demo tissue: leave it out")
        if self.scale is not None and self.mpp is not None:
            raise ValueError("give scale or mpp, not both")
        return self


class AffineSection(Section):
    """Random affine deformation; see :class:`stages.tiles.views.Recipe`."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 180.0
    translate: Share = 0.1
    scale: tuple[float, float] = (0.8, 1.25)
    shear: Annotated[float, Field(ge=0, le=45)] = 10.0

    @model_validator(mode="after")
    def _check(self) -> AffineSection:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be [low, high] with 0 < low <= high")
        return self


class JitterSection(Section):
    """Random brightness and colour; see :class:`stages.tiles.views.Recipe`."""

    brightness: Share = 0.2
    contrast: Share = 0.2
    saturation: Share = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05


class ViewsSection(Section):
    """How many views a training tile has (view 0 is the tile itself) and how the others are drawn."""

    per_tile: PositiveInt = 50
    seed: int = 0
    affine: AffineSection = AffineSection()
    flip: bool = True
    jitter: JitterSection = JitterSection()


class EncodersSection(Section):
    """Which encoders, where their weights are, and how a tile is fitted to a patch size that does not divide it.

    By encoder: ``weights`` are paths, ``revisions`` commits or tags of its repository on the Hub, ``input_px`` the side
    that views are resized to, a multiple of its patch.
    """

    names: Annotated[list[str], Field(min_length=1)]
    weights: dict[str, str] = Field(default_factory=dict)
    revisions: dict[str, Revision] = Field(default_factory=dict)
    input_px: dict[str, PositiveInt] = Field(default_factory=dict)
    fit: Literal["resize", "pad"] = "resize"


class CacheSection(Section):
    """Where feature caches are kept: a folder, or the URL of a place elsewhere; see :mod:`pipeline.staging`.

    ``encoding``: "float16" is exact, "int8" takes half the space; a view that it would change by more than
    ``max_int8_error`` of its channels' standard deviations is refused (:mod:`store.int8`).
    """

    root: str = "cache"
    encoding: Literal["float16", "int8"] = "float16"
    max_int8_error: Annotated[float, Field(gt=0)] = MAX_ERROR

    @field_validator("root")
    @classmethod
    def _check_root(cls, root: str) -> str:
        if not root.strip():
            raise ValueError("give a folder, or a URL such as s3://bucket/folder")
        scheme, separator, rest = root.partition("://")
        if separator and not (_SCHEME.fullmatch(scheme) and rest.strip("/")):
            raise ValueError("a URL is written like s3://bucket/folder or hf://datasets/owner/name")
        if separator and re.match(r"[^/@]*:[^/@]*@", rest):
            raise ValueError("a study is shared, and this URL holds a password: leave it to the environment")
        return root


class TrainSection(Section):
    """The decoder and its training; the defaults are the paper's (section 2.4).

    ``decoder_options`` are the decoder's own, see :mod:`stages.decoders`; ``loss`` is one of
    :data:`stages.training.loss.LOSSES`. ``tiles`` trains on so many of the training tiles, ``views`` on the first so
    many views of each; left out, on all. ``precision`` "bfloat16" runs the decoder under autocast with float32 weights.
    ``cuda_graphs`` records the step of a full batch once and replays it, on a GPU.
    """

    decoder: str = "single-scale"
    decoder_options: dict[str, Any] = Field(default_factory=dict)
    loss: Literal["ce+dice", "ce", "dice", "focal"] = "ce+dice"
    epochs: PositiveInt = 50
    validate_every: PositiveInt = 10
    restart_epochs: PositiveInt = 10
    batch: PositiveInt = 8
    lr: Annotated[float, Field(gt=0)] = 1e-4
    seeds: PositiveInt = 10
    tiles: PositiveInt | None = None
    views: PositiveInt | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    upconv: Literal["auto", "fast", "textbook"] = "auto"
    cuda_graphs: bool = False


class Study(Section):
    """A whole study file, with every default filled in."""

    name: str
    data: DataSection
    views: ViewsSection = ViewsSection()
    encoders: EncodersSection
    cache: CacheSection = CacheSection()
    train: TrainSection = TrainSection()

    @model_validator(mode="after")
    def _check(self) -> Study:
        if self.train.views is not None and self.train.views > self.views.per_tile:
            raise ValueError(
                f"train.views is {self.train.views}, but a tile has {self.views.per_tile} views (views.per_tile)"
            )
        return self

    @property
    def training_views(self) -> int:
        """How many views of each training tile a decoder is trained on."""
        return self.train.views or self.views.per_tile

    def resolved(self) -> dict[str, Any]:
        """Return the study with all defaults as JSON-able values, as written beside every result."""
        return self.model_dump(mode="json")


def read_study(path: Path) -> Study:
    """Read and validate a study file. The study is named by its file's stem.

    ``${NAME}`` and ``${NAME:-default}`` are replaced from the environment in every text.
    Raises :class:`InputError` for a missing or malformed file and :class:`InputErrors` listing
    every field that cannot be used, unknown ones with the nearest known name.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            "There is no such study file",
            where=path,
            remedy="Give the path of a .toml, e.g. studies/demo.toml.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"The study is not valid TOML: {error}", where=path, remedy="Mend that line."
        ) from None
    if "name" in table:
        raise InputError(
            "Unknown key 'name'", where=path, remedy="A study is named by its file: rename the file instead."
        )
    return validated({**_expand(table, path), "name": path.stem}, path)


def validated(table: Mapping[str, Any], where: str | Path) -> Study:
    """Return the study that ``table`` describes, ``name`` included; raises as :func:`read_study`, naming ``where``."""
    try:
        return Study.model_validate(dict(table))
    except ValidationError as error:
        faults = [_fault(detail, where) for detail in error.errors()]
        if len(faults) == 1:
            raise faults[0] from None
        raise InputErrors(faults, remedy="Mend these fields of the study and run it again.") from None


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name not in os.environ and default is None:
            raise InputError(
                f"The environment variable {name} is not set",
                where=path,
                remedy=f"Set it, or write ${{{name}:-default}}.",
            )
        return os.environ.get(name) or default or ""

    return _VARIABLE.sub(replacement, value)


def _fault(detail: Any, path: str | Path) -> InputError:
    # a union's branches (SplitSection, str) are pydantic's business, not a reader's
    place = [str(part) for part in detail["loc"] if part not in ("SplitSection", "str")]
    field = ".".join(place)
    if detail["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(known)}."
        return InputError(f"Unknown key '{field}'", where=path, remedy=hint)
    if detail["type"] == "missing":
        return InputError(f"'{field}' is missing", where=path, remedy="Add it to the study.")
    message = detail["msg"].removeprefix("Value error, ")
    if not field:
        return InputError(message, where=path, remedy="Mend these fields of the study.")
    shown = re.sub(r"://[^/@]*@", "://…@", repr(detail["input"]))  # never a password
    given = "" if isinstance(detail["input"], dict) else f" (given: {shown})"
    return InputError(f"'{field}': {message}{given}", where=path, remedy="Mend this field of the study.")


def _keys_at(place: list[str]) -> list[str]:
    model: type[BaseModel] = Study
    for part in place:
        field = model.model_fields.get(part)
        if field is None:
            continue  # the name of a union's branch, e.g. of data.split
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return [name for name in model.model_fields if not (model is Study and name == "name")]
