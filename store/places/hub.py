"""A place that is a data set repository on the Hugging Face Hub."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import Final

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, parse_hf_uri
from huggingface_hub.errors import HfUriError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars

from store.errors import FrostgridError, InputError, MissingViews, StorageError
from store.places.hub_repository import Repository
from store.places.place import Content

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SENDING: Final = threading.Lock()  # two commits of one process would only get in each other's way


class HubPlace:
    """Caches in ``hf://datasets/<owner>/<name>[@<revision>][/<folder>]``.

    HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_DISABLE_XET are honoured, as huggingface_hub honours them.

    What is read belongs to the commit that was newest when its folder was listed, until it is listed again: a push in
    the middle of a pull does not mix two versions. What is sent becomes one commit, which anybody sees whole or not at
    all. The repository is made, private, when first something is sent to it.

    Raises ``InputError`` for a URL that names no data set repository.
    """

    batch_files = 32  # the Hub takes about 128 commits an hour

    def __init__(self, url: str) -> None:
        try:
            uri = parse_hf_uri(url.rstrip("/"))
        except HfUriError:
            uri = None
        if uri is None or uri.type != "dataset":
            raise InputError(
                "This is not the address of a data set repository on the Hugging Face Hub",
                where=url,
                remedy="Write hf://datasets/<owner>/<name>, if need be with @<branch> and /<folder> behind it.",
            )
        self.url = uri.to_uri()
        self._root = uri.path_in_repo
        self._repository = Repository(uri.id, uri.revision, self.url)
        self._pins: dict[str, str] = {}  # folder under the root: the commit at which it was listed
        self._path("")

    def folders(self) -> list[str]:
        """Return the names of the folders directly under the root, sorted; empty where there is no repository yet.

        Raises ``AccessError`` where it is not yours and cannot be seen, whether it exists or not.
        """
        found = self._listed("", recursive=False)
        return sorted(entry.path.rpartition("/")[2] for entry in found if isinstance(entry, RepoFolder))

    def files(self, folder: str) -> dict[str, int]:
        """Return every file below ``folder`` with its size in bytes, from one listing at the newest commit."""
        found = self._listed(folder, recursive=True)
        prefix = f"{self._path(folder)}/".lstrip("/")
        return {entry.path.removeprefix(prefix): entry.size for entry in found if isinstance(entry, RepoFile)}

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file at the commit its folder was listed at, or ``None``."""
        blocks: list[bytes] = []
        try:
            self.fetch(name, blocks.append)
        except MissingViews:
            return None
        return b"".join(blocks)

    def fetch(self, name: str, write: Callable[[bytes], object], start: int = 0) -> None:
        """Pass a file's content from byte ``start`` on to ``write``, at the commit its folder was listed at.

        A connection that is cut raises ``StorageError``, a file that is not there ``MissingViews``.
        """
        path = self._path(name)
        commit = self._pin_of(name) or self._repository.newest()
        if commit is None:
            raise self._repository.missing(path)
        self._pins.setdefault("", commit)
        with closing(self._repository.blocks(path, commit, start)) as blocks:
            for block in blocks:
                write(block)

    def send(self, files: Mapping[str, Content], *, new: bool = False) -> list[str]:
        """Store files in one commit, and compare sizes and checksums with what the Hub then says it has.

        With ``new`` nothing is stored where one of them is there with another content, and all names are returned,
        those that are in the way first; the Hub takes the commit only onto the one that was looked at. Raises
        ``StorageError`` where a file did not arrive as it was sent; what was sent with it is then removed again.
        """
        if not files:
            return []
        self._expect_branch()
        for content in files.values():
            if isinstance(content, Path) and not content.is_file():
                raise StorageError(
                    "A file to send is not there", where=content, remedy="Run the same command again."
                )
        paths = {name: self._path(name) for name in files}
        additions = self._repository.additions({paths[name]: content for name, content in files.items()})

        def those_lacking(head: str) -> list[CommitOperationAdd]:
            there = self._repository.looked_up(list(paths.values()), head) if new else {}
            taken = {
                add.path_in_repo
                for add in additions
                if add.path_in_repo in there and not _is_same(there, add)
            }
            if taken:
                raise _Taken(head, taken)
            return [add for add in additions if add.path_in_repo not in there]

        with _SENDING, _no_bars():
            try:
                commit, sent = self._repository.commit(those_lacking, f"Add {_counted(paths)}")
            except _Taken as found:
                self._pin(paths, found.head)
                in_the_way = [name for name in files if paths[name] in found.paths]
                return in_the_way + [name for name in files if name not in in_the_way]
            arrived = self._repository.looked_up([add.path_in_repo for add in sent], commit)
        self._pin(paths, commit)
        wrong = [add.path_in_repo for add in sent if not _is_same(arrived, add)]
        if wrong:
            self._take_back([add.path_in_repo for add in sent])
            raise StorageError(
                f"The Hugging Face Hub does not have {wrong[0]} as it was sent"
                + (f", nor {len(wrong) - 1} more" if wrong[1:] else ""),
                where=self.url,
                remedy="What was sent with it is not kept. Run the same command again; if it happens again, look for a "
                f".gitignore at {self._repository.page}/tree/main that leaves it out, and for a proxy that changes it.",
            )
        return []

    def remove(self, names: Iterable[str]) -> None:
        """Remove files in one commit; those that are not there are passed over."""
        paths = {name: self._path(name) for name in names}
        if not paths:
            return
        self._expect_branch()
        with _SENDING:
            if self._repository.newest() is not None:
                self._pin(paths, self._removed(list(paths.values()), f"Remove {_counted(paths)}"))

    def public(self) -> bool | None:
        """Tell whether the repository is not private; one that sending would make will be private.

        A gated repository counts as public: anybody may ask for access, and often gets it at once.
        """
        private = self._repository.private()
        return None if private is None else not private

    def _listed(self, folder: str, *, recursive: bool) -> list[RepoFile | RepoFolder]:
        """List a folder at the newest commit, which is where it is read from now on."""
        path = self._path(folder)
        commit = self._repository.newest()
        if commit is None:
            self._pins.pop(folder, None)
            return []
        self._pins[folder] = commit
        return self._repository.tree(path, commit, recursive=recursive)

    def _pin_of(self, name: str) -> str | None:
        """Return the commit at which the folder of a file was listed, or else the root."""
        return self._pins.get(_folder(name)) or self._pins.get("")

    def _pin(self, names: Iterable[str], commit: str) -> None:
        self._pins.update((_folder(name), commit) for name in names)

    def _path(self, name: str) -> str:
        """Return the path in the repository; a name that leads out of the place is an ``InputError``."""
        path = "/".join(part for part in (self._root, name) if part)
        if path and ("\\" in path or any(part in ("", ".", "..", ".git") for part in path.split("/"))):
            raise InputError(
                f"{path!r} is no name of a file or folder in a repository",
                where=self.url,
                remedy="Use names without .., backslashes and doubled slashes.",
            )
        return path

    def _expect_branch(self) -> None:
        revision = self._repository.revision
        if revision is not None and _COMMIT.fullmatch(revision):
            raise InputError(
                "Nothing can be changed in a commit that is made already",
                where=self.url,
                remedy="Name a branch behind @, or leave it out.",
            )

    def _removed(self, paths: list[str], message: str) -> str:
        """Remove those of ``paths`` that are there and return the commit without them."""

        def those_there(head: str) -> list[CommitOperationDelete]:
            there = self._repository.looked_up(paths, head)
            return [CommitOperationDelete(path, is_folder=False) for path in there]

        return self._repository.commit(those_there, message)[0]

    def _take_back(self, paths: list[str]) -> None:
        """Remove what arrived wrong, and its marker with it; where even that fails, the first fault is what counts."""
        with suppress(FrostgridError), _SENDING:
            self._removed(paths, f"Take back {_counted(paths)}")


class _Taken(Exception):
    """Some of the files to store are there with another content at the commit ``head``."""

    def __init__(self, head: str, paths: set[str]) -> None:
        self.head = head
        self.paths = paths


def _folder(name: str) -> str:
    """Return the folder directly under the root in which a file lies; empty for a file of the root."""
    return name.partition("/")[0] if "/" in name else ""


def _is_same(arrived: Mapping[str, RepoFile], sent: CommitOperationAdd) -> bool:
    """Return whether the Hub has a file as it was sent: same size, and same sha256 or, of a small one, git's sha1."""
    file = arrived.get(sent.path_in_repo)
    if file is None or file.size != sent.upload_info.size:
        return False
    if file.lfs is not None:
        return file.lfs.sha256 == sent.upload_info.sha256.hex()
    with sent.as_file() as content:
        return file.blob_id == git_hash(content.read())


def _counted(names: Iterable[str]) -> str:
    """Return the first of some names and how many more there are."""
    listed = list(names)
    return f"{listed[0]}" + (f" and {len(listed) - 1} more" if listed[1:] else "")


def _no_bars() -> AbstractContextManager[object]:
    """Keep huggingface_hub from drawing bars into ours, unless HF_HUB_DISABLE_PROGRESS_BARS=0 wants them."""
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        return nullcontext()
    return disable_progress_bars()
