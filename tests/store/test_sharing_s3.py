"""Caches in a bucket: pushed, cut off, pushed on, listed, pulled elsewhere, damaged, refused."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server
import sharing_kit
import storekit as kit
from s3_server import BUCKET, S3, Wire

from store import verify
from store.errors import AccessError, DamagedGrid, InputError, MissingViews, StorageError
from store.places import arrival, fsspec_place, open_place
from store.sharing import offers, pull, push, verify_at

URL = f"s3://{BUCKET}/team/caches"
ROWS = kit.rows_of(6, 4)  # six shards of four


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server.s3_server() as running:
        yield running


@pytest.fixture
def wire(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the libraries' own patience is not what is tested
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with s3_server.bucket(server) as wire:
        yield wire


def _shards(keys: dict[str, int]) -> list[str]:
    return sorted(key for key in keys if "/tokens/c." in key)


def test_a_cache_goes_through_a_bucket_to_another_root_byte_for_byte(
    server: S3, wire: Wire, tmp_path: Path
) -> None:
    home = sharing_kit.made(tmp_path / "home", ROWS)
    seen: list[tuple[int, int]] = []
    pushed = push(home, open_place(URL), on_progress=lambda done, total: seen.append((done, total)))
    size = home.status().bytes
    assert (pushed.shards, pushed.bytes, pushed.kept) == (6, size, 0)
    assert seen[0] == (0, size) and seen[-1] == (size, size) and seen == sorted(seen)
    names = {key.removeprefix(f"team/caches/{home.path.name}/") for key in server.objects()}
    assert names == sharing_kit.contents(home.path).keys()  # and no marker is left
    wire.mend()
    offer = sharing_kit.only_offer(URL)
    assert (
        len(wire.requests) == 5
    )  # folders, files, cache.json, part.json, manifest.json: no shard is asked for
    assert (
        offer.status == home.status() and offer.identity == home.identity and offer.folder == home.path.name
    )
    assert verify_at(offer) == []
    seen.clear()
    pulled = pull(offer, tmp_path / "away", on_progress=lambda done, total: seen.append((done, total)))
    assert (pulled.shards, pulled.bytes, pulled.kept) == (6, size, 0) and seen[-1] == (size, size)
    away = sharing_kit.expect_copy(pulled, ROWS)
    assert sharing_kit.contents(away.path) == sharing_kit.contents(home.path)
    again = pull(offer, tmp_path / "away")
    assert (again.shards, again.kept) == (0, 6)
    server.client().delete_object(
        Bucket=BUCKET, Key=f"team/caches/{home.path.name}/{offer.parts[0].part.name}/manifest.json"
    )
    wire.mend()
    push(home, open_place(URL))  # as after a push that was cut off between shards and markers
    assert not wire.counted("PUT", "/tokens/c.") and sharing_kit.only_offer(URL).parts[0].sealed


def test_a_push_that_was_cut_off_is_not_whole_and_the_next_one_sends_only_the_rest(
    server: S3, wire: Wire, tmp_path: Path
) -> None:
    home = sharing_kit.made(tmp_path / "home", ROWS, spec=sharing_kit.BIG)
    wire.budget = 600_000  # of six shards of 130 kB
    with pytest.raises(StorageError, match=r"run the same command again") as caught:
        push(home, open_place(URL), threads=2)
    assert "a-secret" not in str(caught.value) and wire.cuts
    wire.mend()
    half = sharing_kit.only_offer(URL)
    done = half.status.shards_done
    assert 1 <= done < 6 and not half.parts[0].sealed
    part = pull(half, tmp_path / "early").store
    assert part.status().shards_done == done and not part.reader()._parts[0].sealed() and verify(part) == []
    whole_objects = len(_shards(server.objects()))
    wire.mend()
    pushed = push(home, open_place(URL))
    assert pushed.kept == done and pushed.shards == 6 - done
    assert wire.counted("PUT", "/tokens/c.") == 6 - whole_objects  # one that had lost its marker only is kept
    offer = sharing_kit.only_offer(URL)
    assert offer.parts[0].sealed and not any("_work" in key for key in server.objects())
    sharing_kit.expect_copy(pull(offer, tmp_path / "away"), ROWS)
    wire.mend()
    sharing_kit.expect_copy(pull(offer, tmp_path / "early"), ROWS)  # the early bird fetches only the rest
    assert wire.counted("GET", "/tokens/c.") == 6 - done


def test_a_shard_comes_and_goes_in_parts_and_goes_on_where_a_connection_broke(
    server: S3, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (arrival, fsspec_place):
        monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
        monkeypatch.setattr(module, "BLOCK_BYTES", 5 << 20 if module is arrival else 1 << 20)
    spec = kit.GridSpec("tokens", (64, 128, 128), "float16", ("d", "h", "w"))  # 2 MB a view
    rows = kit.rows_of(8, 1)
    home = kit.store_at(tmp_path / "home", spec)
    kit.fill(home, rows, shard_views=8)
    push(home, open_place(URL))
    assert wire.counted("PUT", "partNumber=") == 4  # 16 MB in parts of 5 MB
    offer = sharing_kit.only_offer(URL)
    wire.mend()
    wire.direction, wire.budget, wire.cut_for_good = "down", 5_500_000, False
    pulled = pull(offer, tmp_path / "away", threads=1)
    sharing_kit.expect_copy(pulled, rows)
    pieces = -(-home.status().bytes // (1 << 20))
    assert wire.cuts == 1
    assert wire.counted("GET", "/tokens/c.") == pieces + 1  # only the piece that was cut comes twice


def test_a_pull_without_a_connection_says_what_is_kept(wire: Wire, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("store.sharing.arriving._FIRST_PAUSE_S", 0.01)
    home = sharing_kit.made(tmp_path / "home", ROWS, spec=sharing_kit.BIG)
    push(home, open_place(URL))
    offer = sharing_kit.only_offer(URL)
    wire.direction, wire.budget = "down", 400_000
    with pytest.raises(StorageError, match=r"Finished shards are kept. Run the same command again"):
        pull(offer, tmp_path / "away", threads=1)
    away = sharing_kit.GridStore.open(tmp_path / "away" / home.path.name)
    done = away.status().shards_done
    assert 1 <= done < 6 and verify(away) == [] and not list(away.path.rglob("*.partial"))
    wire.mend()
    rest = pull(offer, tmp_path / "away")
    assert (rest.shards, rest.kept) == (6 - done, done)
    sharing_kit.expect_copy(rest, ROWS)


def test_damage_in_a_bucket_is_refused_and_named_and_all_the_rest_arrives(
    server: S3, wire: Wire, tmp_path: Path
) -> None:
    home = sharing_kit.made(tmp_path / "home", ROWS)
    push(home, open_place(URL))
    flipped, cut, gone = (_shards(server.objects())[n] for n in (0, 2, 4))
    good = {key: server.get(key) for key in (flipped, cut, gone)}
    server.put(flipped, sharing_kit.flip(good[flipped], 300))
    offer = sharing_kit.only_offer(URL)
    server.put(cut, good[cut][:-1])
    server.client().delete_object(Bucket=BUCKET, Key=gone)
    with pytest.raises(DamagedGrid, match=r"2 more like it") as caught:
        pull(offer, tmp_path / "away", threads=1)
    assert f"s3://{BUCKET}/{flipped}" in str(caught.value)
    assert "tile train_2, view 0 is" in str(caught.value) and "train_1" not in str(caught.value)
    away = sharing_kit.GridStore.open(tmp_path / "away" / home.path.name)
    assert away.status().shards_done == 3 and verify(away) == [] and not list(away.path.rglob("*.partial"))
    sentences = "\n".join(verify_at(offer))
    assert len(verify_at(offer)) == 3
    assert (
        all(f"s3://{BUCKET}/{key}" in sentences for key in (flipped, cut, gone)) and "/tmp" not in sentences
    )
    # What is lacking in the listing is not even offered.
    assert sharing_kit.only_offer(URL).status.shards_done == 4
    # A push from where it is whole mends what is lost or cut; a flipped bit shows only to those who read it.
    mended = push(home, open_place(URL))
    assert (mended.shards, mended.kept) == (2, 4)
    server.put(flipped, good[flipped])
    sharing_kit.expect_copy(pull(sharing_kit.only_offer(URL), tmp_path / "away"), ROWS)


def test_two_who_push_other_bytes_of_one_cache_end_in_one_whole_cache(wire: Wire, tmp_path: Path) -> None:
    homes = [
        sharing_kit.made(tmp_path / name, ROWS, salt=salt) for name, salt in (("a", ""), ("b", "another GPU"))
    ]
    both = [sharing_kit.start_copier("push", home.path, URL) for home in homes]
    for process in both:
        sharing_kit.let_go(process)
    sent = [sharing_kit.finish(process)["shards"] for process in both]
    assert sum(sent) == 6
    offer = sharing_kit.only_offer(URL)
    assert offer.parts[0].sealed and verify_at(offer) == []
    away = pull(offer, tmp_path / "away").store
    assert verify(away) == [] and away.status().views_done == len(ROWS)
    makers = {shard: _maker(away, shard) for shard in range(6)}
    assert [list(makers.values()).count(salt) for salt in ("", "another GPU")] == sent
    third = push(sharing_kit.made(tmp_path / "c", ROWS, salt="a third"), open_place(URL))
    assert (third.shards, third.kept) == (0, 6)


def _maker(store, shard: int) -> str:
    """Whose grids a shard of the only part holds."""
    (part,) = store.reader()._parts
    rows = part.shard_rows(shard)
    for salt in ("", "another GPU"):
        if all(
            store.reader().read(row.key).tobytes() == kit.grid_of(row, store.spec, salt).tobytes()
            for row in rows
        ):
            return salt
    raise AssertionError(f"shard {shard} is nobody's")


def test_two_pulls_at_once_fetch_each_shard_once(wire: Wire, tmp_path: Path) -> None:
    rows = kit.rows_of(16, 4)
    push(sharing_kit.made(tmp_path / "home", rows, spec=sharing_kit.BIG), open_place(URL))
    wire.mend()
    both = [sharing_kit.start_copier("pull", URL, tmp_path / "away") for _ in range(2)]
    for process in both:
        sharing_kit.let_go(process)
    assert sum(sharing_kit.finish(process)["shards"] for process in both) == 16
    assert wire.counted("GET", "/tokens/c.") == 16
    copied = pull(sharing_kit.only_offer(URL), tmp_path / "away")
    assert copied.shards == 0
    sharing_kit.expect_copy(copied, rows)


def test_a_bucket_that_is_not_there_or_not_ours_is_told_in_words(
    server: S3, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = sharing_kit.made(tmp_path, ROWS)
    nowhere = open_place("s3://no-such-bucket-here/x")
    for act in (lambda: offers(nowhere), lambda: push(home, nowhere)):
        with pytest.raises(InputError, match=r"no bucket of this name \[s3://no-such-bucket-here/x"):
            act()
    with pytest.raises(InputError, match="names no bucket"):
        open_place("s3://")
    push(home, open_place(URL))
    assert open_place(URL).public() is True  # anybody may list this bucket
    wire.strangers_may_list = False
    assert open_place(URL).public() is False
    for key in server.objects():
        server.client().put_object_acl(Bucket=BUCKET, Key=key, ACL="public-read")
    assert (
        open_place(URL).public() is True
    )  # not listed, but everything in it is read by whoever knows the name
    _ask_for_rights(server, True)
    try:
        with pytest.raises(AccessError, match=r"InvalidAccessKeyId.*AWS_PROFILE") as caught:
            offers(open_place(URL))
        assert "a-secret" not in str(caught.value)
        with pytest.raises(AccessError):
            push(home, open_place(URL))
    finally:
        _ask_for_rights(server, False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(AccessError, match=r"no usable credentials.*Set AWS_ACCESS_KEY_ID"):
        offers(open_place(URL))


def _ask_for_rights(server: S3, wanted: bool) -> None:
    free = b"0" if wanted else b"inf"
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server.endpoint}/moto-api/reset-auth", data=free, headers=headers)
    urllib.request.urlopen(request).close()


def test_a_server_that_does_not_answer_is_told_in_words(wire: Wire) -> None:
    wire.budget = 0
    with pytest.raises(StorageError, match=r"does not answer as it should.*Check the network"):
        offers(open_place(URL))


def test_without_its_package_a_bucket_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['s3fs'] = None; from store.places import open_place; open_place('s3://b/x')"
    )
    done = subprocess.run(
        [kit.sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(kit.REPOSITORY)},
    )
    assert 'pip install "frostgrid[s3]"' in done.stderr.splitlines()[-1]


def test_what_is_read_beyond_a_listing_is_missing_by_name(wire: Wire) -> None:
    place = open_place(URL)
    assert place.read("nothing/here") is None and place.files("nothing") == {} and place.folders() == []
    with pytest.raises(MissingViews, match="nothing/here"):
        place.fetch("nothing/here", lambda block: None)
    place.remove(["nothing/here"])
