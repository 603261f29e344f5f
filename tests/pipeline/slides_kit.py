"""A run trained to tell red from green at 1 µm a pixel, and slides of discs that are red above and green below."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cachekit import Home
from slide_kit import Disc, write_slide
from studykit import FOLDER

RED, GREEN = (180, 60, 60), (60, 180, 60)

QUICK = FOLDER.replace("tile_px = 32", "tile_px = 32\nimage_mpp = 1.0")
STUDY = QUICK.replace("epochs = 2\nvalidate_every = 1", "epochs = 30\nvalidate_every = 10\nlr = 3e-2")


def trained(folder: Path, text: str = STUDY) -> Home:
    """Train the study; its data, cache and runs lie in ``folder``."""
    home = Home(folder, text=text)
    done = home.run("run")
    assert done.exit_code == 0, done.output
    return home


def run_of(home: Home, decoder: str = "linear") -> Path:
    """Return the folder of the one run under a decoder."""
    (found,) = (home.folder / "runs" / home.study.stem / "stain" / decoder).glob("seed-*")
    return found


def coloured_slide(path: Path, size: tuple[int, int], discs: Sequence[Disc], **how: Any) -> Path:
    """Write a slide of red and green discs, 0.5 µm a pixel unless said otherwise."""
    return write_slide(path, size, discs, colours=(RED, GREEN), **how)


_CHILD = """
import json, sys
from pathlib import Path
from pipeline.cli import main

for arguments in json.loads(sys.argv[1]):
    try:
        main(["predict", "--json", *arguments])
    except SystemExit as end:
        assert end.code == 0, end.code
    fields = Path("/proc/self/status").read_text().split()
    print(json.dumps({"peak": 1024 * int(fields[fields.index("VmHWM:") + 1])}))
"""


def predict(*calls: Sequence[str | Path], kill_when: Path | None = None) -> list[tuple[dict[str, Any], int]]:
    """Run ``frostgrid predict`` with each of ``calls``, one slide each, in one process of its own.

    It is killed as soon as ``kill_when`` is there. Returns what each printed, and the most memory, in bytes, that the
    process had taken until then.
    """
    told = json.dumps([[str(argument) for argument in call] for call in calls])
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-c", _CHILD, told], stdout=out, stderr=said)
        while kill_when is not None and not kill_when.exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        if kill_when is not None:
            process.kill()
        status = process.wait()
        out.seek(0)
        said.seek(0)
        printed, remarks = out.read(), said.read()
    assert status == (0 if kill_when is None else -signal.SIGKILL), remarks
    parts = printed.replace("]\n{", "]\0{").replace("}\n[", "}\0[").split("\0")
    values = [json.loads(part) for part in parts if part.strip()]
    return [(one[0], peak["peak"]) for one, peak in zip(values[::2], values[1::2], strict=True)]


def annotations(folder: Path) -> list[dict[str, Any]]:
    """Return the features of a slide's results."""
    return list(json.loads((folder / "annotations.geojson").read_text(encoding="utf-8"))["features"])
