"""Reading weight files: tensors only, never code, and strictly what the encoder needs."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from store.errors import InputError

StateDict = dict[str, torch.Tensor]
Shape = tuple[int | None, ...]

_WRAPPERS: Final = ("state_dict", "model", "teacher")
_AGAIN: Final = (
    "Download or copy it again, and compare its size and sha256 with the source; best take safetensors."
)
_TENSORS_ONLY: Final = "Get the weights as .safetensors, or have someone you trust save the bare state_dict."
_RUNS_CODE: Final = ("builtins", "importlib", "nt", "os", "posix", "runpy", "shutil", "subprocess", "sys")
_HEADER_LIMIT: Final = 100_000_000  # the safetensors format's own bound on its JSON header


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_checkpoint(path: Path) -> StateDict:
    """Return the tensors of a weight file by name, on the CPU.

    Reads safetensors, and PyTorch files through ``torch.load(weights_only=True)``; which of them is told by the
    content, not by the name. Unwraps ``state_dict``, ``model`` and ``teacher``, strips ``module.``. Raises
    ``InputError`` for a file that is missing, truncated, not a checkpoint, or a pickle that holds more than tensors.
    """
    return _read(path, load_file, partial(torch.load, map_location="cpu", weights_only=True))


def read_shapes(path: Path) -> StateDict:
    """Return what :func:`read_checkpoint` would as tensors without values, on the meta device.

    Only the header of the file is read, except from PyTorch files in the form of before 2020. Raises ``InputError`` as
    :func:`read_checkpoint` does for whatever shows in the header.
    """
    return {
        name: tensor.to("meta") for name, tensor in _read(path, _safetensors_shapes, _torch_mapped).items()
    }


def _safetensors_shapes(path: Path) -> StateDict:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if path.stat().st_size != end:
        raise ValueError(f"its header speaks of {end:,} bytes")
    return {name: torch.empty(tensor["shape"], device="meta") for name, tensor in header.items()}


def _torch_mapped(path: Path) -> Any:
    in_zip = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)


def _read(path: Path, safetensors: Callable[[Path], StateDict], pickled: Callable[[Path], Any]) -> StateDict:
    form = _form(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is said by the errors below
            content = safetensors(path) if form == "safetensors" else pickled(path)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise _pickle_fault(error, path) from None
    except Exception as error:  # bytes from elsewhere can break a parser in any way
        if "TorchScript" in str(error):
            raise _refused("a TorchScript archive, which holds code", path) from None
        if "Cannot allocate memory" in str(error):  # in the words of the C library, through either parser
            raise InputError(
                f"there is not enough memory to read the weights file ({path.stat().st_size:,} bytes)",
                where=path,
                remedy="End other programs, or use a machine with more memory.",
            ) from None
        first_line = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"the weights file cannot be read to its end: it is truncated or damaged ({path.stat().st_size:,} bytes; "
            f"{type(error).__name__}: {first_line})",
            where=path,
            remedy=_AGAIN,
        ) from error
    return _unwrapped(content, path)


def covered(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, Shape],
    *,
    unused: Iterable[str] = (),
    allowed_leftover: Sequence[str],
    name: str,
    where: Path,
) -> StateDict:
    """Return the tensors of ``state`` that ``wanted`` (name → shape, None for any length) asks for.

    ``unused`` are names of the file that lead to no tensor of ``state``; they are left over like those of ``state``
    that are not wanted. Raises ``InputError`` that lists what is missing, what is left over beyond the patterns
    ``allowed_leftover``, and what has another shape.
    """
    missing = [key for key in wanted if key not in state]
    left_over = [*(key for key in state if key not in wanted), *unused]
    extra = [key for key in left_over if not _matches(key, allowed_leftover)]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple('any' if n is None else n for n in shape)}"
        for key, shape in wanted.items()
        if key in state and not _fits(tuple(state[key].shape), shape)
    ]
    faults = [
        f"{len(found)} {what} ({_few(found)})"
        for what, found in (("missing", missing), ("unexpected", extra), ("of another shape", reshaped))
        if found
    ]
    if faults:
        raise InputError(
            f"the weights do not fit {name}: of {len(wanted)} tensors, {'; '.join(faults)}",
            where=where,
            remedy="This file looks like another architecture; give the file that belongs to this encoder.",
        )
    return {key: state[key] for key in wanted}


def _form(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError as error:
        raise InputError(
            f"the weights file cannot be read ({error.strerror})",
            where=path,
            remedy="Check the path and its rights.",
        ) from None
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _HEADER_LIMIT:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if not size:
        what, remedy = "the weights file is empty", "Download or copy it again."
    elif head.startswith(b"version https://git-lfs"):
        what, remedy = "this is a Git LFS pointer, not the weights", "Fetch the file itself: git lfs pull."
    elif head.lstrip().startswith(b"<"):
        what, remedy = (
            "this is a web page, not the weights",
            "Log in, accept the terms, download the file itself.",
        )
    else:
        what = "this is not a checkpoint: neither safetensors nor a PyTorch file"
        remedy = "Give a .safetensors file, or a .bin, .pth or .pt file with a state_dict."
    raise InputError(what, where=path, remedy=remedy)


def _refused(what: str, path: Path) -> InputError:
    return InputError(
        f"the weights file is {what}; frostgrid loads tensors only and has no unsafe fallback",
        where=path,
        remedy=_TENSORS_ONLY,
    )


def _pickle_fault(error: pickle.UnpicklingError, path: Path) -> InputError:
    asked = re.search(r"GLOBAL\s+(\w+(?:\.\w+)+)\s", str(error))
    if asked:
        if asked[1].partition(".")[0] in _RUNS_CODE:
            return _refused(f"a pickle that would run code when loaded (it asks for {asked[1]})", path)
        return InputError(
            f"the weights file holds Python objects ({asked[1]}) beside its tensors; frostgrid loads tensors only and "
            "has no unsafe fallback",
            where=path,
            remedy=_TENSORS_ONLY,
        )
    return InputError(
        "the weights file cannot be read as tensors: it is truncated or damaged, or a pickle of something else; "
        "frostgrid loads tensors only and has no unsafe fallback",
        where=path,
        remedy=_AGAIN,
    )


def _unwrapped(content: Any, path: Path) -> StateDict:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        found = "an empty mapping" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise _no_tensors(found, path)
    others = [
        str(key) for key, value in content.items() if not (isinstance(key, str) and torch.is_tensor(value))
    ]
    if others:
        raise _no_tensors(f"entries that are not tensors ({_few(others)})", path)
    return {key.removeprefix("module."): value for key, value in content.items()}


def _no_tensors(found: str, path: Path) -> InputError:
    return InputError(
        f"the file holds {found}, not tensors by name",
        where=path,
        remedy="Give the bare state_dict, or a file with it under state_dict, model or teacher.",
    )


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))


def _few(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
