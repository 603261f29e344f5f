"""Caches in a bucket: sent, cut off, sent again, fetched on another machine, checked, trained from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cachekit import Home, cache, parsed, refused, small_cache
from dataset_hub import OWNER, TOKEN, DatasetHub, use_dataset_hub
from huggingface_hub import close_session, constants
from s3_server import BUCKET, S3, Wire, bucket, s3_server
from studykit import FOLDER, frostgrid, write_study

from store import GridStore
from store.places import open_place
from store.sharing import push

PLACE = f"s3://{BUCKET}/lab"
WIDE = FOLDER.replace("per_tile = 2", "per_tile = 12")


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture
def wire(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """An empty bucket; its credentials are in the environment."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the libraries' own patience is not what is tested
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with bucket(server) as through:
        yield through


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A study that was run at home: caches of several shards, and results."""
    made = Home(tmp_path_factory.mktemp("home"), text=WIDE)
    done = made.run("run")
    assert done.exit_code == 0, done.output
    assert GridStore.open(made.store()).status().shards_done > 3
    return made


def push_all(home: Home) -> None:
    """Send tokens and masks; anybody may read a bucket of this server, so the masks want a word."""
    sent = cache("push", home.store(), home.store("views"), PLACE, "--i-have-the-rights")
    assert sent.exit_code == 0, sent.output


def shards_fetched(wire: Wire) -> int:
    return wire.counted("GET", "/tokens/c.") + wire.counted("GET", "/masks/c.")


def test_a_cut_push_is_finished_by_the_next_and_gives_the_same_results_elsewhere(
    home: Home, wire: Wire, tmp_path: Path
) -> None:
    wire.budget = 40_000
    both = (home.store(), home.store("views"), PLACE, "--i-have-the-rights", "--threads", "1")
    cut = cache("push", *both)
    assert cut.exit_code == 1, cut.output
    assert cut.stderr.startswith("Error: ")
    assert "again" in cut.stderr
    assert wire.cuts
    wire.mend()
    listed = parsed(cache("ls", PLACE, "--json"))
    assert all(row["views_done"] < row["views_planned"] for row in listed["caches"])
    assert cache("push", *both).exit_code == 0
    wire.mend()
    assert [row["shards"] for row in parsed(cache("push", *both, "--json"))] == [0, 0]
    assert wire.counted("PUT") == 0

    there = Home(tmp_path / "there", home.folder / "data", WIDE)
    wire.mend()
    got = cache("pull", PLACE, "--study", there.study, "--encoder", "stain", "--cache", there.cache)
    assert got.exit_code == 0, got.output
    assert cache("verify", there.store()).exit_code == 0
    trained = there.run("run")
    assert trained.exit_code == 0, trained.output
    assert "stain: 0 views encoded" in trained.stderr
    assert there.results() == home.results()
    assert cache("diff", there.store(), f"{PLACE}/{there.store().name}").exit_code == 0
    wire.mend()
    again = cache("pull", PLACE, "--study", there.study, "--cache", there.cache)
    assert again.exit_code == 0
    assert shards_fetched(wire) == 0


def test_a_study_is_trained_from_a_bucket_with_the_same_results_and_fetches_once(
    home: Home, wire: Wire, tmp_path: Path
) -> None:
    push_all(home)
    there = Home(tmp_path / "there", home.folder / "data", WIDE)
    stage = there.folder / "stage"
    remote = ("--cache", PLACE, "--stage-to", stage)
    wire.mend()
    needs = parsed(there.run("plan", *remote, "--json"))
    assert [row["views_cached"] for row in needs["encoders"]] == [39]
    assert needs["place"] == PLACE
    assert shards_fetched(wire) == 0
    assert not stage.exists()
    trained = there.run("train", *remote)
    assert trained.exit_code == 0, trained.output
    assert f"fetched from {PLACE}" in trained.stderr
    assert shards_fetched(wire) > 0
    assert there.run("report", *remote).exit_code == 0
    assert there.results() == home.results()
    wire.close()  # whatever is asked of the bucket from here on fails
    again = there.run("train", *remote, "--seeds", "2")
    assert again.exit_code == 0, again.output
    assert "1 seed(s) trained, 1 kept" in again.stderr


def test_only_the_shards_that_a_study_needs_are_fetched(home: Home, wire: Wire, tmp_path: Path) -> None:
    push_all(home)
    few = Home(tmp_path / "few", home.folder / "data")
    wire.mend()
    at = ("--cache", PLACE, "--stage-to", few.folder / "stage")
    trained = few.run("train", *at)
    assert trained.exit_code == 0, trained.output
    whole = GridStore.open(home.store()).status().shards_done
    (staged,) = (few.folder / "stage").glob("stain-*")
    assert 0 < GridStore.open(staged).status().shards_done < whole
    few.study.write_text(few.study.read_text().replace("per_tile = 2", "per_tile = 12"))
    assert few.run("train", *at).exit_code == 0
    assert GridStore.open(staged).status().shards_done == whole


def test_a_place_without_the_cache_says_what_differs(home: Home, wire: Wire, tmp_path: Path) -> None:
    push_all(home)
    text = WIDE.replace("per_tile = 12", "per_tile = 12\naffine = {{ shear = 3 }}")
    other = Home(tmp_path / "other", home.folder / "data", text)
    at = ("--cache", PLACE, "--stage-to", other.folder / "stage")
    refused(other.run("train", *at), "recipe.shear: stored 10.0, wanted 3.0", PLACE)
    refused(cache("pull", PLACE, "--study", other.study, "--cache", other.cache), "recipe.shear")
    refused(other.run("train", "--cache", "s3://no-such-bucket/x", "--stage-to", other.folder / "stage"))
    refused(other.run("train", "--cache", "nonsense://x", "--stage-to", other.folder / "s"), "nonsense")
    refused(other.run("train", "--stage-to", other.folder / "s"), "--stage-to")


def test_damage_in_a_bucket_is_found_there_and_on_the_way(
    home: Home, server: S3, wire: Wire, tmp_path: Path
) -> None:
    push_all(home)
    url = f"{PLACE}/{home.store().name}"
    assert parsed(cache("verify", url, "--json"))["faults"] == []
    key = next(key for key in sorted(server.objects()) if "/tokens/c.1." in key)
    spoiled = bytearray(server.get(key))
    spoiled[50] ^= 1
    server.put(key, bytes(spoiled))
    refused(cache("verify", url), "tile i", f"s3://{key}".replace("s3://lab", PLACE), status=4)
    into = ("--study", home.study, "--cache", tmp_path / "to")
    refused(cache("pull", PLACE, *into), "damaged", "tile i", status=4)
    server.client().delete_object(Bucket=BUCKET, Key=f"lab/{home.store().name}/cache.json")
    listed = parsed(cache("ls", PLACE, "--json"), 4)
    assert [row["encoder"] for row in listed["caches"]] == [None]
    assert home.store().name in listed["faults"][0]


def test_views_of_a_bucket_are_encoded_again_and_compared(home: Home, wire: Wire) -> None:
    push_all(home)
    url = f"{PLACE}/{home.store().name}"
    at = ("--study", home.study, "--runs", home.folder / "runs")
    again = parsed(cache("verify", url, "--sample", "2", *at, "--json"))["sample"]
    assert [row["same"] for row in again["views"]] == [True, True]
    assert parsed(cache("info", url, "--json"))["views_done"] == 39


def test_a_bucket_that_anybody_can_read_gets_only_what_may_be_passed_on(
    home: Home, server: S3, wire: Wire, tmp_path: Path
) -> None:
    kept = small_cache(tmp_path, "mine", {"share": "forbidden", "licence": "CC-BY-NC-ND-4.0"})
    refused(cache("push", kept, PLACE), "forbids passing on", "everybody can list or read", "CC-BY-NC-ND-4.0")
    refused(cache("push", home.store("views"), PLACE), "masks of your data")
    assert server.objects() == {}
    assert cache("push", home.store(), PLACE).exit_code == 0  # its encoder is free
    assert cache("push", kept, PLACE, "--i-have-the-rights").exit_code == 0
    with_masks = Home(tmp_path / "other", home.folder / "data")
    before = server.objects()
    at = ("--cache", PLACE, "--stage-to", tmp_path / "stage")
    refused(with_masks.run("extract", *at), "masks of your data", "frostgrid cache push")
    assert server.objects() == before
    assert not (tmp_path / "stage").exists()


def test_extraction_for_a_place_computes_what_is_neither_here_nor_there(home: Home, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/place"
    first = Home(tmp_path / "first", home.folder / "data")
    at = ("--cache", place, "--stage-to", first.folder / "stage")
    done = first.run("extract", *at)
    assert done.exit_code == 0, done.output
    assert "stain: 9 views encoded, 0 kept" in done.stderr
    assert parsed(cache("ls", place, "--json"))["caches"][0]["views_done"] == 9
    again = first.run("extract", *at)
    assert "stain: 0 views encoded, 9 kept" in again.stderr
    second = Home(tmp_path / "second", home.folder / "data", WIDE)
    at = ("--cache", place, "--stage-to", second.folder / "stage")
    grown = second.run("run", *at)
    assert grown.exit_code == 0, grown.output
    assert "views: 30 drawn, 9 kept" in grown.stderr
    assert "stain: 30 views encoded, 9 kept" in grown.stderr
    assert second.results() == home.results()
    for row in parsed(cache("ls", place, "--json"))["caches"]:
        assert row["views_done"] == 39
        assert cache("verify", f"{place}/{row['cache']}").exit_code == 0
    third = Home(tmp_path / "third", home.folder / "data", WIDE)
    shutil.rmtree(first.folder / "stage")
    last = third.run("run", "--cache", place, "--stage-to", third.folder / "stage")
    assert last.exit_code == 0, last.output
    assert "stain: 0 views encoded, 39 kept" in last.stderr
    assert third.results() == home.results()


def test_extraction_sends_nothing_of_other_studies(home: Home, tmp_path: Path) -> None:
    """Another study's tiles are in the very cache folder that is staged to: same encoder, same recipe."""
    private = Home(tmp_path / "private")
    stage = tmp_path / "stage"
    import numpy as np
    from PIL import Image

    for path in (private.folder / "data/images").iterdir():
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    assert private.run("extract", "--cache", stage).exit_code == 0
    open_study = Home(tmp_path / "open", home.folder / "data")
    place = f"file://{tmp_path}/place"
    assert open_study.run("extract", "--cache", place, "--stage-to", stage).exit_code == 0
    (staged,) = stage.glob("stain-*")
    assert GridStore.open(staged).status().views_done == 18
    for row in parsed(cache("ls", place, "--json"))["caches"]:
        assert row["views_done"] == row["views_planned"] == 9


def test_a_study_file_may_name_a_url_and_is_refused_where_it_cannot_be_one(
    home: Home, tmp_path: Path
) -> None:
    place = f"file://{tmp_path}/place"
    study = write_study(tmp_path, home.study.read_text() + f'\n[cache]\nroot = "{place}"\n', "small")
    at = ("--runs", tmp_path / "runs", "--stage-to", tmp_path / "stage")
    assert frostgrid("extract", study, *at).exit_code == 0
    assert frostgrid("train", study, *at).exit_code == 0
    assert len(list((tmp_path / "place").iterdir())) == 2


def test_a_private_repository_on_a_hub_serves_training(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a local server in the Hub's place, files passing through its older storage (LFS)."""
    with DatasetHub() as hub:
        use_dataset_hub(hub, monkeypatch, tmp_path / "home", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        hub.add(f"{OWNER}/caches", private=True)
        place = f"hf://datasets/{OWNER}/caches"
        sent = cache("push", home.store(), home.store("views"), place, "--quiet")
        assert sent.exit_code == 0, sent.output
        assert {row["views_done"] for row in parsed(cache("ls", place, "--json"))["caches"]} == {39}
        there = Home(tmp_path / "there", home.folder / "data", WIDE)
        trained = there.run("train", "--cache", place, "--stage-to", there.cache)
        assert trained.exit_code == 0, trained.output
        assert there.run("report").exit_code == 0
        assert there.results() == home.results()
        close_session()


def test_a_place_that_is_not_there_is_told_before_anything_is_drawn(
    home: Home, wire: Wire, tmp_path: Path
) -> None:
    there = Home(tmp_path / "there", home.folder / "data")
    at = ("--cache", "s3://no-such-bucket/x", "--stage-to", tmp_path / "stage")
    for command in ("extract", "plan"):
        refused(there.run(command, *at), "no-such-bucket")
    assert not (tmp_path / "stage").exists()


def test_doctor_counts_the_cache_of_a_place(home: Home, wire: Wire) -> None:
    push_all(home)
    looked = frostgrid("doctor", home.study, "--cache", PLACE, "--json")
    row = json.loads(looked.stdout)["study"]["encoders"][0]
    assert (row["cached"], row["views_cached"]) == (f"{PLACE}/{home.store().name}", 39)
    refused(frostgrid("doctor", "--cache", PLACE), "frostgrid cache ls")


def test_only_the_shards_of_the_views_asked_for_are_sent(home: Home, server: S3, wire: Wire) -> None:
    store = GridStore.open(home.store())
    key = store.reader().views()[-1]
    sent = push(store, open_place(PLACE), views=[key])
    assert sent.shards == 1
    (shard,) = [name for name in server.objects() if "/tokens/c." in name]
    part, number = store.reader().shard_of(key)
    assert f"{part}/tokens/c.{number}." in shard
    assert push(store, open_place(PLACE)).shards == store.status().shards_done - 1


def test_extraction_for_a_private_bucket_sends_everything_there(
    home: Home, server: S3, wire: Wire, tmp_path: Path
) -> None:
    wire.strangers_may_list = False
    there = Home(tmp_path / "there", home.folder / "data")
    done = there.run("extract", "--cache", PLACE, "--stage-to", tmp_path / "stage")
    assert done.exit_code == 0, done.output
    rows = parsed(cache("ls", PLACE, "--json"))["caches"]
    assert [row["views_done"] for row in rows] == [9, 9]
    assert not [name for name in server.objects() if "_work" in name]


def test_a_cache_given_by_its_own_url_is_pulled_with_the_masks_beside_it(
    home: Home, wire: Wire, tmp_path: Path
) -> None:
    push_all(home)
    at = ("--study", home.study, "--cache", tmp_path / "to", "--json")
    url = f"{PLACE}/{home.store().name}"
    assert [row["cache"] for row in parsed(cache("pull", url, *at))] == [
        home.store().name,
        home.store("views").name,
    ]
    alone = parsed(cache("pull", f"{PLACE}/{home.store('views').name}", *at))
    assert [row["cache"] for row in alone] == [home.store("views").name]
    other = write_study(tmp_path, home.study.read_text().replace('"stain"', '"pixels"'), "other")
    refused(cache("pull", url, "--study", other, "--cache", tmp_path / "to"), "no encoder", "stain")
    refused(cache("info", PLACE), "one cache is asked for", url)


def test_what_cannot_be_the_name_of_a_bucket_is_refused(wire: Wire) -> None:
    for command in ("ls", "info"):
        refused(cache(command, "s3://Not_A Bucket!/x"), "not the name of a bucket", "3 to 63")


def test_a_listing_that_fails_does_not_speak_of_what_has_arrived(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    ended = cache("ls", PLACE)
    assert ended.exit_code == 1
    assert "does not answer" in ended.stderr and "arrived" not in ended.stderr
