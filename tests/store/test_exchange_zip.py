"""Caches as one zip file: any program unpacks it, and only a whole and harmless one is taken in."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import exchangekit as exchange
import pytest
import storekit as kit

from store import GridSpec, GridStore, verify
from store.documents import decode, encode
from store.errors import (
    DamagedGrid,
    FrostgridError,
    InputError,
    MissingViews,
    StorageError,
    VerificationError,
)
from store.exchange import export_zip, import_zip
from store.places.archive import ZipPlace

ROWS = kit.rows_of(5, 3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("exported")
    tokens, masks = exchange.caches(folder, ROWS)
    export_zip(tokens, folder / "good.zip", beside=[masks])
    return (folder / "good.zip").read_bytes()


@pytest.fixture
def good(memory_path: Path, exported: bytes) -> Path:
    path = memory_path / "good.zip"
    path.write_bytes(exported)
    return path


def test_caches_come_back_file_by_file(memory_path: Path) -> None:
    tokens, masks = exchange.caches(memory_path / "here", ROWS)
    kit.fill(tokens, more := kit.rows_of(7, 2), shard_views=3)
    exchange.draw_masks(masks, more)
    rows = list({row.key: row for row in (*ROWS, *more)}.values())
    path = memory_path / "x.zip"
    counts: list[tuple[int, int]] = []
    done = export_zip(tokens, path, beside=[masks], on_progress=lambda *count: counts.append(count))
    assert (done.views, done.masks, done.bytes) == (len(rows), len(rows), path.stat().st_size)
    assert counts[-1][0] == counts[-1][1] <= done.bytes
    found = import_zip(path, memory_path / "there", on_progress=lambda *count: counts.append(count)).store
    assert found.key == tokens.key and counts[-1][0] == counts[-1][1] > 0
    exchange.expect_both(memory_path / "there", rows)
    for file in (memory_path / "here").rglob("*"):
        copy = memory_path / "there" / file.relative_to(memory_path / "here")
        assert file.is_dir() or copy.read_bytes() == file.read_bytes()
    before = kit.finished(found)
    import_zip(path, memory_path / "there")
    kit.expect_untouched(before, found)
    export_zip(found, memory_path / "y.zip", beside=[GridStore.beside(memory_path / "there", "views")[0]])
    assert (memory_path / "y.zip").read_bytes() == path.read_bytes()


def test_an_int8_cache_keeps_its_stored_bytes(memory_path: Path) -> None:
    spec = GridSpec("tokens", (3, 4, 5), "float16", ("d", "h", "w"), "int8")
    store = GridStore.at(memory_path, "pixels", {"encoding": "int8"}, spec, {}, create=True)
    for task in store.plan(ROWS):
        store.write(task, ((kit.grid_of(row), None) for row in task.rows), max_error=1.0)
    export_zip(store, memory_path / "x.zip")
    found = import_zip(memory_path / "x.zip", memory_path / "there").store
    assert [path.read_bytes() for path in kit.shard_files(found)] == [
        path.read_bytes() for path in kit.shard_files(store)
    ]
    assert verify(found) == [] and found.spec.encoding == "int8"


def test_unpacked_by_another_program_it_is_the_cache(good: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(good), str(tmp_path / "out")], check=True)
    exchange.expect_both(tmp_path / "out", ROWS)
    with zipfile.ZipFile(good) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_only_complete_caches_are_exported_naming_what_is_missing(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    with pytest.raises(InputError, match="it has no part"):
        export_zip(store, tmp_path / "x.zip")
    kit.fill(store, ROWS, limit=2)
    with pytest.raises(
        InputError, match=r"part-\w+ lacks 2 of 4 shards, the first with tile train_3, view 1"
    ):
        export_zip(store, tmp_path / "x.zip")
    kit.fill(store, ROWS)
    shard = kit.shard_files(store)[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(DamagedGrid, match="not what was written") as caught:
        export_zip(store, tmp_path / "x.zip")
    assert str(shard) in str(caught.value)
    shard.unlink()
    with pytest.raises(InputError, match="lacks 1 of 4 shards"):
        export_zip(store, tmp_path / "x.zip")
    assert not list(tmp_path.glob("x.zip*"))
    (tmp_path / "x.zip").write_bytes(b"precious")
    shard.write_bytes(data)
    with pytest.raises(InputError, match="never replaces"):
        export_zip(store, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == b"precious"


def test_a_zip_is_a_place_that_is_read_and_never_written(good: Path) -> None:
    with ZipPlace(good) as place, zipfile.ZipFile(good) as archive:
        assert place.folders() == sorted(place.caches()) and len(place.caches()) == 2
        assert place.caches()[0].startswith("pixels-")
        for folder in place.folders():
            for name, size in place.files(folder).items():
                content = archive.read(f"{folder}/{name}")
                assert place.read(f"{folder}/{name}") == content and size == len(content)
                blocks: list[bytes] = []
                place.fetch(f"{folder}/{name}", blocks.append, start=5)
                assert b"".join(blocks) == content[5:]
        assert place.read("absent") is None and place.public() is None and place.files("absent") == {}
        with pytest.raises(MissingViews):
            place.fetch("absent", print)
        for act in (lambda: place.send({"a": b""}), lambda: place.remove(["a"])):
            with pytest.raises(InputError, match="not changed"):
                act()


def refused(path: Path, words: str, kind: type[FrostgridError] = InputError) -> None:
    root = path.parent / "there"
    with pytest.raises(kind, match=words) as caught:
        import_zip(path, root)
    assert str(path) in str(caught.value) and caught.value.remedy
    assert not root.exists()


Change = Callable[[zipfile.ZipInfo, bytes], list[tuple[zipfile.ZipInfo, bytes]]]


def rewritten(good: Path, change: Change, *more: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    """The archive with each member replaced by what ``change`` makes of it, and ``more`` at its end."""
    path = good.with_name("hostile.zip")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            for new, data in change(info, source.read(info)):
                target.writestr(new, data, new.compress_type)
        for new, data in more:
            target.writestr(new, data)
    return path


def kept(info: zipfile.ZipInfo, data: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    return [(info, data)]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/cron.d/x", "'/etc/cron.d/x' has a name that leads elsewhere"),
        ("../x/y", "leads elsewhere"),
        ("pixels/../../y", "leads elsewhere"),
        ("pixels\\..\\..\\y", "leads elsewhere"),
        ("C:/x", "leads elsewhere"),
        ("C:x/y", "leads elsewhere"),
        (link("pixels/x"), "is a link or a device"),
        ("pixels", "no plain file of a cache"),
        ("pixels/", "no plain file of a cache"),
        ("pixels/./x", "no plain file of a cache"),
        ("pixels//x", "no plain file of a cache"),
        ("pixels/.x", "no plain file of a cache"),
        ("pixels/a b", "no plain file of a cache"),
        ("pixels/a\u202eb", "no plain file of a cache"),
        ("a/b/c/d/e", "no plain file of a cache"),
    ],
)
def test_a_member_that_is_no_file_of_a_cache_is_refused(
    good: Path, name: str | zipfile.ZipInfo, words: str
) -> None:
    refused(rewritten(good, kept, (name, b"x")), words)


def test_a_name_with_a_zero_byte_is_not_cut_short(good: Path) -> None:
    path = rewritten(good, kept, ("pixels/secret+name", b"x"))
    path.write_bytes(path.read_bytes().replace(b"secret+name", b"secret\0name"))
    refused(path, "leads elsewhere")


def test_a_name_that_is_there_twice_is_refused(good: Path) -> None:
    with zipfile.ZipFile(good) as archive:
        name = archive.namelist()[3]
    with pytest.warns(UserWarning, match="Duplicate"):
        path = rewritten(good, kept, (name, b"x"))
    refused(path, "is there twice")
    path.unlink()
    refused(
        rewritten(good, kept, (name.replace("zarr", "ZARR").replace("part.json", "PART.json"), b"x")), "twice"
    )


def test_compressed_and_encrypted_members_are_refused(good: Path) -> None:
    def deflated(info: zipfile.ZipInfo, data: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
        info.compress_type = zipfile.ZIP_DEFLATED if "tokens/c" in info.filename else zipfile.ZIP_STORED
        return [(info, data)]

    refused(rewritten(good, deflated), r"tokens/c.0.0.0.0' is compressed.*and 1 more|is compressed")
    data = bytearray(good.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(signature) + offset
        data[at] |= 1
    path = good.with_name("encrypted.zip")
    path.write_bytes(data)
    refused(path, "is encrypted")


def test_members_that_share_bytes_or_are_called_something_else_inside_are_refused(good: Path) -> None:
    data = bytearray(good.read_bytes())
    first, second = (place + 42 for place in _places(data, b"PK\1\2")[:2])
    path = good.with_name("shared.zip")
    data[second : second + 4] = data[first : first + 4]
    path.write_bytes(data)
    refused(path, "called something else where it lies", VerificationError)
    data = bytearray(good.read_bytes())
    size = _places(data, b"PK\1\2")[0] + 20
    (bytes_,) = struct.unpack_from("<I", data, size)
    for at in (size, size + 4):
        struct.pack_into("<I", data, at, bytes_ + 50)
    path.write_bytes(data)
    refused(path, "share bytes", VerificationError)
    data = bytearray(good.read_bytes())
    struct.pack_into("<H", data, data.find(b"PK\3\4") + 8, zipfile.ZIP_DEFLATED)
    path.write_bytes(data)
    refused(path, "called something else where it lies", VerificationError)


def _places(data: bytes, signature: bytes) -> list[int]:
    places, at = [], -1
    while (at := data.find(signature, at + 1)) >= 0:
        places.append(at)
    return places


def test_what_no_manifest_names_is_refused_and_so_is_what_is_missing(good: Path) -> None:
    with ZipPlace(good) as place:
        folder = place.caches()[0]
        part = next(name for name in place.files(folder) if name.endswith("part.json")).partition("/")[0]
    for extra in ("readme.txt", f"{part}/tokens/c.9.0.0.0", f"{part}/_work", "part-00000000/zarr.json"):
        if not extra.endswith("_work"):
            refused(
                rewritten(good, kept, (f"{folder}/{extra}", b"x")),
                f"holds '{extra}', which no manifest names",
                VerificationError,
            )
    refused(
        rewritten(good, kept, ("other-000000000000/cache.json", b"{}")),
        "other-000000000000",
        VerificationError,
    )
    refused(rewritten(good, kept, ("other-000000000000/x", b"{}")), "no cache here")

    def without(name: str) -> Path:
        return rewritten(
            good, lambda info, data: [] if info.filename == f"{folder}/{name}" else [(info, data)]
        )

    refused(without(f"{part}/tokens/c.1.0.0.0"), "lacks 'part-.*/tokens/c.1.0.0.0'", VerificationError)
    refused(without("zarr.json"), "lacks 'zarr.json'", VerificationError)
    refused(without(f"{part}/aug/c.0"), "lacks 'part-.*/aug/c.0'", VerificationError)
    refused(without(f"{part}/manifest.json"), "has no manifest, so it is not complete", VerificationError)
    refused(without(f"{part}/part.json"), "lost its table of views", VerificationError)
    refused(without("cache.json"), "no cache here")


def test_what_differs_from_its_manifest_is_refused_before_anything_is_written(good: Path) -> None:
    def changed(ending: str, act: Callable[[bytes], bytes]) -> Path:
        def change(info: zipfile.ZipInfo, data: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
            return [(info, act(data) if info.filename.endswith(ending) else data)]

        return rewritten(good, change)

    def flipped(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    shard = "tokens/c.0.0.0.0"
    refused(changed(shard, lambda data: data + b"x"), r"has \d+ bytes, its manifest says", VerificationError)
    refused(changed(shard, lambda data: b""), "has 0 bytes, its manifest says", VerificationError)
    refused(changed("tile/c.0", flipped), "tile/c.0' is not what its manifest says", VerificationError)
    refused(
        changed("tokens/zarr.json", lambda data: data[:-1] + b"]"),
        "not what its manifest says",
        VerificationError,
    )
    refused(changed("manifest.json", flipped), "JSON|digest|manifest", VerificationError)
    refused(
        changed("part.json", lambda data: data.replace(b"train_1", b"train_9")), "digest", VerificationError
    )
    refused(
        changed("cache.json", lambda data: data.replace(b'"flip"', b'"flop"')), "digest", VerificationError
    )
    refused(
        changed("cache.json", lambda data: kit.signed(data.replace(b'"flip"', b'"flop"'))),
        "identity",
        VerificationError,
    )
    refused(
        changed(
            "cache.json", lambda data: kit.signed(data.replace(b'"slug": "pixels"', b'"slug": "../../x"'))
        ),
        "no name of a cache",
        VerificationError,
    )
    refused(
        changed(
            "cache.json", lambda data: kit.signed(data.replace(b'"slug": "pixels"', b'"slug": "others"'))
        ),
        "holds the cache others-",
        VerificationError,
    )
    refused(
        changed("cache.json", lambda data: data.replace(b"frostgrid-cache/1", b"frostgrid-cache/9")),
        "newer than this",
    )

    def listing_more(data: bytes) -> bytes:
        body = decode("manifest", 1, data, Path(), "")
        return encode(
            "manifest", 1, {**body, "files": {**body["files"], "../../x": {"bytes": 1, "sha256": "0"}}}
        )

    refused(changed("manifest.json", listing_more), "lists other files than the part has", VerificationError)

    def listing_nothing(data: bytes) -> bytes:
        return encode("manifest", 1, {**decode("manifest", 1, data, Path(), ""), "files": [1]})

    refused(changed("manifest.json", listing_nothing), "manifest.json is incomplete", VerificationError)


def test_every_cut_and_flipped_bit_is_found(good: Path) -> None:
    data = good.read_bytes()
    for length in (0, 1, 21, 22, 1000, len(data) // 2, len(data) - 30, len(data) - 1):
        good.write_bytes(data[:length])
        refused(good, "no zip, or is cut or damaged", VerificationError)
    found = 0
    for place in range(3, len(data), len(data) // 250):
        root = good.parent / f"at {place}"
        good.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            import_zip(good, root)
        except (VerificationError, InputError) as error:
            found += 1
            assert str(good) in str(error)
        else:
            exchange.expect_both(root, ROWS)  # a date, or the right of a file
        shutil.rmtree(root, ignore_errors=True)
    assert found > 150


def test_a_damaged_shard_is_named_by_tile_and_view_and_never_stored(good: Path) -> None:
    data = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("tokens/c.1.0.0.0"))
    at = info.header_offset + 30 + len(info.filename) + 40
    good.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    with pytest.raises(DamagedGrid, match="train_4, view 0"):
        import_zip(good, good.parent / "there")
    (store,) = GridStore.beside(good.parent / "there", "pixels")
    assert store.status().shards_done == 3 and not store.reader()._parts[0].sealed()
    good.write_bytes(data)
    import_zip(good, good.parent / "there")
    exchange.expect_both(good.parent / "there", ROWS)


def test_files_that_are_something_else_are_named_as_such(tmp_path: Path) -> None:
    refused(tmp_path / "absent.zip", "There is no such file")
    (tmp_path / "text.zip").write_text("hello")
    refused(tmp_path / "text.zip", "no zip", VerificationError)
    (tmp_path / "empty.zip").write_bytes(_empty())
    refused(tmp_path / "empty.zip", "The archive is empty")
    (tmp_path / "folder.zip").mkdir()
    refused(tmp_path / "folder.zip", "no zip", VerificationError)


def _empty() -> bytes:
    with io.BytesIO() as file:
        zipfile.ZipFile(file, "w").close()
        return file.getvalue()


@pytest.mark.parametrize("stride", [29, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_exports_leave_nothing_and_killed_imports_are_resumed(memory_path: Path, stride: int) -> None:
    rows = kit.rows_of(5, 2)
    tokens, masks = exchange.caches(memory_path / "here", rows)
    file = memory_path / "x.zip"

    def export_killed_after(calls: int) -> bool:
        progress = exchange.killing_after(calls)
        return exchange.died(lambda: export_zip(tokens, file, beside=[masks], on_progress=progress))

    calls = 1
    while export_killed_after(calls):
        assert not file.exists()
        calls += 5
    assert calls > 20
    assert not list(memory_path.glob("*.partial"))
    exchange.expect_killed_imports_are_resumed(
        lambda root: import_zip(file, root, threads=1), memory_path, rows, stride=stride
    )


def test_a_full_disk_is_noticed_before_and_survived_while_writing(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    big = GridSpec("tokens", (16, 32, 32), "float16", ("d", "h", "w"))
    rows = kit.rows_of(12, 4)
    store = kit.store_at(tmp_path, big)
    kit.fill(store, rows)
    export_zip(store, tmp_path / "x.zip")
    disk = small_disk("size=1m")
    with pytest.raises(StorageError, match=r"not enough room: 1\.\d MB are needed"):
        export_zip(store, disk / "x.zip")
    with pytest.raises(StorageError, match=r"not enough room: 1\.\d MB are needed"):
        import_zip(tmp_path / "x.zip", disk / "root")
    assert list(disk.iterdir()) == []
    small_disk("size=3m")
    filler = disk / "filler"

    def fill_up(done: int, total: int) -> None:
        if not filler.exists() and done > total // 2:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    with pytest.raises(StorageError, match="disk is full"):
        export_zip(store, disk / "x.zip", on_progress=fill_up)
    assert [path.name for path in disk.iterdir()] == ["filler"]
    filler.unlink()
    with pytest.raises(StorageError, match="disk is full"):
        import_zip(tmp_path / "x.zip", disk / "root", threads=1, on_progress=fill_up)
    there = kit.store_at(disk / "root", big)
    before = kit.finished(there)
    assert 0 < len(before) < 12
    filler.unlink()
    import_zip(tmp_path / "x.zip", disk / "root")
    kit.expect_untouched(before, there)
    kit.expect_all(there, rows)


def test_no_file_outside_of_a_cache_is_put_into_an_archive_whatever_its_manifest_names(
    tmp_path: Path,
) -> None:
    tokens, _ = exchange.caches(tmp_path / "here", ROWS)
    (tmp_path / "secret").write_bytes(b"secret")
    (manifest,) = tokens.path.glob("part-*/manifest.json")
    body = decode("manifest", 1, manifest.read_bytes(), manifest, "")
    body["files"]["../../../secret"] = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    manifest.write_bytes(encode("manifest", 1, body))
    with pytest.raises(VerificationError, match="lists other files than the part has"):
        export_zip(GridStore.open(tokens.path), tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
