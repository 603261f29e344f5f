"""From the labels people draw with (numbers, colours, names) to the classes of a study; nothing is dropped unsaid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.tiles.dataset import IGNORE, raise_all
from stages.tiles.images import TIFF_SUFFIXES, exif_orientation, png_header, read_tiff, reading, refuse_turned
from store.errors import InputError

LABEL_SUFFIXES = frozenset({".png"}) | TIFF_SUFFIXES

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_MEND_CLASSES = 'Correct "classes", "ignore", "unlabelled" or "draw_order" in the study.'
_NAME_LABELS = 'Give each a class in "classes", or list it under "ignore".'
_MOST_SHOWN = 10


@dataclass(frozen=True)
class ClassMap:
    """Which label stands for which class id; ``IGNORE`` is the id of ignored labels.

    ``numbers`` for label masks, ``colours`` (0xRRGGBB) for RGB masks, ``names`` for annotations. ``unlabelled`` is the
    id of pixels that no annotation covers. ``draw_order`` lists annotation names, later ones on top; ``None`` draws in
    the order of the file.
    """

    classes: tuple[str, ...]
    numbers: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[str, int] = field(default_factory=dict)
    unlabelled: int = IGNORE
    draw_order: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        classes: Mapping[str, Sequence[int | str]],
        *,
        ignore: Sequence[int | str] = (),
        unlabelled: str = "ignore",
        draw_order: Sequence[str] | None = None,
    ) -> ClassMap:
        """Read the study's class table.

        ``classes``: class name to its labels, integers 0 to 65535, ``"#rrggbb"`` or annotation names, in class id
        order. ``ignore``: labels to leave out on purpose. ``unlabelled``: ``"ignore"`` or a class name. ``draw_order``:
        every annotation name once. Raises ``InputErrors`` with every fault of the table.
        """
        faults: list[str] = []
        maps: tuple[dict[int, int], dict[int, int], dict[str, int]] = ({}, {}, {})
        owners: dict[int | str, str] = {}
        if not 2 <= len(classes) < IGNORE:
            faults.append(f"{len(classes)} classes are given, 2 to {IGNORE - 1} are possible")
        if "ignore" in classes:
            faults.append('a class cannot be named "ignore", which stands for left-out pixels')
        if unlabelled != "ignore" and unlabelled not in classes:
            faults.append(f"unlabelled is {unlabelled!r}, neither 'ignore' nor a class")
        for index, (name, labels) in enumerate([*classes.items(), ("ignore", ignore)]):
            if not labels and name not in ("ignore", unlabelled):
                faults.append(f"class {name} has no label")
            for label in labels:
                problem = _put(label, IGNORE if name == "ignore" else index, maps)
                key = label.lower() if isinstance(label, str) and _COLOUR.fullmatch(label) else label
                if problem:
                    faults.append(f"label {label!r} of {name} {problem}")
                elif key in owners:
                    faults.append(f"label {label!r} is given to both {owners[key]} and {name}")
                owners.setdefault(key, name)
        if draw_order is not None:
            faults += _order_faults(draw_order, maps[2])
        raise_all([InputError(f, where="data.classes", remedy=_MEND_CLASSES) for f in faults], _MEND_CLASSES)
        order = list(classes)
        return cls(
            tuple(classes),
            *maps,
            unlabelled=IGNORE if unlabelled == "ignore" else order.index(unlabelled),
            draw_order=None if draw_order is None else tuple(draw_order),
        )


def read_label_mask(path: Path, classes: ClassMap) -> NDArray[np.uint8]:
    """Return a mask file as (H, W) uint8 class ids or ``IGNORE``.

    8- and 16-bit grey PNG and TIFF give their values; palette files give their indices (or their colours, where the
    class table has colours only); RGB files their colours, alpha allowed where it is opaque. Raises ``InputError``
    naming the file, and each unknown label with its pixels, and for a mask to be shown turned.
    """
    with reading(path):
        array = _tiff_labels(path) if path.suffix.lower() in TIFF_SUFFIXES else _png_labels(path, classes)
    if array.ndim == 2:
        return _by_number(path, array, classes)
    return _by_colour(path, array, classes)


def _put(
    label: int | str, index: int, maps: tuple[dict[int, int], dict[int, int], dict[str, int]]
) -> str | None:
    """Enter one label into the map of its kind; return what is wrong with it, if anything."""
    numbers, colours, names = maps
    if isinstance(label, bool) or not isinstance(label, int | str):
        return "is neither an integer nor a text"
    if isinstance(label, int):
        if not 0 <= label <= 65535:
            return "is outside 0 to 65535"
        numbers[label] = index
    elif label.startswith("#"):
        if not _COLOUR.fullmatch(label):
            return 'is no colour: write "#rrggbb"'
        colours[int(label[1:], 16)] = index
    elif not label.strip():
        return "is empty"
    else:
        names[label] = index
    return None


def _order_faults(draw_order: Sequence[str], names: Mapping[str, int]) -> list[str]:
    faults = [
        f"draw_order holds {name!r} twice" for name in dict.fromkeys(draw_order) if draw_order.count(name) > 1
    ]
    faults += [f"draw_order holds {name!r}, which is no label" for name in draw_order if name not in names]
    faults += [f"draw_order lacks label {name!r}" for name in names if name not in draw_order]
    return faults


def _png_labels(path: Path, classes: ClassMap) -> NDArray[np.uint8 | np.uint16]:
    header = png_header(path)
    if header is None:
        raise InputError("the mask is not a PNG file", where=path, remedy="Export masks as PNG or TIFF.")
    with Image.open(path, formats=("PNG",)) as image:
        refuse_turned(path, exif_orientation(image))
        if header.colour == 3:
            return np.array(image if classes.numbers else image.convert("RGB"))
        if header.colour == 0 and header.bits in (1, 8, 16):
            return np.array(image).astype(np.uint16 if header.bits == 16 else np.uint8)
        if header.colour == 0:  # Pillow spreads 2- and 4-bit samples over 0 to 255
            return np.array(image) // np.uint8(255 // (2**header.bits - 1))
        if header.colour in (2, 6) and header.bits == 8:
            return _opaque(path, np.array(image))
    kinds = {2: "RGB", 4: "grey with alpha", 6: "RGBA"}
    raise InputError(
        f"the mask is {header.bits}-bit {kinds.get(header.colour, 'of an unknown colour type')}",
        where=path,
        remedy="Export it as 8- or 16-bit labels, or as 8-bit RGB.",
    )


def _tiff_labels(path: Path) -> NDArray[np.uint8 | np.uint16]:
    array, photometric = read_tiff(path)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if photometric == "MINISWHITE":
        raise InputError(
            "the mask is stored inverted (MinIsWhite), so its label 0 is shown white",
            where=path,
            remedy="Export it with label 0 as black (MinIsBlack).",
        )
    if array.dtype not in (np.uint8, np.uint16) or (array.ndim == 3 and array.dtype != np.uint8):
        raise InputError(
            f"the mask holds {array.dtype} values", where=path, remedy="Export it as 8- or 16-bit labels."
        )
    if array.ndim == 3:
        if photometric != "RGB" or array.shape[-1] not in (3, 4):
            raise InputError(
                f"the mask has {array.shape[-1]} channels (photometric {photometric})",
                where=path,
                remedy="Export it as labels in one channel, or as 8-bit RGB.",
            )
        return _opaque(path, array)
    return array


def _opaque(path: Path, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.shape[-1] == 4 and (array[..., 3] != 255).any():
        raise InputError(
            "the mask has transparent pixels, whose label is unclear",
            where=path,
            remedy="Export it without alpha.",
        )
    return array[..., :3]


def _by_number(path: Path, labels: NDArray[np.uint8 | np.uint16], classes: ClassMap) -> NDArray[np.uint8]:
    counts = np.bincount(labels.ravel(), minlength=65536)
    table = np.full(65536, IGNORE, np.uint8)
    for value, index in classes.numbers.items():
        table[value] = index
        counts[value] = 0
    unknown = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}
    _refuse_unknown(path, unknown, [str(value) for value in classes.numbers], "label")
    return table[labels]


def _by_colour(path: Path, rgb: NDArray[np.uint8 | np.uint16], classes: ClassMap) -> NDArray[np.uint8]:
    code = rgb[..., 0].astype(np.uint32) << 16 | rgb[..., 1].astype(np.uint32) << 8 | rgb[..., 2]
    out = np.full(code.shape, IGNORE, np.uint8)
    known = np.zeros(code.shape, np.bool_)
    for colour, index in classes.colours.items():
        here = code == colour
        out[here] = index
        known |= here
    values, counts = np.unique(code[~known], return_counts=True)
    unknown = {f"#{int(value):06x}": int(count) for value, count in zip(values, counts, strict=True)}
    _refuse_unknown(path, unknown, [f"#{colour:06x}" for colour in classes.colours], "colour")
    return out


def _refuse_unknown(path: Path, unknown: Mapping[str, int], known: Sequence[str], what: str) -> None:
    if not unknown:
        return
    ordered = sorted(unknown.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{label} ({pixels:,} pixels)" for label, pixels in ordered[:_MOST_SHOWN])
    more = f" and {len(ordered) - _MOST_SHOWN} more" if len(ordered) > _MOST_SHOWN else ""
    known_words = f"known {what}s: {', '.join(known)}" if known else f'"classes" gives no {what}s for it'
    raise InputError(
        f"the mask holds {what}s of no class: {shown}{more}; {known_words}", where=path, remedy=_NAME_LABELS
    )
