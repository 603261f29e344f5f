"""The fast upsampling convolution is the textbook's, to the last bits of the arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.decoders.upconv import UpConv, fast_pays, fast_upconv, textbook_upconv
from store.errors import InputError

Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def problem(batch: int, width_in: int, width_out: int, h: int, w: int, seed: int = 0) -> list[torch.Tensor]:
    """x, weight, bias and a gradient of the output, in float64, of the scales that training meets."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    weight = normal(width_out, width_in, 3, 3) / (3 * width_in**0.5)
    return [normal(batch, width_in, h, w), weight, normal(width_out), normal(batch, width_out, 2 * h, 2 * w)]


def outcome(form: Form, tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and the gradients of x, weight and bias, computed in ``dtype``, returned in float64."""
    leaves = [tensor.detach().to(dtype, copy=True) for tensor in tensors[:3]]
    leaves[0] = leaves[0].contiguous(memory_format=torch.channels_last)
    for leaf in leaves:
        leaf.requires_grad_()
    y = form(*leaves)
    y.backward(tensors[3].to(dtype))
    return [y.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    width_in=st.integers(1, 7),
    width_out=st.integers(1, 7),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@example(batch=1, width_in=8, width_out=8, h=40, w=40, seed=0)
@example(batch=1, width_in=1, width_out=1, h=1, w=1, seed=0)
@example(batch=2, width_in=3, width_out=5, h=1, w=9, seed=0)
@example(batch=2, width_in=5, width_out=3, h=9, w=1, seed=0)
@example(batch=1, width_in=4, width_out=4, h=2, w=2, seed=0)
def test_fast_equals_textbook_in_float64_for_every_size(
    batch: int, width_in: int, width_out: int, h: int, w: int, seed: int
) -> None:
    tensors = problem(batch, width_in, width_out, h, w, seed)
    exact = outcome(textbook_upconv, tensors, torch.float64)
    ours = outcome(fast_upconv, tensors, torch.float64)
    for one, other in zip(exact, ours, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 3), (3, 2)])
def test_gradients_pass_gradcheck(h: int, w: int) -> None:
    x, weight, bias, _ = problem(1, 2, 2, h, w, seed=3)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    assert torch.autograd.gradcheck(fast_upconv, leaves)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_a_gradient_asked_for_alone_is_the_same(needed: int) -> None:
    tensors = problem(2, 3, 4, 5, 6)
    leaves = [tensor.requires_grad_(at == needed) for at, tensor in enumerate(tensors[:3])]
    fast_upconv(*leaves).backward(tensors[3])
    for at, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (at == needed)
    alone = leaves[needed].grad
    assert alone is not None
    torch.testing.assert_close(alone, outcome(textbook_upconv, tensors, torch.float64)[1 + needed])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # which take libraries of their own
def test_weight_gradient_is_whole_when_the_work_is_cut_into_many_blocks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = problem(3, 4, 5, 7, 6)
    exact = outcome(textbook_upconv, tensors, torch.float64)
    line = 6 * 9 * 5
    for workspace in (1, line, 2 * line, 7 * line, 15 * line, 99 * line):
        monkeypatch.setattr("stages.decoders.upconv._WORKSPACE", workspace)
        found = outcome(fast_upconv, tensors, dtype)[2].to(dtype)
        torch.testing.assert_close(found, exact[2].to(dtype))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="about oneDNN")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_weight_gradient_in_float32_is_no_matrix_product_and_has_the_same_bits_again(
    threads: int,
) -> None:
    tensors = problem(2, 16, 16, 8, 9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.profiler.profile() as profile:
            first = outcome(fast_upconv, tensors, torch.float32)
        again = outcome(fast_upconv, tensors, torch.float32)
    finally:
        torch.set_num_threads(before)
    called = {event.key for event in profile.key_averages()}
    assert not called & {"aten::addmm", "aten::mm", "aten::slow_conv_dilated2d"}
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_batch_worked_on_in_portions_gives_the_same(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    tensors = problem(5, 4, 3, 6, 7)
    exact = outcome(textbook_upconv, tensors, torch.float64)
    monkeypatch.setattr("stages.decoders.upconv._TEMPORARY", at_once * 3 * 12 * 14)
    for one, other in zip(exact, outcome(fast_upconv, tensors, torch.float64), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("batch", "width", "size"), [(2, 64, 16), (1, 256, 12), (3, 16, 33)])
def test_float32_is_as_close_to_the_truth_as_the_textbook(batch: int, width: int, size: int) -> None:
    tensors = problem(batch, width, width, size, size)
    exact = outcome(textbook_upconv, tensors, torch.float64)
    ours = outcome(fast_upconv, tensors, torch.float32)
    theirs = outcome(textbook_upconv, tensors, torch.float32)
    for truth, fast, textbook in zip(exact, ours, theirs, strict=True):
        assert (fast - truth).norm() <= 2 * (textbook - truth).norm()


def test_bfloat16_is_as_close_to_the_truth_as_the_textbook() -> None:
    tensors = problem(2, 64, 64, 16, 16)
    exact = outcome(textbook_upconv, tensors, torch.float64)
    ours = outcome(fast_upconv, tensors, torch.bfloat16)
    theirs = outcome(textbook_upconv, tensors, torch.bfloat16)
    for truth, fast, textbook in zip(exact, ours, theirs, strict=True):
        assert (fast - truth).norm() <= 2 * (textbook - truth).norm()


def test_autocast_computes_in_bfloat16_and_returns_float32_gradients() -> None:
    block = UpConv(16, "fast")
    x = torch.randn(1, 16, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert block.conv.weight.grad is not None and block.conv.weight.grad.dtype == torch.float32


def test_forms_share_parameters_and_checkpoints() -> None:
    fast, textbook = UpConv(8, "fast"), UpConv(8, "textbook")
    assert list(fast.state_dict()) == ["conv.weight", "conv.bias"]
    textbook.load_state_dict(fast.state_dict())
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(fast(x), textbook(x))


def test_memory_kept_for_the_backward_pass_is_input_and_output_only() -> None:
    x, weight, bias, _ = problem(1, 8, 8, 16, 16)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    kept: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = fast_upconv(*leaves)
    assert sorted(kept) == sorted([x.shape, weight.shape, y.shape])


def test_result_is_channels_last_without_a_copy() -> None:
    y = fast_upconv(*(tensor.float() for tensor in problem(2, 16, 16, 8, 8)[:3]))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_auto_takes_the_fast_form_on_the_papers_grids_and_not_on_tiny_maps() -> None:
    assert all(fast_pays(256, side, side) for side in (8, 16, 32, 37, 64, 256))
    assert not fast_pays(256, 4, 4)
    assert not fast_pays(8, 64, 64)
    tiny = UpConv(4, "auto")
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(tiny(x), textbook_upconv(x, *tiny.conv.parameters()))
    large = UpConv(128, "auto")
    x = torch.randn(1, 128, 16, 16)
    assert torch.equal(large(x), fast_upconv(x, *large.conv.parameters()))


def test_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="fast, textbook, auto"):
        UpConv(4, "quick")  # type: ignore[arg-type]
