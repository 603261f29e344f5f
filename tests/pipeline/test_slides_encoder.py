"""Slides go through the very encoder that a run was trained on, or are refused; what is cached needs none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cachekit import Home, parsed, refused
from encoder_rows import timm_model, tiny, write_row
from packagekit import Packages
from safetensors.torch import save_file
from slides_kit import QUICK, coloured_slide, run_of
from studykit import frostgrid, write_folder

STATE = timm_model(tiny()).state_dict()
OTHER = {name: tensor * 1.5 for name, tensor in STATE.items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder / "data")
    save_file(STATE, folder / "right.safetensors")
    save_file(OTHER, folder / "wrong.safetensors")
    coloured_slide(folder / "disc.tif", (400, 300), [(200.0, 150.0, 120.0)], levels=(1,))
    row = json.dumps(write_row(folder, tiny()))
    made = Home(folder, text=QUICK.replace('["stain"]', f"[{row}]".replace("{", "{{")))
    done = made.run("run", "--weights", folder / "right.safetensors")
    assert done.exit_code == 0, done.output
    return made


@pytest.fixture
def run(home: Home) -> Path:
    (found,) = (home.folder / "runs" / "small" / "tiny" / "linear").glob("seed-*")
    return found


def test_other_weights_than_those_trained_on_are_refused(home: Home, run: Path, tmp_path: Path) -> None:
    command = ("predict", run, home.folder / "disc.tif", "--output", tmp_path, "--json")
    assert parsed(frostgrid(*command, "--weights", home.folder / "right.safetensors"))[0]["state"] == "done"
    done = frostgrid(*command, "--weights", home.folder / "wrong.safetensors", "--tissue", "all")
    refused(done, "is not the encoder that the run was trained on", "wrong.safetensors", "--weights")


def test_another_precision_is_taken_if_asked_for_and_said(home: Home, run: Path, tmp_path: Path) -> None:
    command = ("predict", run, home.folder / "disc.tif", "--output", tmp_path, "--json")
    done = frostgrid(*command, "--weights", home.folder / "right.safetensors", "--dtype", "bfloat16")
    assert parsed(done)[0]["state"] == "done"
    assert "trained on tokens in float32, these are in bfloat16" in done.stderr


def test_cached_windows_need_no_weights_and_serve_no_other_encoder(
    home: Home, run: Path, tmp_path: Path
) -> None:
    command = ("predict", run, home.folder / "disc.tif", "--cache", tmp_path / "cache", "--json")
    right = ("--weights", home.folder / "right.safetensors")
    (first,) = parsed(frostgrid(*command, *right, "--output", tmp_path / "a"))
    assert first["windows"]["encoded"] > 0
    (second,) = parsed(frostgrid(*command, "--output", tmp_path / "b"))  # nothing says where the weights are
    assert second["windows"] == {"encoded": 0, "cached": sum(first["windows"].values())}
    for file in ("map.ome.tif", "annotations.geojson"):
        assert (tmp_path / "a/disc" / file).read_bytes() == (tmp_path / "b/disc" / file).read_bytes()
    half = parsed(frostgrid(*command, *right, "--output", tmp_path / "c", "--dtype", "bfloat16"))[0]
    assert half["windows"]["encoded"] == first["windows"]["encoded"]
    assert len(list((tmp_path / "cache").glob("tiny-slides-*"))) == 2


def test_tokens_are_those_of_the_run_whatever_is_the_default(home: Home, run: Path) -> None:
    from pipeline.slide_runs import TrainedRun
    from stages.encoders import load_encoder

    trained = TrainedRun(run)
    for name, dtype, wanted in (
        ("right", "float32", "float32"),
        ("right", "bfloat16", "float32"),
        ("wrong", "float32", None),
    ):
        encoder = load_encoder(
            trained.reference, tile_px=32, weights=home.folder / f"{name}.safetensors", dtype=dtype
        )
        assert trained.precision_of(encoder.identity) == wanted


DECODER = """
from torch import nn

class Decoder(nn.Module):
    def __init__(self, geometry):
        super().__init__()
        self.geometry, self.classify = geometry, nn.Conv2d(geometry.width_in, geometry.classes, 1)

    def forward(self, tokens):
        return self.geometry.fit(self.classify(tokens))

def build(geometry):
    return Decoder(geometry)
"""


def test_a_run_of_an_installed_decoder_wants_the_version_it_was_trained_with(
    tmp_path: Path, packages: Packages
) -> None:
    entries = "[frostgrid.decoders]\nmine = ours\n"
    packages.install("ours", DECODER, entries=entries)
    made = Home(tmp_path, text=QUICK.replace('"linear"', '"mine"'))
    assert made.run("run").exit_code == 0
    slide = coloured_slide(tmp_path / "disc.tif", (300, 200), [(150.0, 100.0, 80.0)], levels=(1,))
    command = ("predict", run_of(made, "mine"), slide, "--output", tmp_path / "out")
    assert frostgrid(*command).exit_code == 0
    packages.remove("ours")
    refused(frostgrid(*command), "trained with the decoder mine of ours 1.0, which is not installed here")
    packages.install("ours", DECODER, entries=entries, version="2.0")
    refused(
        frostgrid(*command),
        "trained with the decoder mine of ours 1.0, which is ours 2.0 here",
        "Install ours 1.0",
    )
