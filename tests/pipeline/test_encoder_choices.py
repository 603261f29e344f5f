"""What a study says of its encoders: weights, revision, size; and that no encoder runs on another's weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from encoder_rows import timm_model, tiny, write_row
from hub_server import HubServer, hub_environment, use_hub
from safetensors.torch import save, save_file
from studykit import FOLDER, frostgrid, write_folder, write_study

from stages.encoders import file_sha256
from store import GridStore

REPO = "someone/tiny-vit"
ROW = tiny(hub_repo=REPO, revision="main")
STATE = timm_model(tiny()).state_dict()
OTHER = {name: tensor * 1.5 for name, tensor in STATE.items()}
NEWER = "f" * 40


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({(REPO, "model.safetensors"): save(STATE)}) as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def study(data: Path, *rows: dict[str, Any], more: str = "", fit: str = "resize") -> Path:
    """A study of nine views with encoders of one's own; ``more`` may name them as in ``{tiny}``."""
    paths = {row["name"]: write_row(data.parent, row) for row in rows}
    text = FOLDER.format(root=data).replace('["stain"]', json.dumps([*paths.values()]) + f'\nfit = "{fit}"')
    for name, path in paths.items():
        more = more.replace(f"{{{name}}}", json.dumps(path))
    return write_study(data.parent, text + more)


def run(study: Path, command: str, *more: str | Path, status: int = 0) -> Result:
    at = ("--cache", study.parent / "cache", "--runs", study.parent / "runs")
    done = frostgrid(command, study, *at, *more)
    assert done.exit_code == status, done.output
    return done


def weights(folder: Path, name: str, state: dict[str, torch.Tensor] = STATE) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / name)
    return folder / name


def caches(study: Path, name: str = "tiny") -> list[GridStore]:
    return GridStore.beside(study.parent / "cache", name)


# --- weights


def test_a_finished_study_is_finished_though_there_are_caches_of_other_weights(
    tmp_path: Path, data: Path
) -> None:
    said = '[encoders.weights]\n{tiny} = "PATH"\n'
    paths = weights(tmp_path, "a.safetensors"), weights(tmp_path, "b.safetensors", OTHER)
    for path in paths:
        run(study(data, tiny(), more=said.replace("PATH", str(path))), "extract")
    for path in paths:
        done = run(study(data, tiny(), more=said.replace("PATH", str(path))), "extract")
        digest = file_sha256(path)
        (mine,) = [one for one in caches(tmp_path / "any") if one.identity["encoder"]["weights"] == digest]
        assert f"tiny: 0 views encoded, 9 kept ({mine.path})" in done.stderr


def test_the_file_and_its_sha256_are_said_and_so_is_a_second_cache(tmp_path: Path, data: Path) -> None:
    first, second = weights(tmp_path, "a.safetensors"), weights(tmp_path, "b.safetensors", OTHER)
    done = run(study(data, tiny()), "extract", "--weights", first)
    assert "tiny: 9 views encoded" in done.stderr
    assert f"float32, a.safetensors {file_sha256(first)[:12]}" in done.stderr
    assert "other weights" not in done.stderr
    done = run(study(data, tiny()), "extract", "--weights", second)
    said = f"there are tokens of other weights, {file_sha256(first)[:12]}; those of {file_sha256(second)[:12]} make"
    assert said in done.stderr
    assert len(caches(tmp_path / "any")) == 2


def test_weights_that_another_encoder_was_run_with_are_refused_for_a_second(
    tmp_path: Path, data: Path
) -> None:
    file = weights(tmp_path, "a.safetensors")
    twins = study(data, tiny(), tiny(name="twin"))
    run(twins, "extract", "--encoder", tmp_path / "tiny.toml", "--weights", file)
    copy = weights(tmp_path, "renamed.safetensors")
    refused = run(twins, "extract", "--encoder", tmp_path / "twin.toml", "--weights", copy, status=2)
    for part in ("renamed.safetensors", file_sha256(file)[:12], "for twin", "a cache of tiny", "--cache"):
        assert part in refused.stderr
    assert not caches(twins, "twin")
    elsewhere = ("--cache", tmp_path / "elsewhere", "--runs", tmp_path / "runs")
    meant = frostgrid("extract", twins, *elsewhere, "--encoder", tmp_path / "twin.toml", "--weights", copy)
    assert meant.exit_code == 0, meant.output
    # another block of the same encoder is the same encoder
    run(twins, "extract", "--encoder", f"{tmp_path / 'tiny.toml'}@2", "--weights", file)


def test_a_folder_that_a_study_gives_to_two_encoders_serves_them_by_name(tmp_path: Path, data: Path) -> None:
    weights(tmp_path, "weights/model.safetensors")
    said = f'[encoders.weights]\n{{tiny}} = "{tmp_path}/weights"\n'
    twins = study(data, tiny(), tiny(name="twin"), more=f'{said}{{twin}} = "{tmp_path}/weights/../weights"\n')
    refused = run(twins, "extract", status=2)
    assert "model.safetensors may be that of another encoder" in refused.stderr
    weights(tmp_path, "weights/tiny.safetensors")
    weights(tmp_path, "weights/twin.safetensors", OTHER)
    run(twins, "extract")
    assert caches(twins, "twin")[0].identity["encoder"]["weights"] == file_sha256(
        tmp_path / "weights/twin.safetensors"
    )
    alone = study(data, tiny(), more=said)
    run(alone, "extract")


@pytest.mark.parametrize("source", ["--weights", "FROSTGRID_WEIGHTS", "study"])
def test_weights_that_do_not_fit_are_refused_before_any_view_is_drawn(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    file = weights(tmp_path, "w/tiny.safetensors", {**STATE, "norm.weight": torch.ones(48)})
    said = f'[encoders.weights]\n{{tiny}} = "{file}"\n' if source == "study" else ""
    if source == "FROSTGRID_WEIGHTS":
        monkeypatch.setenv(source, str(file.parent))
    mine = study(data, tiny(), more=said)
    options = ("--weights", file) if source == "--weights" else ()
    refused = run(mine, "extract", *options, status=2)
    assert "do not fit tiny" in refused.stderr
    assert "drawn" not in refused.stderr
    assert not (tmp_path / "cache").exists()
    if source != "--weights":
        doctor = frostgrid("doctor", mine, "--cache", tmp_path / "cache", "--json")
        assert doctor.exit_code == 2
        (fault,) = json.loads(doctor.stdout)["study"]["faults"]
        assert "do not fit tiny" in fault["what"]


# --- revisions


def test_a_changed_upstream_makes_no_second_cache(data: Path, hub: HubServer) -> None:
    mine = study(data, ROW)
    run(mine, "extract")
    (first,) = caches(mine)
    hub.commit, hub.files = NEWER, {(REPO, "model.safetensors"): save(OTHER)}
    mine.write_text(mine.read_text().replace("per_tile = 2", "per_tile = 3"))
    assert "3 views encoded, 9 kept" in run(mine, "extract").stderr
    assert [store.key for store in caches(mine)] == [first.key]


def test_a_study_pins_a_revision(data: Path, hub: HubServer) -> None:
    at = ("--cache", data.parent / "cache", "--json")
    hub.older[NEWER] = (NEWER, {(REPO, "model.safetensors"): save(OTHER)})
    pinned = study(data, ROW, more=f'[encoders.revisions]\n{{tiny}} = "{NEWER}"\n')
    assert (
        json.loads(frostgrid("doctor", pinned, *at).stdout)["study"]["encoders"][0]["weights"]
        == "from the Hub"
    )
    run(pinned, "extract")
    (store,) = caches(pinned)
    assert (store.provenance["hub_commit"], store.identity["encoder"]["weights"]) == (
        NEWER,
        hashlib.sha256(save(OTHER)).hexdigest(),
    )
    (row,) = json.loads(frostgrid("encoders", "--study", pinned, "--json").stdout)
    assert NEWER in row["weights"]
    hub.older["v9"] = ("", {})
    missing = study(data, ROW, more='[encoders.revisions]\n{tiny} = "v9"\n')
    shutil.rmtree(data.parent / "cache")
    assert frostgrid("doctor", missing, *at).exit_code == 2
    assert f"{REPO}" in run(missing, "extract", status=3).stderr


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('[encoders.revisions]\nvirchov2 = "main"\n', "Did you mean virchow2"),
        ('[encoders.revisions]\ndinov2-s14 = "main"\n', "dinov2-s14 is not on the Hugging Face Hub"),
        ('[encoders.revisions]\nuni = "../main"\n', "'encoders.revisions.uni'"),
        ('[encoders.revisions]\nuni = "a"\nuni_v1 = "b"\n', "uni and uni_v1 are one encoder, uni"),
        ('[encoders.weights]\nvirchov2 = "w.bin"\n', "Did you mean virchow2"),
        ("[encoders.input_px]\nconchh = 448\n", "Did you mean conch"),
        ("[encoders.input_px]\nconch = 0\n", "'encoders.input_px.conch'"),
    ],
)
def test_what_a_study_says_of_encoders_is_checked_before_anything_runs(
    data: Path, said: str, words: str
) -> None:
    for command in ("extract", "plan", "train"):
        assert words in run(study(data, tiny(), more=said), command, status=2).stderr


# --- sizes


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_an_encoder_can_run_at_another_size_than_the_tile(tmp_path: Path, data: Path, fit: str) -> None:
    file = weights(tmp_path, "tiny.safetensors")
    plain, small = study(data, tiny()), ("--weights", file)
    run(plain, "extract", *small)
    (whole,) = caches(plain)
    resized = study(data, tiny(), more="[encoders.input_px]\n{tiny} = 16\n", fit=fit)
    planned = json.loads(run(resized, "plan", "--json").stdout)["encoders"][0]
    assert (planned["grid"], planned["views_cached"]) == ([32, 2, 2], 0)
    run(resized, "extract", *small)
    (store,) = [store for store in caches(plain) if store.key != whole.key]
    encoder = store.identity["encoder"]
    assert (encoder["tile_px"], encoder["input_px"], encoder["fit"]) == (32, 16, "resize")
    assert (store.spec.shape, whole.spec.shape) == ((32, 2, 2), (32, 4, 4))
    assert json.loads(run(resized, "run", "--json").stdout)["results"][0]["grid"] == [32, 2, 2]


def test_a_size_that_is_no_multiple_of_the_patch_is_refused_with_the_nearest(data: Path) -> None:
    refused = run(study(data, tiny(), more="[encoders.input_px]\n{tiny} = 20\n"), "plan", status=2)
    assert "20 px is no multiple of the encoder's patch of 8 px" in refused.stderr
    assert "Use 16 or 24" in refused.stderr


# --- installed encoders

GREY = """
import torch
from stages.encoders import Description, TokenGrid

class Loaded:
    name, parameters, grid = "Grey-16", 0, TokenGrid(1, 2, 2)
    identity = {"compute_dtype": "bfloat16"}
    provenance = {"package": "greys 1.0"}

    def encode(self, views):
        return torch.nn.functional.avg_pool2d(views.float().mean(1, keepdim=True), 16)

def describe(*, tile_px, fit):
    return Description(
        name="Grey-16", title="Grey", family="greys", grid=TokenGrid(1, tile_px // 16, tile_px // 16), tile_px=tile_px,
        run_px=tile_px, fit=fit, patch=16, parameters=0, layer=None, depth=None, licence="MIT", gated=False, repo=None,
        identity={"version": 1}, share="allowed",
    )

def load(*, tile_px, weights, fit, device, dtype):
    return Loaded()
"""


def test_an_installed_encoder_goes_the_whole_way_in_a_process_of_its_own(
    tmp_path: Path, data: Path, hub: HubServer
) -> None:
    packages = tmp_path / "site-packages"
    about = packages / "greys-1.0.dist-info"
    about.mkdir(parents=True)
    (packages / "greys.py").write_text(GREY)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: greys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[frostgrid.encoders]\nGrey-16 = greys\n")
    mine = write_study(tmp_path, FOLDER.format(root=data).replace('["stain"]', '["grey_16"]'))
    code = """
import sys
from pipeline.cli import main
at = ["--cache", sys.argv[2], "--runs", sys.argv[3]]
for command in (["extract", "--dtype", "bfloat16"], ["run"], ["plan"], ["doctor"]):
    try:
        main([command[0], sys.argv[1], *(at[:2] if command[0] == "doctor" else at), *command[1:]])
    except SystemExit as end:
        print("status", end.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(mine), str(tmp_path / "cache"), str(tmp_path / "runs")],
        env=hub_environment(hub, tmp_path / "home", PYTHONPATH=str(packages)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == ["status 0"] * 4, done
    assert "Grey-16: 9 views encoded" in done.stderr
    assert "Grey-16: 0 views encoded, 9 kept" in done.stderr
    assert "brought by its package" in done.stdout
    (store,) = caches(mine, "Grey-16")
    assert store.identity["encoder"] == {
        "encoder": "Grey-16", "tile_px": 32, "fit": "resize", "version": 1, "compute_dtype": "bfloat16",
    }  # fmt: skip
    said = {"title": "Grey", "licence": "MIT", "share": "allowed", "package": "greys 1.0"}
    assert said.items() <= store.provenance.items()
