"""One data set repository on the Hugging Face Hub, commit by commit; every refusal explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import build_hf_headers, http_stream_backoff  # type: ignore[attr-defined]  # lazy there

from store.errors import FrostgridError, InputError, MissingViews, StorageError
from store.places.hub_refusals import Doing, explained, is_missing
from store.places.place import Content

ATTEMPTS: Final = 8  # times that a commit is begun anew because another one came first
_ASKED_AT_ONCE: Final = 500  # paths in one question; the Hub refuses more than 1000

T = TypeVar("T")
Operation = CommitOperationAdd | CommitOperationDelete
Op = TypeVar("Op", CommitOperationAdd, CommitOperationDelete)


class Repository:
    """The data set repository ``name`` (``owner/name``) at ``revision`` (``None``: its main branch).

    ``url`` names it in messages, ``page`` is where a browser shows it.
    """

    def __init__(self, name: str, revision: str | None, url: str) -> None:
        self.name = name
        self.revision = revision
        self.url = url
        self._api = HfApi(library_name="frostgrid")
        self.page = f"{re.sub('//[^/@]*@', '//', self._api.endpoint)}/datasets/{name}"

    def newest(self) -> str | None:
        """Return the newest commit, or ``None`` where there is no repository yet and sending may make one.

        Raises ``AccessError`` where there may be one that is not shown to the account at hand.
        """
        # Without a revision the answer can be kept to what is needed: it names every file otherwise.
        if self.revision is None:
            found = self._if_there(lambda: self._api.dataset_info(self.name, expand=["sha"]))
        else:
            found = self._if_there(lambda: self._api.dataset_info(self.name, revision=self.revision))
        return None if found is None else found.sha

    def private(self) -> bool | None:
        """Return whether the repository is private, or will be when it is made; ``None`` where the Hub does not say."""
        found = self._if_there(lambda: self._api.dataset_info(self.name, expand=["private"]))
        return True if found is None else found.private

    def create(self) -> str:
        """Make the repository, private, and return its first commit."""
        if self.revision is not None:
            raise InputError(
                "There is no such repository yet, hence no such branch",
                where=self.url,
                remedy="Leave out @ and what follows it.",
            )
        self._ask(
            lambda: self._api.create_repo(self.name, repo_type="dataset", private=True, exist_ok=True),
            "written",
        )
        head = self.newest()
        if head is None:
            raise StorageError(
                "The Hugging Face Hub does not show the repository that was just made there",
                where=self.url,
                remedy="Run the same command again in a minute.",
            )
        return head

    def tree(self, path: str, commit: str, *, recursive: bool) -> list[RepoFile | RepoFolder]:
        """Return what lies under ``path`` (empty: the root) at ``commit``; nothing where there is no such folder."""

        def ask() -> list[RepoFile | RepoFolder]:
            try:
                return list(
                    self._api.list_repo_tree(
                        self.name, path or None, recursive=recursive, revision=commit, repo_type="dataset"
                    )
                )
            except EntryNotFoundError:
                return []

        return self._ask(ask, "read")

    def looked_up(self, paths: list[str], commit: str) -> dict[str, RepoFile]:
        """Return those of ``paths`` that are files at ``commit``, with their sizes and checksums."""
        found: dict[str, RepoFile] = {}
        for first in range(0, len(paths), _ASKED_AT_ONCE):
            some = paths[first : first + _ASKED_AT_ONCE]

            def ask(some: list[str] = some) -> list[RepoFile | RepoFolder]:
                return self._api.get_paths_info(self.name, some, revision=commit, repo_type="dataset")

            found.update(
                (entry.path, entry) for entry in self._ask(ask, "read") if isinstance(entry, RepoFile)
            )
        return found

    def additions(self, files: Mapping[str, Content]) -> list[CommitOperationAdd]:
        """Return the operations that add ``files`` {path: content}."""
        return self._ask(
            lambda: [CommitOperationAdd(path, content) for path, content in files.items()], "written"
        )

    def commit(self, operations_at: Callable[[str], list[Op]], message: str) -> tuple[str, list[Op]]:
        """Commit what ``operations_at`` the newest commit says is to be done; returns the commit and what was done.

        Where nothing is to be done, that is the commit that was looked at. Begun anew where another commit comes in
        between: the Hub takes ours only onto the one that was looked at.
        """
        for _ in range(ATTEMPTS):
            head = self.newest() or self.create()
            operations = operations_at(head)
            if not operations:
                return head, operations
            done = self._ask(partial(self._onto, head, operations, message), "written")
            if done is not None:
                return done, operations
        raise StorageError(
            f"Other commits came first {ATTEMPTS} times in a row",
            where=self.url,
            remedy="Run the same command again when fewer people send to this repository.",
        )

    def blocks(self, path: str, commit: str, start: int) -> Generator[bytes, None, None]:
        """Yield the content of a file at ``commit`` from byte ``start`` on, in order.

        Raises ``MissingViews`` where there is none, ``StorageError`` where the connection is cut: what was yielded
        until then is right.
        """
        fault: FrostgridError | None = None
        url = hf_hub_url(self.name, path, repo_type="dataset", revision=commit, endpoint=self._api.endpoint)
        try:
            # identity: a range of a compressed answer would be a range of other bytes
            headers = {**build_hf_headers(library_name="frostgrid"), "Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with http_stream_backoff(
                "GET", url, headers=headers, timeout=timeout, retry_on_exceptions=()
            ) as response:
                if response.status_code == 416:  # nothing lies behind ``start``
                    return
                hf_raise_for_status(response)
                passed_over = start if response.status_code == 200 else 0  # all of it in spite of the range
                for block in response.iter_bytes():
                    if passed_over < len(block):
                        yield block[passed_over:]
                    passed_over = max(0, passed_over - len(block))
        except EntryNotFoundError:
            fault = self.missing(path)
        except Exception as error:
            fault = self._explained(error, "read")
        # Raised out here, so that no trace leads to a server's words: they could repeat the token.
        if fault is not None:
            raise fault

    def missing(self, path: str) -> MissingViews:
        """Return the error for a file that is not there."""
        return MissingViews(
            f"There is no file {path} in the repository", where=self.url, remedy="Run the same command again."
        )

    def _onto(self, head: str, operations: Sequence[Operation], message: str) -> str | None:
        """Commit onto ``head`` and return the new commit, or ``None`` where ``head`` is no longer the newest."""
        try:
            done = self._api.create_commit(
                self.name,
                operations,
                commit_message=message,
                repo_type="dataset",
                revision=self.revision,
                parent_commit=head,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):
                return None
            raise
        return done.oid

    def _if_there(self, question: Callable[[], T]) -> T | None:
        """Return what ``question`` returns, or ``None`` where the repository is not there and its name is ours.

        For a name that is ours the Hub's "no such repository" means just that; for others it may mean a private one.
        """

        def ask() -> T | None:
            try:
                return question()
            except HfHubHTTPError as error:
                if is_missing(error) and self._is_ours():
                    return None
                raise

        return self._ask(ask, "read")

    def _is_ours(self) -> bool:
        """Return whether the account of the token, or an organisation it belongs to, owns the repository's name."""
        account = self._api.whoami(cache=True)
        names = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
        return self.name.partition("/")[0].lower() in {name.lower() for name in names}

    def _ask(self, question: Callable[[], T], doing: Doing) -> T:
        """Return what ``question`` returns; what huggingface_hub raises is explained."""
        try:
            return question()
        except Exception as error:
            fault = self._explained(error, doing)
        raise fault  # out here for the reason given in ``blocks``

    def _explained(self, error: Exception, doing: Doing) -> FrostgridError:
        return explained(error, url=self.url, page=self.page, doing=doing)
