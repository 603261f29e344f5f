"""A sweep over ten seeds from a cache, against ten runs of a script with the encoder in the loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import Result, Setting, benchmark
from store.errors import InputError

SEEDS, EPOCHS, VALIDATE_EVERY = 10, 50, 10
MEASURED_EPOCHS = 2
_STUDY = """
[data]
kind = "folder"
root = "{root}/data/he_glas"
table = "meta.csv"
scale = 0.5
tile_px = 224
classes = {{ Stroma = [0], Benign = [1], Malignant = [2] }}
split = {{ train = {train}, val = {val}, test = {test}, seed = 0 }}
[views]
per_tile = {views}
[encoders]
names = ["dinov2-s14"]
weights = {{ dinov2-s14 = "{root}/weights/dinov2-s14/model.safetensors" }}
[train]
epochs = {epochs}
validate_every = {epochs}
seeds = {seeds}
"""


@benchmark("sweep/glas-224")
def glas(setting: Setting) -> Result:
    """Ten seeds of dinov2-s14 on GlaS at 224 px: a few epochs of each side measured, the rest by multiplication."""
    shared = Path(os.environ.get("FROSTGRID_TEST_DATA", Path(__file__).parents[2] / "shared")).resolve()
    if not (shared / "data" / "he_glas").is_dir():
        raise InputError(
            "real images and weights are needed",
            where=shared,
            remedy="Set FROSTGRID_TEST_DATA to the folder that holds them.",
        )
    train, val, test, views = (2, 1, 1, 2) if setting.small else (15, 5, 10, 20)
    epochs = 1 if setting.small else MEASURED_EPOCHS
    with TemporaryDirectory(dir=setting.folder) as name:
        folder, study = Path(name), Path(name) / "glas.toml"
        sizes = {
            "train": train,
            "val": val,
            "test": test,
            "views": views,
            "epochs": epochs,
            "seeds": setting.rounds,
        }
        study.write_text(_STUDY.format(root=shared, **sizes), encoding="utf-8")
        frostgrid = [str(Path(sys.executable).with_name("frostgrid"))]
        start = time.perf_counter()
        threads = setting.threads
        _run([*frostgrid, "extract", str(study), "--threads", str(threads)], folder, threads)
        extracted = time.perf_counter() - start
        ours: list[dict[str, float]] = []
        plain: list[dict[str, float]] = []
        split = folder / "runs" / "glas" / "split.json"
        weights = shared / "weights" / "dinov2-s14" / "model.safetensors"
        script = [sys.executable, "-m", "bench.plain_script"]
        for number in range(1, setting.rounds + 1):
            start = time.perf_counter()
            _run([*frostgrid, "train", str(study), "--seeds", str(number)], folder, threads)
            whole = time.perf_counter() - start
            phases = _seconds(folder, number - 1)
            ours.append({**phases, "start": whole - phases["total"]})
            told = [str(shared / "data" / "he_glas"), str(split), str(weights), str(epochs)]
            said = _run([*script, *told], folder, threads)
            plain.append(json.loads(said))
    return _scaled(extracted, ours, plain, epochs, val + test, threads)


def _run(command: list[str], folder: Path, threads: int) -> str:
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(threads)},
    )
    return done.stdout


def _seconds(folder: Path, seed: int) -> dict[str, float]:
    (run,) = folder.glob(f"runs/glas/**/seed-{seed:03d}-*/run.json")
    found: dict[str, float] = json.loads(run.read_text(encoding="utf-8"))["seconds"]
    return found


def _scaled(
    extracted: float,
    ours: list[dict[str, float]],
    plain: list[dict[str, float]],
    epochs: int,
    held_out: int,
    threads: int,
) -> Result:
    """Multiply measured epochs and validations up to a whole sweep of each side."""

    def middle(rows: list[dict[str, float]], name: str) -> float:
        return median(row[name] for row in rows)

    validations = EPOCHS // VALIDATE_EVERY
    parts: dict[str, Any] = {
        "extract_s": extracted,
        "ours_start_s": middle(ours, "start"),
        "ours_epoch_s": middle(ours, "train") / epochs,
        "ours_validation_s": middle(ours, "validate"),
        "plain_epoch_s": middle(plain, "epoch_s"),
        "plain_validation_s": middle(plain, "validate_s") * held_out,
        "encode_a_view_s": middle(plain, "encode_s"),
    }
    ours_s = (
        extracted
        + parts["ours_start_s"]
        + SEEDS * (EPOCHS * parts["ours_epoch_s"] + validations * parts["ours_validation_s"])
    )
    plain_s = SEEDS * (EPOCHS * parts["plain_epoch_s"] + validations * parts["plain_validation_s"])
    return Result(
        plain_s / ours_s,
        f"{SEEDS} seeds of {EPOCHS} epochs, a validation of {held_out} images every {VALIDATE_EVERY}: extraction with "
        f"start-up, one start of training, and epochs from the cache, against a script with the frozen encoder in the "
        f"loop, augmentation on the fly, textbook decoder, eager float32; {epochs} epochs and a validation of each "
        f"measured {len(ours)} times in turn, and multiplied; {threads} threads",
        "none: measured, not promised",
        {"ours_s": ours_s, "reference_s": plain_s, "rounds": len(ours), **parts},
    )
