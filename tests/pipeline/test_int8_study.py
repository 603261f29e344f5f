"""A study whose caches are int8, from its file to its results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cachekit import copy_results
from studykit import SMALL_DEMO, frostgrid, write_study

from store import GridStore, verify
from store.convert import convert

INT8 = SMALL_DEMO.replace("seeds = 2", "seeds = 1") + '[cache]\nencoding = "int8"\n'
FLOAT16 = INT8.replace("int8", "float16")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small demo study has been run with int8, and its float16 form extracted beside it."""
    folder = tmp_path_factory.mktemp("int8")
    study = write_study(folder, INT8)
    done = frostgrid("run", study, "--cache", folder / "int8", "--runs", folder / "runs")
    assert done.exit_code == 0, done.output
    done = frostgrid(
        "extract", write_study(folder / "int8", FLOAT16), "--cache", folder / "exact", "--runs", folder / "r"
    )
    assert done.exit_code == 0, done.output
    return folder


def caches(root: Path) -> dict[str, GridStore]:
    return {store.slug: store for slug in ("stain", "pixels") for store in GridStore.beside(root, slug)}


def test_the_caches_are_int8_complete_and_within_the_limit(finished: Path) -> None:
    for store in caches(finished / "int8").values():
        assert store.spec.encoding == "int8" and store.identity["encoding"] == "int8"
        assert verify(store) == []
        error = store.reader().encoding_error()
        assert error is not None and error.views == 18 and 0 < error.mean_rms <= error.max_rms <= 0.01


def test_a_second_run_encodes_and_trains_nothing(finished: Path) -> None:
    again = frostgrid(
        "run", finished / "small.toml", "--cache", finished / "int8", "--runs", finished / "runs"
    )
    assert again.exit_code == 0
    assert "stain: 0 views encoded, 18 kept" in again.stderr
    assert "stain: 0 seed(s) trained, 1 kept" in again.stderr


def test_a_converted_cache_is_the_extracted_one_and_trains_to_the_same_weights(
    finished: Path, tmp_path: Path
) -> None:
    for slug, exact in caches(finished / "exact").items():
        made, extracted = convert(exact, tmp_path / "cache", "int8"), caches(finished / "int8")[slug]
        assert made.key == extracted.key
        keys = extracted.reader().views()
        assert made.reader().views() == keys
        packed = (one.reader().read_stored_many(keys).tobytes() for one in (made, extracted))
        assert len(set(packed)) == 1
    (views,) = (finished / "exact").glob("views-*")
    shutil.copytree(views, tmp_path / "cache" / views.name)
    done = frostgrid(
        "run", finished / "small.toml", "--cache", tmp_path / "cache", "--runs", tmp_path / "runs"
    )
    assert done.exit_code == 0, done.output
    assert "pixels: 0 views encoded, 18 kept" in done.stderr
    weights = [
        next((root / "runs/small/pixels").rglob("decoder.safetensors")) for root in (finished, tmp_path)
    ]
    assert weights[0].parent.name == weights[1].parent.name
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_plan_counts_the_bytes_that_are_stored(finished: Path, tmp_path: Path) -> None:
    at = ("--cache", finished / "int8", "--runs", tmp_path)
    planned = {
        text: json.loads(frostgrid("plan", write_study(tmp_path, text), "--json", *at).stdout)["encoders"]
        for text in (INT8, FLOAT16)
    }
    for packed, exact in zip(planned[INT8], planned[FLOAT16], strict=True):
        d, h, w = packed["grid"]
        assert packed["bytes_a_view"] == d * (h * w + 8) and packed["bytes"] == 18 * d * (h * w + 8)
        assert exact["bytes_a_view"] == 2 * d * h * w
        assert (packed["views_cached"], exact["views_cached"]) == (18, 0)


def test_caches_and_runs_of_one_encoding_are_not_taken_for_the_other(finished: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, FLOAT16)
    missed = frostgrid("train", study, "--cache", finished / "int8", "--runs", tmp_path / "runs")
    assert missed.exit_code == 2
    assert "encoding: stored 'int8', wanted 'float16'" in missed.stderr
    copy_results(finished / "runs", tmp_path / "runs")
    nowhere = ("--cache", tmp_path / "nowhere", "--runs", tmp_path / "runs")
    assert frostgrid("report", write_study(tmp_path, INT8), *nowhere).exit_code == 0
    report = frostgrid("report", write_study(tmp_path, FLOAT16), *nowhere)
    assert report.exit_code == 2, report.output


def test_an_encoding_that_is_not_known_is_refused(tmp_path: Path) -> None:
    refused = frostgrid("plan", write_study(tmp_path, INT8.replace("int8", "int4")))
    assert refused.exit_code == 2
    assert "cache.encoding" in refused.stderr and "'float16' or 'int8'" in refused.stderr
