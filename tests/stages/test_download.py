from __future__ import annotations

import hashlib
import http.server
import io
import json
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from stages.tiles import fetch
from stages.tiles.download import RECEIPT, PumaDownload, get_puma
from stages.tiles.puma import ROI_FOLDER, TISSUE_FOLDER, PumaDataset
from store.errors import AccessError, FrostgridError, InputError, StorageError, VerificationError

ROI_ZIP, TISSUE_ZIP = f"{ROI_FOLDER}.zip", f"{TISSUE_FOLDER}.zip"
IDS = ("training_set_metastatic_roi_001", "training_set_primary_roi_001")


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def region(seed: int) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(
        out, np.random.default_rng(seed).integers(0, 256, (64, 64, 4), np.uint8), photometric="rgb"
    )
    return out.getvalue()


def tissue() -> bytes:
    ring = [[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tissue_tumor"}},
    }
    return json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()


def archives() -> dict[str, bytes]:
    return {
        ROI_ZIP: zipped({f"{ROI_FOLDER}/{id}.tif": region(n) for n, id in enumerate(IDS)}),
        TISSUE_ZIP: zipped({f"{id}_tissue.geojson": tissue() for id in IDS}),
        "01_training_dataset_tif_context_ROIs.zip": b"not wanted",
        "01_training_dataset_geojson_nuclei.zip": b"not wanted",
    }


class Zenodo(http.server.ThreadingHTTPServer):
    """A record and its files over real HTTP, with the faults that a test asks for."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.record = {
            "files": [
                {"key": name, "size": len(data), "checksum": f"md5:{hashlib.md5(data).hexdigest()}"}
                for name, data in files.items()
            ]
        }
        self.cut_after: dict[str, list[int]] = {}  # bytes to send before hanging up, one entry a request
        self.status: dict[str, list[int]] = {}  # to answer instead, one entry a request
        self.ignore_range = False
        self.wrong_range = False
        self.asked: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def requests_of(self, name: str) -> list[str | None]:
        return [sent for asked, sent in self.asked if asked == name]


class Answer(http.server.BaseHTTPRequestHandler):
    server: Zenodo

    def do_GET(self) -> None:
        name = "record" if self.path == "/api/records/14869398" else self.path.split("/")[-2]
        sent = self.headers.get("Range")
        self.server.asked.append((name, sent))
        if self.server.status.get(name):
            self.send_error(self.server.status[name].pop(0))
            return
        if name == "record":
            data = self.server.record
            self.reply(200, data if isinstance(data, bytes) else json.dumps(data).encode(), "record")
            return
        data = self.server.files[name]
        if sent and not self.server.ignore_range:
            start = int(sent.removeprefix("bytes=").removesuffix("-"))
            claimed = 0 if self.server.wrong_range else start
            self.reply(206, data[start:], name, f"bytes {claimed}-{len(data) - 1}/{len(data)}")
        else:
            self.reply(200, data, name)

    def reply(self, status: int, data: bytes, name: str, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        cuts = self.server.cut_after.get(name)
        self.wfile.write(data[: cuts.pop(0)] if cuts else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def zenodo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zenodo]:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.001)
    server = Zenodo(archives())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def assert_complete(root: Path, download: PumaDownload) -> None:
    assert download.files == {ROI_FOLDER: 2, TISSUE_FOLDER: 2}
    classes = {
        "Tumour": ["tissue_tumor"],
        "Other": [name for name in PumaDataset.labels if name != "tissue_tumor"],
    }
    dataset = PumaDataset(root, classes)
    assert tuple(record.id for record in dataset.records()) == IDS
    assert all((dataset.read_mask(record) == 0).all() for record in dataset.records())
    left = sorted(path.name for path in root.iterdir())
    assert left == sorted([RECEIPT, ROI_FOLDER, TISSUE_FOLDER])
    assert not list(root.rglob("*.part"))


def test_the_two_archives_are_brought_checked_and_unpacked(tmp_path: Path, zenodo: Zenodo) -> None:
    told: list[tuple[str, int, int]] = []
    download = get_puma(tmp_path / "puma", base_url=zenodo.url, progress=lambda *what: told.append(what))
    assert download.source == "zenodo"
    assert_complete(tmp_path / "puma", download)
    assert {name for name, _ in zenodo.asked} == {"record", ROI_ZIP, TISSUE_ZIP}
    assert told[-1] == (TISSUE_ZIP, len(zenodo.files[TISSUE_ZIP]), len(zenodo.files[TISSUE_ZIP]))


def test_a_second_call_asks_for_nothing_even_without_network(tmp_path: Path, zenodo: Zenodo) -> None:
    get_puma(tmp_path, base_url=zenodo.url)
    zenodo.asked.clear()
    again = get_puma(tmp_path, base_url=zenodo.url)
    assert again.source == "present"
    assert again.files == {ROI_FOLDER: 2, TISSUE_FOLDER: 2}
    assert zenodo.asked == []


def test_a_file_that_went_missing_is_brought_again_and_the_others_are_kept(
    tmp_path: Path, zenodo: Zenodo
) -> None:
    get_puma(tmp_path, base_url=zenodo.url)
    gone, kept = tmp_path / ROI_FOLDER / f"{IDS[0]}.tif", tmp_path / ROI_FOLDER / f"{IDS[1]}.tif"
    gone.unlink()
    before = kept.stat().st_mtime_ns
    assert_complete(tmp_path, get_puma(tmp_path, base_url=zenodo.url))
    assert kept.stat().st_mtime_ns == before


def test_a_cut_connection_is_resumed_where_it_broke(tmp_path: Path, zenodo: Zenodo) -> None:
    zenodo.cut_after[ROI_ZIP] = [9000, 500]
    assert_complete(tmp_path, get_puma(tmp_path, base_url=zenodo.url))
    assert zenodo.requests_of(ROI_ZIP) == [None, "bytes=9000-", "bytes=9500-"]


def test_a_server_that_cannot_resume_is_asked_for_the_whole_again(tmp_path: Path, zenodo: Zenodo) -> None:
    zenodo.cut_after[ROI_ZIP] = [9000]
    zenodo.ignore_range = True
    assert_complete(tmp_path, get_puma(tmp_path, base_url=zenodo.url))


def test_a_download_that_broke_off_for_good_goes_on_in_the_next_call(tmp_path: Path, zenodo: Zenodo) -> None:
    zenodo.cut_after[ROI_ZIP] = [7000] + [0] * 20
    with pytest.raises(AccessError, match="broke off") as caught:
        get_puma(tmp_path, base_url=zenodo.url)
    assert "10.5281/zenodo.14869398" in str(caught.value)
    assert (tmp_path / f"{ROI_ZIP}.part").stat().st_size == 7000
    assert not (tmp_path / ROI_ZIP).exists()
    zenodo.cut_after.clear()
    zenodo.asked.clear()
    assert_complete(tmp_path, get_puma(tmp_path, base_url=zenodo.url))
    assert zenodo.requests_of(ROI_ZIP) == ["bytes=7000-"]


def test_wrong_bytes_are_refused_and_removed(tmp_path: Path, zenodo: Zenodo) -> None:
    good = zenodo.files[ROI_ZIP]
    zenodo.files[ROI_ZIP] = bytes([good[0] ^ 1]) + good[1:]
    with pytest.raises(VerificationError, match="checksum differs"):
        get_puma(tmp_path, base_url=zenodo.url)
    assert list(tmp_path.iterdir()) == []
    zenodo.files[ROI_ZIP] = good
    assert_complete(tmp_path, get_puma(tmp_path, base_url=zenodo.url))


def test_too_many_bytes_and_a_wrong_range_are_refused(tmp_path: Path, zenodo: Zenodo) -> None:
    zenodo.files[ROI_ZIP] += b"more"
    with pytest.raises(VerificationError, match="sends more than"):
        get_puma(tmp_path / "a", base_url=zenodo.url)
    zenodo.cut_after[ROI_ZIP] = [1000]
    zenodo.wrong_range = True
    with pytest.raises(VerificationError, match="not at byte 1000"):
        get_puma(tmp_path / "b", base_url=zenodo.url)


def test_a_busy_server_is_asked_again(tmp_path: Path, zenodo: Zenodo) -> None:
    zenodo.status = {"record": [503, 429], ROI_ZIP: [502, 500]}
    assert_complete(tmp_path, get_puma(tmp_path, base_url=zenodo.url))


@pytest.mark.parametrize(
    ("what", "status", "error", "said"),
    [
        ("record", 404, InputError, "HTTP 404"),
        (ROI_ZIP, 404, InputError, "HTTP 404"),
        ("record", 403, AccessError, "HTTP 403.*by hand"),
        (ROI_ZIP, 401, AccessError, "HTTP 401.*by hand"),
        ("record", 503, AccessError, "cannot be reached.*by hand"),
    ],
)
def test_a_refusal_is_explained(tmp_path: Path, zenodo: Zenodo, what, status, error, said) -> None:
    zenodo.status = {what: [status] * 20}
    with pytest.raises(error, match=said):
        get_puma(tmp_path, base_url=zenodo.url)
    asked = len(zenodo.requests_of(what))
    assert asked == (5 if status == 503 else 1)


def offline() -> str:
    """Return an address at which nobody listens."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    server.server_close()
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(AccessError) as caught:
        get_puma(tmp_path / "puma", base_url=offline())
    text = str(caught.value)
    for part in (ROI_ZIP, TISSUE_ZIP, "https://doi.org/10.5281/zenodo.14869398", str(tmp_path / "puma")):
        assert part in text


def test_archives_fetched_by_hand_are_unpacked_offline_and_kept(tmp_path: Path) -> None:
    for name in (ROI_ZIP, TISSUE_ZIP):
        (tmp_path / name).write_bytes(archives()[name])
    download = get_puma(tmp_path, base_url=offline())
    assert download.source == "archives"
    assert download.files == {ROI_FOLDER: 2, TISSUE_FOLDER: 2}
    assert (tmp_path / ROI_ZIP).exists()


def test_an_archive_put_there_is_used_if_it_is_the_records_and_refused_if_not(
    tmp_path: Path, zenodo: Zenodo
) -> None:
    (tmp_path / ROI_ZIP).write_bytes(zenodo.files[ROI_ZIP])
    assert get_puma(tmp_path, base_url=zenodo.url).files[ROI_FOLDER] == 2
    assert zenodo.requests_of(ROI_ZIP) == []
    assert (tmp_path / ROI_ZIP).exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / ROI_ZIP).write_bytes(b"something else")
    with pytest.raises(VerificationError, match="not the record's"):
        get_puma(other, base_url=zenodo.url)
    assert (other / ROI_ZIP).read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"files": []}, "no files like 01_training_dataset_tif_ROIs.zip; it has none"),
        ({"files": [{"key": "renamed.zip"}]}, "it has renamed.zip"),
        ({"files": [{"key": "a_tif_ROIs.zip"}, {"key": "b_tif_ROIs.zip"}]}, "has 2 files like"),
        ({"files": [{"key": ROI_ZIP, "size": 3, "checksum": "sha1:00"}]}, "checksum 'sha1:00'"),
        ({"files": [{"key": ROI_ZIP, "size": -3, "checksum": f"md5:{'0' * 32}"}]}, "size -3"),
        ({"files": [{"key": f"../{ROI_ZIP}", "size": 3, "checksum": f"md5:{'0' * 32}"}]}, "names a file"),
        (b"<html>log in</html>", "did not answer with JSON"),
        ([1], "it has none"),
    ],
)
def test_a_record_that_is_not_as_expected_says_what_was_found(
    tmp_path: Path, zenodo: Zenodo, record, said
) -> None:
    zenodo.record = record
    with pytest.raises(InputError, match=said):
        get_puma(tmp_path, base_url=zenodo.url)


def test_a_full_disk_is_noticed_before_the_download(tmp_path: Path, zenodo: Zenodo, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match="are needed"):
        get_puma(tmp_path, base_url=zenodo.url)
    assert zenodo.requests_of(ROI_ZIP) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, zenodo: Zenodo) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be made"):
        get_puma(tmp_path / "file" / "puma", base_url=zenodo.url)
    (tmp_path / f"{ROI_ZIP}.part").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        get_puma(tmp_path, base_url=zenodo.url)


def linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        member = zipfile.ZipInfo(f"{IDS[0]}.tif")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    return out.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped({f"{IDS[0]}.tif": b"x"}))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    return bytes(data)


def damaged() -> bytes:
    data = bytearray(zipped({f"{IDS[0]}.tif": region(0)}))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (linked(), InputError, "is a link"),
        (encrypted(), InputError, "is encrypted"),
        (zipped({f"../{IDS[0]}.tif": b"x"}), InputError, "leads elsewhere"),
        (zipped({f"/tmp/{IDS[0]}.tif": b"x"}), InputError, "leads elsewhere"),
        (zipped({f"C:\\{IDS[0]}.tif": b"x"}), InputError, "leads elsewhere"),
        (zipped({f"a/{IDS[0]}.tif": b"x", f"b/{IDS[0]}.tif": b"y"}), InputError, "there twice"),
        (zipped({"readme.txt": b"x"}), InputError, "none of the expected files, but readme.txt"),
        (damaged(), VerificationError, "truncated or damaged"),
        (b"no archive", VerificationError, "truncated or damaged"),
    ],
)
def test_an_archive_that_is_unsafe_or_damaged_leaves_no_file(
    tmp_path: Path, content: bytes, error: type[FrostgridError], said: str
) -> None:
    (tmp_path / ROI_ZIP).write_bytes(content)
    (tmp_path / TISSUE_ZIP).write_bytes(archives()[TISSUE_ZIP])
    with pytest.raises(error, match=said):
        get_puma(tmp_path, base_url=offline())
    assert not [path for path in tmp_path.rglob("*") if ".tif" in path.name]
    assert not (tmp_path.parent / f"{IDS[0]}.tif").exists()


def test_members_of_other_names_are_left_out_and_listed(tmp_path: Path) -> None:
    members = {f"x/{IDS[0]}.tif": region(0), "x/run_me.sh": b"#!", "__MACOSX/._a": b"", "x/.DS_Store": b""}
    (tmp_path / ROI_ZIP).write_bytes(zipped(members))
    (tmp_path / TISSUE_ZIP).write_bytes(archives()[TISSUE_ZIP])
    download = get_puma(tmp_path, base_url=offline())
    assert download.left_out == ["x/run_me.sh"]
    assert [path.name for path in (tmp_path / ROI_FOLDER).iterdir()] == [f"{IDS[0]}.tif"]


def test_a_file_with_another_content_is_never_overwritten(tmp_path: Path, zenodo: Zenodo) -> None:
    (tmp_path / ROI_FOLDER).mkdir()
    mine = tmp_path / ROI_FOLDER / f"{IDS[1]}.tif"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match="another content is in the way") as caught:
        get_puma(tmp_path, base_url=zenodo.url)
    assert caught.value.where == str(mine)
    assert mine.read_bytes() == b"mine"


def test_a_damaged_receipt_is_named(tmp_path: Path) -> None:
    (tmp_path / RECEIPT).write_text("{}")
    with pytest.raises(InputError, match="receipt of an earlier download is damaged"):
        get_puma(tmp_path)


def test_only_web_addresses_are_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no web address"):
        get_puma(tmp_path, base_url="file:///etc")
