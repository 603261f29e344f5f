"""Decoders of installed packages: found by their entry points, checked in all they say and give."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from packagekit import Packages
from training_problem import GEOMETRY, QUICK, equal, run

from stages.decoders import (
    build_decoder,
    decoder_faults,
    decoder_names,
    decoder_options,
    decoder_source,
)
from stages.training.predict import predict
from store.errors import InputError

TWO_STEPS = """
import torch
from torch import nn
from stages.decoders import Choice, Whole

OPTIONS = {"hidden": Whole(6, high=64), "mode": Choice("bilinear", ("bilinear", "nearest"))}

class Decoder(nn.Module):
    def __init__(self, geometry, hidden, mode):
        super().__init__()
        self.px, self.mode = geometry.target_px, mode
        self.first = nn.Conv2d(geometry.width_in, hidden, 1)
        self.second = nn.Conv2d(hidden, geometry.classes, 3, padding=1)

    def forward(self, tokens):
        logits = self.second(self.first(tokens).relu())
        return nn.functional.interpolate(logits, size=(self.px, self.px), mode=self.mode)

def build(geometry, **options):
    return Decoder(geometry, **options)
"""


def install(
    packages: Packages, code: str = TWO_STEPS, name: str = "two-steps", module: str = "steps"
) -> None:
    """Install a package of one module, which is the factory of a decoder."""
    packages.install(module, code, entries=f"[frostgrid.decoders]\n{name} = {module}\n")


def refusal(packages: Packages, old: str, new: str, **options: Any) -> str:
    """What building ends with when ``old`` is ``new`` in the package; it names the package and ends in a remedy."""
    assert old in TWO_STEPS
    install(packages, TWO_STEPS.replace(old, new))
    with pytest.raises(InputError) as caught:
        build_decoder("two-steps", GEOMETRY, **options)(torch.randn(2, 3, 8, 8))
    assert caught.value.remedy and "steps" in str(caught.value.where)
    return str(caught.value)


def test_an_installed_decoder_is_listed_built_trained_and_used(packages: Packages) -> None:
    install(packages)
    assert decoder_faults() == []
    assert decoder_names() == ["single-scale", "linear", "mlp", "two-steps"]
    assert decoder_options("two-steps", {"mode": "nearest"}) == {"hidden": 6, "mode": "nearest"}
    assert decoder_source("two-steps") == "steps 1.0" and decoder_source("linear") is None
    settings = replace(QUICK, decoder="two-steps", options={"hidden": 8})
    result = run(settings)
    assert equal(result, run(settings))
    assert result.losses[-1] < result.losses[0]
    assert predict(settings, GEOMETRY, result.weights, torch.randn(2, 3, 8, 8)).shape == (2, 32, 32)


def test_its_options_are_checked(packages: Packages) -> None:
    install(packages)
    with pytest.raises(InputError, match=r"hidden .* cannot be 65\b.*a whole number from 1 to 64"):
        build_decoder("two-steps", GEOMETRY, hidden=65)
    with pytest.raises(InputError, match="Its options: hidden, mode"):
        build_decoder("two-steps", GEOMETRY, width=3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("import torch\n", "import nowhere\n", "cannot be imported: ModuleNotFoundError"),
        ("def build", "def make", "has no function build"),
        ("Whole(6, high=64)", "6", "OPTIONS that do not map names"),
        ("return Decoder(geometry, **options)", "1 / 0", "failed in build: ZeroDivisionError"),
        ("return Decoder(geometry, **options)", "return 3", "build gave a int"),
        ("return Decoder(geometry, **options)", "return nn.ReLU()", "nothing to train"),
        (
            "return Decoder(geometry, **options)",
            "return Decoder(geometry, **options).double()",
            "float64, not float32",
        ),
        (
            "self.px, self.mode =",
            "self.drop = nn.Dropout(); self.px, self.mode =",
            "drop .Dropout. draws random numbers",
        ),
        (
            "self.px, self.mode =",
            "self.register_buffer('b', torch.ones(1), persistent=False); self.px, self.mode =",
            "its buffer b is not kept",
        ),
        (
            "\n    def forward",
            "        self.third = nn.Conv2d(3, 3, 1); self.third.bias = self.second.bias\n\n    def forward",
            "two of its weights are one tensor",
        ),
        (
            "size=(self.px, self.px)",
            "size=(self.px, 9)",
            r"gave logits of \(2, 3, 32, 9\), not \(2, 3, 32, 32\)",
        ),
        (
            "return nn.functional",
            "return nn.functional.relu(logits).int() if True else nn.functional",
            "int32",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(packages: Packages, old: str, new: str, said: str) -> None:
    text = refusal(packages, old, new)
    assert re.search(said, text), text
    assert "installed decoder 'two-steps'" in text
    (fault,) = decoder_faults()
    assert str(fault) == text.replace(
        "(2, 3, 32, 9), not (2, 3, 32, 32)", "(1, 2, 128, 9), not (1, 2, 128, 128)"
    )


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("logits = logits / logits.max().item()", "meta tensors"),
        ("logits = logits + torch.arange(logits.shape[-1])", "device"),  # which a GPU would not take either
        ("logits = logits.detach()", "does not require grad"),
    ],
)
def test_one_that_needs_numbers_or_another_device_is_refused_before_anything_runs(
    packages: Packages, new: str, said: str
) -> None:
    install(packages, TWO_STEPS.replace("return nn.functional", f"{new}\n        return nn.functional"))
    with torch.device("meta"), pytest.raises(InputError, match=said) as caught:
        build_decoder("two-steps", GEOMETRY)
    assert "failed in forward or backward, tried on torch's meta device" in caught.value.what
    assert caught.value.where == "steps" and caught.value.remedy
    assert len(decoder_faults()) == 1


def test_what_was_tried_without_numbers_leaves_no_gradient(packages: Packages) -> None:
    install(packages)
    with torch.device("meta"):
        decoder = build_decoder("two-steps", GEOMETRY)
    assert all(weight.grad is None for weight in decoder.parameters())


def test_a_name_of_ours_or_of_two_packages_or_of_no_folder_is_refused(packages: Packages) -> None:
    install(packages, name="linear")
    with pytest.raises(InputError, match="calls its decoder 'linear', which is one of ours"):
        build_decoder("linear", GEOMETRY)
    assert len(decoder_faults()) == 1
    install(packages, name="a/b")
    with pytest.raises(InputError, match="cannot name a folder everywhere"):
        build_decoder("a/b", GEOMETRY)
    install(packages)
    install(packages, module="others")
    with pytest.raises(InputError, match="2 installed packages call their decoder 'two-steps'"):
        build_decoder("two-steps", GEOMETRY)
