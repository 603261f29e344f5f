"""Looking at caches, checking them, and copying them between folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cachekit import Home, cache, flip_bit, parsed, refused, small_cache
from studykit import FOLDER, frostgrid, write_study
from test_sharing_a_cache import own_encoder

from store import GridStore


def other_recipe(folder: Path, home: Home) -> Path:
    text = home.study.read_text().replace("per_tile = 2", "per_tile = 2\naffine = { shear = 3 }")
    return write_study(folder, text, "sheared")


def test_ls_tells_what_is_there_and_which_study_it_fits(home: Home, tmp_path: Path) -> None:
    other = other_recipe(tmp_path, home)
    found = parsed(cache("ls", home.cache, "--study", home.study, "--study", other, "--json"))
    rows = {row["encoder"]: row for row in found["caches"]}
    assert sorted(rows, key=str) == [None, "stain"]
    assert rows["stain"]["fits"] == rows[None]["fits"] == ["small"]
    assert (rows["stain"]["views_done"], rows["stain"]["views_planned"]) == (9, 9)
    assert (rows["stain"]["share"], rows["stain"]["encoding"]) == ("allowed", "float16")
    assert rows["stain"]["bytes"] == sum(
        path.stat().st_size for path in home.store().glob("part-*/tokens/c.*")
    )
    shown = cache("ls", home.cache, "--study", home.study)
    assert shown.exit_code == 0
    for text in (home.store().name, "9 / 9", "small", "(masks)"):
        assert text in shown.stdout


def test_ls_takes_every_study_of_the_folder_and_leaves_out_what_cannot_be_read(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    write_study(tmp_path / "studies", home.study.read_text(), "good")
    write_study(tmp_path / "studies", "[data\n", "bad")
    listed = cache("ls", home.cache, "--json")
    assert {tuple(row["fits"]) for row in parsed(listed)["caches"]} == {("good",)}
    assert "bad.toml" in listed.stderr
    assert cache("ls", home.cache, "--json", "--quiet").stderr == ""


def test_ls_lists_a_cache_that_cannot_be_read_with_its_fault_and_the_others_too(copy: Home) -> None:
    (copy.store() / "cache.json").write_text("{}")
    listed = cache("ls", copy.cache, "--study", copy.study, "--json")
    found = parsed(listed, 4)
    assert [row["encoder"] for row in found["caches"]] == [None]
    assert copy.store().name in found["faults"][0]
    refused(cache("ls", copy.cache), copy.store().name, status=4)


def test_ls_and_info_of_nothing_are_refused(tmp_path: Path) -> None:
    refused(cache("ls", tmp_path / "none"), "no such folder", "none")
    refused(cache("info", tmp_path), "no cache here")
    refused(cache("ls", "nonsense://bucket"), "nonsense")
    refused(cache("ls", small_cache(tmp_path, "one", {})), "frostgrid cache info")


def test_info_tells_what_made_a_cache(home: Home) -> None:
    about = parsed(cache("info", home.store(), "--json"))
    assert about["identity"] == GridStore.open(home.store()).identity
    assert about["provenance"]["licence"] == about["licence"] == "none (computed)"
    assert about["tiles"] == 6
    assert len(about["tile_names"]) == 6
    assert [part["sealed"] for part in about["parts"]] == [True]
    assert about["int8_error"] is None
    shown = cache("info", home.store())
    for text in (about["key"], "9 of 9 finished", "recipe.shear", "none (computed)"):
        assert text in shown.stdout


def test_verify_finds_a_flipped_bit_and_names_tile_and_file(copy: Home) -> None:
    assert parsed(cache("verify", copy.store(), "--json"))["faults"] == []
    shard = next(copy.store().glob("part-*/tokens/c.0.*"))
    flip_bit(shard)
    damaged = cache("verify", copy.store(), "--json")
    assert "tile " in parsed(damaged, 4)["faults"][0]
    assert str(shard) in damaged.stderr
    refused(cache("verify", copy.cache / "none"), "no cache here")


def test_views_encoded_again_are_what_is_stored(home: Home) -> None:
    checked = cache(
        "verify",
        home.store(),
        "--sample",
        "4",
        "--study",
        home.study,
        "--runs",
        home.folder / "runs",
        "--json",
    )
    again = parsed(checked)["sample"]
    assert [row["same"] for row in again["views"]] == [True] * 4
    assert max(row["l2"] for row in again["views"]) < 0.001
    assert {row["view"] > 0 for row in again["views"]} == {True, False}
    assert len({row["tile"] for row in again["views"]}) == 4


def test_grids_that_another_encoder_made_are_told_by_encoding_again(home: Home, tmp_path: Path) -> None:
    """The cache says what the real one says; only its grids are others: those of another view."""
    real = GridStore.open(home.store())
    forged = GridStore.at(tmp_path, real.slug, real.identity, real.spec, real.provenance, create=True)
    reader = real.reader()
    keys = reader.views()
    for task in forged.plan([reader.row(key) for key in keys]):
        forged.write(task, ((np.roll(reader.read(row.key), 1, axis=1), None) for row in task.rows))
    assert cache("verify", forged.path).exit_code == 0
    at = ("--study", home.study, "--runs", home.folder / "runs")
    checked = cache("verify", forged.path, "--sample", "2", *at)
    refused(checked, "tile i", "view ", "encoded again it differs", status=4)
    assert "differs" in checked.stdout


def test_a_sample_takes_one_view_a_tile_and_every_second_one_augmented(home: Home) -> None:
    from stages.recheck import sample

    views = _views(home)
    assert [view.view > 0 for view in sample(views, 4)] == [False, True, False, True]
    assert len({view.tile.key for view in sample(views, 6)}) == 6
    assert len(sample(views, 100)) == len(set(sample(views, 100))) == 9


def test_a_view_that_is_drawn_with_other_pixels_is_told_and_not_compared(home: Home, tmp_path: Path) -> None:
    real = GridStore.open(home.store())
    forged = GridStore.at(tmp_path, real.slug, real.identity, real.spec, real.provenance, create=True)
    reader = real.reader()
    rows = [replace(reader.row(key), pixels="f" * 64) for key in reader.views()]
    for task in forged.plan(rows):
        forged.write(task, ((reader.read(row.key), None) for row in task.rows))
    at = ("--study", home.study, "--runs", home.folder / "runs")
    checked = cache("verify", forged.path, "--sample", "1", *at, "--json")
    assert parsed(checked, 4)["sample"]["views"][0]["l2"] is None
    assert "has other pixels than what was encoded" in checked.stderr


def test_a_sample_is_encoded_with_the_weights_of_the_cache_and_no_others(home: Home, tmp_path: Path) -> None:
    own, weights = own_encoder(tmp_path)
    mine = Home(tmp_path / "mine", home.folder / "data", FOLDER.replace('["stain"]', f'["{own}"]'))
    assert mine.run("extract", "--weights", weights[0]).exit_code == 0
    at = ("--sample", "2", "--study", mine.study, "--runs", mine.folder / "runs")
    same = parsed(cache("verify", mine.store("mine"), *at, "--weights", weights[0], "--json"))["sample"]
    assert [row["same"] for row in same["views"]] == [True, True]
    refused(cache("verify", mine.store("mine"), *at, "--weights", weights[1]), "weights: stored", "--weights")


def _views(home: Home):
    from pipeline.study import read_study
    from pipeline.workspace import Workspace

    return Workspace(read_study(home.study), home.cache, home.folder / "runs", 1).views


def test_verify_with_a_sample_wants_a_study_that_the_cache_belongs_to(home: Home, tmp_path: Path) -> None:
    refused(cache("verify", home.store(), "--sample", "2"), "--study")
    other = other_recipe(tmp_path, home)
    refused(
        cache("verify", home.store(), "--sample", "2", "--study", other), "recipe.shear", "sheared", "10.0"
    )
    pixels = write_study(tmp_path, home.study.read_text().replace('"stain"', '"pixels"'), "pixels")
    refused(cache("verify", home.store(), "--sample", "2", "--study", pixels), "no such encoder")
    refused(cache("verify", home.store(), "--sample", "0", "--study", home.study))


def test_a_study_gets_its_caches_from_another_folder_without_a_hash(home: Home, tmp_path: Path) -> None:
    there = Home(tmp_path / "there", home.folder / "data")
    place = tmp_path / "place"
    sent = parsed(cache("push", home.store(), home.store("views"), place, "--json"))
    assert [row["kept"] for row in sent] == [0, 0]
    again = parsed(cache("push", home.store(), place, "--json"))
    assert (again[0]["shards"], again[0]["bytes"]) == (0, 0)
    got = cache("pull", place, "--study", there.study, "--encoder", "stain", "--cache", there.cache)
    assert got.exit_code == 0, got.output
    assert "copied" in got.stdout
    assert cache("verify", there.store()).exit_code == 0
    assert cache("diff", home.store(), there.store()).exit_code == 0
    told = there.run("extract")
    assert "views: 0 drawn, 9 kept" in told.stderr
    assert "stain: 0 views encoded, 9 kept" in told.stderr
    second = parsed(cache("pull", place, "--study", there.study, "--cache", there.cache, "--json"))
    assert [(row["shards"], row["kept"] > 0) for row in second] == [(0, True)] * 2


def test_pull_leaves_the_views_store_and_what_is_not_needed(home: Home, tmp_path: Path) -> None:
    wide = Home(tmp_path / "wide", home.folder / "data", FOLDER.replace("per_tile = 2", "per_tile = 20"))
    assert wide.run("extract").exit_code == 0
    few = Home(tmp_path / "few", home.folder / "data")
    at = ("--study", few.study, "--cache", few.cache, "--runs", few.folder / "runs")
    assert cache("pull", wide.cache, "--no-views", "--only-needed", *at).exit_code == 0
    assert not list(few.cache.glob("views-*"))
    whole, part = (GridStore.open(one.store()).status() for one in (wide, few))
    assert 0 < part.shards_done < whole.shards_done
    assert {view.key for view in _views(few)} <= set(GridStore.open(few.store()).reader().views())


def test_weights_are_not_taken_for_those_of_several_encoders(home: Home) -> None:
    two = ("--encoder", "stain", "--encoder", "pixels")
    for command in ("extract", "train"):
        refused(home.run(command, *two, "--weights", home.study), "--weights belongs to one encoder")


def test_pull_names_the_nearest_difference_where_nothing_fits(home: Home, tmp_path: Path) -> None:
    other = other_recipe(tmp_path, home)
    refused(
        cache("pull", home.cache, "--study", other, "--encoder", "stain", "--cache", tmp_path / "to"),
        "recipe.shear: stored 10.0, wanted 3.0",
        home.store().name,
    )
    at = ("--study", home.study, "--cache", tmp_path / "to")
    refused(cache("pull", home.cache, "--encoder", "uni", *at), "no cache of uni")
    refused(cache("pull", home.cache, "--encoder", "no-such", *at), "no-such")
    refused(cache("pull", tmp_path / "nowhere", *at), "no such folder")
    refused(cache("pull", home.cache, "--weights", home.study, *at), "--weights belongs to one encoder")
    assert not (tmp_path / "to").exists()


def test_a_study_with_more_encoders_gets_those_that_are_there(home: Home, tmp_path: Path) -> None:
    both = write_study(tmp_path, home.study.read_text().replace('["stain"]', '["stain", "pixels"]'), "both")
    got = cache("pull", home.cache, "--study", both, "--cache", tmp_path / "to", "--json")
    assert [row["cache"].split("-")[0] for row in parsed(got)] == ["stain", "views"]
    assert "no cache of pixels" in got.stderr


def test_two_halves_of_one_cache_become_a_whole(home: Home, tmp_path: Path) -> None:
    parts = []
    for name, more in (("a", "train = 3, val = 1, test = 2"), ("b", "train = 5, val = 1, test = 2")):
        text = FOLDER.replace("train = 3, val = 1, test = 2", more)
        one = Home(tmp_path / name, home.folder / "data", text)
        assert one.run("extract").exit_code == 0
        parts.append(one)
    first, second = parts
    wanted = [view.key for view in (*_views(first), *_views(second))]
    assert GridStore.open(first.store()).reader().missing(wanted)
    merged = parsed(cache("merge", second.cache, first.cache, "--json"))
    assert merged["faults"] == []
    assert {row["cache"] for row in merged["caches"]} == {second.store().name, second.store("views").name}
    assert not GridStore.open(first.store()).reader().missing(wanted)
    assert cache("verify", first.store()).exit_code == 0
    assert "stain: 0 views encoded" in second.run("extract", "--cache", first.cache).stderr
    one = parsed(cache("merge", second.store(), tmp_path / "third", "--json"))
    assert [row["cache"] for row in one["caches"]] == [second.store().name]


def test_merge_goes_on_past_a_cache_that_cannot_be_read(copy: Home, tmp_path: Path) -> None:
    (copy.store("views") / "cache.json").write_text("{}")
    refused(cache("merge", copy.cache, tmp_path / "to"), copy.store("views").name, status=4)
    assert cache("verify", tmp_path / "to" / copy.store().name).exit_code == 0
    refused(cache("merge", tmp_path / "none", tmp_path / "to"), "no such folder")
    refused(cache("merge", tmp_path, tmp_path / "to"), "no cache here")
    refused(cache("merge", copy.cache, "s3://bucket/x"), "frostgrid cache push")


def test_diff_tells_identity_tiles_views_and_values_apart(home: Home, tmp_path: Path) -> None:
    assert cache("diff", home.store(), home.store()).stdout.startswith("the same: ")
    sheared = Home(
        tmp_path / "b",
        home.folder / "data",
        FOLDER.replace("per_tile = 2", "per_tile = 2\naffine = {{ shear = 3 }}"),
    )
    assert sheared.run("extract").exit_code == 0
    found = parsed(cache("diff", home.store(), sheared.store(), "--json"), 4)
    assert {"field": "recipe.shear", "a": 10.0, "b": 3.0} in found["made_differently"]
    assert found["tiles_only_in_a"] == found["tiles_only_in_b"] == []
    assert found["views_in_both"] == 9
    assert len(found["views_stored_differently"]) == len(found["views_of_other_pixels"]) == 3
    assert {value["max_abs"] > 0 for value in found["values"]} == {True}
    assert all(", view 1" in value["view"] for value in found["values"])
    shown = cache("diff", home.store(), sheared.store())
    assert shown.exit_code == 4
    assert "recipe.shear: 10.0 | 3.0" in shown.stdout
    assert "values differ by up to" in shown.stdout
    fewer = small_cache(tmp_path / "a", "mine", {}), small_cache(tmp_path / "c", "mine", {}, views=5)
    apart = parsed(cache("diff", *fewer, "--json"), 4)
    assert apart["views_only_in_b"] == ["tile tile, view 3", "tile tile, view 4"]
    assert apart["views_in_both"] == 3
    refused(cache("diff", home.store(), tmp_path / "none"), "no cache here")


@pytest.mark.parametrize(
    ("share", "said"), [("forbidden", "forbids passing on"), ("unclear", "not clear"), (None, "not clear")]
)
def test_a_licence_that_does_not_allow_it_keeps_a_cache_from_a_public_place(
    share: str | None, said: str, tmp_path: Path
) -> None:
    provenance = {"licence": "CC-BY-NC-ND-4.0"} | ({} if share is None else {"share": share})
    made = small_cache(tmp_path / "cache", "mine", provenance)
    public = "http://127.0.0.1:9/caches"  # whatever anybody can read by http; nothing is sent
    refused(cache("push", made, public), said, "mine", "CC-BY-NC-ND-4.0", "--i-have-the-rights")
    assert cache("push", made, tmp_path / "place").exit_code == 0


def test_of_several_caches_none_is_sent_where_one_may_not_be(tmp_path: Path) -> None:
    free = small_cache(tmp_path / "cache", "free", {"share": "allowed"})
    not_free = small_cache(tmp_path / "cache", "kept", {"share": "forbidden", "licence": "mine"})
    refused(cache("push", free, not_free, "http://127.0.0.1:9/caches"), "kept")
    refused(cache("push", tmp_path, tmp_path / "place"), "no cache here")
    refused(cache("push", "s3://bucket/x", tmp_path / "place"), "of this machine only")


def test_every_cache_command_explains_itself() -> None:
    listed = frostgrid("cache", "--help").stdout
    for command in [
        "ls",
        "info",
        "verify",
        "push",
        "pull",
        "merge",
        "convert",
        "export",
        "import",
        "gc",
        "diff",
    ]:
        assert f"  {command} " in listed
        helped = cache(command, "--help")
        assert helped.exit_code == 0
        assert "--json" in helped.stdout
        assert "--quiet" in helped.stdout
    assert cache("push").exit_code == 2


def test_the_help_loads_nothing_that_takes_seconds() -> None:
    import subprocess
    import sys

    code = (
        "import sys, json, pipeline.cli; print(json.dumps([name for name in"
        " ('torch', 'xarray', 'fsspec', 'h5py', 'huggingface_hub', 'zarr') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
