"""Windows cover a map and blend without a seam; batches, threads, order and interruptions change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.batching import Batches
from stages.decoders import Geometry, build_decoder
from stages.encoders import load_encoder
from stages.slides import mapping
from stages.slides.blending import FLOOR, Canvas, WindowGrid, softmax, stride_of, taper
from stages.slides.image_source import ArraySource
from stages.slides.mapping import Band, Decode, Mapper
from stages.slides.scaled import ScaledSlide
from stages.slides.tissue import Tissue
from stages.slides.tokens import EncodedTokens, KeptTokens, kept_identity, kept_spec
from stages.tiles.dataset import IGNORE
from stages.training.predict import logits_of
from store import GridStore
from store.errors import InputError

PX, PATCH, CLASSES = 64, 16, 3


def image(height: int, width: int) -> NDArray[np.uint8]:
    """Noise in blotches of several patches, so that classes have edges."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (height // 24 + 1, width // 24 + 1, 3))
    blotches = coarse.repeat(24, 0).repeat(24, 1)[:height, :width]
    return (blotches + rng.integers(-40, 40, blotches.shape)).clip(0, 255).astype(np.uint8)


def decoder(px: int) -> torch.nn.Module:
    torch.manual_seed(3)
    grid = px // PATCH
    return build_decoder("linear", Geometry(3 * PATCH**2, (grid, grid), px, px, CLASSES)).eval()


def decode() -> Decode:
    network = decoder(PX)
    return lambda grid: logits_of(network, grid, torch.device("cpu"))


class Counting:
    """The encoder ``pixels``, counting what it is asked."""

    def __init__(self) -> None:
        self.inner = load_encoder("pixels", tile_px=PX)
        self.name, self.grid, self.parameters = self.inner.name, self.inner.grid, 0
        self.identity, self.provenance = self.inner.identity, self.inner.provenance
        self.windows = 0

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        self.windows += len(views)
        return self.inner.encode(views)


def mapper(
    pixels: NDArray[np.uint8],
    *,
    batch: int = 4,
    threads: int = 2,
    overlap: float = 0.5,
    tissue: Tissue | None = None,
    probabilities: bool = True,
    tokens: EncodedTokens | KeptTokens | None = None,
) -> Mapper:
    slide = ScaledSlide(ArraySource(Path("a"), pixels, {}), 1.0)
    everywhere = Tissue(np.ones((slide.height, slide.width), np.bool_), 1, None)
    return Mapper(
        slide=slide,
        tissue=everywhere if tissue is None else tissue,
        grid=WindowGrid(slide.height, slide.width, PX, stride_of(PX, overlap)),
        weights=taper(PX, PATCH / 2),
        classes=CLASSES,
        tokens=tokens or EncodedTokens(lambda: Batches(Counting(), batch)),
        decode=decode(),
        probabilities=probabilities,
        threads=threads,
    )


def joined(bands: Sequence[Band]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    shares = [band.probabilities for band in bands if band.probabilities is not None]
    return np.concatenate([band.labels for band in bands]), np.concatenate(shares, axis=1)


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "BAND_ROWS", 48)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 96), st.floats(0, 0.9))
def test_windows_cover_every_pixel_and_lie_evenly(height: int, width: int, px: int, overlap: float) -> None:
    grid = WindowGrid(height, width, px, stride_of(px, overlap))
    for starts, length in ((grid.tops, height), (grid.lefts, width)):
        assert {b - a for a, b in pairwise(starts)} <= {grid.stride}
        before, after = -starts[0], starts[-1] + px - length
        assert before >= 0 and after >= 0 and 0 <= after - before <= 1
        assert len(starts) == 1 or after + before < grid.stride  # none is superfluous


def test_an_image_of_a_tiles_size_is_one_window() -> None:
    assert WindowGrid(64, 64, 64, 32).tops == [0]


def test_an_overlap_of_everything_is_refused() -> None:
    with pytest.raises(InputError, match="overlap"):
        stride_of(64, 1.0)


def test_weights_are_a_hann_window_between_the_margins() -> None:
    weights = taper(64, 8.0)
    inner = np.hanning(2 * 48 + 1)[1::2]
    np.testing.assert_allclose(weights[8:56, 8:56], np.maximum(np.outer(inner, inner), FLOOR**2), rtol=1e-4)
    assert weights[0, 0] == pytest.approx(FLOOR**2) and weights.min() > 0
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])


def test_a_canvas_is_the_weighted_mean_of_what_was_added() -> None:
    rng = np.random.default_rng(0)
    weights = taper(8, 1.0)
    canvas = Canvas(2, 20, 24, weights)
    sums, total = np.zeros((2, 40, 20)), np.zeros((40, 20))
    done = []
    for top in range(-4, 36, 4):
        while canvas.top + 16 <= top:
            done.append(canvas.take(16))
        for left in (-4, 0, 4, 8, 12, 16):
            logits = rng.normal(size=(2, 8, 8)).astype(np.float32)
            canvas.add(logits, top, left)
            for y in range(8):
                for x in range(8):
                    if 0 <= top + y < 40 and 0 <= left + x < 20:
                        sums[:, top + y, left + x] += float(weights[y, x]) * logits[:, y, x]
                        total[top + y, left + x] += float(weights[y, x])
    done.append(canvas.take(16))
    done.append(canvas.take(16))
    np.testing.assert_allclose(np.concatenate(done, axis=1)[:, :40], sums / total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
def test_a_stitched_map_equals_the_one_piece_away_from_the_rim(overlap: float, one_thread: None) -> None:
    side = PX + 8 * 32
    pixels = image(side, side)
    labels, shares = joined(list(mapper(pixels, overlap=overlap).run()))
    tokens = load_encoder("pixels", tile_px=side).encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    logits = logits_of(decoder(side), tokens[0].to(torch.float16).numpy(), torch.device("cpu"))
    rim = slice(PX, side - PX)
    np.testing.assert_allclose(shares[:, rim, rim], softmax(logits)[:, rim, rim], atol=2e-3)
    first, second = np.sort(logits, axis=0)[::-1][:2]
    differs = (labels != logits.argmax(axis=0))[rim, rim]
    assert not differs[(first - second)[rim, rim] > 1e-5].any()
    assert differs.sum() <= 2
    assert len(np.unique(labels[rim, rim])) == CLASSES


def test_batches_and_threads_change_nothing(one_thread: None) -> None:
    pixels = image(200, 150)
    wanted = joined(list(mapper(pixels).run()))
    for batch, threads in ((1, 1), (3, 4), (64, 2)):
        for ours, theirs in zip(
            joined(list(mapper(pixels, batch=batch, threads=threads).run())), wanted, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_map_taken_up_at_any_band_is_the_same(one_thread: None) -> None:
    pixels = image(210, 90)
    whole = list(mapper(pixels).run())
    assert [band.top for band in whole] == [0, 48, 96, 144, 192] and len(whole[-1].labels) == 18
    for start in range(len(whole) + 1):
        rest = list(mapper(pixels).run(start))
        assert len(rest) == len(whole) - start
        for ours, theirs in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_windows_without_tissue_are_not_encoded_and_others_not_changed(one_thread: None) -> None:
    pixels = image(256, 256)
    everywhere = joined(list(mapper(pixels).run()))
    found = np.zeros((64, 64), np.bool_)
    found[10:20, 30:50] = True  # map rows 40 to 80, columns 120 to 200
    encoder = Counting()
    tokens = EncodedTokens(lambda: Batches(encoder, 4))
    work = mapper(pixels, tissue=Tissue(found, 4, 0.1), tokens=tokens)
    labels, shares = joined(list(work.run()))
    inside = found.repeat(4, 0).repeat(4, 1)
    assert (labels[~inside] == IGNORE).all() and (shares[:, ~inside] == 0).all()
    np.testing.assert_array_equal(labels[inside], everywhere[0][inside])
    np.testing.assert_array_equal(shares[:, inside], everywhere[1][:, inside])
    assert encoder.windows == tokens.encoded == sum(map(len, work.windows())) < 20


def test_progress_counts_windows(one_thread: None) -> None:
    seen: list[tuple[int, int]] = []
    work = mapper(image(150, 100))
    list(work.run(on_progress=lambda *at: seen.append(at)))
    total = sum(map(len, work.windows()))
    assert seen == [(number, total) for number in range(1, total + 1)]


def kept(root: Path, encoder: Counting) -> KeptTokens:
    grid = encoder.grid
    spec = kept_spec((grid.d, grid.h, grid.w))
    store = GridStore.at(root, "pixels-slides", kept_identity(dict(encoder.identity)), spec, {}, create=True)
    return KeptTokens(lambda: Batches(encoder, 4), store)


def test_with_a_cache_the_second_map_costs_no_encoder(tmp_path: Path, one_thread: None) -> None:
    pixels = image(150, 150)
    pixels[:64, :64] = pixels[64:128, :64]  # windows of the same pixels are kept once
    wanted = joined(list(mapper(pixels).run()))
    first, second = Counting(), Counting()
    for encoder, tokens in ((first, kept(tmp_path, first)), (second, kept(tmp_path, second))):
        for ours, theirs in zip(joined(list(mapper(pixels, tokens=tokens).run())), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert tokens.encoded == encoder.windows
    assert first.windows > 0
    assert second.windows == 0


def squares(count: int, first: int) -> list[NDArray[np.uint8]]:
    return [np.full((PX, PX, 3), first + number, np.uint8) for number in range(count)]


def read(tokens: KeptTokens, windows: list[NDArray[np.uint8]]) -> None:
    """Ask for the grids of windows, which have to be theirs."""
    grids = list(tokens.of(windows, [f"w{number}" for number in range(len(windows))]))
    views = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2)
    wanted = load_encoder("pixels", tile_px=PX).encode(views).to(torch.float16).numpy()
    np.testing.assert_array_equal(grids, wanted)


def test_parts_that_were_found_whole_are_not_looked_at_again(tmp_path: Path) -> None:
    encoder = Counting()
    tokens = kept(tmp_path, encoder)
    for first in (0, 10):
        read(tokens, squares(3, first))
    for table in tmp_path.rglob("part.json"):
        table.unlink()  # which whoever looks at the part would miss
    read(tokens, squares(3, 20))
    read(tokens, [*squares(3, 0), *squares(3, 20), *squares(2, 30)])
    assert encoder.windows == tokens.encoded == 11


def test_what_a_killed_call_began_and_another_has_finished_meanwhile_is_found(tmp_path: Path) -> None:
    class Killed(Counting):
        def encode(self, views: torch.Tensor) -> torch.Tensor:
            if self.windows >= 8:
                raise KeyboardInterrupt
            return super().encode(views)

    with pytest.raises(KeyboardInterrupt):  # in the second of two shards
        read(kept(tmp_path, Killed()), squares(16, 0))
    one, other = Counting(), Counting()
    first, second = kept(tmp_path, one), kept(tmp_path, other)
    read(second, squares(1, 100))
    read(first, squares(16, 0))
    assert one.windows == 8
    read(second, squares(17, 0))
    assert other.windows == 2 and second.encoded == 2
    parts = list(tmp_path.glob("*/part-*"))
    assert len(parts) == 3 and all((part / "manifest.json").is_file() for part in parts)


def test_tokens_beyond_float16_are_refused_and_make_no_map(one_thread: None) -> None:
    class Overflowing(Counting):
        def encode(self, views: torch.Tensor) -> torch.Tensor:
            return super().encode(views) + 1e6

    with pytest.raises(InputError, match=r"beyond what float16 holds, in a window of a@0,0"):
        list(mapper(image(64, 64), tokens=EncodedTokens(lambda: Batches(Overflowing(), 4))).run())


def test_a_cache_never_gives_the_tokens_of_other_pixels(tmp_path: Path, one_thread: None) -> None:
    pixels = image(150, 150)
    list(mapper(pixels, tokens=kept(tmp_path, Counting())).run())
    other = pixels.copy()
    other[75, 75] ^= 255
    wanted = joined(list(mapper(other).run()))
    encoder = Counting()
    for ours, theirs in zip(
        joined(list(mapper(other, tokens=kept(tmp_path, encoder)).run())), wanted, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert 0 < encoder.windows < 9
