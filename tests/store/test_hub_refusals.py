"""What the Hub says to those who may not read or write a place, told apart, with the next step and never a token."""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataset_hub import COLLEAGUE, OWNER, TOKEN, DatasetHub, use_dataset_hub
from dataset_repos import Refusal
from huggingface_hub import close_session, constants
from huggingface_hub.utils._xet import abort_xet_session

from store.errors import AccessError, FrostgridError, InputError, StorageError
from store.places.hub import HubPlace

NAME = f"{OWNER}/caches"
URL = f"hf://datasets/{NAME}"
SHARD = hashlib.shake_128(b"shard").digest(150_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DatasetHub]:
    with DatasetHub() as server:
        use_dataset_hub(server, monkeypatch, tmp_path, TOKEN)
        yield server
        close_session()


def _colleagues(hub: DatasetHub, **rights: object) -> str:
    hub.add("colleague/caches", {"a/c.0": SHARD}, **rights)
    return "hf://datasets/colleague/caches"


def _read(url: str) -> None:
    place = HubPlace(url)
    place.files("a")
    place.fetch("a/c.0", len)


def _send(url: str) -> None:
    HubPlace(url).send({"a/c.9": SHARD, "a/cache.json": b"{}"})


SPENT = (("RateLimit", '"api";r=0;t=55'), ("RateLimit-Policy", '"fixed window";"api";q=500;w=300'))
# As reported by people whom the Hub has refused; a commit is asked for once, everything else up to six times.
REFUSED: dict[
    str, tuple[Callable[[DatasetHub], str], Callable[[str], None], type[FrostgridError], list[str]]
] = {
    "private, not for this account": (
        lambda hub: _colleagues(hub, private=True),
        _read,
        AccessError,
        ["does not exist, or it is private", "/datasets/colleague/caches", "(404)"],
    ),
    "private, not for this account, written": (
        lambda hub: _colleagues(hub, private=True),
        _send,
        AccessError,
        ["does not exist, or it is private", "huggingface.co/new-dataset"],
    ),
    "of a stranger, and not there": (
        lambda hub: "hf://datasets/stranger/caches",
        _send,
        AccessError,
        ["does not exist, or it is private"],
    ),
    "gated": (
        lambda hub: _colleagues(hub, gated=True),
        _read,
        AccessError,
        ["gated", "Ask for access at", "/datasets/colleague/caches", "(403)"],
    ),
    "readable, not writable": (
        _colleagues,
        _send,
        AccessError,
        ["no right", "written", "Ask the owner", "(403)"],
    ),
    "a token that may only read": (
        lambda hub: (hub.add(NAME), hub.read_only.add(TOKEN), URL)[-1],
        _send,
        AccessError,
        ["token lacks the right", "type Write", "settings/tokens", "(403)"],
    ),
    "a token that may not make a repository": (
        lambda hub: (hub.read_only.add(TOKEN), URL)[-1],
        _send,
        AccessError,
        ["no right", "written", "(403)"],
    ),
    "a token nobody has": (
        lambda hub: (hub.add(NAME), hub.accounts.pop(TOKEN), URL)[-1],
        _read,
        AccessError,
        ["did not accept the Hugging Face token", "Make a new one", "(401)"],
    ),
    "no such branch": (
        lambda hub: (hub.add(NAME), f"{URL}@wip")[-1],
        _read,
        InputError,
        ["no such branch", "(404)"],
    ),
    "a branch of what is not there": (
        lambda hub: f"{URL}@wip",
        _send,
        InputError,
        ["no such branch", "Leave out @"],
    ),
    "too many commits": (
        lambda hub: _refusing(
            hub, "/commit/", Refusal(429, "You have exceeded our hourly quotas for action: commit")
        ),
        _send,
        StorageError,
        ["no more requests or commits", "Wait an hour (about 128", "what has arrived is kept", "(429)"],
    ),
    "too many requests": (
        lambda hub: _refusing(hub, "/tree/", Refusal(429, "Too Many Requests", None, SPENT), "GET", 6),
        _read,
        StorageError,
        ["no more requests", "Wait 55 s"],
    ),
    "no more room": (
        lambda hub: _refusing(
            hub, "/batch", Refusal(403, "Private repository storage limit reached, please upgrade your plan")
        ),
        _send,
        StorageError,
        ["no more room for this account", "settings/billing", "(403)"],
    ),
    "down for maintenance": (
        lambda hub: _refusing(hub, "/resolve/", Refusal(503, "Service Unavailable"), "GET", 6),
        _read,
        StorageError,
        ["did not do what was asked (503)", "status.huggingface.co"],
    ),
    "a storage that refuses": (
        lambda hub: _refusing(hub, "/storage/put/", Refusal(403, "Request has expired"), "PUT"),
        _send,
        StorageError,
        ["did not do what was asked (403)", "try again later"],
    ),
    "a history that was rewritten": (
        lambda hub: _rewriting(hub),
        _read,
        InputError,
        ["rewrote the history: run the same command again"],
    ),
}


def _refusing(hub: DatasetHub, part: str, refusal: Refusal, method: str = "POST", times: int = 1) -> str:
    hub.add(NAME, {"a/c.0": SHARD})
    hub.refusals = [(method, part, refusal)] * times
    return URL


def _rewriting(hub: DatasetHub) -> str:
    repo = hub.add(NAME, {"a/c.0": SHARD})
    hub.hooks = [("GET", "/resolve/", repo.commits.clear)]
    return URL


def secrets_of(error: BaseException, log: str) -> list[str]:
    """What of the tokens can be seen in an error, in how it is traced, or in the log."""
    seen = "".join(traceback.format_exception(error)) + repr(error) + log
    return [secret for secret in (TOKEN, COLLEAGUE) if secret in seen]


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_explained_with_the_next_step_and_without_the_token(
    hub: DatasetHub, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    prepare, call, kind, phrases = REFUSED[case]
    hub.echo = True  # a careless server that repeats the token
    url = prepare(hub)
    with caplog.at_level(logging.WARNING), pytest.raises(FrostgridError) as caught:
        call(url)
    assert type(caught.value) is kind
    assert [phrase for phrase in phrases if phrase not in str(caught.value)] == []
    assert str(caught.value.where).startswith("hf://datasets/")
    assert secrets_of(caught.value, caplog.text) == []


@pytest.mark.parametrize("call", [_read, _send])
def test_without_a_token_the_next_step_is_to_get_one(
    hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], None]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.add(NAME, private=True)
    with pytest.raises(AccessError, match="it is private, or its name is wrong") as caught:
        call(URL)
    assert "set HF_TOKEN or run: hf auth login" in str(caught.value)
    with pytest.raises(AccessError, match="gated") as caught:
        _read(_colleagues(hub, gated=True))
    assert "Ask for access at" in str(caught.value)


def test_a_mirror_that_says_404_to_everybody_is_understood(
    hub: DatasetHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.refusals = [("GET", "/api/datasets/", Refusal(404, "Repository not found", "RepoNotFound"))]
    with pytest.raises(AccessError, match="it is private, or its name is wrong"):
        _read(URL)


def test_everybody_reads_what_is_public(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    url = _colleagues(hub)
    _read(url)
    with pytest.raises(AccessError) as caught:
        _send(url)
    assert "Nothing may be written without a Hugging Face token" in str(caught.value)


def test_somebody_who_was_let_in_reads_and_writes(hub: DatasetHub) -> None:
    url = _colleagues(hub, private=True, writers={OWNER})
    _read(url)
    _send(url)
    assert hub.repos["colleague/caches"].newest["a/c.9"].content == SHARD


@pytest.mark.parametrize("call", [_read, _send])
def test_offline_nothing_is_asked(
    hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], None]
) -> None:
    hub.add(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AccessError, match="HF_HUB_OFFLINE forbids"):
        call(URL)
    assert hub.requests == []


@pytest.mark.parametrize("call", [_read, _send])
def test_without_a_network_the_network_is_named(
    hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], None]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="connection to the Hugging Face Hub failed") as caught:
        call(URL)
    assert "HTTPS_PROXY" in str(caught.value)


def test_a_token_in_typographic_quotes_is_named(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"“{TOKEN}”")
    with pytest.raises(AccessError, match="characters that no token has") as caught:
        _read(URL)
    assert secrets_of(caught.value, "") == []


def test_a_page_in_between_that_wants_a_login_is_not_taken_for_the_hub(hub: DatasetHub) -> None:
    hub.add(NAME)
    hub.refusals = [("GET", "/api/datasets/", Refusal(200, "Welcome to the hospital's guest network"))]
    with pytest.raises(StorageError, match="answered what the Hub never answers"):
        HubPlace(URL).files("a")


@pytest.mark.parametrize("broken", ["token", "xorbs", "shards"])
def test_a_storage_that_does_not_take_the_files_leaves_nothing_to_be_seen(
    hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    abort_xet_session()
    repo = hub.add(NAME)
    hub.echo = True
    at = {"token": ("GET", "/xet-write-token/"), "xorbs": ("POST", "/xorbs/"), "shards": ("POST", "/shards")}
    hub.refusals = [(*at[broken], Refusal(403, "Forbidden"))] * 9
    with caplog.at_level(logging.WARNING), pytest.raises(FrostgridError) as caught:
        HubPlace(URL).send({"a/c.0": SHARD})
    assert "HF_HUB_DISABLE_XET=1" in str(caught.value)
    assert sorted(repo.newest) == [".gitattributes"]
    assert secrets_of(caught.value, caplog.text) == []
