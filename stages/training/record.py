"""A finished run on disk: a folder that appears complete, in one step, and is checked whenever it is read."""

from __future__ import annotations

import csv
import hashlib
import io
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from stages.training.result import RunResult
from store.documents import decode, encode
from store.durable import put_folder
from store.errors import InputError, StorageError, VerificationError
from store.sweeping import sweep

RUN, CONFUSIONS, LOSSES, DECODER = "run.json", "confusions.npz", "losses.csv", "decoder.safetensors"
_VERSION = 2
_AGAIN = "Remove the folder and train this run again."
_FIELDS = {
    "seed": int,
    "classes": list,
    "best_epoch": int,
    "parameters": int,
    "seconds": dict,
    "identity": dict,
    "environment": dict,
    "files": dict,
}


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a result may depend on beside its inputs: versions, device and number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    versions = {"frostgrid": metadata.version("frostgrid"), "python": platform.python_version()}
    versions |= {"torch": str(torch.__version__), "numpy": np.__version__}
    with suppress(metadata.PackageNotFoundError):  # it comes with PyTorch for GPUs, and compiles our kernels
        versions["triton"] = metadata.version("triton")
    return {
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.type} {name}".strip(),
        "threads": torch.get_num_threads(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A finished run that was read back and found undamaged.

    ``result`` is what ``train_run`` returned; ``identity`` and ``environment`` what ``write_run`` was given.
    """

    folder: Path
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: RunResult


def write_run(
    folder: Path, result: RunResult, *, identity: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    """Write ``result`` as the new folder ``folder``: :func:`put_run` of :func:`run_files`."""
    put_run(folder, run_files(result, identity=identity, environment=environment))


def run_files(
    result: RunResult, *, identity: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the files of a finished run by their names.

    ``run.json`` holds seed, classes, best epoch, parameters, seconds, ``identity``, ``environment`` and the sha256
    of the other files: ``confusions.npz`` (validated, val, test, val_names, test_names), ``losses.csv`` (epoch,
    loss, lr) and ``decoder.safetensors``.
    """
    files = {CONFUSIONS: _confusions(result), LOSSES: _losses(result), DECODER: _decoder(result)}
    body = {
        "seed": result.seed,
        "classes": list(result.classes),
        "best_epoch": result.best_epoch,
        "parameters": result.parameters,
        "seconds": dict(result.seconds),
        "identity": dict(identity),
        "environment": dict(environment),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return {**files, RUN: encode("run", _VERSION, body)}


def put_run(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the ``files`` of a run as the new folder ``folder``, completely and durably, or not at all.

    ``InputError`` if the folder holds something already, ``StorageError`` if it cannot be written.
    """
    sweep(folder.parent)  # of what a process that was killed has left half written
    try:
        created = put_folder(folder, files)
    except OSError as error:
        raise StorageError(
            f"The finished run cannot be written: {error.strerror or error}",
            where=folder,
            remedy="Free space or give the rights to write there, then run the same command again.",
        ) from error
    if not created:
        raise InputError(
            "The folder of the run exists already",
            where=folder,
            remedy="Remove it to keep the new run instead.",
        )


def load_run(folder: Path) -> StoredRun:
    """Read a finished run, checking every file against the sha256 in ``run.json``.

    ``InputError`` where there is none, ``VerificationError`` naming the file that is missing, damaged or of a newer
    version.
    """
    body = read_record(folder)
    data = {name: _read(folder / name) for name in body["files"]}
    for name, digest in body["files"].items():
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise VerificationError("The file is not what was written", where=folder / name, remedy=_AGAIN)
    table = list(csv.DictReader(io.StringIO(data[LOSSES].decode())))
    with np.load(io.BytesIO(data[CONFUSIONS]), allow_pickle=False) as arrays:
        result = RunResult(
            seed=body["seed"],
            classes=tuple(body["classes"]),
            losses=_column(table, "loss"),
            lrs=_column(table, "lr"),
            validated=arrays["validated"],
            val_confusions=arrays["val"],
            test_confusions=arrays["test"],
            val_names=tuple(arrays["val_names"].tolist()),
            test_names=tuple(arrays["test_names"].tolist()),
            best_epoch=body["best_epoch"],
            weights=safetensors.torch.load(data[DECODER]),
            parameters=body["parameters"],
            seconds=body["seconds"],
        )
    return StoredRun(folder, body["identity"], body["environment"], result)


def read_record(folder: Path) -> dict[str, Any]:
    """Return what the ``run.json`` of a finished run says; no other file is looked at. Errors as ``load_run``."""
    if not folder.is_dir():
        raise InputError("There is no finished run", where=folder, remedy="Train it first.")
    path = folder / RUN
    data = _read(path)
    try:
        body = decode("run", _VERSION, data, path, _AGAIN)
    except InputError as error:
        # Of a newer version: it is of no use here either, and nothing is wrong with what was asked.
        raise VerificationError(error.what, where=path, remedy=error.remedy) from error
    lacking = [name for name, kind in _FIELDS.items() if not isinstance(body.get(name), kind)]
    if lacking:
        raise VerificationError(f"The file does not say {', '.join(lacking)}", where=path, remedy=_AGAIN)
    return body


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise VerificationError("A file of the run is missing", where=path, remedy=_AGAIN) from error
    except OSError as error:
        raise VerificationError(
            f"A file of the run cannot be read: {error.strerror}", where=path, remedy="Check disk and rights."
        ) from error


def _confusions(result: RunResult) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        validated=result.validated,
        val=result.val_confusions,
        test=result.test_confusions,
        val_names=np.array(result.val_names),
        test_names=np.array(result.test_names),
    )
    return buffer.getvalue()


def _losses(result: RunResult) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["epoch", "loss", "lr"])
    pairs = zip(result.losses.tolist(), result.lrs.tolist(), strict=True)
    writer.writerows([epoch, loss, lr] for epoch, (loss, lr) in enumerate(pairs, start=1))
    return buffer.getvalue().encode()


def _decoder(result: RunResult) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in result.weights.items()})


def _column(table: list[dict[str, str]], name: str) -> NDArray[np.float64]:
    return np.array([float(row[name]) for row in table])
