"""Which commit of a repository is meant: the one that is here, the one that is pinned, and nothing unasked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_rows import timm_model, tiny, write_row
from hub_server import HubServer, use_hub
from huggingface_hub import constants
from safetensors.torch import save

from stages.encoders import Encoder, file_sha256, hub_refusal, load_encoder, weights_at_hand
from stages.encoders.table import TimmRow, table
from store.errors import InputError, VerificationError

REPO = "someone/tiny-vit"
FILE = "model.safetensors"
ROW = tiny(hub_repo=REPO, revision="main")
FIRST = save(timm_model(tiny()).state_dict())
SECOND = save({name: tensor + 1 for name, tensor in timm_model(tiny()).state_dict().items()})
NEWER = "f" * 40
TAGGED = "e" * 40

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, FILE): FIRST}) as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def linkless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without links, as HF_HUB_DISABLE_SYMLINKS has it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)


def load(folder: Path, revision: str | None = None, **changes: Any) -> Encoder:
    return load_encoder(write_row(folder, {**ROW, **changes}), tile_px=32, revision=revision)


def change_upstream(hub: HubServer) -> None:
    """The authors push other weights to main; the first ones stay under their commit and a tag."""
    for name in (HubServer.COMMIT, "v1"):
        hub.older[name] = (HubServer.COMMIT, {(REPO, FILE): FIRST})
    hub.commit, hub.files = NEWER, {(REPO, FILE): SECOND}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_weights_that_change_on_the_hub_do_not_come_by_themselves(tmp_path: Path, hub: HubServer) -> None:
    first = load(tmp_path)
    change_upstream(hub)
    asked = len(hub.requests)
    second = load(tmp_path)
    assert second.identity == first.identity
    assert second.provenance["hub_commit"] == HubServer.COMMIT
    assert len(hub.requests) == asked
    at_hand = weights_at_hand(str(tmp_path / "tiny.toml"))
    assert at_hand is not None
    assert file_sha256(at_hand) == second.identity["weights"]


def test_a_study_can_pin_a_commit_a_tag_or_what_came_later(tmp_path: Path, hub: HubServer) -> None:
    change_upstream(hub)
    for revision, commit, content in (
        (None, NEWER, SECOND),
        ("v1", HubServer.COMMIT, FIRST),
        (HubServer.COMMIT, HubServer.COMMIT, FIRST),
        (NEWER, NEWER, SECOND),
    ):
        encoder = load(tmp_path, revision)
        assert (encoder.provenance["hub_commit"], encoder.identity["weights"]) == (commit, sha256(content))
        file = weights_at_hand(str(tmp_path / "tiny.toml"), revision=revision)
        assert file is not None
        assert file.read_bytes() == content
    assert hub.downloads == 2
    hub.older["v2"] = (TAGGED, {})
    assert "private, or its name is wrong" in str(hub_refusal(str(tmp_path / "tiny.toml"), revision="v2"))
    assert hub_refusal(str(tmp_path / "tiny.toml"), revision="v1") is None


def test_a_commit_that_another_program_asked_for_does_not_hide_the_weights(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves main in the cache, for a config.json say, and has no weights there."""
    first = load(tmp_path)
    asked = len(hub.requests)
    cache = tmp_path / "hf" / "models--someone--tiny-vit"
    (cache / "refs" / "main").write_text(NEWER)
    (cache / "snapshots" / NEWER).mkdir()
    assert load(tmp_path).provenance["hub_commit"] == first.provenance["hub_commit"]
    (cache / "refs" / "main").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(tmp_path).identity == first.identity
    assert asked == len(hub.requests)


def test_several_cached_commits_without_a_main_are_named(tmp_path: Path, hub: HubServer) -> None:
    load(tmp_path)
    change_upstream(hub)
    load(tmp_path, NEWER)
    (tmp_path / "hf" / "models--someone--tiny-vit" / "refs" / "main").unlink()
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    for part in (HubServer.COMMIT[:12], NEWER[:12], "encoders.revisions"):
        assert part in str(caught.value)
    assert load(tmp_path, NEWER).identity["weights"] == sha256(SECOND)


def test_a_revision_of_the_row_itself_is_looked_for_by_its_name_alone(tmp_path: Path, hub: HubServer) -> None:
    load(tmp_path)
    change_upstream(hub)
    hub.older["v2"] = (TAGGED, {(REPO, FILE): SECOND})
    tagged = write_row(tmp_path, {**ROW, "revision": "v2"})
    assert weights_at_hand(tagged) is None
    assert load_encoder(tagged, tile_px=32).provenance["hub_commit"] == TAGGED


def test_every_row_of_the_table_means_the_commit_that_is_here_or_a_fixed_one() -> None:
    revisions = {row.revision for row in table().values() if isinstance(row, TimmRow) and row.hub_repo}
    assert all(revision == "main" or len(str(revision)) == 40 for revision in revisions)


def test_what_comes_is_compared_with_the_hubs_promise_and_that_is_recorded(
    tmp_path: Path, hub: HubServer
) -> None:
    assert load(tmp_path).provenance["weights_checked"] is True
    assert load(tmp_path).provenance["weights_checked"] is True  # the cache's link keeps the promise
    (tmp_path / "local.safetensors").write_bytes(FIRST)
    row = write_row(tmp_path, ROW)
    local = load_encoder(row, tile_px=32, weights=tmp_path / "local.safetensors")
    assert local.provenance["weights_checked"] is None  # nobody promised anything


@pytest.mark.usefixtures("linkless")
def test_without_links_a_download_is_compared_all_the_same(tmp_path: Path, hub: HubServer) -> None:
    hub.spoiled[REPO, FILE] = FIRST[:-1] + bytes([FIRST[-1] ^ 1])
    with pytest.raises(VerificationError, match="not what the Hub promised"):
        load(tmp_path)
    assert not list((tmp_path / "hf").rglob(FILE))
    hub.spoiled.clear()
    fresh = load(tmp_path)
    (kept,) = (tmp_path / "hf").rglob(FILE)
    assert not kept.is_symlink()
    assert fresh.provenance["weights_checked"] is True
    asked = len(hub.requests)
    again = load(tmp_path)
    assert len(hub.requests) == asked
    assert again.identity == fresh.identity
    assert again.provenance["weights_checked"] is False  # this cache has kept no promise to compare with
