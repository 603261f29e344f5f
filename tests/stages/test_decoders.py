"""Decoders: the paper's sizes, registered logits, names and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.decoders import Geometry, build_decoder, decoder_options, set_upconv_mode
from stages.decoders.upconv import UpConv
from stages.decoders.upsampling import UPSAMPLING
from store.errors import InputError, InputErrors


def build(name: str = "single-scale", **changes: Any) -> nn.Module:
    sizes: dict[str, Any] = {"width_in": 12, "grid": (4, 4), "target_px": 64, "frame_px": 64, "classes": 3}
    options = {option: value for option, value in changes.items() if option not in sizes}
    geometry = Geometry(**{**sizes, **{size: value for size, value in changes.items() if size in sizes}})
    return build_decoder(name, geometry, **options)


def parameters(decoder: nn.Module) -> int:
    return sum(parameter.numel() for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("patch", "width_in", "frame_px", "millions", "exact"),
    [
        (16, 1024, 512, 2.62, 2_623_491),
        (8, 384, 512, 1.87, 1_869_571),
        (16, 1536, 512, 2.75, 2_754_563),
        (14, 1024, 518, 2.62, 2_623_491),
    ],
)
def test_parameter_counts_are_the_papers(
    patch: int, width_in: int, frame_px: int, millions: float, exact: int
) -> None:
    side = frame_px // patch
    decoder = build(width_in=width_in, grid=(side, side), target_px=512, frame_px=frame_px)
    assert parameters(decoder) == exact
    assert round(parameters(decoder) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("grid", "frame_px", "doublings"),
    [
        (32, 512, 4),
        (64, 512, 3),
        (37, 512, 4),
        (37, 518, 4),
        (28, 448, 4),
        (16, 224, 4),
        (8, 8, 0),
        (9, 8, 0),
    ],
)
def test_doublings_are_the_rounded_up_logarithm(grid: int, frame_px: int, doublings: int) -> None:
    assert Geometry(1, (grid, grid), 8, frame_px, 2).doublings == doublings


def test_paper_decoder_is_what_the_paper_writes_down() -> None:
    decoder = build(width=8, grid=(5, 5), target_px=64, frame_px=64).double()
    set_upconv_mode(decoder, "fast")
    tokens = torch.randn(2, 12, 5, 5, dtype=torch.float64)
    weights = list(decoder.parameters())
    x = F.conv2d(tokens, weights[0], weights[1])
    for block in range(4):
        up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = F.conv2d(up, weights[2 + 2 * block], weights[3 + 2 * block], padding=1).relu()
    x = F.conv2d(x, weights[10], weights[11])
    expected = F.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(tokens), expected, rtol=1e-12, atol=1e-12)


SINGLE_SCALE = [{"width": 4, "upsampling": kind} for kind in UPSAMPLING] + [
    {"width": 4, "depth": depth} for depth in (0, 1, 2)
]


@pytest.mark.parametrize(
    ("name", "options"),
    [("linear", {}), ("mlp", {"hidden": 4}), *(("single-scale", options) for options in SINGLE_SCALE)],
    ids=str,
)
@pytest.mark.parametrize(
    ("side", "target_px", "frame_px"), [(4, 64, 64), (5, 64, 64), (5, 64, 70), (37, 8, 8)]
)
def test_logits_have_the_tiles_size(
    name: str, options: dict[str, Any], side: int, target_px: int, frame_px: int
) -> None:
    decoder = build(name, grid=(side, side), target_px=target_px, frame_px=frame_px, **options)
    assert decoder(torch.randn(2, 12, side, side)).shape == (2, 3, target_px, target_px)


def test_a_fixed_depth_takes_the_place_of_the_rule() -> None:
    assert [len(build(width=4, depth=depth).blocks) for depth in (None, 0, 3, 6)] == [4, 0, 3, 6]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a depth of 7 doubles the grid of 4 to 512 px.*Give 6 or less"):
        build(width=4, depth=7)


def test_the_blocks_are_what_their_names_say() -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    built = {name: make(6).double() for name, make in UPSAMPLING.items()}
    weights = {name: dict(block.named_parameters()) for name, block in built.items()}

    def conv(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.conv2d(y, weights[name]["conv.weight"], weights[name]["conv.bias"], padding=1)

    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(built["bilinear"](x), conv("bilinear", up).relu())
    four_times = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(built["nearest"](x), conv("nearest", four_times).relu())
    kernel, bias = weights["transposed"]["up.weight"], weights["transposed"]["up.bias"]  # (in, out, 2, 2)
    learned = torch.einsum("bihw,ioyx->bohywx", x, kernel).reshape(2, 6, 10, 8) + bias.view(1, -1, 1, 1)
    torch.testing.assert_close(built["transposed"](x), conv("transposed", learned).relu())
    shuffled = conv("pixel-shuffle", x).view(2, 6, 2, 2, 5, 4).permute(0, 1, 4, 2, 5, 3).reshape(2, 6, 10, 8)
    torch.testing.assert_close(built["pixel-shuffle"](x), shuffled.relu())


def test_mlp_is_two_layers_on_each_token() -> None:
    decoder = build("mlp", hidden=7).double()
    tokens = torch.randn(2, 12, 4, 4, dtype=torch.float64)
    first, second = decoder.layers[0], decoder.layers[2]  # type: ignore[index, union-attr]
    hidden = torch.einsum("bdhw,od->bohw", tokens, first.weight[:, :, 0, 0]) + first.bias.view(1, -1, 1, 1)
    logits = torch.einsum("bohw,co->bchw", hidden.clamp(min=0), second.weight[:, :, 0, 0])
    logits = logits + second.bias.view(1, -1, 1, 1)
    expected = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(tokens), expected)


def test_padding_is_cut_at_bottom_and_right() -> None:
    decoder = build("linear", width_in=2, grid=(5, 5), target_px=64, frame_px=70, classes=2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.classify.weight[0, 0] = 1  # type: ignore[union-attr, index, operator]
    tokens = torch.zeros(1, 2, 5, 5)
    tokens[0, 0, :, 2] = 1  # the token column of pixels 28 to 41
    logits = decoder(tokens)[0, 0, 10]
    assert int(logits.argmax()) in (34, 35)
    torch.testing.assert_close(logits[34], logits[35])


def test_a_mode_is_set_in_every_block() -> None:
    decoder = build(width=4)
    set_upconv_mode(decoder, "textbook")
    modes = [module.mode for module in decoder.modules() if isinstance(module, UpConv)]
    assert modes == ["textbook"] * 4


def test_unknown_decoder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="Choose one of single-scale, linear, mlp"):
        build("multi-scale")


def test_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="Its options: width, depth, upsampling"):
        build(hidden=3)
    with pytest.raises(InputError, match="It has no options"):
        build("linear", width=3)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("width", 0, "a whole number from 1 to 4096"),
        ("width", -1, "a whole number"),
        ("width", 2.5, "a whole number"),
        ("width", "256", "a whole number"),
        ("width", True, "a whole number"),
        ("depth", 9, "a whole number from 0 to 8"),
        ("upsampling", "bicubic", "one of bilinear, nearest, transposed, pixel-shuffle"),
    ],
)
def test_an_impossible_option_is_refused(option: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"the option {option} .* cannot be .*Give {said}"):
        build(**{option: value})


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        decoder_options("single-scale", {"width": 0, "dept": 3})
    assert len(caught.value.faults) == 2


def test_options_that_are_not_given_have_their_defaults() -> None:
    assert decoder_options("single-scale", {"depth": 3}) == {
        "width": 256,
        "depth": 3,
        "upsampling": "bilinear",
    }
    assert decoder_options("mlp", {}) == {"hidden": 256}


@pytest.mark.parametrize(
    "change", [{"classes": 1}, {"width_in": 0}, {"grid": (0, 4)}, {"frame_px": 63}, {"target_px": 0}]
)
def test_impossible_sizes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        build(**change)
