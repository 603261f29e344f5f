"""Finding weights: paths, FROSTGRID_WEIGHTS, and the Hub as a local server speaks it."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_rows import timm_model, tiny, views, write_row
from hub_server import Gate, HubServer
from huggingface_hub import constants
from safetensors.torch import save, save_file

from stages.encoders import Encoder, load_encoder
from store.errors import AccessError, FrostgridError, InputError, StorageError

REPO = "someone/tiny-vit"
SECRET = "hf_thisTokenMustNeverBeSeenAnywhere"
STATE = timm_model(tiny()).state_dict()
HUB_ROW = tiny(hub_repo=REPO, revision="main", gated=True)
CLOSED = Gate(401, "GatedRepo", "Access to model someone/tiny-vit is restricted. Please log in.", SECRET)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FROSTGRID_WEIGHTS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, "model.safetensors"): save(STATE)}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def _load(folder: Path, fields: dict[str, Any] = HUB_ROW, weights: Path | None = None) -> Encoder:
    return load_encoder(write_row(folder, fields), tile_px=32, weights=weights)


def _refusal(folder: Path, fields: dict[str, Any] = HUB_ROW) -> FrostgridError:
    with pytest.raises(FrostgridError) as caught:
        _load(folder, fields)
    everything = "".join(traceback.format_exception(caught.value))
    assert SECRET not in everything
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
    encoder = _load(tmp_path, {**HUB_ROW, "files": ["weights/model.bin", "model.safetensors"]})
    assert (encoder.provenance["weights_file"], encoder.provenance["hub_commit"]) == (
        "model.bin",
        HubServer.COMMIT,
    )


def test_the_token_opens_a_gated_repository(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gates[REPO] = CLOSED
    monkeypatch.setenv("HF_TOKEN", SECRET)
    encoder = _load(tmp_path)
    assert SECRET not in str(encoder.identity) + str(encoder.provenance)


def test_a_gated_repository_without_a_token_names_the_page_and_the_login(
    tmp_path: Path, hub: HubServer
) -> None:
    hub.gates[REPO] = CLOSED
    error = _refusal(tmp_path)
    assert isinstance(error, AccessError)
    assert error.exit_status == 3
    for part in ("no Hugging Face token was found (401)", f"https://huggingface.co/{REPO}", "HF_TOKEN"):
        assert part in str(error)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (
            Gate(401, None, "Invalid credentials in Authorization header"),
            "did not accept the Hugging Face token",
        ),
        (
            Gate(403, "GatedRepo", "you are not in the authorized list"),
            "has no access to the weights of tiny (403)",
        ),
        (
            Gate(403, None, "enable access to public gated repositories"),
            "must also be allowed to read public gated",
        ),
    ],
)
def test_a_token_without_access_is_told_so_and_never_repeated(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capfd: Any, gate: Gate, words: str
) -> None:
    hub.gates[REPO], hub.echo = gate, True
    monkeypatch.setenv("HF_TOKEN", SECRET)
    error = _refusal(tmp_path)
    assert isinstance(error, AccessError)
    assert words in str(error)
    assert f"https://huggingface.co/{REPO}" in str(error)
    assert any(with_token for _, _, with_token in hub.requests)
    assert SECRET not in "".join(capfd.readouterr())


def test_a_file_that_the_repository_does_not_have_is_named(tmp_path: Path, hub: HubServer) -> None:
    error = _refusal(tmp_path, {**HUB_ROW, "files": ["teacher.pth", "student.pth"]})
    assert isinstance(error, InputError)
    assert "no file teacher.pth or student.pth (404)" in str(error)
    assert f"https://huggingface.co/{REPO}" in str(error)


def test_a_repository_or_revision_that_does_not_exist_is_named(tmp_path: Path, hub: HubServer) -> None:
    assert "no such repository on the Hub (404)" in str(
        _refusal(tmp_path, {**HUB_ROW, "hub_repo": "someone/typo"})
    )
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


def test_a_server_that_fails_or_is_gone_is_no_access(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.gates[REPO] = Gate(503, None, "down for maintenance")
    error = _refusal(tmp_path)
    assert isinstance(error, AccessError)
    assert "failed (503)" in str(error)
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    error = _refusal(tmp_path)
    assert isinstance(error, AccessError)
    assert "cannot be reached" in str(error)
    assert "--weights" in str(error)


def test_a_cache_folder_that_cannot_be_written_is_a_storage_error(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device", "/cache/blob")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    error = _refusal(tmp_path)
    assert isinstance(error, StorageError)
    assert "No space left on device" in str(error)
    assert "HF_HOME" in str(error)


def test_the_real_environment_variables_are_honoured(tmp_path: Path, hub: HubServer) -> None:
    """A fresh process, told only by HF_ENDPOINT, HF_HOME and HF_TOKEN."""
    hub.gates[REPO] = CLOSED
    code = (
        "import sys; from stages.encoders import load_encoder;"
        "e = load_encoder(sys.argv[1], tile_px=32); print(e.identity['weights'], e.provenance['hub_commit'])"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": SECRET,
    }
    done = subprocess.run(
        [sys.executable, "-c", code, write_row(tmp_path, HUB_ROW)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    save_file(STATE, tmp_path / "local.safetensors")
    local = _load(tmp_path, weights=tmp_path / "local.safetensors")
    assert done.stdout.split() == [local.identity["weights"], HubServer.COMMIT]
    assert SECRET not in done.stdout + done.stderr
    assert (tmp_path / "home" / "hub").is_dir()
