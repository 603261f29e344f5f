"""``frostgrid doctor``: what it finds, what it says, and when it ends with status 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_rows import timm_model, tiny, write_row
from hub_server import Gate, HubServer, files_with, use_hub
from huggingface_hub import constants
from packagekit import Packages
from safetensors.torch import save, save_file
from studykit import FOLDER, frostgrid, write_folder, write_study

from stages.encoders import encoder_card, known_encoders

SECRET = "hf_thisTokenMustNeverBeSeenAnywhere"
PENDING = "Your request to access model paige-ai/Virchow2 is awaiting a review from the repo authors."
STRANGER = (
    "Access to model MahmoodLab/UNI2-h is restricted and you are not in the authorized list. Visit "
    "https://huggingface.co/MahmoodLab/UNI2-h to ask for access."
)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


def examined(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    done = frostgrid("doctor", *arguments, "--json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def test_without_a_study_it_tells_versions_machine_and_disk(tmp_path: Path) -> None:
    found = examined("--cache", tmp_path / "not" / "yet" / "there")
    assert set(found["packages"]) >= {"torch", "timm", "zarr", "huggingface_hub"}
    assert found["python"].startswith("3.")
    assert found["cpu_threads"] > 0
    assert found["memory"]["available"] > 0
    assert 0 < found["cache"]["free"] <= found["cache"]["total"]
    assert (found["usable"], found["study"]) == (True, None)
    shown = frostgrid("doctor")
    assert shown.exit_code == 0
    for part in ("torch", "free", "Hub token", "none (HF_TOKEN, or: hf auth login)"):
        assert part in shown.stdout


def test_access_to_every_gated_encoder_is_told_and_the_token_is_not(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.echo = True
    hub.files["MahmoodLab/UNI", "pytorch_model.bin"] = b"weights"
    hub.gates["paige-ai/Virchow2"] = Gate(403, "GatedRepo", PENDING)
    hub.gates["MahmoodLab/UNI2-h"] = Gate(403, "GatedRepo", STRANGER)
    done = frostgrid("doctor", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)["hub"]
    assert (found["token"], found["reachable"]) == (True, True)
    access = {row["encoder"]: row for row in found["gated"]}
    assert set(access) == {name for name in known_encoders() if encoder_card(name).gated}
    assert access["uni"]["access"] == "granted"
    assert access["virchow2"]["access"] == "access not yet granted"
    assert access["uni2-h"]["access"] == "access not requested"
    assert access["hibou-l"]["access"] == "missing"
    assert hub.downloads == 0
    shown = frostgrid("doctor")
    for part in ("access not yet granted", "https://huggingface.co/MahmoodLab/UNI2-h", "present"):
        assert part in shown.stdout
    assert SECRET not in done.output + shown.output
    assert not files_with(tmp_path, SECRET)


def test_being_offline_is_said_and_is_no_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert examined()["hub"]["reachable"] is None
    assert "HF_HUB_OFFLINE is set" in frostgrid("doctor").stdout
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    assert examined()["hub"]["reachable"] is False
    assert "cannot be reached (offline?)" in frostgrid("doctor").stdout


def test_a_study_that_lacks_data_and_weights_says_both_and_ends_with_status_2(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = tiny(hub_repo="someone/tiny-vit", revision="main", gated=True)
    row = write_row(tmp_path, fields)
    text = FOLDER.format(root=tmp_path / "data").replace('["stain"]', json.dumps(["stain", row]))
    study = write_study(tmp_path, text)
    hub.files["someone/tiny-vit", "model.safetensors"] = save(timm_model(fields).state_dict())
    hub.gates["someone/tiny-vit"] = Gate(401, "GatedRepo", "Please log in.", SECRET)

    found = examined(study, "--cache", tmp_path / "cache", status=2)
    assert found["usable"] is False
    data, weights = found["study"]["faults"]
    assert str(tmp_path / "data") in data["where"]
    assert "no Hugging Face token was found (401)" in weights["what"]
    assert "https://huggingface.co/someone/tiny-vit" in weights["remedy"]
    shown = frostgrid("doctor", study, "--cache", tmp_path / "cache")
    assert shown.exit_code == 2
    assert "cannot run as it is" in shown.stdout
    assert "https://huggingface.co/someone/tiny-vit" in shown.stdout

    write_folder(tmp_path / "data")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = examined(study, "--cache", tmp_path / "cache")
    rows = {row["name"]: row for row in found["study"]["encoders"]}
    assert (rows["stain"]["needed"], rows["tiny"]["weights"]) == (False, "from the Hub")
    assert found["study"]["images"] == 8
    assert hub.downloads == 0


def test_a_finished_cache_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = tiny()
    root = tmp_path / "weights"
    root.mkdir()
    save_file(timm_model(fields).state_dict(), root / "tiny.safetensors")
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    text = FOLDER.format(root=write_folder(tmp_path / "data"))
    study = write_study(tmp_path, text.replace('["stain"]', json.dumps([write_row(tmp_path, fields)])))
    at = ("--cache", tmp_path / "cache")
    assert examined(study, *at)["study"]["encoders"][0]["weights"] == str(root / "tiny.safetensors")
    assert frostgrid("extract", study, *at, "--runs", tmp_path / "runs").exit_code == 0
    (root / "tiny.safetensors").unlink()
    (row,) = examined(study, *at)["study"]["encoders"]
    assert (row["needed"], row["views_cached"], row["views_planned"]) == (False, 9, 9)
    shutil.rmtree(tmp_path / "cache")
    (fault,) = examined(study, *at, status=2)["study"]["faults"]
    assert "the weights of tiny are on no hub" in fault["what"]


def test_a_weights_path_of_the_study_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    row = write_row(tmp_path, tiny())
    text = FOLDER.format(root=write_folder(tmp_path / "data")).replace('["stain"]', json.dumps([row]))
    study = write_study(tmp_path, f'{text}[encoders.weights]\n"{row}" = "{tmp_path / "none.bin"}"\n')
    (fault,) = examined(study, "--cache", tmp_path / "cache", status=2)["study"]["faults"]
    assert (fault["what"], fault["where"]) == (
        "there are no weights for tiny at this path",
        str(tmp_path / "none.bin"),
    )


def test_a_study_that_is_wrong_in_itself_is_refused_as_everywhere(tmp_path: Path) -> None:
    refused = frostgrid("doctor", write_study(tmp_path, "[data\n"))
    assert refused.exit_code == 2
    assert "not valid TOML" in refused.stderr


def test_the_folder_of_weights_is_told_with_what_it_holds_for_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examined()["weights_folder"] is None
    root = tmp_path / "weights"
    (root / "uni_v1").mkdir(parents=True)
    (root / "uni_v1" / "pytorch_model.bin").write_bytes(b"weights")
    save_file(timm_model(tiny()).state_dict(), root / "tiny.safetensors")
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    assert examined()["weights_folder"]["holds"] == {"uni": str(root / "uni_v1" / "pytorch_model.bin")}
    rows = [write_row(tmp_path, tiny()), write_row(tmp_path, tiny(name="absent")), "stain"]
    text = FOLDER.format(root=write_folder(tmp_path / "data"))
    study = write_study(tmp_path, text.replace('["stain"]', json.dumps(rows)))
    at = ("--cache", tmp_path / "cache")
    found = examined(study, *at, status=2)
    assert found["weights_folder"]["holds"] == {"tiny": str(root / "tiny.safetensors")}
    (fault,) = found["study"]["faults"]
    assert f"({root}), which has none of absent/model.safetensors" in fault["remedy"]
    assert "weights of tiny" in " ".join(frostgrid("doctor", study, *at).stdout.split())

    for setting, words in (
        (root / "tiny.safetensors", "names a file, not a folder"),
        (root / "typo", "names a folder that does not exist"),
    ):
        monkeypatch.setenv("FROSTGRID_WEIGHTS", str(setting))
        assert words in examined()["weights_folder"]["fault"]
        found = examined(study, *at, status=2)
        (fault,) = found["study"]["faults"]  # once, not once an encoder
        assert words in fault["what"]
        assert (found["weights_folder"]["exists"], found["weights_folder"]["folder"]) == (False, str(setting))


def test_installed_encoders_that_cannot_be_used_are_listed(packages: Packages) -> None:
    packages.install("lost", entries="[frostgrid.encoders]\nbroken = lost\nuni = lost\n")
    broken, taken = examined()["plugin_faults"]
    shown = frostgrid("doctor").stdout
    assert "'broken' cannot be imported" in broken["what"]
    assert "'uni', which is an encoder of the table" in taken["what"]
    assert "Installed encoders and decoders that cannot be used" in shown
    assert "Rename its entry point" in shown


def test_a_finished_cache_needs_no_whole_weights_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "weights"
    root.mkdir()
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    save_file(timm_model(tiny()).state_dict(), root / "tiny.safetensors")
    text = FOLDER.format(root=write_folder(tmp_path / "data"))
    study = write_study(tmp_path, text.replace('["stain"]', json.dumps([write_row(tmp_path, tiny())])))
    at = ("--cache", tmp_path / "cache")
    assert frostgrid("extract", study, *at, "--runs", tmp_path / "runs").exit_code == 0
    (root / "tiny.safetensors").write_bytes(b"<html>")
    assert not examined(study, *at)["study"]["faults"]
    assert frostgrid("extract", study, *at, "--runs", tmp_path / "runs").exit_code == 0
    shutil.rmtree(tmp_path / "cache")
    (fault,) = examined(study, *at, status=2)["study"]["faults"]
    assert "web page" in fault["what"]
