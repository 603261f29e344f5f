"""HDF5 files that are damaged, or made to harm: refused in words, before anything is created or much is allocated."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import exchangekit as exchange
import h5py
import numpy as np
import pytest
import storekit as kit

from store import GridStore
from store.errors import FrostgridError, InputError, VerificationError
from store.exchange import export_hdf5, import_hdf5
from store.exchange.hdf5_form import COORDINATES, MASK_COORDINATES, digest, texts
from store.identity import canonical_json, fingerprint

ROWS = kit.rows_of(3, 2)


@dataclass
class Forgery:
    """Everything an export holds, to be changed by somebody who can compute the digest anew."""

    attributes: dict[str, str]
    of_masks: dict[str, str]
    columns: dict[str, Any]
    grids: dict[str, Any]
    instead: dict[str, Callable[[h5py.File, str], object]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Forgery:
        with h5py.File(path) as file:
            attributes = {
                name: bytes(value).decode() for name, value in file.attrs.items() if name != "digest"
            }
            of_masks = {name: bytes(value).decode() for name, value in file["masks"].attrs.items()}
            columns = {name: file[name][:] for name in (*COORDINATES, *MASK_COORDINATES)}
            return cls(attributes, of_masks, columns, {name: file[name][:] for name in ("features", "masks")})

    def write(self, path: Path, libver: str = "v110") -> Path:
        with h5py.File(path, "w", libver=(libver, "v110")) as file:
            for name, value in {**self.columns, **self.grids}.items():
                if name in self.instead:
                    self.instead[name](file, name)
                elif name in self.grids:
                    chunks = (1, *value.shape[1:])
                    file.create_dataset(name, data=value, chunks=chunks, **self.options)
                else:
                    file.create_dataset(name, data=value)
            for target, said in ((file, self.attributes), (file.get("masks"), self.of_masks)):
                for name, value in said.items() if target is not None else ():
                    target.attrs[name] = np.bytes_(value.encode())
            file.attrs["digest"] = np.bytes_(digest(self.attributes, self.of_masks, self.columns).encode())
            for name in set(self.instead) - {*self.columns, *self.grids}:
                self.instead[name](file, name)
        return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("exported")
    tokens, masks = exchange.caches(folder, ROWS)
    export_hdf5(tokens, folder / "good.h5", masks=masks)
    return (folder / "good.h5").read_bytes()


@pytest.fixture
def good(memory_path: Path, exported: bytes) -> Path:
    path = memory_path / "good.h5"
    path.write_bytes(exported)
    return path


def refused(path: Path, words: str, kind: type[FrostgridError] = VerificationError) -> None:
    """The import fails in these words, naming the file, and creates nothing."""
    root = path.parent / "there"
    with pytest.raises(kind, match=words) as caught:
        import_hdf5(path, root)
    assert str(path) in str(caught.value) and caught.value.remedy
    assert not root.exists()


def test_a_forgery_without_a_change_is_taken(good: Path) -> None:
    import_hdf5(Forgery.of(good).write(good.with_name("same.h5")), good.parent / "there")
    exchange.expect_both(good.parent / "there", ROWS)


def _other_identity(forged: Forgery) -> None:
    forged.attributes["identity"] = canonical_json({**kit.IDENTITY, "value": "other"}).decode()


def _said(**changes: Any) -> Callable[[Forgery], None]:
    def change(forged: Forgery) -> None:
        for name, value in changes.items():
            forged.attributes[name] = value if isinstance(value, str) else canonical_json(value).decode()

    return change


def _column(name: str, change: Callable[[list[Any]], None]) -> Callable[[Forgery], None]:
    def apply(forged: Forgery) -> None:
        values = [
            value.decode() if isinstance(value, bytes) else value for value in forged.columns[name].tolist()
        ]
        change(values)
        forged.columns[name] = np.array(values, "<i8") if name == "view" else texts(values)

    return apply


def _set(at: int, value: Any) -> Callable[[list[Any]], None]:
    return lambda values: values.__setitem__(at, value)


GRID = {
    "name": "tokens",
    "shape": [3, 4, 5],
    "dtype": "float16",
    "dims": ["d", "h", "w"],
    "encoding": "exact",
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_identity, "its identity gives the key"),
        (_said(key="0" * 64), "it says 000000000000"),
        (_said(slug="../outside"), "identity, provenance or slug"),
        (_said(slug="/etc"), "identity, provenance or slug"),
        (_said(slug=""), "identity, provenance or slug|slug"),
        (_said(identity=[1], key=fingerprint([1])), "identity, provenance or slug"),
        (_said(identity="{"), "cannot be imported"),
        (_said(identity="[" * 100_000), "cannot be imported"),
        (_said(provenance='"x"'), "identity, provenance or slug"),
        (_said(grid={**GRID, "shape": [3, 4, 6]}), "not float16 .3, 4, 6. as its grid says"),
        (_said(grid={**GRID, "shape": [1 << 20, 1 << 10, 1 << 10]}), "more than any cache"),
        (_said(grid={**GRID, "shape": [-3, 4, 5]}), "cannot be imported"),
        (_said(grid={**GRID, "name": "../tokens"}), "cannot be imported"),
        (_said(grid={**GRID, "dtype": "float64"}), "cannot be imported"),
        (_said(grid={**GRID, "dtype": "uint8"}), "not uint8"),
        (_column("tile_key", _set(2, "../../etc/passwd")), "is no view of a tile"),
        (_column("tile_key", _set(2, "A" * 64)), "is no view of a tile"),
        (_column("tile", _set(2, "a\nb")), "is no view of a tile"),
        (_column("view", _set(2, -1)), "is no view of a tile"),
        (_column("sha256", _set(2, "")), "is no view of a tile"),
        (_column("mask_sha256", _set(2, "x")), "is no view of a tile"),
        (_column("mask_key", _set(2, "x")), "is no view of a tile"),
        (_column("pixels", _set(2, "x")), "are no sha256"),
        (_column("meta", _set(2, "[1]")), "no mapping"),
        (_column("mask_meta", _set(2, "{")), "cannot be imported"),
        (_column("view", _set(3, 0)), "a view twice"),
        (_column("view", lambda values: values.pop()), "its view is not one int64 a view"),
        (_column("tile", lambda values: values.append("x")), "its tile is not one text"),
    ],
)
def test_what_cannot_be_is_refused_also_with_a_right_digest(
    good: Path, change: Callable[[Forgery], None], words: str
) -> None:
    forged = Forgery.of(good)
    change(forged)
    refused(forged.write(good.with_name("forged.h5")), words)


def _linked(kind: Callable[[str], Any]) -> Callable[[h5py.File, str], object]:
    return lambda file, name: file.__setitem__(name, kind(name))


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((6, 3, 4, 5), "<f2")
    layout[:] = h5py.VirtualSource("good.h5", name, (6, 3, 4, 5))
    file.create_virtual_dataset(name, layout)


def _outside(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (6, 3, 4, 5), "<f2", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _column_outside(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (6,), "S64", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _holes(file: h5py.File, name: str) -> None:
    """A size without content: reading it would make as many zeros."""
    file.create_dataset(name, (1 << 40,), "S64")


def _many(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (1 << 40, 3, 4, 5), "<f2", chunks=(1, 3, 4, 5))


def _texts_of_any_length(file: h5py.File, name: str) -> None:
    file.create_dataset(name, data=["x"] * 6, dtype=h5py.string_dtype())


def _created(**options: Any) -> Callable[[h5py.File, str], object]:
    def create(file: h5py.File, name: str) -> None:
        shape = (6, 3, 4, 5) if name == "features" else (6,)
        data = np.zeros(shape, options.pop("of", "<f2"))
        file.create_dataset(name, data=data, **options)

    return create


@pytest.mark.parametrize(
    ("name", "instead", "words"),
    [
        ("features", _linked(lambda name: h5py.SoftLink("/tile")), "features is missing, or a link"),
        (
            "features",
            _linked(lambda name: h5py.ExternalLink("good.h5", name)),
            "features is missing, or a link",
        ),
        ("sha256", _linked(lambda name: h5py.ExternalLink("good.h5", name)), "sha256 is missing, or a link"),
        ("features", _virtual, "not stored as one chunk a view"),
        ("features", _outside, "no data set in this file"),
        ("tile_key", _column_outside, "no data set in this file"),
        ("features", lambda file, name: file.create_group(name), "no data set in this file"),
        ("features", _many, "is not one int64 a view|is not one text"),
        ("tile_key", _holes, "is not one text of fixed length a view"),
        ("tile", _texts_of_any_length, "is not one text of fixed length a view"),
        ("meta", _created(of="S70000"), "is not one text of fixed length a view"),
        ("view", _created(of="<i4"), "is not one int64 a view"),
        ("pixels", _created(of="S64", chunks=(6,), compression="gzip"), "does not lie in one piece"),
        ("features", _created(chunks=(1, 3, 4, 5), compression="lzf"), "filters other than gzip"),
        ("features", _created(chunks=(1, 3, 4, 5), fletcher32=True), "filters other than gzip"),
        ("features", _created(chunks=(1, 3, 4, 5), scaleoffset=3, of="<i2"), "are not float16"),
        ("features", _created(chunks=(2, 3, 4, 5)), "not stored as one chunk a view"),
        ("features", _created(), "not stored as one chunk a view"),
        ("features", _created(of=">f2", chunks=(1, 3, 4, 5)), "are not float16"),
        ("features", _created(of="<f4", chunks=(1, 3, 4, 5)), "are not float16"),
        ("extra", _created(), "it holds 12 objects, not exactly features, masks"),
        ("features", lambda file, name: None, "it holds 10 objects"),
    ],
)
def test_only_plain_data_in_the_file_itself_is_read(
    good: Path, name: str, instead: Callable[[h5py.File, str], object], words: str
) -> None:
    forged = Forgery.of(good)
    forged.instead[name] = instead
    refused(forged.write(good.with_name("forged.h5")), words)


def test_a_text_of_any_length_is_not_even_read(good: Path) -> None:
    with h5py.File(good, "a") as file:
        file.attrs["identity"] = json.dumps(kit.IDENTITY)  # h5py makes this one of variable length
    refused(good, "its identity is not one text of fixed length")
    with h5py.File(good, "a") as file:
        del file.attrs["identity"]
    refused(good, "does not say its identity")


def test_a_chunk_that_unpacks_to_more_than_a_view_takes_no_memory(good: Path) -> None:
    forged = Forgery.of(good)
    forged.options = {"compression": "gzip"}
    bomb = zlib.compress(bytes(1 << 26), 9)
    path = forged.write(good.with_name("bomb.h5"), "earliest")
    for content, words in ((bomb[:1000], "holds 121 bytes, not 120"), (bomb, "leads outside of the file")):
        with h5py.File(path, "a") as file:
            file["features"].id.write_direct_chunk((0, 0, 0, 0), content)
        tracemalloc.start()
        with pytest.raises(VerificationError, match=f"train_0, view 0.*{words}"):
            import_hdf5(path, good.parent / "there")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_a_view_that_is_not_in_the_file_is_no_grid_of_zeros(good: Path) -> None:
    def holes(file: h5py.File, name: str) -> None:
        file.create_dataset(name, (6, 3, 4, 5), "<f2", chunks=(1, 3, 4, 5))[:2] = 1

    forged = Forgery.of(good)
    forged.instead["features"] = holes
    forged.grids["features"][:2], forged.grids["features"][2:] = 1, 0
    sums = [hashlib.sha256(grid.tobytes()).hexdigest() for grid in forged.grids["features"]]
    forged.columns["sha256"] = texts(sums)
    with pytest.raises(VerificationError, match=r"train_2, view 0.*its chunk is missing"):
        import_hdf5(forged.write(good.with_name("holes.h5")), good.parent / "there")


def test_values_no_cache_holds_are_not_stored(good: Path) -> None:
    forged = Forgery.of(good)
    forged.grids["features"][1, 0, 0, 0] = np.nan
    path = forged.write(good.with_name("nan.h5"))
    with pytest.raises(
        VerificationError, match="train_1, view 0 is not what was exported: its sha256 differs"
    ):
        import_hdf5(path, good.parent / "there")
    sums = [hashlib.sha256(grid.tobytes()).hexdigest() for grid in forged.grids["features"]]
    forged.columns["sha256"] = texts(sums)
    forged.write(path)
    with pytest.raises(InputError, match=r"not a number.*train_1, view 0"):
        import_hdf5(path, good.parent / "there")
    (store,) = GridStore.beside(good.parent / "there", "pixels")
    assert store.status().views_done == 0


def test_files_that_are_something_else_are_named_as_such(good: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent.h5", "There is no such file", InputError)
    (tmp_path / "text.h5").write_text("hello")
    refused(tmp_path / "text.h5", "no HDF5 file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((3, 2))
    refused(tmp_path / "other.h5", "no export of a cache", InputError)
    with h5py.File(good, "a") as file:
        file.attrs["format"] = np.bytes_(b"frostgrid-hdf5/2")
    refused(good, "frostgrid-hdf5/2; this version of frostgrid reads frostgrid-hdf5/1", InputError)


def test_every_cut_and_flipped_bit_is_found(good: Path) -> None:
    """Whatever byte is changed, the import says so or brings the very same caches: gaps between objects are free."""
    data = good.read_bytes()
    rng = random.Random(5)
    features = data.find(kit.grid_of(ROWS[3]).tobytes())
    masks = data.find(kit.grid_of(exchange.mask_row(ROWS[3]), kit.MASKS).tobytes())
    names = data.find(b"train_1")
    assert min(features, masks, names) > 0
    places = [features, features + 119, masks, masks + 41, names, *rng.sample(range(len(data)), 150)]
    found = 0
    for place in places:
        root = good.parent / f"at {place}"
        good.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        try:
            import_hdf5(good, root)
        except (VerificationError, InputError) as error:
            found += 1
            assert str(good) in str(error)
            if place - features in (0, 119) or place - masks in (0, 41):
                assert "train_0, view 1" in str(error)
        else:
            assert place not in places[:5]
            exchange.expect_both(root, ROWS)
        shutil.rmtree(root, ignore_errors=True)
    assert found > 100
    for length in [0, 1, 100, *rng.sample(range(len(data)), 10), len(data) - 1]:
        good.write_bytes(data[:length])
        refused(good, "cut or damaged")
