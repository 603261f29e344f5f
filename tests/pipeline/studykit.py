"""Small studies for tests: a demo study, and folders of images whose classes can be read off their colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli import main

SMALL_DEMO = """
[data]
kind = "demo"
size_px = 64
tile_px = 48
split = { train = 4, val = 2, test = 4, seed = 0 }
[views]
per_tile = 3
[encoders]
names = ["stain", "pixels"]
[train]
decoder_options = { width = 16 }
epochs = 4
validate_every = 2
batch = 2
lr = 3e-3
seeds = 2
"""

FOLDER = """
[data]
kind = "folder"
root = "{root}"
tile_px = 32
classes = {{ Red = [0], Green = [1] }}
split = {{ train = 3, val = 1, test = 2, seed = 0 }}
[views]
per_tile = 2
[encoders]
names = ["stain"]
[train]
decoder = "linear"
epochs = 2
validate_every = 1
seeds = 1
"""


def frostgrid(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_study(folder: Path, text: str = SMALL_DEMO, name: str = "small") -> Path:
    """Write a study file."""
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def write_folder(root: Path, images: int = 8, px: int = 40) -> Path:
    """Write noisy two-coloured images and their label masks, as PNG."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        mask = np.zeros((px, px), np.uint8)
        mask[:, : int(rng.integers(px // 3, 2 * px // 3))] = 1
        colours = np.array([[180, 60, 60], [60, 180, 60]])[mask] + rng.integers(-20, 20, (px, px, 3))
        Image.fromarray(colours.astype(np.uint8)).save(root / "images" / f"i{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"i{number}.png")
    return root
