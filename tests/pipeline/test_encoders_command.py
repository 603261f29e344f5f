"""``frostgrid encoders``: what every encoder costs, and whether its weights are here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, use_hub
from packagekit import Packages
from studykit import SMALL_DEMO, frostgrid, write_study
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.encoders import encoder_flop, known_encoders
from stages.encoders.architecture import build
from stages.encoders.inputs import run_px
from stages.encoders.table import TimmRow, table


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    done = frostgrid("encoders", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_every_encoder_is_listed_with_its_costs_and_where_its_weights_are(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "weights"
    (root / "lunit-vits8").mkdir(parents=True)
    (root / "lunit-vits8" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    cached = tmp_path / "hf" / "models--owkin--phikon"
    snapshot = cached / "snapshots" / HubServer.COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (cached / "refs").mkdir()
    (cached / "refs" / str(_row("phikon").revision)).write_text(HubServer.COMMIT)

    rows = listed()
    assert tuple(rows) == known_encoders()
    # measured by the encoders' own counters, in GFLOP a 512 px tile
    for name, gflop in {"uni": 724, "virchow2": 2041, "h-optimus-0": 3578, "lunit-vits8": 484}.items():
        assert rows[name]["gflop"] == pytest.approx(gflop, rel=0.002)
    assert rows["stain"]["gflop"] == 0
    assert rows["uni"]["gated"]
    assert "gigapath" in rows["prov-gigapath"]["aliases"]
    here = {name: row["weights"] for name, row in rows.items() if row["weights"]}
    assert here == {
        "lunit-vits8": str(root / "lunit-vits8" / "model.safetensors"),
        "phikon": str(snapshot / "model.safetensors"),
    }
    assert hub.requests == []

    shown = frostgrid("encoders", "--px", "224").stdout
    for part in ("GFLOP", "gated", "gigapath", "none needed", "here", "CC-BY-NC-ND-4.0"):
        assert part in shown


def _row(name: str) -> TimmRow:
    row = table()[name]
    assert isinstance(row, TimmRow)
    return row


@pytest.mark.parametrize(
    ("reference", "layer"), [("kaiko-vits8", 12), ("dinov2-s14@7", 7), ("dinov3-s16@1", 1)]
)
def test_counting_one_block_tells_what_all_of_them_cost(reference: str, layer: int) -> None:
    row = _row(reference.partition("@")[0])
    px = run_px(224, row.patch)
    model = build(row, px)
    model.blocks = model.blocks[:layer]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.forward_features(torch.empty(1, 3, px, px, device="meta"))
    assert encoder_flop(reference, tile_px=224) == counter.get_total_flops()


def test_a_study_lists_its_own_encoders_at_its_sizes(tmp_path: Path) -> None:
    text = SMALL_DEMO.replace('["stain", "pixels"]', '["conch", "uni", "stain"]')
    text = text.replace("tile_px = 48", "tile_px = 512") + "[encoders.input_px]\nCONCH = 448\n"
    study = write_study(tmp_path, text)
    rows = listed("--study", str(study))
    assert {name: (row["input_px"], row["grid"]) for name, row in rows.items()} == {
        "conch": (448, [28, 28]),
        "uni": (512, [32, 32]),
        "stain": (512, [32, 32]),
    }
    assert rows["conch"]["gflop"] == encoder_flop("conch", tile_px=448) / 1e9
    assert "28×28" in frostgrid("encoders", "--study", study).stdout


def test_a_fault_of_one_encoder_is_told_in_its_row(
    tmp_path: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "weights"
    for file in ("uni/pytorch_model.bin", "uni.pth"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(root))
    packages.install("lost", entries="[frostgrid.encoders]\nbroken = lost\nVirchow = lost\n")
    rows = listed()
    shown = frostgrid("encoders").stdout
    faults = {name: row["fault"] for name, row in rows.items() if row["fault"]}
    assert faults.keys() == {"uni", "broken", "virchow"}
    assert "several weights of uni that differ" in faults["uni"]
    assert rows["uni"]["parameters"] == 303_350_784
    assert "cannot be imported" in faults["broken"]
    assert "Rename its entry point" in faults["virchow"]
    for part in ("broken", "virchow2", "stain"):
        assert part in shown


def test_a_folder_of_weights_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTGRID_WEIGHTS", str(tmp_path / "typo"))
    refused = frostgrid("encoders")
    assert refused.exit_code == 2
    assert "names a folder that does not exist" in refused.stderr
