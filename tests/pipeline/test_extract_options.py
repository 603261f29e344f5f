"""Extraction as a person asks for it: an encoder of their own from the Hub, a precision, a batch, a compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from encoder_rows import timm_model, tiny, write_row
from hub_server import Gate, HubServer, files_with, hub_environment, use_hub
from safetensors.torch import save
from studykit import FOLDER, frostgrid, write_folder, write_study

from store import GridStore

REPO = "someone/tiny-vit"
SECRET = "hf_thisTokenMustNeverBeSeenAnywhere"
ROW = tiny(hub_repo=REPO, revision="main", gated=True)
CLOSED = Gate(401, "GatedRepo", f"Access to model {REPO} is restricted. Please log in.", SECRET)
PENDING = Gate(
    403, "GatedRepo", f"Your request to access model {REPO} is awaiting a review from the repo authors."
)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, "model.safetensors"): save(timm_model(ROW).state_dict())}) as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Nine views, and the encoders stain and one of the user's own."""
    row = write_row(tmp_path, ROW)
    root = write_folder(tmp_path / "data")
    return write_study(tmp_path, FOLDER.format(root=root).replace('["stain"]', json.dumps(["stain", row])))


def run(study: Path, command: str, *more: str | Path) -> Result:
    at = ("--cache", study.parent / "cache", "--runs", study.parent / "runs")
    return frostgrid(command, study, *at, *more)


def own(study: Path) -> str:
    return str(study.parent / "tiny.toml")


def caches(study: Path) -> dict[str, GridStore]:
    """The caches of the user's encoder by precision."""
    stores = GridStore.beside(study.parent / "cache", "tiny")
    return {store.identity["encoder"]["compute_dtype"]: store for store in stores}


def grids(store: GridStore) -> np.ndarray:
    reader = store.reader()
    return reader.read_many(sorted(reader.views())).astype(np.float32)


def test_the_token_is_in_no_output_and_in_no_file_of_a_real_process(
    tmp_path: Path, hub: HubServer, study: Path
) -> None:
    """Told only by HF_ENDPOINT, HF_HOME and HF_TOKEN; refused by a server that repeats the token, then let in."""
    refused = write_row(tmp_path, {**ROW, "name": "pending", "hub_repo": "someone/pending"})
    hub.gates |= {"someone/pending": PENDING, REPO: CLOSED}
    hub.echo = True
    code = """
import sys
from pipeline.cli import main
for encoder in sys.argv[3:]:
    try:
        main(["extract", sys.argv[1], "--cache", sys.argv[2], "--encoder", encoder])
    except SystemExit as end:
        print("status", end.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(study), str(tmp_path / "cache"), refused, own(study)],
        env=hub_environment(hub, tmp_path / "home", HF_TOKEN=SECRET, HF_HUB_VERBOSITY="info"),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["status 3", "status 0"]
    assert "have not granted it yet (403)" in done.stderr
    assert "9 views encoded" in done.stderr
    assert {path for method, path, token in hub.requests if token} == {
        f"/{repo}/resolve/main/model.safetensors" for repo in ("someone/pending", REPO)
    }
    assert SECRET not in done.stdout + done.stderr
    assert not files_with(tmp_path, SECRET)
    assert (tmp_path / "home" / "hub").is_dir()
    (store,) = caches(study).values()
    assert (store.provenance["hub_repo"], store.provenance["hub_commit"]) == (REPO, HubServer.COMMIT)


def test_what_no_encoder_can_do_is_refused_before_any_encoder_runs(hub: HubServer, study: Path) -> None:
    hub.gates[REPO] = PENDING
    for options, status, said in (
        ((), 3, "(403)"),
        (("--dtype", "bfloat16"), 2, "stain"),
        (("--device", "cuda:99"), 2, "cuda:99"),
        (("--device", "gpu"), 2, "gpu"),
        (("--dtype", "float64"), 2, "float64"),
    ):
        refused = run(study, "extract", *options)
        assert refused.exit_code == status, refused.output
        assert said in refused.stderr
        assert "Traceback" not in refused.output
        assert not GridStore.beside(study.parent / "cache", "stain")


def test_the_batch_is_said_and_changes_nothing_but_rounding(study: Path) -> None:
    said = run(study, "extract", "--encoder", own(study), "--batch", "7")
    assert said.exit_code == 0, said.output
    assert "tiny: 9 views encoded, 0 kept" in said.stderr
    assert "batches of 7, float32" in said.stderr
    sevens = grids(caches(study)["float32"])
    (study.parent / "cache").rename(study.parent / "sevens")
    said = run(study, "extract", "--encoder", own(study))
    assert "batches of 4, float32" in said.stderr
    np.testing.assert_allclose(grids(caches(study)["float32"]), sevens, rtol=2**-9, atol=1e-5)


def test_memory_that_runs_out_is_said(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.encoders.vit import TimmEncoder

    encode = TimmEncoder.encode

    def small(self: TimmEncoder, views: torch.Tensor) -> torch.Tensor:
        if len(views) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, views)

    monkeypatch.setattr(TimmEncoder, "encode", small)
    said = run(study, "extract", "--encoder", own(study), "--batch", "8")
    assert said.exit_code == 0, said.output
    assert "batches of 2, lowered from 8 for want of memory" in said.stderr


def test_a_precision_makes_a_cache_of_its_own_which_is_asked_for_by_name(study: Path) -> None:
    mine = ("--encoder", own(study))
    assert run(study, "extract", *mine).exit_code == 0
    assert run(study, "extract", *mine, "--dtype", "bfloat16").exit_code == 0
    exact, rounded = caches(study)["float32"], caches(study)["bfloat16"]
    difference = np.abs(grids(exact) - grids(rounded)).max()
    assert 0 < difference < 0.5

    unclear = run(study, "train", *mine)
    assert unclear.exit_code == 2
    for part in ("2 caches of", "bfloat16", "float32", "--dtype"):
        assert part in unclear.stderr
    assert run(study, "train", *mine, "--dtype", "float16").exit_code == 2
    trained = run(study, "run", *mine, "--dtype", "bfloat16", "--json")
    assert trained.exit_code == 0, trained.output
    assert "tiny: 0 views encoded, 9 kept" in trained.stderr
    assert run(study, "train", *mine, "--dtype", "float32").exit_code == 0


def test_a_compiled_extraction_is_the_same_cache_and_recorded_in_it(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    said = run(study, "extract", "--encoder", own(study), "--compile")
    assert said.exit_code == 0, said.output
    assert "float32, compiled" in said.stderr
    compiled = caches(study)["float32"]
    assert compiled.provenance["compiled"] is True
    tokens = grids(compiled)
    (study.parent / "cache").rename(study.parent / "compiled")
    assert run(study, "extract", "--encoder", own(study)).exit_code == 0
    plain = caches(study)["float32"]
    assert plain.key == compiled.key
    assert "compiled" not in plain.provenance
    np.testing.assert_allclose(grids(plain), tokens, rtol=2**-9, atol=1e-5)
