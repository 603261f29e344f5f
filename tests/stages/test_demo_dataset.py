from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.tiles.demo import DemoDataset
from store.errors import InputError

PATCH = 16
IMAGE_0 = "5659ddc0f3e6cb2dbf2949b962b17f7ea286176f084ec53fe4347fa742dd230a"
ALL = "0e368baca9509d5c4a90564ca0676b247d9f8340a8b9959553c3802094fdef0c"


@pytest.fixture(scope="module")
def tissue() -> tuple[np.ndarray, np.ndarray]:
    """Images (30, 256, 256, 3) and masks (30, 256, 256) of the default data set."""
    dataset = DemoDataset()
    records = dataset.records()
    return np.stack([dataset.read_image(r) for r in records]), np.stack(
        [dataset.read_mask(r) for r in records]
    )


def test_fifteen_patients_have_two_images_each() -> None:
    records = DemoDataset().records()
    assert len(records) == 30
    assert [record.id for record in records] == sorted(record.id for record in records)
    patients = [record.patient for record in records]
    assert {patients.count(patient) for patient in patients} == {2}
    assert len(set(patients)) == 15
    assert {record.mpp for record in records} == {1.0}


def test_pixels_are_the_same_on_every_machine(tissue: tuple[np.ndarray, np.ndarray]) -> None:
    images, masks = tissue
    assert hashlib.sha256(images[0].tobytes()).hexdigest() == IMAGE_0
    assert hashlib.sha256(images.tobytes() + masks.tobytes()).hexdigest() == ALL


def test_vector_instructions_do_not_change_a_bit() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__ as features

    code = (
        "import hashlib; from stages.tiles.demo import DemoDataset; d = DemoDataset(); "
        "print(hashlib.sha256(d.read_image(d.records()[0]).tobytes()).hexdigest())"
    )
    plain = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=plain,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == IMAGE_0


def test_an_image_does_not_depend_on_what_was_made_before_it(tissue: tuple[np.ndarray, np.ndarray]) -> None:
    few = DemoDataset(images=8)
    np.testing.assert_array_equal(few.read_image(few.records()[7]), tissue[0][7])
    np.testing.assert_array_equal(few.read_mask(few.records()[7]), tissue[1][7])


def test_another_seed_is_other_tissue(tissue: tuple[np.ndarray, np.ndarray]) -> None:
    other = DemoDataset(seed=1)
    assert (other.read_mask(other.records()[0]) != tissue[1][0]).mean() > 0.2


def test_every_image_holds_all_classes_in_varying_shares(tissue: tuple[np.ndarray, np.ndarray]) -> None:
    shares = np.stack([np.bincount(mask.ravel(), minlength=3) / mask.size for mask in tissue[1]])
    assert shares.shape == (30, 3)
    assert shares.min() > 0.1
    assert (shares.std(0) > 0.03).all()


def test_stain_differs_more_between_patients_than_within(tissue: tuple[np.ndarray, np.ndarray]) -> None:
    images, masks = tissue
    stroma = np.stack([image[mask == 1].mean(0) for image, mask in zip(images, masks, strict=True)])
    pairs = stroma.reshape(15, 2, 3)
    within = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1).mean()
    between = np.linalg.norm(pairs[:, None, 0] - pairs[None, :, 1], axis=2).mean()
    assert between > 1.5 * within


def test_tumour_holds_more_haematoxylin_and_background_stays_bright(
    tissue: tuple[np.ndarray, np.ndarray],
) -> None:
    images, masks = tissue
    red = [
        np.mean([image[mask == c, 0].mean() for image, mask in zip(images, masks, strict=True)])
        for c in range(3)
    ]
    assert red[0] < red[1] - 30  # haematoxylin takes the red out
    assert red[0] < red[2] - 30
    assert np.percentile(images, 99) > 200


def density(images: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(images, 1) / 255)


def patch_statistics(images: np.ndarray) -> np.ndarray:
    n, side = len(images), images.shape[1] // PATCH
    blocks = (
        density(images).astype(np.float32).reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    )
    blocks = np.sort(blocks.reshape(n, side, side, 3, PATCH * PATCH), axis=-1)
    deciles = blocks[..., [25, 64, 128, 192, 230]].reshape(n, side, side, -1)
    return np.concatenate([blocks.mean(-1), blocks.std(-1), deciles], axis=-1)


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    both = np.array([((predicted == c) & (truth == c)).sum() for c in range(3)])
    sums = np.array([(predicted == c).sum() + (truth == c).sum() for c in range(3)])
    return float((2 * both / sums).mean())


def test_patch_statistics_tell_the_classes_and_single_pixels_do_not(
    tissue: tuple[np.ndarray, np.ndarray],
) -> None:
    images, masks = tissue
    train, test = slice(0, 20), slice(20, 30)
    side = 256 // PATCH
    blocks = masks.reshape(30, side, PATCH, side, PATCH)
    shares = np.stack([(blocks == c).mean((2, 4)) for c in range(3)], -1)
    x = patch_statistics(images)
    x = (x - x[train].mean((0, 1, 2))) / x[train].std((0, 1, 2))

    known, unknown = x[train].reshape(-1, x.shape[-1]), x[test].reshape(-1, x.shape[-1])
    labels = shares[train].argmax(-1).ravel()
    apart = (known**2).sum(1) - 2 * unknown @ known.T  # squared distance, less what is the same for all
    near = apart.argpartition(15, axis=1)[:, :15]
    votes = np.stack([(labels[near] == c).sum(1) for c in range(3)], -1).argmax(-1).reshape(10, side, side)
    by_patch = dice(votes.repeat(PATCH, 1).repeat(PATCH, 2), masks[test])

    # The best that a pixel's colour alone can say: the commonest class of each colour, in bins of 8 grey levels.
    code = (images // 8).astype(int) @ np.array([1024, 32, 1])
    counts = np.stack([np.bincount(code[train][masks[train] == c], minlength=32**3) for c in range(3)], -1)
    by_pixel = dice(counts.argmax(-1)[code[test]], masks[test])

    assert 0.75 < by_patch < 0.95
    assert by_pixel < by_patch - 0.1


def test_an_image_takes_little_time() -> None:
    dataset = DemoDataset(images=6)
    start = time.process_time()
    for record in dataset.records():
        dataset.read_image(record)
    assert (time.process_time() - start) / 6 < 0.2  # about 0.035 on an idle core


@pytest.mark.parametrize("size", [64, 100, 224, 333])
def test_any_size_can_be_made(size: int) -> None:
    dataset = DemoDataset(images=1, size_px=size)
    record = dataset.records()[0]
    assert dataset.read_image(record).shape == (size, size, 3)
    assert set(np.unique(dataset.read_mask(record))) == {0, 1, 2}


@pytest.mark.parametrize("options", [{"images": 0}, {"size_px": 32}, {"seed": -1}])
def test_what_cannot_be_made_is_refused(options: dict) -> None:
    with pytest.raises(InputError, match="cannot make"):
        DemoDataset(**options)


def test_a_record_of_another_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="no such demo image"):
        DemoDataset(images=2).read_image(DemoDataset(images=9).records()[8])
