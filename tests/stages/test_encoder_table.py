"""The table of encoders, references, a user's own rows and plug-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from encoder_rows import tiny, write_row

from stages.encoders import (
    TokenGrid,
    canonical_name,
    describe_encoder,
    known_encoders,
)
from store.errors import InputError, InputErrors


def test_the_weightless_encoders_describe_themselves_without_parameters() -> None:
    assert known_encoders()[:2] == ("pixels", "stain")
    pixels = describe_encoder("pixels", tile_px=512)
    assert (pixels.grid, pixels.parameters) == (TokenGrid(768, 32, 32), 0)
    assert describe_encoder("stain", tile_px=500).grid == TokenGrid(49, 32, 32)


def test_a_reference_has_one_canonical_form_the_bare_name_for_the_default_block() -> None:
    assert canonical_name("dinov2-s14") == canonical_name("dinov2-s14@6") == "dinov2-s14"
    assert canonical_name("dinov2-s14@12") == "dinov2-s14@12"
    assert canonical_name("uni@24") == canonical_name("uni") == "uni"
    assert canonical_name("uni@023") == "uni@23"
    assert describe_encoder("dinov2-s14@12", tile_px=224).layer == 12
    assert describe_encoder("dinov2-s14", tile_px=224).layer == 6


def test_an_unknown_encoder_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(InputError, match="no encoder is called 'virchov2'") as caught:
        canonical_name("virchov2")
    assert "Did you mean virchow2" in str(caught.value)
    with pytest.raises(InputError, match=r"Did you mean conch-v1\.5"):
        canonical_name("conchv15x")


@pytest.mark.parametrize("layer", ["0", "25", "-1", "", "six", "1.0", "²"])
def test_a_block_that_the_encoder_does_not_have_is_refused(layer: str) -> None:
    with pytest.raises(InputError, match="from 1 to 24"):
        canonical_name(f"uni@{layer}")


def test_an_encoder_without_blocks_takes_no_layer() -> None:
    with pytest.raises(InputError, match="has no blocks"):
        canonical_name("stain@1")


def test_a_tile_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(InputError, match="smaller than one patch of 14 px"):
        describe_encoder("virchow", tile_px=13)


def test_a_users_own_row_is_an_encoder_with_blocks(tmp_path: Path) -> None:
    reference = write_row(tmp_path, tiny())
    described = describe_encoder(reference, tile_px=64)
    assert (described.name, described.grid, described.layer) == ("tiny", TokenGrid(32, 8, 8), 3)
    assert canonical_name(f"{reference}@2") == "tiny@2"
    odd = tmp_path / "me@home"
    odd.mkdir()
    assert canonical_name(write_row(odd, tiny())) == "tiny"


def test_every_fault_of_a_users_row_is_named_at_once(tmp_path: Path) -> None:
    fields = tiny(poss_policy="hf", patch=0, d=None, kwargs={"depth": 3, "checkpoint_path": "x.pth"})
    with pytest.raises(InputErrors) as caught:
        describe_encoder(write_row(tmp_path, fields), tile_px=64)
    words = str(caught.value)
    assert len(caught.value.faults) == 4
    for part in (
        "'poss_policy'; nearest known: pos_policy",
        "patch: ",
        "d: field required",
        "'kwargs.checkpoint_path'",
    ):
        assert part in words
    assert "tiny.toml" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prefix_tokens": 5}, "prefix_tokens is 5 in the row, 1 in vit_tiny_patch16_224"),
        ({"d": 64, "depth": 4}, "depth is 4 in the row, 3 in"),
        ({"no_embed_class": True}, "no_embed_class is True in the row"),
        ({"arch": "vit_tiny_patch16_225"}, "Did you mean vit_tiny_patch16_224"),
        ({"arch": "resnet18", "kwargs": {}}, "timm cannot build resnet18"),
        ({"kwargs": {"num_heads": 5, "embed_dim": 32}}, "timm cannot build vit_tiny_patch16_224"),
        ({"layer": 4}, "layer 4 of an encoder of 3 blocks"),
        ({"hub_repo": "a/b"}, "hub_repo and revision go together"),
        ({"files": ["../../etc/passwd"]}, "without '..'"),
        ({"arch": "hf-hub:someone/model"}, "arch: string should match pattern"),
        ({"name": "uni"}, "belongs to an encoder of the table"),
        ({"name": "uni_v1"}, "belongs to an encoder of the table"),
        ({"aliases": ["teeny"]}, "only encoders of the table have aliases"),
        ({"pos_policy": "rope"}, "neither where pos_policy is rope"),
        ({"checkpoint_grid": None}, "checkpoint_grid and no_embed_class: give both"),
        (
            {"pos_policy": "rope", "checkpoint_grid": None, "no_embed_class": None},
            "vit_tiny_patch16_224 has not rotary positions alone",
        ),
        (
            {"arch": "vit_small_patch16_dinov3", "prefix_tokens": 5},
            "vit_small_patch16_dinov3 has not a learned position table alone",
        ),
        (
            {"arch": "eva02_tiny_patch14_224", "patch": 14, "kwargs": {"depth": 3}, "d": 192},
            "eva02_tiny_patch14_224 has not a learned position table alone",
        ),
        ({"channels_apart": True}, "d 32 of an encoder that joins the tokens of three channels"),
        ({"channels_apart": True, "d": 33}, "d is 33 in the row, 96 in vit_tiny_patch16_224"),
        ({"key_map": "magic"}, "key_map"),
        ({"paper": "303 M"}, "paper"),
        ({"family": "magic"}, "magic"),
        ({"family": None}, 'family: field required, "timm"'),
        ({"files": "model.bin"}, 'files: give a list, as in files = ["model.bin"]'),
        ({"revision": "../main", "hub_repo": "a/b"}, "revision: string should match"),
        (
            {"mean": [123.7, 116.3, 103.5]},
            "mean.0: input should be less than or equal to 1 (given 123.7); mean",
        ),
        ({"mean": [-0.1, 0.5, 0.5]}, "are of RGB scaled to [0, 1]"),
        ({"std": [58.4, 57.1, 57.4]}, "std.2: input should be less than or equal to 1"),
        ({"std": [0.2, 0.0, 0.2]}, "std.1: input should be greater than 0"),
    ],
)
def test_a_row_that_contradicts_itself_or_timm_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        describe_encoder(write_row(tmp_path, tiny(**changes)), tile_px=64)
    assert words in str(caught.value)


def test_an_encoder_file_that_is_missing_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        canonical_name(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="not TOML"):
        canonical_name(str(tmp_path / "bad.toml"))
