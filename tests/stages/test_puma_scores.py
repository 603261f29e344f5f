"""The PUMA challenge's tissue scores of label images, against its rules as written, on real predictions too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from stages.puma_scores import LABELS, pairs_of, read_labels, scores, unpredicted
from store.errors import InputError, InputErrors

EPS = 1e-5


def by_the_rules(pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, Any]:
    """The rules in float64, class by class on whole masks."""
    micro, image = [], []
    for value in range(1, 6):
        masks = [((a == value).astype(np.float64), (b == value).astype(np.float64)) for a, b in pairs]
        both = sum((a * b).sum() for a, b in masks)
        size = sum(a.sum() + b.sum() for a, b in masks)
        micro.append((2 * both + EPS) / (size + EPS) if both else 0.0)
        image.append(
            np.mean([
                1.0 if a.sum() + b.sum() == 0 else (2 * (a * b).sum() + EPS) / (a.sum() + b.sum() + EPS)
                for a, b in masks
            ])
        )  # fmt: skip
    return {"micro": [*micro, np.mean(micro)], "image": [*image, np.mean(image)]}


def agree(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in ("micro", "image"):
        np.testing.assert_allclose(list(found[name].values()), wanted[name], rtol=0, atol=1e-6)


def folders(tmp_path: Path, pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[Path, Path]:
    for number, pair in enumerate(pairs):
        for name, labels in zip(("predicted", "true"), pair, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f"{number}.tif", labels)
    return tmp_path / "predicted", tmp_path / "true"


def test_random_and_degenerate_label_images_score_by_the_rules(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    empty = np.zeros((1024, 1024), np.uint8)
    some = rng.integers(0, 4, (1024, 1024), dtype=np.uint8)
    pairs = [(some, np.roll(some, 3)), (empty, empty), (empty, some), (np.full_like(empty, 5), empty)]
    found = scores(pairs_of(*folders(tmp_path, pairs)))
    agree(found, by_the_rules(pairs))
    assert found["micro"]["epidermis"] == 0  # nowhere at all
    assert found["image"]["epidermis"] == 1
    assert found["images"]["1.tif"] == 1
    assert list(found["micro"]) == [*LABELS[1:], "average"]


def test_label_images_of_another_size_are_resized_with_nearest_neighbour(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    small, large = (
        rng.integers(0, 6, (512, 700), dtype=np.uint8),
        rng.integers(0, 6, (1024, 1024), dtype=np.uint8),
    )
    resized = np.array(Image.fromarray(small).resize((1024, 1024), Image.Resampling.NEAREST))
    agree(scores(pairs_of(*folders(tmp_path, [(small, large)]))), by_the_rules([(resized, large)]))
    assert np.array_equal(read_labels(tmp_path / "predicted/0.tif"), resized)


def test_the_challenges_own_predictions_are_read(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/puma_format/example_predictions"
    names = {
        job["pk"]: job["inputs"][0]["image"]["name"]
        for job in json.loads((folder / "predictions.json").read_text())
    }
    pairs = []
    for path in sorted(folder.rglob("*.tif")):
        predicted = tifffile.imread(path)
        true = np.roll(predicted, 40, axis=0).astype(np.uint8)
        true[:100] = 0
        tifffile.imwrite(tmp_path / names[path.parents[3].name], true)
        pairs.append((predicted, true))
    assert len(pairs) == 2
    found = scores(pairs_of(folder, tmp_path))
    agree(found, by_the_rules(pairs))
    assert 0.3 < found["micro"]["average"] < 1
    assert set(found["images"]) == set(names.values())


def test_what_has_no_partner_is_named_all_at_once(tmp_path: Path) -> None:
    labels = np.zeros((8, 8), np.uint8)
    predicted, true = folders(tmp_path, [(labels, labels)] * 3)
    (true / "0.tif").unlink()
    (true / "2.tif").unlink()
    with pytest.raises(InputErrors) as caught:
        pairs_of(predicted, true)
    assert len(caught.value.faults) == 2 and str(true / "2.tif") in str(caught.value)
    with pytest.raises(InputError, match="there is no prediction"):
        pairs_of(tmp_path, true)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.full((4, 4), 6, np.uint8), "from 6 to 6"),
        (np.full((4, 4), -1, np.int8), "from -1 to -1"),
        (np.zeros((4, 4, 3), np.uint8), "no label image"),
        (np.zeros((4, 4), np.float32), "float32"),
    ],
    ids=["no class", "negative", "colours", "fractions"],
)
def test_what_is_no_label_image_is_refused(tmp_path: Path, labels: NDArray[Any], said: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="rgb" if labels.ndim == 3 else "minisblack")
    with pytest.raises(InputError, match=said) as caught:
        read_labels(tmp_path / "a.tif")
    assert "a.tif" in str(caught.value)


def test_true_label_images_without_a_prediction_are_named_and_in_no_score(tmp_path: Path) -> None:
    some = np.random.default_rng(0).integers(0, 4, (32, 32), dtype=np.uint8)
    predicted, true = folders(tmp_path, [(some, some), (some, some)])
    for name in ("7.tif", "3.tif"):
        tifffile.imwrite(true / name, some)
    pairs = pairs_of(predicted, true)
    assert len(pairs) == 2 and unpredicted(pairs, true) == ["3.tif", "7.tif"]


def test_a_damaged_list_of_jobs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text('[{"pk": "a"}]')
    with pytest.raises(InputError, match=r"predictions\.json"):
        pairs_of(tmp_path, tmp_path)
