"""Every row of the table, built on the meta device: what timm builds, the checked facts, the paper's Table 3."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from stages.encoders import TokenGrid, canonical_name, describe_encoder, encoder_flop, known_encoders
from stages.encoders.architecture import build, parameters, shallow, stored_shapes
from stages.encoders.keymaps import KEY_MAPS
from stages.encoders.positions import stored_grid
from stages.encoders.table import KeyMap, TimmRow, spelling, table

TIMM_ROWS = [row for row in table().values() if isinstance(row, TimmRow)]
PUBLISHED = [row for row in TIMM_ROWS if row.hub_repo]
PAPER = [row for row in TIMM_ROWS if row.paper]
AMP = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def _name(row: TimmRow) -> str:
    return row.name


@pytest.fixture(scope="session")
def facts() -> dict[str, dict[str, Any]]:
    """What was checked of every published encoder, apart from the table, against its authors' code and cards."""
    file = Path(__file__).parent / "encoder_facts.json"
    return {row["name"]: row for row in json.loads(file.read_text("utf-8"))}


@pytest.mark.parametrize("row", TIMM_ROWS, ids=_name)
def test_every_row_says_what_timm_builds_on_the_meta_device(row: TimmRow) -> None:
    shapes = stored_shapes(row)
    channels = 1 if row.channels_apart else 3
    assert row.width * (3 if row.channels_apart else 1) == row.d
    assert shapes["patch_embed.proj.weight"] == (row.width, channels, row.patch, row.patch)
    assert shapes["norm.weight"] == (row.width,)
    assert f"blocks.{row.depth - 1}.norm1.weight" in shapes
    assert f"blocks.{row.depth}.norm1.weight" not in shapes
    assert not any(name.startswith(("head", "fc_norm")) for name in shapes)
    if row.checkpoint_grid is None:
        assert "pos_embed" not in shapes
    else:
        rows = shapes["pos_embed"][1]
        assert stored_grid(rows, row.position_prefix) == row.checkpoint_grid
    described = describe_encoder(row.name, tile_px=512)
    side = -(-512 // row.patch)
    assert described.grid == TokenGrid(row.d, side, side)
    assert described.run_px == side * row.patch
    assert described.bytes_a_view == 2 * row.d * side * side


def test_the_table_holds_every_encoder_of_the_checked_facts(facts: dict[str, dict[str, Any]]) -> None:
    assert {row.name for row in PUBLISHED} == facts.keys()
    assert {row.name for row in PAPER} == {name for name, fact in facts.items() if fact["core15"]}
    for row in PAPER:
        figure = str(row.paper).partition(" ")[0]
        assert facts[row.name]["params_paper"].startswith(f"{figure} / "), row.name


@pytest.mark.parametrize("row", PUBLISHED, ids=_name)
def test_every_published_row_equals_the_checked_facts(row: TimmRow, facts: dict[str, dict[str, Any]]) -> None:
    fact = facts[row.name]
    described = describe_encoder(row.name, tile_px=512)
    assert parameters(row) == described.parameters == fact["params_timm"]
    assert described.grid.h * described.grid.w == fact["tokens_512"]
    assert described.run_px == fact["input_for_512"]
    assert described.bytes_a_view / 2**20 == pytest.approx(fact["mb_fp16_per_512_tile"], abs=0.02)
    for ours, theirs in {
        "patch": "patch", "prefix_tokens": "tokens_prefix", "width": "dim", "depth": "depth",
        "hub_repo": "hf_repo", "licence": "licence", "key_map": "key_map",
    }.items():  # fmt: skip
        assert getattr(row, ours) == fact[theirs], ours
    assert row.arch == fact["timm_arch"].split(".")[0]
    assert (list(row.mean), list(row.std)) == (fact["mean"], fact["std"])
    assert row.gated == bool(fact["gated"])
    assert set(row.files) <= {file for entry in fact["files"] for file in entry.split("|")}
    assert AMP[row.compute_dtype] in fact["amp_dtype"].split("|")


@pytest.mark.parametrize("row", PUBLISHED, ids=_name)
def test_every_published_row_has_the_blocks_of_the_checked_facts(
    row: TimmRow, facts: dict[str, dict[str, Any]]
) -> None:
    """What no count of parameters tells: heads, the kind of MLP, the epsilon of the norms."""
    fact = facts[row.name]
    model = build(shallow(row), (row.checkpoint_grid or 14) * row.patch)
    block, shapes = model.blocks[0], stored_shapes(row)
    assert block.attn.num_heads == fact["heads"]
    assert {norm.eps for norm in (model.norm, block.norm1, block.norm2)} == {fact["norm_eps"]}
    scales = {name for name in shapes if name.startswith("blocks.0.") and "gamma" in name}
    assert len(scales) == (2 if fact["layerscale"] else 0)
    assert shapes["blocks.0.mlp.fc2.weight"] == (row.width, fact["mlp_hidden"])
    packed = shapes.get("blocks.0.mlp.fc1.weight", (0,))[0] == 2 * fact["mlp_hidden"]
    assert (packed or "blocks.0.mlp.fc1_g.weight" in shapes) == fact["swiglu"]


@pytest.mark.parametrize("row", TIMM_ROWS, ids=_name)
def test_counting_one_block_tells_of_all(row: TimmRow) -> None:
    whole = sum(torch.Size(shape).numel() for shape in stored_shapes(row).values())
    assert parameters(row) == describe_encoder(row.name, tile_px=512).parameters == whole


@pytest.mark.parametrize("row", PUBLISHED, ids=_name)
def test_every_published_row_builds_and_positions_as_the_checked_facts_say(
    row: TimmRow, facts: dict[str, dict[str, Any]]
) -> None:
    fact = facts[row.name]
    given = {
        key: value for key, value in fact["timm_kwargs"].items() if key not in ("num_classes", "patch_size")
    }
    assert given.pop("dynamic_img_size") is True
    size = given.pop("img_size")
    assert given.pop("in_chans", 3) == (1 if row.channels_apart else 3)
    assert given == row.kwargs.model_dump(exclude_none=True)
    if row.pos_policy == "rope":
        assert fact["pos_embed_shape"] is None
        assert fact["pos_policy_512"] == "rope"
        return
    assert row.checkpoint_grid is not None
    assert size == row.patch * row.checkpoint_grid
    assert fact["checkpoint_grid"] == [row.checkpoint_grid] * 2
    assert row.no_embed_class == fact["no_embed_class"]
    assert list(stored_shapes(row)["pos_embed"]) == fact["pos_embed_shape"]
    if fact["pos_policy_512"].startswith("none"):
        assert describe_encoder(row.name, tile_px=512).grid.h == row.checkpoint_grid
        assert row.pos_policy == fact["pos_interp_authors"]
    else:
        assert row.pos_policy == fact["pos_policy_512"]


@pytest.mark.parametrize("row", PAPER, ids=_name)
def test_the_fifteen_meet_the_papers_table_within_rounding(row: TimmRow) -> None:
    assert len(PAPER) == 15
    assert row.paper is not None
    figure, unit, width = re.fullmatch(r"([\d.]+)([MB]) / (\d+|–)", row.paper).groups()  # type: ignore[union-attr]
    scale = {"M": 1e6, "B": 1e9}[unit]
    half = scale * 0.5 * 10.0 ** -len(figure.partition(".")[2])
    # Beside the trunk the paper counts CONCH's pooling and text tower. 307M is the nominal figure of any ViT-L.
    beside, slack = {"conch": (4.14e6 + 110.1e6, 0.0), "conch-v1.5": (2.75e6, half)}.get(row.name, (0.0, 0.0))
    assert abs(parameters(row) + beside - float(figure) * scale) <= half + slack
    widths = {"conch": 512, "conch-v1.5": 768, "virchow": 2 * row.d, "virchow2": 2 * row.d}
    assert width == "–" or int(width) == widths.get(row.name, row.d)
    assert bool(row.paper_note) == (row.name in widths)


@pytest.mark.parametrize("name", ["uni", "virchow2", "lunit-vits8", "plip", "dinov3-s16", "genbio-pathfm"])
def test_the_arithmetic_of_a_512_px_tile_is_that_of_the_checked_facts(
    name: str, facts: dict[str, dict[str, Any]]
) -> None:
    assert encoder_flop(name, tile_px=512) / 1e9 == pytest.approx(facts[name]["gflops_512"], rel=5e-3)


def test_what_is_not_free_is_not_passed_on_without_a_question() -> None:
    for row in TIMM_ROWS:
        free = any(name in row.licence for name in ("Apache-2.0", "MIT")) and "disagree" not in row.licence
        assert (row.share == "allowed") == (free and "terms" not in row.licence), row.name
        assert (row.share == "forbidden") == ("ND" in row.licence and "disagree" not in row.licence), row.name


def test_only_new_families_add_to_the_identity() -> None:
    for row in TIMM_ROWS:
        identity = describe_encoder(row.name, tile_px=512).identity
        assert identity.get("channels") == ("apart" if row.name == "genbio-pathfm" else None)
        assert (identity["pos_policy"] == "rope") == row.name.startswith(("dinov3", "genbio"))


def test_what_a_row_lets_a_file_leave_over_is_nothing_that_the_encoder_needs() -> None:
    for row in TIMM_ROWS:
        needed = stored_shapes(row)
        for pattern in row.allowed_leftover:
            assert not [name for name in needed if fnmatchcase(name, pattern)], (row.name, pattern)


def test_every_alias_leads_to_one_encoder_only() -> None:
    spellings = [spelling(known) for row in table().values() for known in (row.name, *row.aliases)]
    assert len(spellings) == len(set(spellings))
    assert not set(known_encoders()) & {alias for row in table().values() for alias in row.aliases}
    for row in table().values():
        for known in (row.name, *row.aliases):
            for written in (known, known.replace("-", "_"), known.upper(), known.title()):
                assert canonical_name(written) == row.name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("uni_v1", "uni"), ("uni1", "uni"), ("UNI", "uni"), ("uni_v2", "uni2-h"), ("hoptimus0", "h-optimus-0"),
        ("H-optimus-1", "h-optimus-1"), ("gigapath", "prov-gigapath"), ("conch_v15", "conch-v1.5"),
        ("CONCHv1.5", "conch-v1.5"), ("conchv1_5", "conch-v1.5"), ("virchow_v2", "virchow2"),
        ("kaiko", "kaiko-vitl14"), ("lunit", "lunit-vits8"), ("Hibou-L", "hibou-l"), ("hibou_b", "hibou-b"),
        ("phikon_v2", "phikon-v2"), ("midnight", "midnight-12k"), ("gigapath@40", "prov-gigapath"),
        ("uni_v1@12", "uni@12"),
    ],
)  # fmt: skip
def test_the_names_people_write_lead_to_the_canonical_one(written: str, name: str) -> None:
    assert canonical_name(written) == name


def test_every_rule_of_the_table_is_implemented_and_every_rule_is_used() -> None:
    assert set(KEY_MAPS) == set(get_args(KeyMap)) == {row.key_map for row in TIMM_ROWS}


def test_tokens_are_shareable_only_where_the_licence_is_known_to_let_them() -> None:
    for row in table().values():
        if "ND" in row.licence:
            assert row.share == ("forbidden" if row.licence.startswith("CC-BY-NC-ND") else "unclear"), (
                row.name
            )
        elif row.share == "allowed":
            assert row.licence.split(" (")[0] in {"Apache-2.0", "MIT", "CC-BY-NC-4.0", "none"}, row.name
        else:
            assert row.share == "unclear", row.name
