"""Getting an encoder's weights from the Hugging Face Hub, or from the cache of it on this machine."""

from __future__ import annotations

import errno
import glob
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import tqdm

from stages.encoders.checkpoint import file_sha256
from stages.encoders.local import alike, by_hand, given_file
from stages.encoders.refusals import explained, is_network_error, page_of
from stages.encoders.table import TimmRow
from store.errors import FrostgridError, InputError, StorageError, VerificationError

ATTEMPTS: Final = 3
_WHICHEVER: Final = "main"  # the revision of rows that name none
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CANNOT_STORE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

Progress = Callable[[int, int], None]  # bytes done, bytes to do (0: not known)
_listener: ContextVar[Progress | None] = ContextVar("_listener", default=None)


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine; ``repo`` and ``commit`` where it came from the Hub.

    ``sha256`` is that of its content where it has been computed already. ``checked`` says whether that is what the Hub
    promised; None for a file that is not from the Hub.
    """

    path: Path
    repo: str | None = None
    commit: str | None = None
    sha256: str | None = None
    checked: bool | None = None


def locate(row: TimmRow, weights: Path | None, revision: str | None = None) -> WeightsFile:
    """Return the file with the weights of ``row``.

    In this order: ``weights`` and the folder FROSTGRID_WEIGHTS (:func:`stages.encoders.local.given_file`), the local
    cache of the Hub, the Hub itself (HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT are honoured). A path that is
    given and does not hold the weights is an ``InputError``, never a reason to download. ``revision`` (default: the
    row's) is of the Hub. What is in the cache is taken as it is: weights that changed on the Hub since do not come by
    themselves. What comes from the Hub is compared with the sha256 that the Hub gives for it: ``VerificationError``
    where it differs.
    """
    found = at_hand(row, weights, revision)
    if found is None:
        return _from_hub(row, *_address(row, revision))
    if found.repo is None:
        return found
    return _verified(found, row.name, found.repo, promised=_promised(found.path))


def at_hand(row: TimmRow, weights: Path | None, revision: str | None = None) -> WeightsFile | None:
    """Return the file that :func:`locate` would take if it is on this machine; nothing is asked of any network.

    None where only the Hub could have it. Raises ``InputError`` for a path that is given and does not hold it, and for
    different weights from several commits in the cache of which none is the one that is asked for.
    """
    given = given_file(row, weights)
    if given is not None:
        return WeightsFile(given)
    if row.hub_repo is None:
        return None
    repo, asked = _address(row, revision)
    for file in row.files:
        cached = huggingface_hub.try_to_load_from_cache(repo, file, revision=asked)
        if isinstance(cached, str):
            return WeightsFile(Path(cached), repo, _commit(Path(cached), file))
    return _of_any_commit(row, repo) if asked == _WHICHEVER else None


def refusal(row: TimmRow, revision: str | None = None, *, timeout: float) -> FrostgridError | None:
    """Ask the Hub for the head of the row's file; return what a download would end with, or None where it may start.

    ``timeout`` in seconds, for connecting and for the answer each. Nothing is downloaded.
    """
    if row.hub_repo is None:
        return _on_no_hub(row)
    repo, asked = _address(row, revision)
    fault: FrostgridError | None = None
    for file in row.files:
        try:
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repo, file, revision=asked), timeout=timeout
            )
        except Exception as error:
            fault = fault or _explained(error, row, repo, asked)
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


def _address(row: TimmRow, revision: str | None) -> tuple[str, str]:
    """Return repository and revision."""
    if row.hub_repo is None or row.revision is None:
        raise _on_no_hub(row)
    return row.hub_repo, revision or row.revision


def _on_no_hub(row: TimmRow) -> InputError:
    return InputError(
        f"the weights of {row.name} are on no hub and no path to them was given",
        where=row.name,
        remedy=f"Give the file or its folder {by_hand(row)}",
    )


def _of_any_commit(row: TimmRow, repo: str) -> WeightsFile | None:
    """Return the file from whichever commit the local cache has it of.

    Another program that asks for a newer commit moves the cache's idea of "main" there, and brings no weights with it.
    """
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "snapshots"
    for file in row.files:
        found = [path for path in sorted(folder.glob(f"*/{glob.escape(file)}")) if path.is_file()]
        if not alike(found):
            commits = " and ".join(_commit(path, file)[:12] for path in found)
            raise InputError(
                f"the local cache of the Hub has the weights of {row.name} of several commits, {commits}, and none "
                "that it calls main",
                where=folder,
                remedy=f'Say which in the study: [encoders.revisions], "{row.name}" = the whole commit.',
            )
        if found:
            return WeightsFile(found[0], repo, _commit(found[0], file))
    return None


def _from_hub(row: TimmRow, repo: str, revision: str) -> WeightsFile:
    """Return the first of the row's files that the repository (or, offline, the local cache) has."""
    fault: FrostgridError | None = None
    for file in row.files:
        try:
            path = _downloaded(repo, file, revision)
        except Exception as error:
            refused = _explained(error, row, repo, revision)
            # perhaps under the next name, or cached under it
            elsewhere = isinstance(error, EntryNotFoundError)
        else:
            found = WeightsFile(path, repo, _commit(path, file))
            promised = _promised(path) or _asked_promise(repo, file, _commit(path, file))
            return _verified(found, row.name, repo, promised=promised, fresh=True)
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


def _promised(path: Path) -> str | None:
    """Return the sha256 that the Hub promised for a file of the local cache, which names its content after it.

    None in a cache without links, on a file system that has none, and for what the Hub does not keep by sha256.
    """
    name = path.readlink().name if path.is_symlink() else ""
    return name if _SHA256.fullmatch(name) else None


def _asked_promise(repo: str, file: str, commit: str) -> str | None:
    """Return the sha256 that the Hub promises now for a file that has just come from there, None for no promise."""
    try:
        head = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, file, revision=commit))
    except Exception:  # that nothing could be compared is recorded with the tokens
        return None
    return head.etag if head.etag and _SHA256.fullmatch(head.etag) else None


def _verified(
    file: WeightsFile, name: str, repo: str, *, promised: str | None, fresh: bool = False
) -> WeightsFile:
    """Return the file with its sha256, compared with ``promised`` where there is a promise.

    A ``fresh`` download that is not what was promised is removed, so that the next one starts anew. Raises
    ``VerificationError``.
    """
    found = file_sha256(file.path)
    if promised is None or found == promised:
        return replace(file, sha256=found, checked=promised is not None)
    if fresh:
        if file.path.is_symlink():
            content = file.path.parent / file.path.readlink()
            content.resolve().unlink()
            content.unlink(missing_ok=True)  # a link itself where caches share their contents
        file.path.unlink()
    raise VerificationError(
        f"the weights of {name} are not what the Hub promised: sha256 {found[:12]}, promised {promised[:12]}",
        where=file.path,
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
            where=getattr(error, "filename", None) or constants.HF_HUB_CACHE,
            remedy="Free space there, or set HF_HOME to a folder with space and write rights.",
        )
    if is_local and "Consistency check failed" in str(error):
        return VerificationError(
            f"the weights of {row.name} came from the Hub with another size than it promised",
            where=f"{repo}@{revision}",
            remedy="Nothing of them was kept; run this again. If it happens again, a proxy or mirror (HF_ENDPOINT) "
            f"changes them: download them from {page_of(repo)} and give the file with --weights.",
        )
    return explained(error, row.name, repo, revision, row.files, by_hand(row))


def _why(error: Exception) -> str:
    sizes = re.search(r"expected file size is: ([\d.]+ MB).* only has ([\d.]+ MB)", str(error))
    if sizes:
        return f"they take {sizes[1]} and only {sizes[2]} are free"
    return (isinstance(error, OSError) and error.strerror) or "no space left on the disk"
