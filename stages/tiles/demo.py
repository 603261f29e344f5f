"""Synthetic H&E-like tissue: a data set that needs no download and is the same pixels wherever it is made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import ImageRecord, Listing
from stages.tiles.noise import Fields, Float, ease, optical_density_to_rgb, pick, unit
from store.errors import InputError

TUMOUR, STROMA, OTHER = range(3)
_IMAGES_PER_PATIENT = 2

# Optical densities (R, G, B) of haematoxylin and eosin as laboratories differ in them.
_HAEMATOXYLIN = np.array([(0.65, 0.70, 0.29), (0.56, 0.72, 0.41), (0.74, 0.62, 0.26)], np.float32)
_EOSIN = np.array([(0.22, 0.80, 0.55), (0.09, 0.95, 0.28), (0.32, 0.84, 0.44)], np.float32)


class DemoDataset:
    """Tissue of three classes, generated from a seed, with stain variation between patients.

    What it is: 256 px images at 1 µm/px in which every image holds all three classes, in varying shares and smooth
    regions; two images a patient, who share a stain.

    Classes:
        0 Tumour: crowded large round nuclei with nucleoli in purple cytoplasm
        1 Stroma: wavy eosinophilic fibres, sparse spindle nuclei along them
        2 Other: pale loose tissue and vacuoles with few small round nuclei, and pink necrosis with debris

    Format: nothing on disk; ``size_px``² uint8 RGB images and uint8 masks without ignored pixels, made when read.
    Licence: generated, free of rights. Raises ``InputError`` for less than one image or images under 64 px.

    Only additions, multiplications, divisions and square roots of single numbers enter the pixels, which IEEE 754
    fixes to the last bit, so image ``i`` of a seed is the same on every machine, whichever images are made before it.
    """

    name = "demo"
    classes = ("Tumour", "Stroma", "Other")
    mpp = 1.0

    def __init__(self, images: int = 30, size_px: int = 256, seed: int = 0) -> None:
        if images < 1 or size_px < 64 or seed < 0:
            raise InputError(
                f"cannot make {images} demo images of {size_px} px with seed {seed}",
                where="data",
                remedy="Ask for at least 1 image of at least 64 px, with a seed of 0 or more.",
            )
        self._size = size_px
        self._seed = seed
        digits = max(3, len(str(images - 1)))
        self._index = {f"demo_{i:0{digits}d}": i for i in range(images)}

    def listing(self) -> Listing:
        """Return every image; there is nothing that could be at fault."""
        records = (
            ImageRecord(id, None, None, patient=f"patient_{i // _IMAGES_PER_PATIENT:02d}", mpp=self.mpp)
            for id, i in self._index.items()
        )
        return Listing(tuple(records), ())

    def records(self) -> tuple[ImageRecord, ...]:
        """Return every image, two a patient."""
        return self.listing().records

    def read_mask(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the class of every pixel, (size_px, size_px) uint8."""
        return self._regions(self._fields(record, 1))

    def read_image(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the image, (size_px, size_px, 3) uint8 RGB."""
        mask = self._regions(self._fields(record, 1))
        haematoxylin, eosin = _tissue(self._fields(record, 2), mask)
        patient = self._index[record.id] // _IMAGES_PER_PATIENT
        return _stained(Fields(self._size, (self._seed, 3, patient)), haematoxylin, eosin)

    def _fields(self, record: ImageRecord, stream: int) -> Fields:
        if record.id not in self._index:
            raise InputError("no such demo image", where=record.id, remedy="Use an id that records() gives.")
        return Fields(self._size, (self._seed, stream, self._index[record.id]))

    def _regions(self, fields: Fields) -> NDArray[np.uint8]:
        """Cut smooth regions at the values that give each class its drawn share of the image."""
        tumour_share = fields.between(0.28, 0.50)
        other_share = fields.between(0.18, 0.36)
        tumour = fields.smooth(0.42 * self._size) + 0.22 * fields.smooth(0.11 * self._size)
        other = fields.smooth(0.38 * self._size) + 0.22 * fields.smooth(0.10 * self._size)
        mask = np.full((self._size, self._size), STROMA, np.uint8)
        mask[tumour >= _value_above(tumour, tumour_share)] = TUMOUR
        rest = mask != TUMOUR
        mask[rest & (other >= _value_above(other[rest], other_share / (1 - tumour_share)))] = OTHER
        return mask


def _value_above(values: Float, share: float) -> np.float32:
    """Return the value that the given share of ``values`` reaches."""
    place = int((1 - share) * values.size)
    return np.float32(np.partition(values, place, axis=None)[place])


def _tissue(fields: Fields, mask: NDArray[np.uint8]) -> tuple[Float, Float]:
    """Return the amounts of haematoxylin and eosin, each (H, W) float32, of the tissue that ``mask`` describes."""
    direction = fields.direction()
    fibre = fields.fibres(direction)
    grain = fields.smooth(2.2)
    coarse = fields.smooth(0.2 * len(mask))
    necrosis = _ramp(fields.smooth(0.22 * len(mask)), 0.60, 0.72)
    hollow = fields.vacuoles(17.0)

    # Cytoplasm and matrix, class by class.
    loose = 0.06 + 0.42 * (1 - hollow) * (0.6 + 0.8 * grain)
    debris = 0.30 + 0.42 * grain
    eosin = pick(
        mask,
        0.22 + 0.26 * grain + 0.20 * coarse,
        0.20 + 0.54 * fibre * (0.60 + 0.8 * coarse),
        loose + necrosis * (debris - loose),
    )
    haematoxylin = pick(
        mask,
        0.09 + 0.14 * grain + 0.07 * coarse,
        0.05 + 0.08 * fibre,
        0.03 + 0.06 * grain + necrosis * 0.14 * grain,
    )

    nuclei = fields.nuclei()
    nuclei.sow(
        mask == TUMOUR, cell=12.0, keep=0.90, radius=(3.6, 5.4), stretch=(1.0, 1.45), dark=0.78, nucleolus=0.5
    )
    nuclei.sow(
        mask == STROMA,
        cell=20.0,
        keep=0.62,
        radius=(1.9, 2.7),
        stretch=(2.4, 4.2),
        along=direction,
        dark=0.95,
    )
    nuclei.sow(mask != TUMOUR, cell=30.0, keep=0.28, radius=(2.3, 3.0), stretch=(1.0, 1.15), dark=1.15)
    nuclei.sow(
        (mask == OTHER) & (necrosis > 0.5),
        cell=8.0,
        keep=0.5,
        radius=(0.8, 1.7),
        stretch=(1.0, 1.6),
        dark=0.7,
    )
    haematoxylin += nuclei.amount * (0.75 + 0.5 * grain)
    eosin *= 1 - 0.55 * np.minimum(nuclei.amount, np.float32(1))
    return haematoxylin, eosin


def _stained(fields: Fields, haematoxylin: Float, eosin: Float) -> NDArray[np.uint8]:
    """Colour the amounts as one patient's slide is stained and scanned: (H, W, 3) uint8 RGB."""
    h_colour, e_colour = fields.blend(_HAEMATOXYLIN), fields.blend(_EOSIN)
    h_amount, e_amount = fields.between(0.80, 1.30), fields.between(0.70, 1.20)
    channels = []
    for channel in range(3):
        density = haematoxylin * (h_amount * h_colour[channel]) + eosin * (e_amount * e_colour[channel])
        density += np.float32(fields.between(0.02, 0.09))  # the slide's glass and the lamp's colour
        channels.append(fields.softened(density))
    return optical_density_to_rgb(np.stack(channels, axis=-1), fields.sensor(0.012))


def _ramp(values: Float, low: float, high: float) -> Float:
    return ease(unit((values - np.float32(low)) * np.float32(1 / (high - low))))
