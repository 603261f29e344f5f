"""Finding an encoder's weights: a path, the folder FROSTGRID_WEIGHTS, or the Hugging Face Hub."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils.tqdm import tqdm

from stages.encoders.checkpoint import file_sha256
from stages.encoders.refusals import explained, is_network_error, page_of
from stages.encoders.table import TimmRow
from store.errors import FrostgridError, InputError, StorageError, VerificationError

WEIGHTS_VARIABLE: Final = "FROSTGRID_WEIGHTS"
ATTEMPTS: Final = 3
_SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CANNOT_STORE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

Progress = Callable[[int, int], None]  # bytes done, bytes to do (0: not known)
_listener: ContextVar[Progress | None] = ContextVar("_listener", default=None)


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
    that is given and does not hold the weights is an ``InputError``, never a reason to download. What comes from the
    Hub is compared with the sha256 that the Hub gives for it: ``VerificationError`` where it differs.
    """
    found = _given(row, weights)
    if found is not None:
        return found
    if row.hub_repo is None or row.revision is None:
        raise _on_no_hub(row)
    return _from_hub(row, row.hub_repo, row.revision)


def at_hand(row: TimmRow, weights: Path | None) -> WeightsFile | None:
    """Return the file that :func:`locate` would take if it is on this machine; nothing is asked of any network.

    None where only the Hub could have it. Raises ``InputError`` for a path that is given and does not hold it.
    """
    found = _given(row, weights)
    if found is not None or row.hub_repo is None:
        return found
    for file in row.files:
        cached = huggingface_hub.try_to_load_from_cache(row.hub_repo, file, revision=row.revision)
        if isinstance(cached, str):
            return WeightsFile(Path(cached), row.hub_repo, _commit(Path(cached), file))
    return None


def refusal(row: TimmRow, *, timeout: float) -> FrostgridError | None:
    """Ask the Hub for the head of the row's file; return what a download would end with, or None where it may start.

    ``timeout`` in seconds, for connecting and for the answer each. Nothing is downloaded.
    """
    if row.hub_repo is None or row.revision is None:
        return _on_no_hub(row)
    fault: FrostgridError | None = None
    for file in row.files:
        url = huggingface_hub.hf_hub_url(row.hub_repo, file, revision=row.revision)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=timeout)
        except Exception as error:
            fault = fault or _explained(error, row, row.hub_repo, row.revision)
            if not isinstance(error, EntryNotFoundError):
                return fault
        else:
            return None
    return fault


@contextmanager
def download_progress(progress: Progress) -> Iterator[None]:
    """Report downloads of this thread to ``progress`` instead of a bar of huggingface_hub's own."""
    before = _listener.set(progress)
    try:
        yield
    finally:
        _listener.reset(before)


def _given(row: TimmRow, weights: Path | None) -> WeightsFile | None:
    if weights is not None:
        return _from_path(row, weights)
    root = os.environ.get(WEIGHTS_VARIABLE)
    if not root:
        return None
    if not Path(root).is_dir():
        raise InputError(
            f"{WEIGHTS_VARIABLE} names a folder that does not exist",
            where=root,
            remedy="Correct or unset it.",
        )
    found = _first_file(_under_name(row, Path(root)))
    return None if found is None else WeightsFile(found)


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


def _on_no_hub(row: TimmRow) -> InputError:
    return InputError(
        f"the weights of {row.name} are on no hub and no path to them was given",
        where=row.name,
        remedy=f"Give the file or its folder with --weights, or set {WEIGHTS_VARIABLE} to a folder that holds "
        f"{row.name}/{row.files[0]}.",
    )


def _from_hub(row: TimmRow, repo: str, revision: str) -> WeightsFile:
    """Return the first of the row's files that the repository (or, offline, the local cache) has."""
    fault: FrostgridError | None = None
    for file in row.files:
        before = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
        try:
            path = _downloaded(repo, file, revision)
        except Exception as error:
            refused = _explained(error, row, repo, revision)
            elsewhere = isinstance(
                error, EntryNotFoundError
            )  # perhaps under the next name, or cached under it
        else:
            _verify(path, row.name, repo, fresh=str(path) != before)
            return WeightsFile(path, repo, _commit(path, file))
        fault = fault or refused
        if not elsewhere:
            break
    # Raised out here, so that no trace leads to a server's words: they could repeat what was sent to it, token and all.
    raise fault or InputError(f"{row.name} names no files", where=row.name)


def _downloaded(repo: str, file: str, revision: str) -> Path:
    """Return the file in the local cache, downloaded if it is not there.

    A cut connection is taken up where it was cut by huggingface_hub itself; what it gives up on, a connection that
    was reset for one, is begun anew ``ATTEMPTS`` times in all.
    """
    attempt = 1
    while True:
        try:
            with warnings.catch_warnings():
                # before the first byte, instead of after the gigabytes that do fit
                warnings.filterwarnings("error", message="Not enough free disk space")
                path = huggingface_hub.hf_hub_download(repo, file, revision=revision, tqdm_class=_bar())
            return Path(path)
        except Exception as error:
            if attempt == ATTEMPTS or not is_network_error(error, "ReadError"):
                raise
            attempt += 1


def _bar() -> type[tqdm] | None:
    listener = _listener.get()
    if listener is None:
        return None
    progress: Progress = listener

    class Reported(tqdm):
        """Says where a download is to ``progress`` and draws nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self._done = int(self.n)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            progress(self._done, int(self.total or 0))

        def update_transfer(self, n: float) -> None:
            """Ignore bytes on the wire: those of the file are what is counted."""

        def set_transfer_postfix_str(self, text: str) -> None:
            """Ignore the rate on the wire."""

    return Reported


def _verify(path: Path, name: str, repo: str, *, fresh: bool) -> None:
    """Compare a file of the local cache with the sha256 the Hub promised, after which the cache names its content.

    A download that is not what was promised is removed, so that the next one starts anew. Raises
    ``VerificationError``. A cache without links, on a file system that has none, does not keep the promise.
    """
    promised = path.readlink().name if path.is_symlink() else ""
    if not _SHA256.fullmatch(promised):
        return
    found = file_sha256(path)
    if found == promised:
        return
    if fresh:
        path.resolve().unlink()
        path.unlink()
    raise VerificationError(
        f"the weights of {name} are not what the Hub promised: sha256 {found[:12]}, promised {promised[:12]}",
        where=path,
        remedy=f"{'They were removed' if fresh else 'Delete this file'}; run this again. If it happens again, a proxy "
        f"or mirror (HF_ENDPOINT) changes them: download them from {page_of(repo)} and give the file with --weights.",
    )


def _commit(path: Path, file: str) -> str:
    """Return the commit in a cache path ``…/snapshots/<commit>/<file>``."""
    return path.parents[len(Path(file).parts) - 1].name


def _explained(error: Exception, row: TimmRow, repo: str, revision: str) -> FrostgridError:
    """Return the error to show for what a download raised."""
    is_local = isinstance(error, OSError) and not isinstance(error, HfHubHTTPError | ConnectionError)
    full = "Not enough free disk space" in str(error) or "No space left on device" in str(error)
    if full or (is_local and getattr(error, "errno", None) in _CANNOT_STORE):
        return StorageError(
            f"the weights of {row.name} cannot be stored ({_why(error)})",
            where=getattr(error, "filename", None) or huggingface_hub.constants.HF_HUB_CACHE,
            remedy="Free space there, or set HF_HOME to a folder with space and write rights.",
        )
    if is_local and "Consistency check failed" in str(error):
        return VerificationError(
            f"the weights of {row.name} came from the Hub with another size than it promised",
            where=f"{repo}@{revision}",
            remedy="Nothing of them was kept; run this again. If it happens again, a proxy or mirror (HF_ENDPOINT) "
            f"changes them: download them from {page_of(repo)} and give the file with --weights.",
        )
    return explained(error, row.name, repo, revision, row.files)


def _why(error: Exception) -> str:
    sizes = re.search(r"expected file size is: ([\d.]+ MB).* only has ([\d.]+ MB)", str(error))
    if sizes:
        return f"they take {sizes[1]} and only {sizes[2]} are free"
    return (isinstance(error, OSError) and error.strerror) or "no space left on the disk"
