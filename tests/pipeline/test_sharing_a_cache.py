"""Several studies, encoders, weights and processes on one cache and one folder of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from studykit import FOLDER, frostgrid, write_folder, write_study

OWN_ENCODER = """
name = "{name}"
title = "a small ViT of one's own"
family = "timm"
arch = "vit_tiny_patch16_224"
patch = 16
prefix_tokens = 1
d = 192
depth = 12
checkpoint_grid = 2
no_embed_class = false
key_map = "identity"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
pos_policy = "timm"
compute_dtype = "float32"
licence = "mine"
gated = false
files = ["mine.safetensors"]
source = "made for a test"
"""


def run(study: Path, folder: Path, command: str = "run", *more: str | Path) -> Result:
    return frostgrid(command, study, "--cache", folder / "cache", "--runs", folder / "runs", *more)


def own_encoder(folder: Path, name: str = "mine") -> tuple[Path, list[Path]]:
    """Write a TOML of one's own encoder and two weight files for it."""
    path = folder / f"{name}.toml"
    path.write_text(OWN_ENCODER.format(name=name))
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
        files.append(folder / f"{name}{seed}.safetensors")
        save_file(model.state_dict(), files[-1])
    return path, files


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, FOLDER.format(root=write_folder(tmp_path / "data")))


def test_studies_of_two_tile_sizes_share_a_cache_folder(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path).exit_code == 0
    other = write_study(tmp_path, study.read_text().replace("tile_px = 32", "tile_px = 24"), name="other")
    done = run(other, tmp_path)
    assert done.exit_code == 0, done.output


def test_an_encoder_of_ones_own_runs_from_its_toml(study: Path, tmp_path: Path) -> None:
    own, weights = own_encoder(tmp_path)
    done = run(study, tmp_path, "run", "--encoder", own, "--weights", weights[0])
    assert done.exit_code == 0, done.output
    assert "mine" in done.stdout
    planned = run(study, tmp_path, "plan", "--json")
    assert planned.exit_code == 0


def test_an_encoder_outside_the_study_is_reported_once_it_was_trained(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path).exit_code == 0
    done = run(study, tmp_path, "run", "--encoder", "pixels")
    assert done.exit_code == 0, done.output
    names = [row["encoder"] for row in json.loads(run(study, tmp_path, "report", "--json").stdout)["results"]]
    assert sorted(names) == ["pixels", "stain"]


def test_training_refuses_a_cache_made_from_other_weights_than_those_given(
    study: Path, tmp_path: Path
) -> None:
    own, weights = own_encoder(tmp_path)
    assert run(study, tmp_path, "extract", "--encoder", own, "--weights", weights[0]).exit_code == 0
    refused = run(study, tmp_path, "train", "--encoder", own, "--weights", weights[1])
    assert refused.exit_code == 2
    assert "other weights" in refused.stderr
    assert run(study, tmp_path, "train", "--encoder", own, "--weights", weights[0]).exit_code == 0
    assert run(study, tmp_path, "train", "--encoder", own).exit_code == 0  # whoever has none is not asked


def test_weights_given_tell_caches_apart_in_every_command_to_the_end(study: Path, tmp_path: Path) -> None:
    own, weights = own_encoder(tmp_path)
    for file in weights:
        done = run(study, tmp_path, "run", "--encoder", own, "--weights", file)
        assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "runs/small/mine/linear").glob("seed-000-*"))) == 2
    unclear = run(study, tmp_path, "report")
    assert unclear.exit_code == 2 and "Traceback" not in unclear.stderr
    tokens = set()
    for file in weights:
        said = run(study, tmp_path, "report", "--encoder", own, "--weights", file, "--json")
        assert said.exit_code == 0, said.output
        (row,) = json.loads(said.stdout)["results"]
        tokens.add(row["tokens"])
        compared = run(study, tmp_path, "compare", study, "--encoder", own, "--weights", file, "--json")
        assert compared.exit_code == 0, compared.output
        assert [one["a"]["mean"] for one in json.loads(compared.stdout)["encoders"]] == [
            row["mean_dice"]["mean"]
        ]
        swept = run(
            study, tmp_path, "sweep", "--encoder", own, "--weights", file, "--set", "train.lr=0.1", "--json"
        )
        assert swept.exit_code == 0, swept.output
        assert json.loads(swept.stdout)["finished"] == 1
    assert len(tokens) == 2
    alone = run(study, tmp_path, "report", "--encoder", own)
    assert alone.exit_code == 2 and "Give --weights too" in alone.stderr
    unclear = run(study, tmp_path, "compare", study)
    assert unclear.exit_code == 2 and "Traceback" not in unclear.stderr
    alone = run(study, tmp_path, "compare", study, "--encoder", own)
    assert alone.exit_code == 2 and "Give --weights too" in alone.stderr
    # a sweep of another encoder is told of, without them
    assert run(study, tmp_path, "extract").exit_code == 0
    other = run(study, tmp_path, "sweep", "--set", "train.lr=0.1", "--json")
    assert other.exit_code == 0, other.output
    assert json.loads(other.stdout)["finished"] == 1
    assert "Runs of mine were left out: 2 caches" in other.stderr


def test_a_complete_cache_needs_no_weights(study: Path, tmp_path: Path) -> None:
    own, weights = own_encoder(tmp_path)
    assert run(study, tmp_path, "extract", "--encoder", own, "--weights", weights[0]).exit_code == 0
    for file in weights:
        file.unlink()
    again = run(study, tmp_path, "run", "--encoder", own)
    assert again.exit_code == 0, again.output
    assert "mine: 0 views encoded, 9 kept" in again.stderr


def test_results_are_reported_without_their_cache(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path).exit_code == 0
    alone = frostgrid("report", study, "--cache", tmp_path / "none", "--runs", tmp_path / "runs", "--json")
    assert alone.exit_code == 0, alone.output
    assert json.loads(alone.stdout)["results"][0]["seeds"] == [0]
    assert "no pictures of stain" in alone.stderr


def test_images_that_join_later_move_no_image_to_another_side(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path, "extract").exit_code == 0
    before = (tmp_path / "runs/small/split.json").read_bytes()
    for folder in ("images", "masks"):
        pixels = np.array(Image.open(tmp_path / f"data/{folder}/i0.png"))
        Image.fromarray(np.roll(pixels, 1, axis=0)).save(tmp_path / f"data/{folder}/a_new.png")
    again = run(study, tmp_path, "run")
    assert again.exit_code == 0, again.output
    assert "stain: 0 views encoded, 9 kept" in again.stderr
    assert (tmp_path / "runs/small/split.json").read_bytes() == before


def test_a_lost_shard_is_told_and_made_again(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path, "extract").exit_code == 0
    (store,) = (tmp_path / "cache").glob("stain-*")
    lost = next(store.glob("part-*/tokens/c.0.*"))
    lost.unlink()
    verified = frostgrid("cache", "verify", store)
    assert verified.exit_code == 4
    missed = run(study, tmp_path, "train")
    assert missed.exit_code == 4
    assert "lost or cut" in missed.stderr
    assert "other pixels" not in missed.stderr
    assert run(study, tmp_path, "run").exit_code == 0
    assert frostgrid("cache", "verify", store).exit_code == 0


def test_an_unfinished_cache_is_not_verified_as_whole(tmp_path: Path) -> None:
    from store import GridSpec, GridStore, ViewRow

    spec = GridSpec("tokens", (1, 1, 1), "float16", ("d", "h", "w"))
    store = GridStore.at(tmp_path, "half", {"a": 1}, spec, {}, create=True)
    first, *_ = store.plan([ViewRow("0" * 64, view, "t", "p") for view in range(16)], shard_views=8)
    store.write(first, ((np.zeros((1, 1, 1), np.float16), None) for _ in first.rows))
    verified = frostgrid("cache", "verify", store.path)
    assert verified.exit_code == 4
    assert "8 of 16 planned views are not written" in verified.stderr


def test_a_url_that_cannot_be_used_is_refused_before_anything_is_computed(
    study: Path, tmp_path: Path
) -> None:
    for url in ("nonsense://bucket/cache", "s3://"):
        refused = frostgrid("extract", study, "--cache", url, "--runs", tmp_path / "runs")
        assert refused.exit_code == 2
        assert url in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_two_trainings_at_once_end_in_the_same_runs(study: Path, tmp_path: Path) -> None:
    assert run(study, tmp_path, "extract").exit_code == 0

    train = ("train", study, "--seeds", "3", "--cache", tmp_path / "cache", "--runs")
    as_many_threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def started() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", *train, tmp_path / "runs"]
        return subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=as_many_threads)

    def decoders(runs: str) -> dict[str, bytes]:
        found = (tmp_path / runs).glob("small/stain/linear/seed-*/decoder.safetensors")
        return {path.parent.name: path.read_bytes() for path in found}

    processes = [started(), started()]
    assert frostgrid(*train, tmp_path / "alone").exit_code == 0
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert len(decoders("runs")) == len(list(tmp_path.glob("runs/small/stain/linear/seed-*"))) == 3
    assert decoders("runs") == decoders("alone")


def test_an_impossible_decoder_or_device_is_refused_before_anything_is_computed(
    study: Path, tmp_path: Path
) -> None:
    unknown = write_study(tmp_path, study.read_text().replace('"linear"', '"unet"'), name="unknown")
    refused = run(unknown, tmp_path, "extract")
    assert refused.exit_code == 2
    assert "unet" in refused.stderr
    assert not (tmp_path / "cache").exists()
    assert run(study, tmp_path, "extract", "--device", "nowhere").exit_code == 2


def test_names_with_markup_and_mathematics_are_shown_as_they_are(tmp_path: Path) -> None:
    text = FOLDER.format(root=write_folder(tmp_path / "data")).replace("Red =", '"[/x] $a$ $" =')
    done = run(write_study(tmp_path, text), tmp_path)
    assert done.exit_code == 0, done.output
    assert "[/x]" in done.stdout


def test_a_study_of_a_table_with_splits_uses_all_of_each_side(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    sides = ["train"] * 4 + ["val"] + ["test"] * 3
    (root / "t.csv").write_text("name,split\n" + "".join(f"i{n},{side}\n" for n, side in enumerate(sides)))
    text = FOLDER.format(root=root).replace(
        "split = { train = 3, val = 1, test = 2, seed = 0 }", 'table = "t.csv"'
    )
    planned = run(write_study(tmp_path, text), tmp_path, "plan", "--json")
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["tiles"] == {"train": 4, "val": 1, "test": 3}


def test_a_file_that_cannot_be_written_is_named(study: Path, tmp_path: Path) -> None:
    refused = frostgrid("data", "split", study, "--out", "/proc/x/y.json")
    assert refused.exit_code != 0
    assert "/proc" in refused.stderr
    assert "Traceback" not in refused.stderr
