"""Stores that lose bytes, tell checksums of their own, or know conditions only half: what arrives is compared."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import google_crc32c
import pytest
import sharing_kit
import storekit as kit
from fsspec.implementations.memory import MemoryFileSystem

from store.errors import AccessError, InputError, StorageError
from store.places import open_place
from store.places.fsspec_place import FsspecPlace
from store.sharing import push, verify_at

ROWS = kit.rows_of(6, 2)


class OddFileSystem(MemoryFileSystem):
    """A store in memory with habits: what it makes of the bytes it gets, and what it tells of a file."""

    protocol = "odd"
    keeps: ClassVar[Callable[[str, bytes], bytes]]
    tells: ClassVar[Callable[[bytes], dict[str, Any]]]
    asked: ClassVar[list[str]]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        super().pipe_file(path, type(self).keeps(path, value))

    def put_file(
        self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any
    ) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = super().info(path, **kwargs)
        if found["type"] == "file":
            found |= type(self).tells(self.store[self._strip_protocol(path)].getvalue())
        return found

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self.asked.append(path)
        return super().cat_file(path, start=start, end=end)


@pytest.fixture(autouse=True)
def odd() -> Iterator[type[OddFileSystem]]:
    """The odd store, without habits yet."""
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    OddFileSystem.keeps = staticmethod(lambda path, data: data)
    OddFileSystem.tells = staticmethod(lambda data: {})
    OddFileSystem.asked = []
    yield OddFileSystem
    MemoryFileSystem.store.clear()


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


TOLD: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "nothing": lambda data: {},
    "etag": lambda data: {"ETag": f'"{_md5(data)}"'},
    "md5Hash": lambda data: {"md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode()},
    "crc32c": lambda data: {
        "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    },
    "an etag of something else": lambda data: {"ETag": f'"{_md5(data + b"secret key")}"'},
    "an etag of parts": lambda data: {"ETag": f'"{_md5(hashlib.md5(data).digest())}-1"'},
}


@pytest.mark.parametrize("told", TOLD)
def test_what_arrived_is_known_by_the_checksum_a_store_tells_or_by_reading_it_back(
    odd: type[OddFileSystem], tmp_path: Path, told: str
) -> None:
    odd.tells = staticmethod(TOLD[told])
    home = sharing_kit.made(tmp_path, ROWS)
    push(home, open_place("odd://team"))
    read_back = any("/tokens/c." in path for path in odd.asked)
    assert read_back == (told in ("nothing", "an etag of something else"))
    assert verify_at(sharing_kit.only_offer("odd://team")) == []
    shard = kit.shard_files(home)[0]
    place = open_place("odd://elsewhere")
    odd.keeps = staticmethod(lambda path, data: sharing_kit.flip(data, len(data) // 2))
    with pytest.raises(StorageError, match="did not arrive as it was sent"):
        place.send({"a/b": shard})


def test_a_store_that_loses_bytes_now_and_then_gets_what_it_lost_once_more(
    odd: type[OddFileSystem], tmp_path: Path
) -> None:
    failed: set[str] = set()

    def sometimes(path: str, data: bytes) -> bytes:
        if ("/tokens/c." in path or "/tile/" in path or "/_work/" in path) and path not in failed:
            failed.add(path)
            return data[: len(data) // 2]
        return data

    odd.keeps = staticmethod(sometimes)
    home = sharing_kit.made(tmp_path, ROWS)
    told = 0
    for _ in range(4):
        try:
            push(home, open_place("odd://team"))
            break
        except StorageError as error:
            assert "did not arrive as it was sent" in str(error)
            told += 1
    assert len(failed) == 3 + 3 + 2 and told <= 3
    offer = sharing_kit.only_offer("odd://team")
    assert offer.parts[0].sealed and verify_at(offer) == []


class _Answer(Exception):
    """What a client library raises: the server's code is in its response."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


def _refusing(code: str, kind: type[OSError], times: int) -> Callable[[str, bytes], bytes]:
    """Refuse every name ``times`` times, as s3fs passes such an answer on."""
    refused: dict[str, int] = {}

    def keeps(path: str, data: bytes) -> bytes:
        refused[path] = refused.get(path, 0) + 1
        if refused[path] <= times:
            raise kind(code) from _Answer(code)
        return data

    return keeps


def test_a_name_that_another_is_writing_just_now_is_tried_again(
    odd: type[OddFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.places.fsspec_place.time.sleep", lambda seconds: None)
    odd.keeps = staticmethod(_refusing("ConditionalRequestConflict", OSError, 2))
    place = open_place("odd://team")
    assert place.send({"a/b": b"1"}, new=True) == [] and place.read("a/b") == b"1"
    odd.keeps = staticmethod(_refusing("ConditionalRequestConflict", OSError, 99))
    with pytest.raises(StorageError, match="does not answer as it should"):
        place.send({"a/c": b"1"}, new=True)


def test_a_server_that_knows_no_conditions_is_asked_first(odd: type[OddFileSystem]) -> None:
    odd.keeps = staticmethod(_refusing("NotImplemented", OSError, 1))
    place = open_place("odd://team")
    assert place.send({"a/b": b"1"}, new=True) == [] and place.read("a/b") == b"1"
    assert place.send({"a/b": b"2"}, new=True) == ["a/b"] and place.read("a/b") == b"1"


def test_what_a_service_refuses_is_told_in_words_without_credentials(odd: type[OddFileSystem]) -> None:
    place = FsspecPlace("odd://who:secret@team")
    assert "secret" not in place.url
    for code, kind, error, words in (
        ("AccessDenied", OSError, AccessError, "refuses this with the credentials at hand"),
        ("NoSuchBucket", FileNotFoundError, InputError, "no bucket of this name"),
        (
            "SlowDown https://x:secret@host/a?X-Signature=secret",
            OSError,
            StorageError,
            "SlowDown https://host/a ",
        ),
    ):
        odd.keeps = staticmethod(_refusing(code, kind, 99))
        with pytest.raises(error, match=words) as caught:
            place.send({"a/b": b"1"})
        assert "secret" not in str(caught.value)
    odd.keeps = staticmethod(
        lambda path, data: data[0].nothing
    )  # a fault of a program, which is not explained away
    with pytest.raises(AttributeError):
        place.send({"a/b": b"1"})


def test_a_place_that_is_full_says_so(odd: type[OddFileSystem]) -> None:
    def full(path: str, data: bytes) -> bytes:
        raise OSError(28, "No space left on device")

    odd.keeps = staticmethod(full)
    with pytest.raises(StorageError, match=r"The place is full.*What has arrived is kept"):
        open_place("odd://team").send({"a/b": b"1"})


def test_a_password_in_the_url_of_a_bucket_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="Credentials do not belong") as caught:
        open_place("s3://user:SECRET@lab/caches")
    assert "SECRET" not in str(caught.value)
