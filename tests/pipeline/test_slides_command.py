"""frostgrid predict: slides become folders of results, whatever happens on the way and to the slides beside them."""

from __future__ import annotations

import csv
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from cachekit import Home, parsed, refused
from PIL import Image
from shapely.geometry import Point, shape
from slides_kit import STUDY, annotations, coloured_slide, run_of, trained
from studykit import frostgrid, write_study

from pipeline.console import Talk
from pipeline.slide_results import SlideFolder
from store.leases import hold

FILES = ("map.ome.tif", "annotations.geojson", "summary.csv", "thumbnail.png")
DISCS = [(420.0, 380.0, 260.0), (900.0, 700.0, 150.0)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return trained(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def run(learned: Home) -> Path:
    return run_of(learned)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_slide(tmp_path_factory.mktemp("slides") / "disc.tif", (1301, 1001), DISCS)


@pytest.fixture(scope="module")
def mapped(run: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mapped")
    (told,) = parsed(frostgrid("predict", run, slide, "--output", out, "--probabilities", "--json"))
    assert told["state"] == "done" and told["mpp"] == pytest.approx(0.5) and told["size"] == [650, 500]
    assert told["windows"]["encoded"] > 100
    return out / "disc"


def same(one: Path, other: Path) -> None:
    for file in FILES:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_the_map_has_the_slides_size_mpp_and_classes(mapped: Path) -> None:
    labels = tifffile.imread(mapped / "map.ome.tif")
    assert labels.shape == (650, 500)
    y, x = np.mgrid[:650, :500] * 2 + 1.0
    inside = np.zeros(labels.shape, np.bool_)
    rim = np.zeros(labels.shape, np.bool_)
    truth = np.zeros(labels.shape, np.uint8)
    for middle_y, middle_x, radius in DISCS:
        away = np.hypot(y - middle_y, x - middle_x)
        here = away < radius
        inside |= here
        truth[here] = (y > middle_y)[here]
        rim |= np.abs(away - radius) < 50
        rim |= here & (np.abs(y - middle_y) < 24)
    assert (labels[inside & ~rim] == truth[inside & ~rim]).mean() > 0.99
    assert (labels[~inside & ~rim] == 255).all()
    slide = openslide.OpenSlide(mapped / "map.ome.tif")
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.0)


def test_annotations_lie_on_the_slide_in_pixels_of_level_0(mapped: Path) -> None:
    features = annotations(mapped)
    areas = [(f["properties"]["classification"]["name"], shape(f["geometry"])) for f in features]
    assert all(area.is_valid for _, area in areas)
    assert [name for name, area in areas if area.contains(Point(380, 300))] == ["Red"]
    assert [name for name, area in areas if area.contains(Point(380, 560))] == ["Green"]
    assert not any(area.contains(Point(900, 100)) for _, area in areas)


def test_the_summary_has_mm2_and_shares(mapped: Path) -> None:
    rows = {row["class"]: row for row in csv.DictReader((mapped / "summary.csv").open(encoding="utf-8"))}
    assert list(rows) == ["Red", "Green", "tissue"]
    covered = sum(np.pi * (radius * 0.5e-3) ** 2 for *_, radius in DISCS)
    assert covered < float(rows["tissue"]["mm2"]) < 1.2 * covered
    assert float(rows["Red"]["share"]) + float(rows["Green"]["share"]) == pytest.approx(1, abs=1e-5)


def test_probabilities_agree_with_the_map(mapped: Path) -> None:
    shares = zarr.open_array(mapped / "probabilities.zarr", mode="r")[:].astype(np.float32)
    labels = tifffile.imread(mapped / "map.ome.tif")
    tissue = labels != 255
    np.testing.assert_allclose(shares.sum(axis=0)[tissue], 1, atol=2e-3)
    assert (shares[:, ~tissue] == 0).all()
    clear = tissue & (np.abs(shares[0] - shares[1]) > 1e-2)
    np.testing.assert_array_equal(shares.argmax(axis=0)[clear], labels[clear])


def test_the_thumbnail_shows_slide_and_map(mapped: Path) -> None:
    assert Image.open(mapped / "thumbnail.png").size[0] > 2 * 500


def test_a_repeated_run_is_the_same_bytes_also_with_other_batches_and_threads(
    mapped: Path, run: Path, slide: Path, tmp_path: Path
) -> None:
    options = ("--batch", "3", "--threads", "1", "--probabilities", "--quiet")
    assert frostgrid("predict", run, slide, "--output", tmp_path, *options).exit_code == 0
    same(tmp_path / "disc", mapped)
    assert not (tmp_path / "disc.work").exists()


def test_what_is_there_is_kept_and_what_was_changed_is_made_again(
    mapped: Path, run: Path, slide: Path, tmp_path: Path
) -> None:
    shutil.copytree(mapped, tmp_path / "disc")
    command = ("predict", run, slide, "--output", tmp_path, "--json")
    (told,) = parsed(frostgrid(*command, "--probabilities"))
    assert (told["state"], told["windows"]) == ("kept", {"encoded": 0, "cached": 0})
    assert told["mm2"]["tissue"] > 0
    (tmp_path / "disc" / "summary.csv").write_text("changed")
    again = frostgrid(*command, "--probabilities")
    assert parsed(again)[0]["state"] == "done" and "a file there was changed" in again.stderr
    same(tmp_path / "disc", mapped)
    other = frostgrid(*command, "--tissue", "all")
    assert parsed(other)[0]["state"] == "done"
    assert "tissue: stored 'auto', wanted 'all'" in other.stderr
    assert (tifffile.imread(tmp_path / "disc" / "map.ome.tif") != 255).all()


def test_a_map_with_probabilities_serves_who_asks_for_none(
    mapped: Path, run: Path, slide: Path, tmp_path: Path
) -> None:
    shutil.copytree(mapped, tmp_path / "disc")
    command = ("predict", run, slide, "--output", tmp_path, "--json")
    assert parsed(frostgrid(*command))[0]["state"] == "kept"
    assert (tmp_path / "disc" / "probabilities.zarr").is_dir()
    shutil.rmtree(tmp_path / "disc" / "probabilities.zarr")
    assert parsed(frostgrid(*command))[0]["state"] == "kept"
    again = frostgrid(*command, "--probabilities")
    assert parsed(again)[0]["state"] == "done" and "a file there was changed" in again.stderr
    same(tmp_path / "disc", mapped)


def test_what_a_newer_version_made_is_left_to_it(
    mapped: Path, run: Path, slide: Path, tmp_path: Path
) -> None:
    shutil.copytree(mapped, tmp_path / "disc")
    record = tmp_path / "disc" / "slide.json"
    record.write_text(record.read_text(encoding="utf-8").replace("frostgrid-slide/1", "frostgrid-slide/2"))
    refused(frostgrid("predict", run, slide, "--output", tmp_path), "newer than this version", "Update")
    record.rename(tmp_path / "record")
    same(tmp_path / "disc", mapped)


def test_with_a_cache_another_decoder_on_the_same_slide_costs_no_encoder(
    mapped: Path, learned: Home, slide: Path, tmp_path: Path
) -> None:
    def told(decoder: str, out: str) -> tuple[int, int]:
        options = ("--output", tmp_path / out, "--cache", tmp_path / "cache", "--probabilities", "--json")
        (found,) = parsed(frostgrid("predict", run_of(learned, decoder), slide, *options))
        return found["windows"]["encoded"], found["windows"]["cached"]

    encoded, cached = told("linear", "a")
    assert encoded > 100
    same(tmp_path / "a" / "disc", mapped)
    write_study(
        learned.folder,
        STUDY.format(root=learned.folder / "data").replace('"linear"', '"mlp"'),
        learned.study.stem,
    )
    assert learned.run("train").exit_code == 0
    assert told("mlp", "b") == (0, encoded + cached)
    info = parsed(frostgrid("cache", "info", *(tmp_path / "cache").glob("stain-slides-*"), "--json"))
    assert info


def test_bad_slides_are_told_and_the_others_mapped(
    mapped: Path, run: Path, slide: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    data = slide.read_bytes()
    (bad / "cut.tif").write_bytes(data[: len(data) // 2])
    (bad / "empty.svs").write_bytes(b"")
    (bad / "text.svs").write_text("no slide at all")
    Image.fromarray(np.full((50, 50, 3), 200, np.uint8)).save(bad / "bare.png")
    coloured_slide(bad / "lost.tif", (512, 512), DISCS, levels=(1, 4))
    with tifffile.TiffFile(bad / "lost.tif", mode="r+") as tiff:
        tag = tiff.pages[1].tags["TileOffsets"]
        tag.overwrite([10**8] * tag.count)
    broken = coloured_slide(bad / "broken.tif", (512, 512), DISCS, levels=(1,))
    with tifffile.TiffFile(broken) as tiff:
        page = tiff.pages[0]
        at, count = page.dataoffsets[-1], page.databytecounts[-1]
    changed = bytearray(broken.read_bytes())
    changed[at : at + count] = bytes(count)
    broken.write_bytes(changed)
    slides = [*sorted(bad.iterdir()), bad / "absent.svs", slide]
    options = ("--output", tmp_path / "out", "--probabilities", "--json")
    done = frostgrid("predict", run, *slides, *options)
    assert done.exit_code == 2
    states = {Path(told["slide"]).name: told for told in json.loads(done.stdout)}
    assert states.pop("disc.tif")["state"] == "done"
    said = {
        "cut.tif": "truncated",
        "empty.svs": "empty",
        "text.svs": "no slide",
        "bare.png": "Give --mpp",
        "lost.tif": "truncated",
        "broken.tif": "cannot be read at",
        "absent.svs": "does not exist",
    }
    assert {name: told["state"] for name, told in states.items()} == dict.fromkeys(said, "failed")
    for name, words in said.items():
        assert words in states[name]["error"] and name in states[name]["error"]
        assert states[name]["error"] in done.stderr
    assert "1 of 8 slides mapped, 7 failed" in done.stderr
    assert "Traceback" not in done.stderr
    same(tmp_path / "out" / "disc", mapped)


def test_bands_of_other_options_are_not_gone_on_with(
    mapped: Path, run: Path, slide: Path, tmp_path: Path
) -> None:
    command = ("predict", run, slide, "--probabilities", "--output")
    assert frostgrid(*command, tmp_path, "--overlap", "0.25").exit_code == 0
    (tmp_path / "disc").rename(tmp_path / "before")
    work = tmp_path / "disc.work"
    work.mkdir()
    shutil.copy(tmp_path / "before" / "slide.json", work)  # as a killed call with that option leaves it
    wrong = np.zeros((256, 500), np.uint8)
    np.savez(work / "band-00000.npz", labels=wrong, probabilities=np.zeros((2, 256, 500), np.float16))
    done = frostgrid(*command, tmp_path)
    assert done.exit_code == 0 and "done anew (overlap: stored 0.25, wanted 0.5)" in done.stderr
    same(tmp_path / "disc", mapped)
    assert not work.exists()


def test_a_slide_without_mpp_takes_the_one_given_and_one_with_it_no_other(
    run: Path, slide: Path, tmp_path: Path
) -> None:
    pixels = np.full((64, 64, 3), (180, 60, 60), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    done = frostgrid(
        "predict", run, tmp_path / "red.png", "--mpp", "2", "--output", tmp_path / "out", "--json"
    )
    assert parsed(done)[0]["size"] == [128, 128]
    assert "magnified" in done.stderr
    assert (tifffile.imread(tmp_path / "out" / "red" / "map.ome.tif") == 0).mean() > 0.95
    refused(
        frostgrid("predict", run, slide, "--mpp", "0.25", "--output", tmp_path),
        "0.5",
        "not 0.25",
        "Leave --mpp out",
    )


def test_glass_alone_gives_an_empty_map_and_says_so(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((90, 90, 3), 240, np.uint8)).save(tmp_path / "glass.png")
    done = frostgrid("predict", run, tmp_path / "glass.png", "--mpp", "1", "--output", tmp_path / "out")
    assert done.exit_code == 0 and "no tissue found" in done.stderr
    assert annotations(tmp_path / "out" / "glass") == []


def test_a_study_that_does_not_say_its_resolution_is_not_guessed(
    home: Home, slide: Path, tmp_path: Path
) -> None:
    run = run_of(home)
    refused(
        frostgrid("predict", run, slide, "--output", tmp_path), "does not say how many µm", "Give --study-mpp"
    )
    done = frostgrid("predict", run, slide, "--output", tmp_path, "--study-mpp", "4", "--json")
    assert parsed(done)[0]["size"] == [163, 125]


def test_a_study_that_says_its_resolution_takes_no_other(run: Path, slide: Path, tmp_path: Path) -> None:
    refused(frostgrid("predict", run, slide, "--output", tmp_path, "--study-mpp", "4"), "1 µm a pixel, not 4")


def test_two_slides_of_one_name_are_refused_before_anything_is_done(
    run: Path, slide: Path, tmp_path: Path
) -> None:
    shutil.copy(slide, tmp_path / "disc.tiff")
    done = frostgrid("predict", run, slide, tmp_path / "disc.tiff", "--output", tmp_path / "out")
    refused(done, "several slides would be written to disc")
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_not_ours_is_replaced(run: Path, slide: Path, tmp_path: Path) -> None:
    for name in ("disc", "disc.work"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "thesis.txt").write_text("four years")
        refused(
            frostgrid("predict", run, slide, "--output", tmp_path), "no result of a slide (thesis.txt)", name
        )
        assert (tmp_path / name / "thesis.txt").read_text() == "four years"
        shutil.rmtree(tmp_path / name)
    (tmp_path / "disc").write_text("a file")
    refused(frostgrid("predict", run, slide, "--output", tmp_path), "no result of a slide (a file)")


def test_two_processes_are_not_at_work_on_one_slide(run: Path, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "disc.work").mkdir()
    with hold(tmp_path / "disc.work", 0) as mine:
        assert mine
        refused(
            frostgrid("predict", run, slide, "--output", tmp_path), "another process is at work on this slide"
        )
    assert frostgrid("predict", run, slide, "--output", tmp_path).exit_code == 0


def test_what_is_no_run_is_refused(slide: Path, run: Path, tmp_path: Path) -> None:
    refused(frostgrid("predict", tmp_path / "none", slide), "There is no such run")
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "decoder.safetensors").write_bytes(b"x")
    refused(frostgrid("predict", tmp_path / "damaged", slide), "not what was written", status=4)


def test_tissue_is_a_word_or_a_number(run: Path, slide: Path) -> None:
    assert frostgrid("predict", run, slide, "--tissue", "some").exit_code == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tolerance", "nan"), ("--min-area", "inf"), ("--mpp", "nan"), ("--study-mpp", "inf")],
)
def test_numbers_are_finite(run: Path, slide: Path, option: str, value: str) -> None:
    done = frostgrid("predict", run, slide, option, value)
    assert done.exit_code == 2 and f"'{value}' is no finite number" in done.stderr


@pytest.mark.parametrize("mpp", ["1e-9", "1e4"])
def test_a_resolution_that_cannot_be_is_refused(run: Path, tmp_path: Path, mpp: str) -> None:
    Image.fromarray(np.full((300, 300, 3), 200, np.uint8)).save(tmp_path / "plain.png")
    done = frostgrid("predict", run, tmp_path / "plain.png", "--output", tmp_path / "out", "--mpp", mpp)
    refused(done, "pixels of the slide, which is 300 × 300")
    assert not (tmp_path / "out").exists()


def test_several_that_find_a_slide_done_and_its_work_left_all_keep_it(mapped: Path, tmp_path: Path) -> None:
    shutil.copytree(mapped, tmp_path / "disc")
    record = json.loads((mapped / "slide.json").read_text(encoding="utf-8"))
    folder = SlideFolder(tmp_path / "disc", record["parameters"], ("Red", "Green"), 1.0)
    folder.work.mkdir()
    for number in range(3000):
        (folder.work / f"band-{number:05d}.npz").touch()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: folder.kept(Talk(quiet=True)), range(3)))
    assert [size for size, _ in filter(None, found)] == [(650, 500)] * 3
    assert not folder.work.exists()


def test_a_record_that_lists_no_files_is_taken_for_damaged(mapped: Path, tmp_path: Path) -> None:
    told = json.loads((mapped / "slide.json").read_text(encoding="utf-8"))["parameters"]
    folder = SlideFolder(tmp_path / "disc", told, ("Red", "Green"), 1.0)
    folder.work.mkdir()
    folder.begun(650, 500, Talk(quiet=True))
    folder.work.rename(tmp_path / "disc")
    assert folder.kept(Talk(quiet=True)) is None
