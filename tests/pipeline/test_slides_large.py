"""Large slides: memory that does not grow with their area, time that goes with their tissue, kills that cost little."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile
from cachekit import parsed
from slides_kit import STUDY, coloured_slide, predict, run_of, trained
from studykit import frostgrid, write_folder

from stages.slides.mapping import BAND_ROWS

FILES = ("map.ome.tif", "annotations.geojson", "summary.csv", "thumbnail.png")
MB = 1 << 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    write_folder(folder / "data", px=136)
    return run_of(trained(folder, STUDY.replace("tile_px = 32", "tile_px = 128")))


@pytest.mark.parametrize(
    ("side", "discs", "radius", "allowed"),
    [(6000, 2, 450.0, 300 * MB), pytest.param(40_000, 8, 1250.0, 2000 * MB, marks=pytest.mark.slow)],
)
def test_a_large_slide_takes_little_memory_and_goes_on_after_a_kill(
    run: Path, tmp_path: Path, side: int, discs: int, radius: float, allowed: int
) -> None:
    width = side / discs
    placed = [(width * (i + 0.5), side - width * (i + 0.5), radius) for i in range(discs)]
    small = coloured_slide(tmp_path / "small.tif", (512, 512), [(256, 256, 200)], levels=(1,))
    slide = coloured_slide(tmp_path / "large.tif", (side, side), placed, tile=512)
    (_, base), (whole, peak) = predict((run, small, "--output", tmp_path), (run, slide, "--output", tmp_path))
    print(f"\n{side} px: {(peak - base) / MB:.0f} MB above {base / MB:.0f} MB, {whole['seconds']} s, {whole}")
    assert peak - base < allowed
    with tifffile.TiffFile(tmp_path / "large" / "map.ome.tif") as tiff:
        assert tiff.series[0].shape == (side // 2, side // 2)

    again = tmp_path / "again"
    middle = side // 2 // BAND_ROWS // 2
    predict((run, slide, "--output", again), kill_when=again / "large.work" / f"band-{middle:05d}.npz")
    assert not (again / "large").exists()
    done = frostgrid("predict", run, slide, "--output", again, "--json")
    (rest,) = parsed(done)
    assert "goes on after" in done.stderr
    assert rest["windows"]["encoded"] < 0.75 * whole["windows"]["encoded"]
    for file in FILES:
        assert (again / "large" / file).read_bytes() == (tmp_path / "large" / file).read_bytes(), file
    assert not (again / "large.work").exists()


@pytest.mark.slow
def test_time_goes_with_tissue_and_not_with_glass(run: Path, tmp_path: Path) -> None:
    seconds, windows = [], []
    for side, discs in ((10_000, 1), (20_000, 1), (20_000, 4)):
        placed = [(2500.0 + 4000 * i, 2500.0 + 4000 * i, 1600.0) for i in range(discs)]
        slide = coloured_slide(tmp_path / f"{side}-{discs}.tif", (side, side), placed, tile=512)
        ((told, _),) = predict((run, slide, "--output", tmp_path))
        seconds.append(told["seconds"])
        windows.append(told["windows"]["encoded"])
    print("\nseconds", seconds, "windows", windows)
    assert windows[1] == pytest.approx(windows[0], rel=0.1)
    assert windows[2] == pytest.approx(4 * windows[1], rel=0.1)
    assert seconds[1] < 3 * seconds[0]
    assert 1.5 * seconds[1] < seconds[2] < 8 * seconds[1]


@pytest.mark.slow
def test_a_call_that_was_killed_while_it_wrote_needs_no_window_again(run: Path, tmp_path: Path) -> None:
    slide = coloured_slide(tmp_path / "large.tif", (6000, 6000), [(3000.0, 3000.0, 2500.0)], tile=512)
    ((whole, _),) = predict((run, slide, "--output", tmp_path / "whole"))
    predict((run, slide, "--output", tmp_path), kill_when=tmp_path / "large.work" / "made")
    (rest,) = parsed(frostgrid("predict", run, slide, "--output", tmp_path, "--json"))
    assert whole["windows"]["encoded"] > 1000 and rest["windows"] == {"encoded": 0, "cached": 0}
    for file in FILES:
        assert (tmp_path / "large" / file).read_bytes() == (tmp_path / "whole" / "large" / file).read_bytes()
