"""Finding weights: paths, FROSTGRID_WEIGHTS, and the Hub as a local server speaks it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_rows import timm_model, tiny, views, write_row
from hub_server import Gate, HubServer, use_hub
from huggingface_hub import constants
from safetensors.torch import save, save_file

from stages.encoders import Encoder, hub_refusal, load_encoder, weights_at_hand
from store.errors import AccessError, FrostgridError, InputError

REPO = "someone/tiny-vit"
STATE = timm_model(tiny()).state_dict()
HUB_ROW = tiny(hub_repo=REPO, revision="main", gated=True)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, "model.safetensors"): save(STATE)}) as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


def _load(folder: Path, fields: dict[str, Any] = HUB_ROW, weights: Path | None = None) -> Encoder:
    return load_encoder(write_row(folder, fields), tile_px=32, weights=weights)


def _refusal(folder: Path, fields: dict[str, Any] = HUB_ROW) -> FrostgridError:
    with pytest.raises(FrostgridError) as caught:
        _load(folder, fields)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    "layout",
    ["tiny.safetensors", "tiny.pth", "tiny/model.safetensors", "model.safetensors"],
)
def test_a_folder_of_weights_is_searched_by_the_encoders_name_and_file(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "weights" / layout
    path.parent.mkdir(parents=True)
    torch.save(STATE, path) if path.suffix == ".pth" else save_file(STATE, path)
    encoder = _load(tmp_path, weights=tmp_path / "weights")
    assert encoder.provenance["weights_file"] == path.name
    assert encoder.identity == _load(tmp_path, weights=path).identity


def test_a_given_path_without_the_weights_never_leads_to_a_download(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"It should hold one of: tiny/model\.safetensors, tiny\.safetensors"
    ):
        _load(tmp_path, weights=tmp_path / "empty")
    with pytest.raises(InputError, match="no weights for tiny at this path"):
        _load(tmp_path, weights=tmp_path / "none.bin")
    assert hub.requests == []


def test_the_weights_folder_of_the_environment_comes_before_the_hub(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "tiny").mkdir(parents=True)
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    save_file(STATE, root / "model.safetensors")  # whose it is, nobody can tell
    assert _load(tmp_path).provenance["hub_repo"] == REPO
    before = len(hub.requests)
    save_file(STATE, root / "tiny" / "model.safetensors")
    assert _load(tmp_path).provenance["hub_repo"] is None
    assert len(hub.requests) == before


def test_a_weights_folder_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(tmp_path / "typo"))
    with pytest.raises(InputError, match="names a folder that does not exist"):
        _load(tmp_path)


def test_an_encoder_without_a_repository_says_which_path_to_give() -> None:
    with pytest.raises(InputError) as caught:
        load_encoder("dinov2-s14", tile_px=224)
    assert "--weights" in str(caught.value)
    assert "dinov2-s14/model.safetensors" in str(caught.value)


def test_a_download_is_made_once_and_its_commit_recorded(tmp_path: Path, hub: HubServer) -> None:
    first, second = _load(tmp_path), _load(tmp_path)
    assert hub.downloads == 1
    assert first.provenance["hub_commit"] == second.provenance["hub_commit"] == HubServer.COMMIT
    save_file(STATE, tmp_path / "local.safetensors")
    local = _load(tmp_path, weights=tmp_path / "local.safetensors")
    assert torch.equal(first.encode(views(1, 32)), local.encode(views(1, 32)))


def test_the_first_file_that_the_repository_has_is_taken(tmp_path: Path, hub: HubServer) -> None:
    encoder = _load(tmp_path, {**HUB_ROW, "files": ["weights/model.bin", "model.safetensors"]})
    assert encoder.provenance["weights_file"] == "model.safetensors"
    hub.files[REPO, "weights/model.bin"] = hub.files[REPO, "model.safetensors"]
    shutil.rmtree(tmp_path / "hf")
    encoder = _load(tmp_path, {**HUB_ROW, "files": ["weights/model.bin", "model.safetensors"]})
    assert (encoder.provenance["weights_file"], encoder.provenance["hub_commit"]) == (
        "model.bin",
        HubServer.COMMIT,
    )


def test_a_file_that_the_repository_does_not_have_is_named(tmp_path: Path, hub: HubServer) -> None:
    error = _refusal(tmp_path, {**HUB_ROW, "files": ["teacher.pth", "student.pth"]})
    assert isinstance(error, InputError)
    assert "no file teacher.pth or student.pth (404)" in str(error)
    assert f"https://huggingface.co/{REPO}" in str(error)


def test_a_repository_or_revision_that_does_not_exist_is_named(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    misspelt = {**HUB_ROW, "hub_repo": "someone/typo"}
    assert "it is private, or its name is wrong (401)" in str(_refusal(tmp_path, misspelt))
    monkeypatch.setenv("HF_TOKEN", "hf_some")
    assert "no such repository on the Hub (404)" in str(_refusal(tmp_path, misspelt))
    hub.gates[REPO] = Gate(404, "RevisionNotFound", "Invalid rev id: v9")
    error = _refusal(tmp_path, {**HUB_ROW, "revision": "v9"})
    assert "no such revision on the Hub (404)" in str(error)
    assert f"{REPO}@v9" in str(error)


def test_offline_takes_the_cached_file_and_says_what_to_do_without_one(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = _refusal(tmp_path)
    assert isinstance(error, AccessError)
    for part in ("HF_HUB_OFFLINE", "--weights", f"https://huggingface.co/{REPO}"):
        assert part in str(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = _load(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert _load(tmp_path).identity == online.identity
    assert len(hub.requests) == asked


def test_weights_at_hand_are_found_where_loading_would_find_them_without_asking_anybody(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = write_row(tmp_path, HUB_ROW)
    assert weights_at_hand(row) is None
    assert hub.requests == []
    loaded = load_encoder(row, tile_px=32)
    asked = len(hub.requests)
    cached = weights_at_hand(row)
    assert cached is not None
    assert cached.name == loaded.provenance["weights_file"]
    root = tmp_path / "root"
    root.mkdir()
    save_file(STATE, root / "tiny.safetensors")
    assert weights_at_hand(row, root) == root / "tiny.safetensors"
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    assert weights_at_hand(row) == root / "tiny.safetensors"
    with pytest.raises(InputError, match="no weights for tiny at this path"):
        weights_at_hand(row, tmp_path / "none.bin")
    assert len(hub.requests) == asked
    assert weights_at_hand("stain") is None


def test_asking_the_hub_beforehand_downloads_nothing_and_tells_what_loading_would(
    tmp_path: Path, hub: HubServer
) -> None:
    row = write_row(tmp_path, {**HUB_ROW, "files": ["weights/model.bin", "model.safetensors"]})
    assert hub_refusal(row) is None
    assert hub.downloads == 0
    hub.files.clear()
    refused = hub_refusal(row)
    with pytest.raises(FrostgridError) as caught:
        load_encoder(row, tile_px=32)
    assert str(refused) == str(caught.value)
    assert "on no hub" in str(hub_refusal("dinov2-s14"))
    assert hub_refusal("stain") is None
