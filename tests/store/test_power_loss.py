"""The power goes while a writer is at work: a real disk's image is copied at that moment and mounted again.

The image is read while the writer is stopped, twice, until both are alike: then it held still, and is what a disk holds
whose machine has lost its power, all that was flushed and of the rest what happened to be written. Mounting the copy
replays the journal of the file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sharing_kit
import storekit as kit

from store import GridStore, verify

ROWS = kit.rows_of(24, 16)  # 96 shards of four
SLOW = pytest.mark.slow
WITHOUT_FLUSHING = (
    "import os, sys; os.fsync = lambda descriptor: None; import storekit; storekit._main(*sys.argv[1:])"
)


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", image, point], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not mount an image: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.fixture
def image(memory_path: Path) -> Path:
    """An empty ext4 file system in a file."""
    if os.geteuid() != 0:
        pytest.skip("mounting an image needs root")
    file = memory_path / "disk"
    with file.open("wb") as disk:
        disk.truncate(48 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", file], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mkfs.ext4")
    return file


@dataclass
class Cut:
    """The disk at one moment, and the number of shards that counted as finished just then."""

    image: Path
    finished: int


def recorded(root: Path) -> int:
    """The number of shards that have a record, which every reader would trust."""
    return sum(len(part.records()) for store in GridStore.beside(root, "pixels") for part in store._parts())


def cut_off(process: subprocess.Popen[str], image: Path, root: Path, copy: Path) -> Cut | None:
    """Copy the image at one moment of the process's life; ``None`` if it has ended."""
    os.kill(process.pid, signal.SIGSTOP)
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if stopped is None or stopped.si_code != os.CLD_STOPPED:
        return None
    try:
        content = image.read_bytes()
        while (again := image.read_bytes()) != content:
            content = again
        copy.write_bytes(content)
        return Cut(copy, recorded(root))
    finally:
        os.kill(process.pid, signal.SIGCONT)


def cuts_of(
    processes: list[subprocess.Popen[str]], image: Path, root: Path, number: int, pause: float, least: int = 0
) -> list[Cut]:
    """Copies of the image at ``number`` moments of the work of the processes, which are killed at the end.

    Moments count from which on ``least`` shards were finished.
    """
    rng = random.Random(number)
    cuts = []
    try:
        for process in processes:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == "go\n"
            process.stdin.write("\n")
            process.stdin.flush()
        while len(cuts) < number:
            time.sleep(rng.uniform(0.2, 1.8) * pause)
            for process in processes[1:]:
                os.kill(process.pid, signal.SIGSTOP)
            found = cut_off(processes[0], image, root, image.with_name(f"cut-{len(cuts)}"))
            for process in processes[1:]:
                os.kill(process.pid, signal.SIGCONT)
            if found is None:
                break
            if found.finished >= least:
                cuts.append(found)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return cuts


def torn(store: GridStore) -> list[str]:
    """The records of a store that vouch for something else than what lies there."""
    found = []
    for part in store._parts():
        found += [
            f"{marker.name} is no marker"
            for marker in part.done_folder.glob("*.json")
            if part.marker_record(int(marker.stem), marker.read_bytes()) is None
        ]
        for shard, record in part.records().items():
            path = part.shard_path(shard)
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != record.summary.sha256:
                found.append(f"{path.name} has {len(data)} of {record.summary.bytes} bytes")
    return found


def survivors(cut: Cut, point: Path, finish: Callable[[Path], GridStore]) -> int:
    """Mount a copy; every record in it is right, and the work is taken up. Returns how many records there were."""
    with mounted(cut.image, point) as disk:
        standing = 0
        for store in GridStore.beside(disk / "cache", "pixels"):
            assert torn(store) == []
            standing += recorded(disk / "cache")
            kept = kit.finished(store)
            assert len(kept) == standing
            kit.expect_nothing_wrong(store, ROWS)
            finish(disk / "cache")
            kit.expect_untouched(kept, store)
            kit.expect_all(store, ROWS)
            assert verify(store) == [] and not list(disk.rglob("*.partial"))
    cut.image.unlink()
    return standing


@pytest.mark.parametrize(
    ("writers", "number"),
    [(1, 3), pytest.param(1, 25, marks=SLOW), pytest.param(2, 15, marks=SLOW)],
)
def test_every_record_that_survives_a_power_loss_points_at_a_right_shard(
    image: Path, tmp_path: Path, writers: int, number: int, record_property: Callable[[str, object], None]
) -> None:
    with mounted(image, tmp_path / "disk") as disk:
        root = disk / "cache"
        processes = [kit.start_writer(root, rows=[24, 16], pause=0.01, reverse=n > 0) for n in range(writers)]
        cuts = cuts_of(processes, image, root, number, 3.0 / number)
    assert len(cuts) > number / 2
    standing = [survivors(cut, tmp_path / "disk", finish) for cut in cuts]
    record_property("markers", sum(standing))
    # Whoever was stopped between giving a marker its name and flushing the folder may have lost that one.
    assert all(
        cut.finished - writers <= left <= 96 * writers for cut, left in zip(cuts, standing, strict=True)
    )
    assert max(standing) > 20 and len(set(standing)) > 1


def finish(root: Path) -> GridStore:
    store = kit.store_at(root)
    kit.fill(store, ROWS)
    return store


@pytest.mark.slow
def test_a_pull_that_loses_power_keeps_what_it_has_recorded(
    image: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    home = sharing_kit.made(tmp_path / "home", ROWS)
    with mounted(image, tmp_path / "disk") as disk:
        puller = sharing_kit.start_copier("pull", home.path.parent, disk / "cache")
        cuts = cuts_of([puller], image, disk / "cache", 12, 0.03)

    def pull_the_rest(root: Path) -> GridStore:
        return sharing_kit.pull(sharing_kit.only_offer(home.path.parent), root).store

    standing = [survivors(cut, tmp_path / "disk", pull_the_rest) for cut in cuts]
    record_property("markers", sum(standing))
    assert all(cut.finished - 4 <= left for cut, left in zip(cuts, standing, strict=True))  # of four threads
    assert max(standing) > 20


def test_without_flushing_a_power_loss_would_be_seen(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "disk") as disk:
        root = disk / "cache"
        path = os.pathsep.join([str(kit.REPOSITORY), str(Path(__file__).parent)])
        writer = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_FLUSHING, str(root), '{"rows": [24, 16], "pause": 0.002}'],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        (cut,) = cuts_of([writer], image, root, 1, 0.5, least=6)
    with mounted(cut.image, tmp_path / "disk") as disk:
        stores = GridStore.beside(disk / "cache", "pixels")
        left = recorded(disk / "cache") - sum(len(torn(store)) for store in stores)
    assert left < cut.finished - 1
