"""An S3 server on loopback, and a wire to it that counts requests and can be cut."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "caches"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "a-secret-nobody-may-see",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
_REQUEST = re.compile(rb"^(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP/1\.[01]\r\n", re.MULTILINE)

_REASON = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_DENIED = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_REASON),
    _REASON,
)


@dataclass
class Wire:
    """A TCP proxy in front of the server at ``target``.

    ``requests`` are the (method, path) of what went through; with ``budget`` every connection is cut once that many
    bytes have gone in ``direction`` ("up" to the server, "down" from it), and all after it are refused while
    ``cut_for_good``. Without ``strangers_may_list`` requests without credentials get no listing; whether they get an
    object is up to the server. Without ``strangers_may_read`` they get nothing at all.
    """

    target: tuple[str, int]
    requests: list[tuple[str, str]] = field(default_factory=list)
    budget: int | None = None
    direction: str = "up"
    cut_for_good: bool = True
    cuts: int = 0
    strangers_may_list: bool = True
    strangers_may_read: bool = True

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def mend(self) -> None:
        """Let everything through again, and forget the requests so far."""
        self.budget = None
        self.requests.clear()

    def counted(self, method: str, part: str = "") -> int:
        """How many requests of ``method`` went to a path with ``part`` in it."""
        return sum(1 for verb, path in self.requests if verb == method and part in path)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.budget is not None and self.budget <= 0 and self.cut_for_good:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self.target)
            except OSError:
                _reset(client)
                continue
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if way == "up":
                    found = [(verb.decode(), path.decode()) for verb, path in _REQUEST.findall(data)]
                    with self._lock:
                        self.requests.extend(found)
                    if found and self._unwelcome(data, found[0][1]):
                        sink = source
                        # the answer to HEAD is as long as that to GET, and has nothing after its header
                        sink.sendall(_DENIED if found[0][0] != "HEAD" else _DENIED.removesuffix(_REASON))
                        break
                if not self._allowed(len(data), way):
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for end in (source, sink):
            _reset(end)

    def _unwelcome(self, data: bytes, path: str) -> bool:
        if b"\r\nauthorization:" in data.lower():
            return False
        return not self.strangers_may_read or (not self.strangers_may_list and "list-type" in path)

    def _allowed(self, count: int, way: str) -> bool:
        with self._lock:
            if self.budget is None or way != self.direction:
                return True
            self.budget -= count
            if self.budget > 0:
                return True
            self.cuts += 1
            if not self.cut_for_good:
                self.budget = None
            return False


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@dataclass
class S3:
    """A running server: its own ``endpoint``, and a ``client`` that goes around every wire."""

    host: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="owner",
            aws_secret_access_key="owner",
        )

    def objects(self) -> dict[str, int]:
        """Every object of the bucket with its size."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def get(self, key: str) -> bytes:
        return self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=BUCKET, Key=key, Body=data)


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """Run moto's server in this process, empty: what an earlier one kept would still be there."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        made = S3(*server.get_host_and_port())
        urllib.request.urlopen(f"{made.endpoint}/moto-api/reset", data=b"").close()
        yield made
    finally:
        server.stop()


@contextlib.contextmanager
def bucket(server: S3) -> Iterator[Wire]:
    """An empty bucket behind a wire, with credentials and endpoint in the environment of this process."""
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    wire = Wire((server.host, server.port))
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": wire.url}
    with mock.patch.dict(os.environ, environment):
        os.environ.pop("AWS_PROFILE", None)
        try:
            yield wire
        finally:
            wire.close()
            for key in server.objects():
                client.delete_object(Bucket=BUCKET, Key=key)
            client.delete_bucket(Bucket=BUCKET)
