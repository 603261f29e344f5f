"""What this machine has and may do, and what a study still lacks on it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import torch
from huggingface_hub import constants
from rich.table import Table

from pipeline.console import bytes_text
from pipeline.workspace import UnclearCache, Workspace, source_pixels_per_tile_pixel
from stages.encoders import (
    RefusedByHub,
    canonical_name,
    encoder_card,
    hub_refusal,
    known_encoders,
    weights_at_hand,
)
from stages.tiles.split import Split
from stages.training.memory import available_memory
from store.errors import FrostgridError, InputError, InputErrors, StorageError

TIMEOUT: Final = 5.0  # seconds for one answer of the Hub
PACKAGES: Final = ("frostgrid", "torch", "timm", "zarr", "huggingface_hub", "safetensors", "numpy")
_NOBODY_THERE: Final = ("offline", "unreachable")


def examine(cache: Path, work: Workspace | None = None, *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Look at the machine, the Hub and, if there is one, a study; return what was found as JSON-able values.

    ``cache`` is where caches would be written. The Hub is asked for the head of one file of every gated encoder, and
    of those of the study whose weights are not here, each for ``timeout`` seconds; that nobody answers is no fault.
    ``usable`` is False where the study cannot run as it is. Nothing is written or downloaded, no image is hashed,
    and the token's presence is all that is told of it.
    """
    study = None if work is None else _study(work, timeout)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "gpus": _gpus(),
        "cpu_threads": torch.get_num_threads(),
        "memory": {"available": available_memory()},
        "cache": _disk(cache),
        "hub": _hub(timeout),
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


def _hub(timeout: float) -> dict[str, Any]:
    """Return what the Hub says to this machine about each gated encoder; ``reachable`` is None when it is not asked."""
    gated = [name for name in known_encoders() if encoder_card(name).gated]
    access = [
        {"encoder": name, "repo": encoder_card(name).repo, "access": _reason(refused), **_words(refused)}
        for name, refused in zip(gated, _asked(gated, timeout), strict=True)
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


def _asked(names: Sequence[str], timeout: float) -> list[FrostgridError | None]:
    """Ask the Hub for all of them at once: one that does not answer costs its timeout once."""
    if not names:
        return []
    with ThreadPoolExecutor(len(names), "hub") as pool:
        return list(pool.map(lambda name: hub_refusal(name, timeout=timeout), names))


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
    refusals = _asked([references[row["name"]] for row in lacking], timeout)
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
        "faults": [_words(fault) for fault in faults],
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
        "weights": None,
        "cached": None,
        "views_planned": 0,
        "views_cached": 0,
    }
    try:
        given = work.weights_of(name)
        found = weights_at_hand(reference, given)
    except InputError as error:
        faults.append(error)
        return {**row, "weights": "missing"}
    row["weights"] = str(found) if found else None
    try:
        store = work.find_tokens(reference, given)
    except UnclearCache as error:
        faults.append(error)
        return row
    except InputError:  # there is none yet, which is how every study begins
        return row
    status = store.status()
    complete = 0 < status.views_planned == status.views_done
    return {
        **row,
        "needed": row["needed"] and not complete,
        "cached": str(store.path),
        "views_planned": status.views_planned,
        "views_cached": status.views_done,
    }


def doctor_report(found: dict[str, Any]) -> list[Table | str]:
    """Return what :func:`examine` found as tables and sentences for people."""
    parts = [_machine_table(found), _access_table(found["hub"])]
    return parts if found["study"] is None else [*parts, *_study_parts(found["study"])]


def _machine_table(found: dict[str, Any]) -> Table:
    table = Table(title="This machine", show_header=False)
    table.add_column()
    table.add_column()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    gpus = [
        f"{gpu['name']}, {bytes_text(gpu['free'])} of {bytes_text(gpu['total'])} free"
        for gpu in found["gpus"]
    ]
    cache, hub = found["cache"], found["hub"]
    reachable = {
        True: "answers",
        False: "cannot be reached (offline?)",
        None: "not asked: HF_HUB_OFFLINE is set",
    }
    for name, value in (
        ("Python", f"{found['python']} on {found['system']}"),
        ("packages", packages),
        ("GPU", "\n".join(gpus) or "none: encoders run on the CPU"),
        (
            "CPU",
            f"{found['cpu_threads']} threads, {bytes_text(found['memory']['available'])} of memory available",
        ),
        (
            "caches",
            f"{cache['folder']}: {bytes_text(cache['free'])} of {bytes_text(cache['total'])} free"
            + ("" if cache["writable"] else ", not writable"),
        ),
        ("Hub", f"{hub['endpoint']} {reachable[hub['reachable']]}; weights are kept in {hub['cache']}"),
        ("Hub token", "present" if hub["token"] else "none (HF_TOKEN, or: hf auth login)"),
    ):
        table.add_row(name, value)
    return table


def _access_table(hub: dict[str, Any]) -> Table | str:
    if hub["reachable"] is not True:
        return "Access to gated encoders: not known, since the Hub was not reached."
    table = Table(title="Gated encoders on the Hub")
    for name in ("encoder", "repository", "access", "next step"):
        table.add_column(name)
    for row in hub["gated"]:
        table.add_row(row["encoder"], row["repo"], row["access"], row["remedy"] or "")
    return table


def _study_parts(study: dict[str, Any]) -> list[Table | str]:
    table = Table(title=f"{study['name']}: {study['images']} images, caches in {study['cache']}")
    for name in ("encoder", "weights", "cached views"):
        table.add_column(name)
    for row in study["encoders"]:
        weights = row["weights"] or ("not needed" if not row["needed"] else "none")
        cached = (
            f"{row['views_cached']} of {row['views_planned']} planned" if row["cached"] else "no cache yet"
        )
        table.add_row(row["name"], weights, cached)
    if not study["faults"]:
        return [table, f"{study['name']} can run."]
    lines = "\n".join(
        f"  - {fault['what']} [{fault['where']}]. {fault['remedy'] or ''}" for fault in study["faults"]
    )
    return [table, f"{study['name']} cannot run as it is:\n{lines}"]
