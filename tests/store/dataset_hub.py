"""A local server that speaks what huggingface_hub asks of the Hub for data set repositories, rights included.

As on the Hub, large files are uploaded to and downloaded from a storage under another host name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest
from dataset_answers import Answers
from dataset_repos import LARGE, Blob, Refusal, Repo
from huggingface_hub import constants
from huggingface_hub.utils import _http
from xet_storage import XetStorage

TOKEN = "hf_thisTokenMustNeverBeSeenAnywhere"
OWNER = "pathologist"
COLLEAGUE = "hf_theColleaguesTokenIsNoneOfYourBusiness"


@dataclass
class DatasetHub:
    """The server. ``accounts`` {token: account}; ``read_only`` tokens may not write; ``orgs`` {account: names}.

    ``requests`` collects (method, path, whether an account's token came along), ``ranges`` the Range of each request
    for content. What goes wrong: each of ``refusals`` (method, part of a path, answer) answers one request; each of
    ``hooks`` (method, part of a path, call) is called before one; each of ``cuts`` (method, bytes) ends the body of
    one upload to, or download from, the storage; ``lost`` (method, part of a path)
    requests are done and not answered; ``spoil`` changes what is stored; ``ignored`` files are left out of
    commits; ``echo`` repeats the credentials in error messages, as a careless server might; ``rangeless`` ignores
    Range. ``part`` bytes is the size of the parts in which large files are wanted; ``page`` the entries of a listing.
    """

    accounts: dict[str, str] = field(default_factory=lambda: {TOKEN: OWNER, COLLEAGUE: "colleague"})
    orgs: dict[str, list[str]] = field(default_factory=dict)
    read_only: set[str] = field(default_factory=set)
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    xet: XetStorage = field(default_factory=XetStorage)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    refusals: list[tuple[str, str, Refusal]] = field(default_factory=list)
    hooks: list[tuple[str, str, Callable[[], object]]] = field(default_factory=list)
    cuts: list[tuple[str, int]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    spoil: Callable[[bytes], bytes] = bytes
    ignored: set[str] = field(default_factory=set)
    echo: bool = False
    rangeless: bool = False
    part: int | None = None
    page: int = 1000

    def __enter__(self) -> DatasetHub:
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage(self) -> str:
        """The same server under another host name."""
        return f"http://localhost:{self._server.server_address[1]}/storage"

    def add(self, name: str, files: dict[str, bytes] | None = None, **rights: Any) -> Repo:
        """Make a repository with its first commit, as the Hub does, and a second one with ``files``."""
        repo = self.repos[name] = Repo(**rights)
        repo.commit({".gitattributes": Blob(b"*.bin filter=lfs\n", False)})
        if files:
            self.push(name, files)
        return repo

    def push(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit ``files`` on top of what is there, as somebody else might."""
        repo = self.repos[name]
        before = repo.commits[repo.branches.get(branch, repo.branches["main"])]
        return repo.commit(
            before | {path: Blob(data, len(data) >= LARGE) for path, data in files.items()}, branch
        )

    def on(self, method: str, part: str, call: Callable[[], object], *, skip: int = 0) -> None:
        """Have ``call`` called before one request of a kind, after ``skip`` others."""
        self.hooks += [(method, part, int)] * skip + [(method, part, call)]

    def asked(self, method: str, part: str) -> int:
        """How many requests of a kind came."""
        return sum(known == method and part in path for known, path, _ in self.requests)


def use_dataset_hub(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None) -> None:
    """Make huggingface_hub in this process ask ``hub`` with ``token``, wait for nothing and keep to ``home``."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_XET_CACHE", str(home / "xet"))
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "5ms")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))


def hub_environment(hub: DatasetHub, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that is to ask ``hub`` as the owner and keep to ``home``."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return {**inherited, **own, **more}
