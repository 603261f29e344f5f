"""A local server that speaks what huggingface_hub asks of the Hub to download a file, gates included."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import ClassVar


@dataclass(frozen=True)
class Gate:
    """How a repository answers those who may not read it: status, the Hub's error code and its words."""

    status: int
    code: str | None
    message: str
    opens_for: str | None = None  # the token that may read


@dataclass
class HubServer:
    """Serves ``files`` {(repo, file): bytes} at every revision, each repository under one commit.

    ``requests`` collects (method, path, whether a token came along). ``echo`` repeats the request's credentials in the
    error message, as a careless server might.
    """

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    echo: bool = False
    COMMIT: ClassVar[str] = "0123456789abcdef0123456789abcdef01234567"

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
    def downloads(self) -> int:
        return sum(method == "GET" for method, _, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubServer]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        credentials = self.headers.get("Authorization", "")
        self.hub.requests.append((self.command, self.path, bool(credentials)))
        parts = self.path.lstrip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return self._refuse(404, None, "no such page")
        repo, file = "/".join(parts[:2]), "/".join(parts[4:])
        gate = self.hub.gates.get(repo)
        if gate and (gate.opens_for is None or credentials != f"Bearer {gate.opens_for}"):
            return self._refuse(gate.status, gate.code, gate.message + (credentials if self.hub.echo else ""))
        if repo not in {known for known, _ in self.hub.files}:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        content = self.hub.files.get((repo, file))
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()
