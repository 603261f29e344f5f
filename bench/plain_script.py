"""What most people write first: a frozen encoder inside of the training loop, augmentation on the fly, eager float32.

``python -m bench.plain_script DATA SPLIT WEIGHTS EPOCHS`` trains on GlaS at 224 px and prints the seconds of its phases
as JSON. ``SPLIT`` is a JSON file with the names of the images under "train" and "val".
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from stages.encoders import Encoder, load_encoder

PX, SCALE, CLASSES, BATCH, IGNORED = 224, 0.5, 3, 8, 255
Pair = tuple[torch.Tensor, torch.Tensor]


class TextbookDecoder(nn.Module):
    """The decoder of the paper (section 2.3) out of torch's own modules."""

    def __init__(self, width_in: int, doublings: int, width: int = 256) -> None:
        super().__init__()
        self.project = nn.Conv2d(width_in, width, 1)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.ReLU(),
                )
                for _ in range(doublings)
            )
        )
        self.classify = nn.Conv2d(width, CLASSES, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, PX, PX) of tokens (B, d, h, w)."""
        logits = self.classify(self.blocks(self.project(tokens)))
        return F.interpolate(logits, size=(PX, PX), mode="bilinear", align_corners=False)


def read(folder: Path, name: str, *, mask: bool) -> torch.Tensor:
    """Return an image (3, PX, PX) or a mask (PX, PX), uint8: half the size, the middle of it."""
    (file,) = folder.glob(f"{name}.*")
    picture: Image.Image = Image.open(file)
    size = (round(picture.width * SCALE), round(picture.height * SCALE))
    picture = picture.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.BOX)
    array = torch.from_numpy(np.array(picture))
    middle: torch.Tensor = v2.functional.center_crop(array if mask else array.permute(2, 0, 1), [PX, PX])
    return middle


def loss_of(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus soft Dice over the batch."""
    entropy = F.cross_entropy(logits, truth.long(), ignore_index=IGNORED)
    kept = (truth != IGNORED).unsqueeze(1)
    share = logits.softmax(1) * kept
    one_hot = F.one_hot(torch.where(truth == IGNORED, 0, truth).long(), CLASSES).permute(0, 3, 1, 2) * kept
    both, size = (share * one_hot).sum((0, 2, 3)), share.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    return entropy + (1 - 2 * both / size).mean()


def train_epoch(
    encoder: Encoder, decoder: nn.Module, optimiser: torch.optim.Optimizer, data: Sequence[Pair]
) -> None:
    """Show every tile once, augmented."""
    outside = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
    augment = v2.Compose(
        [
            v2.RandomAffine(180, (0.1, 0.1), (0.8, 1.25), 10, v2.InterpolationMode.BILINEAR, fill=outside),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
        ]
    )
    order = torch.randperm(len(data)).tolist()
    for start in range(0, len(order), BATCH):
        drawn = [
            augment(tv_tensors.Image(data[at][0]), tv_tensors.Mask(data[at][1]))
            for at in order[start : start + BATCH]
        ]
        views, truth = (
            torch.stack([pair[side].as_subclass(torch.Tensor) for pair in drawn]) for side in (0, 1)
        )
        tokens = encoder.encode(views).clone()
        optimiser.zero_grad()
        loss_of(decoder(tokens), truth).backward()
        optimiser.step()


@torch.no_grad()
def validate(encoder: Encoder, decoder: nn.Module, data: Sequence[Pair]) -> float:
    """Return the share of pixels that are predicted rightly."""
    right = total = 0
    for start in range(0, len(data), BATCH):
        views, truth = (torch.stack([pair[side] for pair in data[start : start + BATCH]]) for side in (0, 1))
        found = decoder(encoder.encode(views)).argmax(1)
        right += int((found == truth).sum())
        total += truth.numel()
    return right / total


def main(data_root: Path, split: Path, weights: Path, epochs: int) -> dict[str, float]:
    """Train, and return the seconds of a mean epoch, of a validation of one image, and of encoding one image."""
    names = json.loads(split.read_text(encoding="utf-8"))
    data = {
        side: [
            (read(data_root / "images", name, mask=False), read(data_root / "masks", name, mask=True))
            for name in names[side]
        ]
        for side in ("train", "val")
    }
    encoder = load_encoder("dinov2-s14", tile_px=PX, weights=weights)
    grid = encoder.grid
    decoder = TextbookDecoder(grid.d, (-(-PX // grid.h) - 1).bit_length())
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=1e-4)
    train_epoch(encoder, decoder, optimiser, data["train"][:BATCH])  # warms up
    marks = [time.perf_counter()]
    for _ in range(epochs):
        train_epoch(encoder, decoder, optimiser, data["train"])
    marks.append(time.perf_counter())
    validate(encoder, decoder, data["val"])
    marks.append(time.perf_counter())
    views = torch.stack([pair[0] for pair in data["val"]])
    encoder.encode(views)
    marks.append(time.perf_counter())
    epoch, validation, encoding = (end - start for start, end in pairwise(marks))
    count = len(data["val"])
    return {"epoch_s": epoch / epochs, "validate_s": validation / count, "encode_s": encoding / count}


if __name__ == "__main__":
    root, split_file, weights_file = (Path(text) for text in sys.argv[1:4])
    click.echo(json.dumps(main(root, split_file, weights_file, int(sys.argv[4]))))
