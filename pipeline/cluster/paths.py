"""What a study names, as every worker finds it: by absolute paths, wherever the command was called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.study import CacheSection, Study, TrainSection
from pipeline.workspace import Workspace

_LOOKED_AT = 16  # images


def for_workers(study: Study) -> str:
    """Return what workers need of a study as JSON, alike for all that differ in nothing else."""
    data, encoders = study.data, study.encoders
    changes: dict[str, Any] = {}
    if data.root is not None:
        changes["root"] = str(Path(data.root).absolute())
    if isinstance(data.split, str):
        changes["split"] = str(Path(data.split).absolute())
    return study.model_copy(
        update={
            "name": "",
            "data": data.model_copy(update=changes),
            "encoders": encoders.model_copy(
                update={
                    "names": ["stain"],  # each task names its own
                    "weights": {},
                    "revisions": {absolute(name): one for name, one in encoders.revisions.items()},
                    "input_px": {absolute(name): one for name, one in encoders.input_px.items()},
                }
            ),
            "cache": CacheSection(),
            "train": TrainSection(),
        }
    ).model_dump_json()


def some_of_the_data(work: Workspace) -> list[Path]:
    """Return a few images and masks from all over the data set, by which one knows it on another machine."""
    records = [record for record in work.records.values() if record.path is not None]
    step = -(-len(records) // _LOOKED_AT) or 1
    paths = [path for record in records[::step] for path in (record.path, record.mask_path)]
    return [path for path in paths if path is not None]


def absolute(reference: str) -> str:
    """Return a reference to an encoder as any folder understands it: that to a TOML by its absolute path."""
    name = _file_name(reference)
    return str(Path(name).absolute()) + reference[len(name) :] if name else reference


def file_of(reference: str) -> Path | None:
    """Return the TOML that a reference names, with or without a block after it."""
    name = _file_name(reference)
    return Path(name) if name else None


def _file_name(reference: str) -> str:
    """Return the part of a reference that is the path of a TOML; "" where it is a name."""
    name, at, layer = reference.rpartition("@")
    if not at or layer.endswith(".toml"):
        name = reference
    return name if name.endswith(".toml") else ""
