"""Downloads that go wrong: cut, spoiled, too large for the disk; and those that go right, byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import torch
from encoder_rows import timm_model, tiny, views, write_row
from hub_server import HubServer, use_hub
from huggingface_hub import constants
from safetensors.torch import save

from stages.encoders import RefusedByHub, download_progress, file_sha256, load_encoder, weights_at_hand
from stages.encoders.table import table
from store.errors import StorageError, VerificationError

REPO = "someone/tiny-vit"
FILE = "model.safetensors"
ROW = tiny(hub_repo=REPO, revision="main")
CONTENT = save(timm_model(tiny()).state_dict())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, FILE): CONTENT}) as server:
        use_hub(server, monkeypatch, tmp_path)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield server


def cached(folder: Path) -> list[Path]:
    """The contents that are kept in the cache."""
    return [path for path in folder.glob("hf/*/blobs/*") if path.is_file()]


def test_a_cut_download_goes_on_where_it_was_cut(tmp_path: Path, hub: HubServer) -> None:
    hub.cuts = [len(CONTENT) // 2, 20_000]
    seen: list[tuple[int, int]] = []
    with download_progress(lambda done, total: seen.append((done, total))):
        encoder = load_encoder(write_row(tmp_path, ROW), tile_px=32)
    assert hub.ranges[0] is None
    starts = [int(str(asked).removeprefix("bytes=").rstrip("-")) for asked in hub.ranges[1:]]
    assert len(starts) == 2
    assert len(CONTENT) // 2 - 4096 < starts[0] <= len(CONTENT) // 2 < starts[1]
    (blob,) = cached(tmp_path)
    assert blob.read_bytes() == CONTENT
    assert encoder.identity["weights"] == file_sha256(blob)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_a_reset_connection_is_begun_anew_a_few_times_and_then_given_up(
    tmp_path: Path, hub: HubServer
) -> None:
    row = write_row(tmp_path, ROW)
    hub.resets, hub.cuts = True, [30_000] * 3
    with pytest.raises(RefusedByHub) as caught:
        load_encoder(row, tile_px=32)
    assert caught.value.reason == "unreachable"
    assert hub.ranges == [None] * 3
    assert not cached(tmp_path)
    hub.cuts = [30_000] * 2
    load_encoder(row, tile_px=32)
    assert [blob.read_bytes() for blob in cached(tmp_path)] == [CONTENT]


def test_other_bytes_than_promised_are_refused_and_not_kept(tmp_path: Path, hub: HubServer) -> None:
    row = write_row(tmp_path, ROW)
    hub.spoiled[REPO, FILE] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(VerificationError) as caught:
        load_encoder(row, tile_px=32)
    for part in ("not what the Hub promised", "They were removed", "HF_ENDPOINT", "--weights"):
        assert part in str(caught.value)
    assert not cached(tmp_path)
    assert weights_at_hand(row) is None
    hub.spoiled.clear()
    load_encoder(row, tile_px=32)


def test_fewer_bytes_than_promised_are_refused_and_not_kept(tmp_path: Path, hub: HubServer) -> None:
    hub.spoiled[REPO, FILE] = CONTENT[:-10]
    with pytest.raises(VerificationError, match="another size than it promised"):
        load_encoder(write_row(tmp_path, ROW), tile_px=32)
    assert not cached(tmp_path)


def test_a_cached_file_that_was_damaged_since_is_named_and_left(tmp_path: Path, hub: HubServer) -> None:
    row = write_row(tmp_path, ROW)
    load_encoder(row, tile_px=32)
    (blob,) = cached(tmp_path)
    blob.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(VerificationError, match="Delete this file") as caught:
        load_encoder(row, tile_px=32)
    assert str(weights_at_hand(row)) in str(caught.value)
    assert blob.is_file()


def test_a_download_that_the_disk_has_no_room_for_is_not_begun(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = write_row(tmp_path, ROW)
    real = shutil.disk_usage
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=60_000))
        with pytest.raises(StorageError) as caught:
            load_encoder(row, tile_px=32)
    assert "0.18 MB and only 0.06 MB are free" in caught.value.what
    assert str(tmp_path / "hf") in str(caught.value)
    assert "HF_HOME" in str(caught.value.remedy)
    assert hub.downloads == 0
    assert not cached(tmp_path)
    load_encoder(row, tile_px=32)


@pytest.mark.skipif(
    not Path("/dev/full").is_char_device(), reason="this system has no device that is always full"
)
def test_a_disk_that_fills_up_on_the_way_is_named_and_left_as_it_was(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server says no size. The file that the download is written to is the device that is always full."""
    row = write_row(tmp_path, ROW)
    hub.sizeless = True
    with monkeypatch.context() as known:
        known.setattr("huggingface_hub.file_download.uuid.uuid4", lambda: UUID(int=0))
        blobs = tmp_path / "hf" / "models--someone--tiny-vit" / "blobs"
        blobs.mkdir(parents=True)
        partial = blobs / f"{hashlib.sha256(CONTENT).hexdigest()}.{'0' * 8}.incomplete"
        partial.symlink_to("/dev/full")
        with pytest.raises(StorageError) as caught:
            load_encoder(row, tile_px=32)
    assert "No space left" in caught.value.what
    assert str(tmp_path / "hf") in str(caught.value)
    assert "HF_HOME" in str(caught.value.remedy)
    assert hub.downloads == 1
    assert not list(blobs.iterdir())
    load_encoder(row, tile_px=32)
    assert [blob.read_bytes() for blob in cached(tmp_path)] == [CONTENT]


def test_real_weights_through_the_hub_give_the_tokens_of_the_local_file(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shared / "weights" / "dinov2-s14" / FILE
    fields = table()["dinov2-s14"].model_dump(mode="json", exclude_none=True)
    row = write_row(tmp_path, {**fields, "name": "mine", "hub_repo": "mine/dinov2-s14", "revision": "main"})
    with HubServer({("mine/dinov2-s14", FILE): weights.read_bytes()}) as hub:
        use_hub(hub, monkeypatch, tmp_path)
        hub.cuts = [25_000_000]
        downloaded = load_encoder(row, tile_px=224)
        assert hub.ranges == [None, "bytes=20971520-"]
    local = load_encoder(row, tile_px=224, weights=weights)
    assert downloaded.identity == local.identity
    assert (downloaded.provenance["hub_repo"], downloaded.provenance["hub_commit"]) == (
        "mine/dinov2-s14",
        HubServer.COMMIT,
    )
    images = views(2, 224)
    assert torch.equal(downloaded.encode(images), local.encode(images))
