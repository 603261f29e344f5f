"""A data set repository on a Hub as a place: what is sent arrives whole or not at all, and is read as it was listed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dataset_hub import OWNER, TOKEN, DatasetHub, use_dataset_hub
from huggingface_hub import close_session, constants
from huggingface_hub.utils._xet import abort_xet_session

from store.errors import (
    FrostgridError,
    InputError,
    MissingViews,
    StorageError,
)
from store.places.hub import HubPlace

NAME = f"{OWNER}/caches"
URL = f"hf://datasets/{NAME}"
SHARD = hashlib.shake_128(b"shard").digest(150_000)
OTHER = hashlib.shake_128(b"other").digest(70_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DatasetHub]:
    with DatasetHub() as server:
        use_dataset_hub(server, monkeypatch, tmp_path, TOKEN)
        yield server
        close_session()


@pytest.fixture(params=["in one piece", "in parts", "by Xet"])
def transfer(request: pytest.FixtureRequest, hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways in which a large file gets to the Hub; the server asks for one, or hf_xet takes it on itself."""
    if request.param == "in parts":
        hub.part = 40_000
    if request.param == "by Xet":
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        abort_xet_session()
    return str(request.param)


def fetched(place: HubPlace, name: str, start: int = 0) -> bytes:
    blocks: list[bytes] = []
    place.fetch(name, blocks.append, start)
    return b"".join(blocks)


def test_what_is_sent_is_listed_read_and_fetched(hub: DatasetHub, transfer: str, tmp_path: Path) -> None:
    shard = tmp_path / "c.0.0"
    shard.write_bytes(SHARD)
    place = HubPlace(URL)
    assert (place.folders(), place.files("a"), place.read("a/cache.json")) == ([], {}, None)
    assert NAME not in hub.repos
    place.send({"a/cache.json": b"{}", "a/part/c.0.0": shard, "a/part/c.1.0": OTHER, "a/part/done/0": b""})
    assert hub.repos[NAME].private
    assert len(hub.repos[NAME].commits) == 2  # the first is made with the repository
    assert place.folders() == ["a"]
    assert place.files("a") == {
        "cache.json": 2,
        "part/c.0.0": len(SHARD),
        "part/c.1.0": len(OTHER),
        "part/done/0": 0,
    }
    assert place.read("a/cache.json") == b"{}"
    assert place.read("a/part/done/0") == b""
    assert fetched(place, "a/part/c.0.0") == SHARD
    assert fetched(place, "a/part/c.1.0", 12_345) == OTHER[12_345:]
    assert fetched(place, "a/part/c.1.0", len(OTHER)) == b""
    used = {"in one piece": "/storage/put/", "in parts": "/storage/part/", "by Xet": "/storage/v1/xorbs/"}
    assert {way: bool(hub.asked("PUT", part) + hub.asked("POST", part)) for way, part in used.items()} == {
        way: way == transfer for way in used
    }
    to_storage = [known for _, path, known in hub.requests if path.startswith("/storage/")]
    assert to_storage and not any(to_storage)


def test_a_long_listing_is_taken_page_by_page_and_no_file_is_looked_at_by_itself(hub: DatasetHub) -> None:
    hub.add(NAME, {f"{folder}/part/c.{n}": b"x" * n for folder in "ab" for n in range(10)})
    hub.page = 4
    place = HubPlace(URL)
    assert place.folders() == ["a", "b"]
    hub.requests.clear()
    assert place.files("b") == {f"part/c.{n}": n for n in range(10)}
    assert place.files("nowhere") == {}
    assert (hub.asked("GET", "/tree/"), hub.asked("GET", "/resolve/")) == (4, 0)


def test_a_place_may_be_a_folder_of_a_repository_and_a_branch(hub: DatasetHub) -> None:
    repo = hub.add(NAME, {"mine/a/cache.json": b"1", "theirs/b/cache.json": b"2"})
    hub.push(NAME, {"mine/c/cache.json": b"3"}, branch="wip")
    assert HubPlace(f"{URL}/mine").folders() == ["a"]
    wip = HubPlace(f"{URL}@wip/mine/")
    assert wip.url == f"{URL}@wip/mine"
    assert wip.files("c") == {"cache.json": 1}
    assert wip.read("c/cache.json") == b"3"
    wip.send({"c/c.0": SHARD})
    wip.remove(["c/cache.json"])
    assert sorted(repo.commits[repo.branches["wip"]]) == [
        ".gitattributes",
        "mine/a/cache.json",
        "mine/c/c.0",
        "theirs/b/cache.json",
    ]
    assert "mine/c/c.0" not in repo.newest


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/nobody",
        "hf://owner/model",
        "hf://spaces/owner/app",
        "s3://bucket/folder",
        f"{URL}/../other",
        f"{URL}/a//b",
    ],
)
def test_what_is_no_data_set_repository_is_said_at_once(url: str) -> None:
    with pytest.raises(InputError):
        HubPlace(url)


@pytest.mark.parametrize(
    "name", ["../other/c.0", "a/../../c.0", "/etc/passwd", "a//b", "a\\b", "a/.git/config"]
)
def test_no_name_leads_out_of_the_place(hub: DatasetHub, name: str) -> None:
    place = HubPlace(f"{URL}/mine")
    calls: list[Callable[[], object]] = [
        lambda: place.read(name),
        lambda: place.send({name: b""}),
        lambda: place.remove([name]),
        lambda: place.files(name),
    ]
    for call in calls:
        with pytest.raises(InputError, match="no name of a file"):
            call()
    assert hub.requests == []


@pytest.mark.parametrize("rangeless", [False, True])
def test_a_cut_download_is_told_and_taken_up_where_it_was_cut(hub: DatasetHub, rangeless: bool) -> None:
    hub.add(NAME, {"a/c.0": SHARD})
    hub.rangeless = rangeless
    hub.cuts = [("GET", 60_000)]
    place = HubPlace(URL)
    blocks: list[bytes] = []
    with pytest.raises(StorageError, match="connection") as caught:
        place.fetch("a/c.0", blocks.append)
    assert "Run the same command again" in str(caught.value)
    assert b"".join(blocks) == SHARD[:60_000]
    assert fetched(place, "a/c.0", 60_000) == SHARD[60_000:]
    assert hub.ranges == [None, "bytes=60000-"]


def test_a_file_that_is_not_there_is_missing_and_an_error_of_the_reader_is_its_own(hub: DatasetHub) -> None:
    hub.add(NAME, {"a/c.0": SHARD})
    place = HubPlace(URL)
    assert place.read("a/c.1") is None
    with pytest.raises(MissingViews, match=r"a/c\.1"):
        fetched(place, "a/c.1")

    def full(block: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        place.fetch("a/c.0", full)
    assert not isinstance(caught.value, FrostgridError)


def test_what_is_read_belongs_to_the_commit_that_was_listed(hub: DatasetHub) -> None:
    hub.add(NAME, {"a/manifest.json": b"old", "a/c.0": SHARD, "b/cache.json": b"old"})
    place = HubPlace(URL)
    assert place.files("a") == {"manifest.json": 3, "c.0": len(SHARD)}
    hub.push(NAME, {"a/manifest.json": b"newer", "a/c.0": OTHER, "b/cache.json": b"newer"})
    assert place.files("b") == {"cache.json": 5}
    assert (place.read("a/manifest.json"), fetched(place, "a/c.0")) == (b"old", SHARD)
    assert place.read("b/cache.json") == b"newer"
    assert place.files("a") == {"manifest.json": 5, "c.0": len(OTHER)}
    assert (place.read("a/manifest.json"), fetched(place, "a/c.0")) == (b"newer", OTHER)
    place.send({"a/c.1": b"ours"})
    assert place.read("a/c.1") == b"ours"


def test_a_push_in_the_middle_of_ours_is_kept_beside_it(hub: DatasetHub, transfer: str) -> None:
    repo = hub.add(NAME, {"a/cache.json": b"{}"})
    place = HubPlace(URL)
    place.files("a")
    theirs: list[Callable[[], object]] = [
        lambda: hub.push(NAME, {"a/c.1": OTHER}),
        lambda: hub.push(NAME, {"b/c.0": OTHER}),
    ]
    hub.hooks = [("POST", "/commit/", push) for push in theirs]
    place.send({"a/c.0": SHARD})
    assert sorted(repo.newest) == [".gitattributes", "a/c.0", "a/c.1", "a/cache.json", "b/c.0"]
    assert hub.asked("POST", "/commit/") == 3
    uploads = [
        path for method, path, _ in hub.requests if re.search("put/|part/|xorbs/", path) and method != "GET"
    ]
    assert len(uploads) == len(set(uploads))  # nothing is uploaded twice


def test_new_files_never_replace_what_is_there_even_if_it_came_a_moment_ago(
    hub: DatasetHub, tmp_path: Path
) -> None:
    repo = hub.add(NAME, {"a/manifest.json": b"{}", "a/c.0": SHARD})
    (tmp_path / "c.0").write_bytes(SHARD)
    place = HubPlace(URL)
    place.files("a")
    mine = {"a/c.0": tmp_path / "c.0", "a/c.1": SHARD}
    assert place.send(mine, new=True) == []  # c.0 is there with this very content
    commits = len(repo.commits)
    assert place.send(mine, new=True) == []
    assert len(repo.commits) == commits
    assert place.send({"a/c.2": OTHER, "a/c.1": OTHER, "a/c.5": OTHER}, new=True) == [
        "a/c.1",
        "a/c.2",
        "a/c.5",
    ]
    assert len(repo.commits) == commits
    hub.hooks = [("POST", "/commit/", lambda: hub.push(NAME, {"a/manifest.json": b"theirs", "a/c.3": OTHER}))]
    assert place.send({"a/c.3": SHARD}, new=True) == ["a/c.3"]
    assert repo.newest["a/c.3"].content == OTHER
    assert place.read("a/manifest.json") == b"theirs"  # what stood in the way can be looked at
    assert place.send({"a/c.3": SHARD}) == []  # without ``new`` it is replaced
    assert fetched(place, "a/c.3") == SHARD


def test_threads_that_send_at_once_all_arrive(hub: DatasetHub) -> None:
    place = HubPlace(URL)
    place.folders()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: place.send({f"a/c.{n}": SHARD[n:]}), range(8)))
    assert place.files("a") == {f"c.{n}": len(SHARD) - n for n in range(8)}
    assert hub.asked("POST", "/commit/") == 8


def test_a_connection_that_is_cut_in_an_upload_leaves_nothing_to_be_seen(
    hub: DatasetHub, tmp_path: Path
) -> None:
    repo = hub.add(NAME, {"a/cache.json": b"{}"})
    before = dict(repo.branches)
    shards: dict[str, Path | bytes] = {}
    for n in range(3):
        shards[f"a/c.{n}"] = tmp_path / f"c.{n}"
        (tmp_path / f"c.{n}").write_bytes(SHARD[n:])
    place = HubPlace(URL)
    hub.cuts = [
        ("PUT", 50_000)
    ] * 16  # of three files one is cut six times, which is when huggingface_hub gives up
    with pytest.raises(StorageError, match="connection") as caught:
        place.send(shards)
    assert "Run the same command again" in str(caught.value)
    assert (repo.branches, place.files("a")) == (before, {"cache.json": 2})
    hub.cuts.clear()
    kept = set(hub.objects)
    hub.requests.clear()
    place.send(shards)
    assert fetched(place, "a/c.2") == SHARD[2:]
    assert hub.asked("PUT", "/storage/put/") == 3 - len(kept)


def test_an_answer_that_is_lost_after_the_commit_is_found_again(hub: DatasetHub) -> None:
    repo = hub.add(NAME)
    place = HubPlace(URL)
    hub.lost = [("POST", "/commit/")]
    with pytest.raises(StorageError, match="connection"):
        place.send({"a/c.0": SHARD})
    commits = len(repo.commits)
    again = HubPlace(URL)
    assert again.files("a") == {"c.0": len(SHARD)}
    again.send({"a/c.0": SHARD})
    assert len(repo.commits) == commits  # it is there: nothing is committed


@pytest.mark.parametrize("which", ["large", "small", "ignored"])
def test_what_did_not_arrive_as_it_was_sent_is_noticed_and_removed(
    hub: DatasetHub, transfer: str, which: str
) -> None:
    repo = hub.add(NAME, {"a/cache.json": b"{}"})
    files = {"a/c.0": SHARD, "a/done/0.json": b"small"}
    wrong = "a/c.0" if which == "large" else "a/done/0.json"
    if which == "ignored":
        hub.ignored = {wrong}
    else:
        hub.spoil = lambda content: content[:-1] + b"?" if content == files[wrong] else content
    place = HubPlace(URL)
    with pytest.raises(StorageError) as caught:
        place.send(files)
    for part in (f"does not have {wrong} as it was sent", "is not kept", ".gitignore"):
        assert part in str(caught.value)
    assert sorted(repo.newest) == [".gitattributes", "a/cache.json"]
    hub.ignored.clear()
    hub.spoil = bytes
    hub.objects.clear()
    place.send(files)
    assert place.read("a/c.0") == SHARD


def test_files_are_removed_in_one_commit_and_those_not_there_passed_over(hub: DatasetHub) -> None:
    place = HubPlace(URL)
    place.remove(["a/done/0.json"])
    assert NAME not in hub.repos
    repo = hub.add(NAME, {f"a/done/{n}.json": b"x" for n in range(700)} | {"a/c.0": b"x"})
    place.remove([f"a/done/{n}.json" for n in range(900)])
    assert sorted(repo.newest) == [".gitattributes", "a/c.0"]
    assert hub.asked("POST", "/commit/") == 1
    place.remove(["a/done/1.json"])
    assert hub.asked("POST", "/commit/") == 1


def test_a_commit_is_read_but_not_changed(hub: DatasetHub) -> None:
    commit = hub.add(NAME, {"a/c.0": SHARD}).branches["main"]
    hub.push(NAME, {"a/c.0": OTHER})
    place = HubPlace(f"{URL}@{commit}")
    assert (place.files("a"), fetched(place, "a/c.0")) == ({"c.0": len(SHARD)}, SHARD)
    for call in (lambda: place.send({"a/c.1": SHARD}), lambda: place.remove(["a/c.0"])):
        with pytest.raises(InputError, match="commit that is made already"):
            call()


def test_who_can_read_a_place_is_known(hub: DatasetHub) -> None:
    assert HubPlace(URL).public() is False  # not there yet; it will be private
    hub.add(NAME, private=True)
    assert HubPlace(URL).public() is False
    hub.add("colleague/open")
    hub.add("colleague/gated", gated=True)
    assert HubPlace("hf://datasets/colleague/open").public() is True
    assert HubPlace("hf://datasets/colleague/gated").public() is True
    hub.orgs[OWNER] = ["Hospital"]
    assert HubPlace("hf://datasets/hospital/new").public() is False


def test_nothing_is_drawn_on_the_screen(
    hub: DatasetHub, transfer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    HubPlace(URL).send({f"a/c.{n}": SHARD[n:] for n in range(3)})
    assert capfd.readouterr() == ("", "")
