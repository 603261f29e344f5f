"""Finding an encoder's weights: a path, the folder FROSTGRID_WEIGHTS, or the Hugging Face Hub."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.encoders.table import TimmRow
from store.errors import AccessError, FrostgridError, InputError, StorageError

WEIGHTS_VARIABLE: Final = "FROSTGRID_WEIGHTS"
_SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine; ``repo`` and ``commit`` where it came from the Hub."""

    path: Path
    repo: str | None = None
    commit: str | None = None


def locate(row: TimmRow, weights: Path | None) -> WeightsFile:
    """Return the file with the weights of ``row``.

    In this order: ``weights`` (the file; or a folder, searched for ``<name>/<file>``, ``<name>.safetensors`` and the
    like, then ``<file>``), the folder FROSTGRID_WEIGHTS (the same without the bare ``<file>``, since it serves many
    encoders), the Hub (at the row's revision; HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT are honoured). A path
    that is given and does not hold the weights is an ``InputError``, never a reason to download.
    """
    if weights is not None:
        return _from_path(row, weights)
    root = os.environ.get(WEIGHTS_VARIABLE)
    if root:
        if not Path(root).is_dir():
            raise InputError(
                f"{WEIGHTS_VARIABLE} names a folder that does not exist",
                where=root,
                remedy="Correct or unset it.",
            )
        found = _first_file(_under_name(row, Path(root)))
        if found:
            return WeightsFile(found)
    if row.hub_repo is None or row.revision is None:
        raise InputError(
            f"the weights of {row.name} are on no hub and no path to them was given",
            where=row.name,
            remedy=f"Give the file or its folder with --weights, or set {WEIGHTS_VARIABLE} to a folder that holds "
            f"{row.name}/{row.files[0]}.",
        )
    return _from_hub(row, row.hub_repo, row.revision)


def _from_path(row: TimmRow, path: Path) -> WeightsFile:
    if path.is_file():
        return WeightsFile(path)
    if not path.is_dir():
        raise InputError(
            f"there are no weights for {row.name} at this path", where=path, remedy="Check the path."
        )
    candidates = [*_under_name(row, path), *(path / file for file in row.files)]
    found = _first_file(candidates)
    if found is None:
        looked = ", ".join(str(candidate.relative_to(path)) for candidate in candidates)
        raise InputError(
            f"the folder holds no weights of {row.name}",
            where=path,
            remedy=f"It should hold one of: {looked}.",
        )
    return WeightsFile(found)


def _under_name(row: TimmRow, root: Path) -> list[Path]:
    return [
        *(root / row.name / file for file in row.files),
        *(root / f"{row.name}{suffix}" for suffix in _SUFFIXES),
    ]


def _first_file(candidates: list[Path]) -> Path | None:
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _from_hub(row: TimmRow, repo: str, revision: str) -> WeightsFile:
    """Return the first of the row's files that the repository (or, offline, the local cache) has."""
    fault: FrostgridError | None = None
    for file in row.files:
        try:
            path = Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
        except (LocalEntryNotFoundError, EntryNotFoundError) as error:
            fault = fault or _explained(error, row, repo, revision)
        except Exception as error:
            # Not chained: a server's words could repeat what was sent to it, a token included.
            raise _explained(error, row, repo, revision) from None
        else:
            return WeightsFile(path, repo, _commit(path, file))
    raise fault or InputError(f"{row.name} names no files", where=row.name)


def _commit(path: Path, file: str) -> str:
    """Return the commit in a cache path ``…/snapshots/<commit>/<file>``."""
    return path.parents[len(Path(file).parts) - 1].name


def _explained(error: Exception, row: TimmRow, repo: str, revision: str) -> FrostgridError:
    page = f"https://huggingface.co/{repo}"
    by_hand = f"Download it from {page} on a machine with access and give the file with --weights."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    token = bool(huggingface_hub.get_token())
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return AccessError(
                f"the weights of {row.name} are not in the local cache and HF_HUB_OFFLINE forbids to download them",
                where=repo,
                remedy=f"Unset HF_HUB_OFFLINE. Or: {by_hand[0].lower()}{by_hand[1:]}",
            )
        if isinstance(error.__cause__, HfHubHTTPError):
            return _explained(error.__cause__, row, repo, revision)
        return AccessError(
            f"the Hugging Face Hub cannot be reached for {row.name}", where=repo, remedy=by_hand
        )
    if status == 401 and not token:
        return AccessError(
            f"the weights of {row.name} need a login and no Hugging Face token was found (401)",
            where=repo,
            remedy=f"Ask for access at {page}, then set HF_TOKEN or run: hf auth login.",
        )
    if status == 401:
        return AccessError(
            f"the Hub did not accept the Hugging Face token for {row.name} (401)",
            where=repo,
            remedy=f"Make a new one at https://huggingface.co/settings/tokens, and look whether {page} opens.",
        )
    if status == 403 or isinstance(error, GatedRepoError):
        return AccessError(
            f"the account of the Hugging Face token has no access to the weights of {row.name} (403)",
            where=repo,
            remedy=f"Ask for access at {page} or wait until it is granted; a fine-grained token must also be allowed "
            "to read public gated repositories (https://huggingface.co/settings/tokens).",
        )
    if isinstance(error, EntryNotFoundError):
        files = " or ".join(row.files)
        return InputError(
            f"the repository has no file {files} (404)", where=f"{repo}@{revision}", remedy=by_hand
        )
    if isinstance(error, RevisionNotFoundError | RepositoryNotFoundError):
        what = "revision" if isinstance(error, RevisionNotFoundError) else "repository"
        return InputError(
            f"there is no such {what} on the Hub (404)", where=f"{repo}@{revision}", remedy=f"Look at {page}."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return StorageError(
            f"the weights of {row.name} could not be stored ({error.strerror})",
            where=error.filename or "HF_HOME",
            remedy="Free space there, or set HF_HOME to a folder with space and write rights.",
        )
    return AccessError(
        f"the download of the weights of {row.name} failed ({status or type(error).__name__})",
        where=repo,
        remedy=f"Try again. Or: {by_hand}",
    )
