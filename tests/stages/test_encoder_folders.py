"""Folders of weights: whose a file is there, by its name; never a guess, and never one of two."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from encoder_rows import timm_model, tiny, write_row
from hub_server import Gate, HubServer, use_hub
from huggingface_hub import constants
from safetensors.torch import save_file

from stages.encoders import hub_refusal, load_encoder, weights_at_hand
from store.errors import FrostgridError, InputError

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = timm_model(tiny()).state_dict()
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}
FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FROSTGRID_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "weights"
    root.mkdir()
    return root


def put(path: Path, state: dict[str, Any] = STATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def found(tmp_path: Path, root: Path | None, **changes: Any) -> Path | None:
    return weights_at_hand(write_row(tmp_path, tiny(**changes)), root)


def refused(tmp_path: Path, root: Path | None, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        found(tmp_path, root, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "beside", ["mstar/pytorch_model.bin", "uni.safetensors", "UNI_v1/any", "virchow2.bin"]
)
def test_a_bare_file_beside_those_of_encoders_is_nobodys(tmp_path: Path, root: Path, beside: str) -> None:
    file = put(root / FILE)
    assert found(tmp_path, root) == file
    put(root / beside)
    words = refused(tmp_path, root)
    assert "its model.safetensors may be that of another encoder" in words
    assert "It should hold one of: tiny/model.safetensors, tiny.safetensors" in words
    with pytest.raises(InputError):
        load_encoder(write_row(tmp_path, tiny()), tile_px=32, weights=root)
    assert found(tmp_path, put(root / "tiny" / FILE)) == root / "tiny" / FILE
    assert found(tmp_path, root) == root / "tiny" / FILE


def test_other_files_beside_a_bare_one_do_not_matter(tmp_path: Path, root: Path) -> None:
    file = put(root / FILE)
    (root / "README.md").write_text("uni")
    (root / "uni.md").write_text("uni")
    (root / "logs").mkdir()
    assert found(tmp_path, root) == file


def test_a_folder_that_is_named_after_another_encoder_is_not_ours(root: Path) -> None:
    """UNI and mSTAR are one architecture, with the same name of the file."""
    put(root / "mstar" / "pytorch_model.bin")
    assert weights_at_hand("mstar", root / "mstar") == root / "mstar" / "pytorch_model.bin"
    with pytest.raises(InputError, match=r"pytorch_model\.bin may be that of another encoder"):
        weights_at_hand("uni", root / "mstar")


def test_a_folder_that_serves_several_gives_by_name_only(tmp_path: Path, root: Path) -> None:
    put(root / FILE)
    row = write_row(tmp_path, tiny())
    assert weights_at_hand(row, root) == root / FILE
    with pytest.raises(InputError, match="may be that of another encoder"):
        weights_at_hand(row, root, named=True)
    put(root / "tiny.safetensors")
    assert weights_at_hand(row, root, named=True) == root / "tiny.safetensors"


@pytest.mark.parametrize("name", ["uni", "uni_v1", "UNI-v1", "uni1"])
@pytest.mark.parametrize("form", ["{}/pytorch_model.bin", "{}.pth"])
def test_an_alias_names_a_folder_or_file_as_well(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    file = put(root / form.format(name))
    assert weights_at_hand("uni", root) == file
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    assert weights_at_hand("uni") == file
    assert weights_at_hand("mstar") is None


@pytest.mark.parametrize("environment", [False, True])
def test_two_weights_of_one_encoder_that_differ_are_refused_by_name(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, environment: bool
) -> None:
    if environment:
        monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    given = None if environment else root
    put(root / "tiny" / FILE)
    shutil.copy(root / "tiny" / FILE, root / "tiny.safetensors")
    (root / "TINY").symlink_to("tiny")
    assert found(tmp_path, given) in (root / "tiny" / FILE, root / "TINY" / FILE)
    put(root / "tiny.safetensors", OTHER)
    words = refused(tmp_path, given)
    for part in (
        "several weights of tiny that differ",
        "tiny/model.safetensors",
        "tiny.safetensors",
        "--weights",
    ):
        assert part in words
    assert found(tmp_path, root / "tiny.safetensors") == root / "tiny.safetensors"


def test_two_forms_in_one_folder_are_the_same_weights_and_the_preferred_is_taken(
    tmp_path: Path, root: Path
) -> None:
    """As a repository holds them: model.safetensors beside pytorch_model.bin."""
    for file in ("pytorch_model.bin", FILE):
        put(root / "tiny" / file, STATE if file == FILE else OTHER)
    assert found(tmp_path, root, files=[FILE, "pytorch_model.bin"]) == root / "tiny" / FILE
    assert (
        found(tmp_path, root / "tiny", files=["pytorch_model.bin", FILE])
        == root / "tiny" / "pytorch_model.bin"
    )


def test_a_file_in_place_of_the_folder_of_weights_is_called_a_file(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(put(root / FILE)))
    assert "FROSTGRID_WEIGHTS names a file, not a folder" in refused(tmp_path, None)
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root / "typo"))
    assert "FROSTGRID_WEIGHTS names a folder that does not exist" in refused(tmp_path, None)


def test_what_was_looked_for_in_the_folder_of_weights_is_told_with_a_refusal(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = tiny(hub_repo="someone/tiny-vit", revision="main", gated=True)
    row, looked = (
        write_row(tmp_path, fields),
        f"({root}), which has none of tiny/model.safetensors, tiny.safetensors",
    )
    with HubServer({("someone/tiny-vit", FILE): b"weights"}) as hub:
        use_hub(hub, monkeypatch, tmp_path)
        hub.gates["someone/tiny-vit"] = Gate(401, "GatedRepo", "Please log in.")
        assert "the folder that FROSTGRID_WEIGHTS names, as tiny/model.safetensors" in str(hub_refusal(row))
        monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
        for offline in (False, True):
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
            with pytest.raises(FrostgridError) as caught:
                load_encoder(row, tile_px=32)
            assert looked in str(caught.value.remedy)
        alone = write_row(tmp_path, tiny(name="alone"))
        with pytest.raises(
            InputError, match=r"which has none of alone/model\.safetensors, alone\.safetensors"
        ):
            load_encoder(alone, tile_px=32)
