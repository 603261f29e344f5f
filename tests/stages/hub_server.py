"""A local server that speaks what huggingface_hub asks of the Hub to download a file, gates included.

As on the Hub, a weights file is not served under its repository: that answers with the sha256, the size and the
address of the content, which lies on another host. The refusals are the Hub's own words, as recorded from it.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import pytest
from huggingface_hub import constants

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Gate:
    """How a repository answers those who may not read it: status, the Hub's error code and its words."""

    status: int
    code: str | None
    message: str
    opens_for: str | None = None  # the token that may read


@dataclass
class HubServer:
    """Serves ``files`` {(repo, file): bytes} at every revision, each repository under one ``commit``.

    But for those of ``older``: {revision: (its commit, its files)}.
    ``requests`` collects (method, path, whether a token came along), ``ranges`` the Range of each request for content.
    What goes wrong: ``echo`` repeats the request's credentials in the error message, as a careless server might;
    ``spoiled`` holds other bytes to send than those promised; each of ``cuts`` ends one answer after so many bytes
    (``resets``: by resetting the connection); ``sizeless`` promises no size.
    """

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    echo: bool = False
    spoiled: dict[tuple[str, str], bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    resets: bool = False
    sizeless: bool = False
    commit: str = _COMMIT
    older: dict[str, tuple[str, dict[tuple[str, str], bytes]]] = field(default_factory=dict)
    COMMIT: ClassVar[str] = _COMMIT

    def __enter__(self) -> HubServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
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

    @property
    def downloads(self) -> int:
        """How often content was asked for."""
        return len(self.ranges)

    def at(self, revision: str) -> tuple[str, dict[tuple[str, str], bytes]]:
        """The commit and the files of a revision."""
        return self.older.get(revision, (self.commit, self.files))


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubServer]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        credentials = self.headers.get("Authorization", "")
        self.hub.requests.append((self.command, self.path, bool(credentials)))
        parts = self.path.lstrip("/").split("/")
        if parts[0] == "storage":
            return self._content("/".join(parts[1:3]), parts[3], "/".join(parts[4:]))
        if len(parts) < 5 or parts[2] != "resolve":
            return self._refuse(404, None, "no such page")
        repo, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        commit, files = self.hub.at(revision)
        gate = self.hub.gates.get(repo)
        if gate and (gate.opens_for is None or credentials != f"Bearer {gate.opens_for}"):
            return self._refuse(gate.status, gate.code, gate.message + (credentials if self.hub.echo else ""))
        if repo not in {known for known, _ in files}:
            if credentials:
                return self._refuse(404, "RepoNotFound", "Repository not found")
            return self._refuse(401, None, "Invalid username or password.")
        content = files.get((repo, file))
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        self.send_response(302)
        self.send_header("Location", f"{self.hub.storage}/{repo}/{revision}/{file}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if not self.hub.sizeless:
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def _content(self, repo: str, revision: str, file: str) -> None:
        content = self.hub.spoiled.get((repo, file), self.hub.at(revision)[1][repo, file])
        wanted = self.headers.get("Range")
        self.hub.ranges.append(wanted)  # only GET comes here: HEAD is answered by the redirect
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.hub.sizeless:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not self.hub.cuts:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[start : start + self.hub.cuts.pop(0)])
        self.close_connection = True
        if self.hub.resets:  # closing with a linger of zero seconds sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        body = message.encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Bearer realm="Authentication required", charset="UTF-8"')
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def use_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Make huggingface_hub in this process ask ``server``, keep its cache in ``home`` and know no token."""
    for name in ("FROSTGRID_WEIGHTS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def hub_environment(server: HubServer, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that is to ask ``server``, keep its cache in ``home`` and know no token."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "FROSTGRID"))
    }
    return {**inherited, "HF_ENDPOINT": server.url, "HF_HOME": str(home), **more}


def files_with(folder: Path, secret: str) -> list[Path]:
    """The files under ``folder`` that hold ``secret``."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
