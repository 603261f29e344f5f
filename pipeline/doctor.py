"""What this machine has and may do, and what a study still lacks on it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import torch
from huggingface_hub import constants

from pipeline.sharing import choose
from pipeline.study_data import source_pixels_per_tile_pixel
from pipeline.workspace import Workspace
from stages.decoders import decoder_faults
from stages.encoders import (
    WEIGHTS_VARIABLE,
    RefusedByHub,
    canonical_name,
    encoder_card,
    hub_refusal,
    known_encoders,
    plugin_faults,
    weights_at_hand,
    weights_folder,
)
from stages.tiles.split import Split
from stages.training.memory import available_memory
from store import StoreStatus
from store.errors import FrostgridError, InputError, InputErrors, NoCache, StorageError

TIMEOUT: Final = 5.0  # seconds for one answer of the Hub
PACKAGES: Final = ("frostgrid", "torch", "timm", "zarr", "huggingface_hub", "safetensors", "numpy")


def examine(cache: Path, work: Workspace | None = None, *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Look at the machine, the Hub and, if there is one, a study; return what was found as JSON-able values.

    ``cache`` is where caches would be written. The Hub is asked for the head of one file of every gated encoder, and
    of those of the study whose weights are not here, each for ``timeout`` seconds; that nobody answers is no fault.
    ``usable`` is False where the study cannot run as it is. Nothing is written or downloaded, no image is hashed,
    and the token's presence is all that is told of it.
    """
    study = None if work is None else _study(work, timeout)
    names = known_encoders() if work is None else work.study.encoders.names
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "gpus": _gpus(),
        "cpu_threads": torch.get_num_threads(),
        "memory": {"available": available_memory()},
        "cache": _disk(cache),
        "hub": _hub(timeout),
        "weights_folder": _weights_folder(names),
        "plugin_faults": [_words(fault) for fault in (*plugin_faults(), *decoder_faults())],
        "study": study,
        "usable": study is None or not study["faults"],
    }


def _gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
    return found


def _disk(folder: Path) -> dict[str, Any]:
    """Return the free space at ``folder``, or where it would be made, and whether it can be written."""
    here = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    usage = shutil.disk_usage(here)
    return {
        "folder": str(folder),
        "free": usage.free,
        "total": usage.total,
        "writable": os.access(here, os.W_OK),
    }


def _weights_folder(names: Sequence[str]) -> dict[str, Any] | None:
    """Return what the folder FROSTGRID_WEIGHTS holds for encoders, None where there is no such setting."""
    holds: dict[str, str] = {}
    try:
        folder = weights_folder()
    except InputError as error:
        return {"folder": os.environ[WEIGHTS_VARIABLE], "exists": False, "holds": holds, "fault": error.what}
    if folder is None:
        return None
    for reference in names:
        with suppress(FrostgridError):  # a fault of that encoder is told with the encoder
            file = weights_at_hand(reference)
            if file is not None and file.is_relative_to(folder):
                holds[canonical_name(reference)] = str(file)
    return {"folder": str(folder), "exists": True, "holds": holds, "fault": None}


def _hub(timeout: float) -> dict[str, Any]:
    """Return what the Hub says to this machine about each gated encoder; ``reachable`` is None when it is not asked."""
    gated = [name for name in known_encoders() if encoder_card(name).gated]
    asked = _asked(gated, lambda name: hub_refusal(name, timeout=timeout))
    access = [
        {"encoder": name, "repo": encoder_card(name).repo, "access": _reason(refused), **_words(refused)}
        for name, refused in zip(gated, asked, strict=True)
    ]
    reasons = {row["access"] for row in access}
    return {
        "endpoint": constants.ENDPOINT,
        "token": huggingface_hub.get_token() is not None,
        "offline": constants.is_offline_mode(),
        "reachable": None if "offline" in reasons else reasons != {"unreachable"},
        "cache": constants.HF_HUB_CACHE,
        "gated": access,
    }


def _asked(names: Sequence[str], ask: Callable[[str], FrostgridError | None]) -> list[FrostgridError | None]:
    """Ask the Hub for all of them at once: one that does not answer costs its timeout once."""
    if not names:
        return []
    with ThreadPoolExecutor(len(names), "hub") as pool:
        return list(pool.map(ask, names))


def _reason(refused: FrostgridError | None) -> str:
    if refused is None:
        return "granted"
    return refused.reason if isinstance(refused, RefusedByHub) else "missing"


def _words(error: FrostgridError | None) -> dict[str, str | None]:
    return {
        "what": None if error is None else error.what,
        "where": None if error is None else error.where,
        "remedy": None if error is None else error.remedy,
    }


def _study(work: Workspace, timeout: float) -> dict[str, Any]:
    """Return what the study has here; ``faults`` are what keeps it from running."""
    faults: list[FrostgridError] = []
    images = 0
    try:
        images = len(work.records)
        for record in work.records.values():
            source_pixels_per_tile_pixel(work.study, record)
        if isinstance(work.study.data.split, str):
            Split.read(Path(work.study.data.split), list(work.records.values()))
    except InputErrors as error:
        faults += error.faults
    except FrostgridError as error:
        faults.append(error)
    references = _references(work, faults)
    encoders = [_encoder(work, name, reference, faults) for name, reference in references.items()]
    lacking = [row for row in encoders if row["weights"] is None and row["needed"]]
    refusals = _asked(
        [references[row["name"]] for row in lacking],
        lambda reference: work.backbones.refusal(reference, timeout=timeout),
    )
    for row, refused in zip(lacking, refusals, strict=True):
        row["weights"] = "from the Hub" if refused is None else "missing"
        if refused is not None:
            faults.append(refused)
    disk = _disk(work.cache)
    if not disk["writable"] and any(row["cached"] is None for row in encoders):
        faults.append(
            StorageError(
                "no cache can be written here", where=work.cache, remedy="Give another folder with --cache."
            )
        )
    return {
        "name": work.study.name,
        "images": images,
        "cache": str(work.cache),
        "encoders": encoders,
        "faults": [_words(fault) for fault in {str(fault): fault for fault in faults}.values()],
    }


def _references(work: Workspace, faults: list[FrostgridError]) -> dict[str, str]:
    """Return the study's encoders that can be known, canonical name → what is written in the study."""
    found = {}
    for reference in work.study.encoders.names:
        try:
            work.describe(reference)
            found[canonical_name(reference)] = reference
        except FrostgridError as error:
            faults.append(error)
    return found


def _encoder(work: Workspace, name: str, reference: str, faults: list[FrostgridError]) -> dict[str, Any]:
    """Return where the weights and the cache of one encoder are.

    Its weights are ``needed`` unless there are none, or every view that was ever planned for its cache is there:
    whether these are all that the study needs now, only plan can tell, since it hashes the images.
    """
    row: dict[str, Any] = {
        "name": name,
        "needed": work.describe(reference).parameters > 0,
        "weights": "brought by its package" if encoder_card(reference).installed else None,
        "cached": None,
        "views_planned": 0,
        "views_cached": 0,
    }
    try:
        given = work.weights_of(name)
        found = weights_at_hand(reference, given, revision=work.backbones.revision_of(name))
    except InputError as error:
        faults.append(error)
        return {**row, "weights": "missing"}
    row["weights"] = str(found) if found else row["weights"]
    row.update(_cached(work, reference, given, faults))
    row["needed"] = row["needed"] and not 0 < row["views_planned"] == row["views_cached"]
    if row["needed"]:
        try:
            work.backbones.check_weights(reference, given)
        except InputError as error:
            faults.append(error)
    return row


def _cached(
    work: Workspace, reference: str, given: Path | None, faults: list[FrostgridError]
) -> dict[str, Any]:
    """Return where the cache of one encoder is and what it holds; empty where there is none.

    A place elsewhere is asked first; what it refuses is among the faults.
    """
    if work.origin is not None:
        try:
            offer = choose(work.origin, work.wanted_tokens(reference, given))
            return _counted(offer.where("").rstrip("/"), offer.status)
        except NoCache:
            pass
        except FrostgridError as error:
            faults.append(error)
    try:
        store = work.find_tokens(reference, given)
    except NoCache:  # there is none yet, which is how every study begins
        return {}
    except InputError as error:
        faults.append(error)
        return {}
    return _counted(str(store.path), store.status())


def _counted(where: str, status: StoreStatus) -> dict[str, Any]:
    return {"cached": where, "views_planned": status.views_planned, "views_cached": status.views_done}
