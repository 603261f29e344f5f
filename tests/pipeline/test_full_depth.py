"""A published encoder at its full depth and 512 px through the command, with random weights in its own file's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
from encoder_rows import lively
from safetensors.torch import save_file
from studykit import FOLDER, frostgrid, write_folder, write_study

from stages.encoders import canonical_name, file_sha256
from store import GridStore


@pytest.mark.slow
def test_lunit_vits8_runs_at_full_depth_on_tiles_of_512_px(tmp_path: Path) -> None:
    weights = tmp_path / "lunit" / "model.safetensors"
    weights.parent.mkdir()
    model = lively(timm.create_model("vit_small_patch8_224", num_classes=0))
    save_file(model.state_dict(), weights)
    text = FOLDER.format(root=write_folder(tmp_path / "data", images=3, px=512))
    text = text.replace('["stain"]', '["lunit-vits8"]').replace("per_tile = 2", "per_tile = 1")
    text = text.replace("tile_px = 32", "tile_px = 512").replace(
        "train = 3, val = 1, test = 2", "train = 1, val = 1, test = 1"
    )
    study = write_study(tmp_path, text)
    at = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    done = frostgrid("extract", study, *at, "--weights", weights.parent)
    assert done.exit_code == 0, done.output
    assert "lunit-vits8: 3 views encoded, 0 kept" in done.stderr
    (store,) = GridStore.beside(tmp_path / "cache", canonical_name("lunit"))
    reader = store.reader()
    tokens = reader.read_many(sorted(reader.views())).astype(np.float32)
    assert tokens.shape == (3, 384, 64, 64)
    assert np.isfinite(tokens).all()
    assert tokens.std() > 0.1
    assert float(np.abs(tokens[0] - tokens[1]).max()) > 0.1
    assert store.identity["encoder"]["weights"] == file_sha256(weights)
    assert store.identity["encoder"]["pos_policy"] == "timm"  # 28×28 positions became 64×64
