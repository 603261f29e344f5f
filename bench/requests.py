"""How many requests a cache takes: a file system when it is written, an S3-like store when it is sent and fetched.

A server on loopback (moto) answers, so its speed says nothing; the numbers are those of any store. Run it as
``python -m bench.requests --shards 16``; the numbers a shard in ``docs/scale.md`` are differences between two runs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import fsspec
import numpy as np
from moto.server import ThreadedMotoServer

from bench.tokens import rows
from store import GridSpec, GridStore
from store.places import open_place
from store.places.place import Place
from store.sharing import offer_at, pull, push

BUCKET = "bench"
_VERB = re.compile(r"(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP")
_SLOTS = 8
_CALLS = ("open", "os.link", "os.remove", "os.rename", "os.mkdir", "os.listdir", "os.scandir", "os.utime")


class _Requests(logging.Handler):
    """Counts what the server answers, by its log; listings, which are paid for like writing, apart from other GETs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count one line of the log."""
        if found := _VERB.search(record.getMessage()):
            listing = found[1] == "GET" and ("list-type" in found[2] or "prefix=" in found[2])
            self.seen["LIST" if listing else found[1]] += 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shards", default=16, show_default=True, type=click.IntRange(1))
@click.option(
    "--view-kb", default=16, show_default=True, type=click.IntRange(1), help="kB of a view; a shard has 8."
)
def main(shards: int, view_kb: int) -> None:
    """Write, send, list and fetch a cache; print the requests of each, a line each."""
    with TemporaryDirectory() as made, _served() as seen:
        folder = Path(made)
        calls = _Calls()
        store = _written(folder / "here", shards, view_kb)
        click.echo(
            json.dumps({"what": "write to a folder", "shards": shards, **dict(sorted(calls.seen.items()))})
        )
        place = open_place(f"s3://{BUCKET}/caches")

        def count(what: str, work: Callable[[], object]) -> None:
            seen.clear()
            work()
            click.echo(json.dumps({"what": what, "shards": shards, **dict(sorted(seen.items()))}))

        count("send", lambda: push(store, place))
        count("send again, when all is there", lambda: push(store, place))
        count("list", lambda: offer_at(place, store.path.name))
        count("fetch", lambda: _fetched(place, store, folder / "there"))


class _Calls:
    """Counts what is asked of the file system but for looking at single files, of which Python tells nothing."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CALLS and (event != "open" or isinstance(arguments[0], str)):
            self.seen[event] += 1


def _fetched(place: Place, store: GridStore, folder: Path) -> None:
    pull(offer_at(place, store.path.name), folder)


def _written(folder: Path, shards: int, view_kb: int) -> GridStore:
    """Write a cache of noise, which does not compress."""
    spec = GridSpec("tokens", (2, 16, 16 * view_kb), "float16", ("d", "h", "w"))
    store = GridStore.at(folder, "bench", {"of": "requests"}, spec, {"share": "allowed"}, create=True)
    rng = np.random.default_rng(0)
    for task in store.plan(rows(shards * _SLOTS), shard_views=_SLOTS):
        grids = (rng.normal(size=spec.shape).astype(np.float16) for _ in task.rows)
        with store.lease(task):
            store.write(task, ((grid, None) for grid in grids))
    return store


@contextmanager
def _served() -> Iterator[Counter[str]]:
    """Run the server, with its address and credentials in the environment of this process."""
    log, requests = logging.getLogger("werkzeug"), _Requests()
    log.setLevel(logging.INFO)
    log.addHandler(requests)
    log.propagate = False
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
    try:
        yield requests.seen
    finally:
        server.stop()


if __name__ == "__main__":
    main()
