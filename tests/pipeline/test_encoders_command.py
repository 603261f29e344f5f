"""``frostgrid encoders``: what every encoder costs, and whether its weights are here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, use_hub
from studykit import frostgrid

from stages.encoders import encoder_flop, known_encoders, vit
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
def test_counting_two_blocks_tells_what_all_of_them_cost(reference: str, layer: int) -> None:
    row = _row(reference.partition("@")[0])
    assert encoder_flop(reference, tile_px=224) == vit.flop(row, layer, run_px(224, row.patch))
