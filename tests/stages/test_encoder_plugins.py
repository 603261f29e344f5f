"""Encoders of installed packages: found by their entry points, checked in all they say and give."""

from __future__ import annotations

import pytest
import torch
from packagekit import Packages

from stages.encoders import (
    TokenGrid,
    canonical_name,
    describe_encoder,
    encoder_card,
    encoder_flop,
    known_encoders,
    load_encoder,
    plugin_faults,
    weights_at_hand,
)
from store.errors import AccessError, InputError

MEAN_COLOUR = """
import torch
from stages.encoders import Description, TokenGrid

class Loaded:
    name, parameters, grid = "mean-colour", 0, TokenGrid(3, 1, 1)

    def __init__(self, dtype, fit):
        self.identity = {"revision": 2, "compute_dtype": "float32" if dtype == "auto" else dtype}
        self.provenance = {"package": "colours 1.0"}

    def encode(self, views):
        return views.float().mean((2, 3), keepdim=True)

def describe(*, tile_px, fit):
    return Description(
        name="mean-colour", title="Mean colour", family="colours", grid=TokenGrid(3, 1, 1), tile_px=tile_px,
        run_px=tile_px, fit=fit, patch=tile_px, parameters=0, layer=None, depth=None, licence="MIT", gated=False,
        repo=None, identity={"revision": 2}, share="allowed",
    )

def load(*, tile_px, weights, fit, device, dtype):
    return Loaded(dtype, fit)
"""


def install(
    packages: Packages, code: str = MEAN_COLOUR, name: str = "mean-colour", module: str = "colours"
) -> None:
    """Install a package of one module, which is the factory of an encoder."""
    packages.install(module, code, entries=f"[frostgrid.encoders]\n{name} = {module}\n")


def changed(old: str, new: str) -> str:
    assert old in MEAN_COLOUR
    return MEAN_COLOUR.replace(old, new)


def fault(packages: Packages, code: str, *, dtype: str = "auto") -> str:
    """What loading ends with; it names the object that the entry point names, and ends in a remedy."""
    install(packages, code)
    with pytest.raises(InputError) as caught:
        load_encoder("mean-colour", tile_px=64, dtype=dtype)  # type: ignore[arg-type]
    assert caught.value.remedy
    return str(caught.value)


def test_an_installed_package_brings_its_own_encoder(packages: Packages) -> None:
    install(packages)
    assert known_encoders()[-1] == canonical_name("Mean_Colour") == "mean-colour"
    assert describe_encoder("mean-colour", tile_px=64).grid == TokenGrid(3, 1, 1)
    encoder = load_encoder("MEAN-COLOUR", tile_px=64)
    tokens = encoder.encode(torch.full((1, 3, 64, 64), 7, dtype=torch.uint8))
    assert tokens.flatten().tolist() == [7, 7, 7]
    assert encoder_card("mean-colour").installed
    assert (encoder_flop("mean-colour", tile_px=64), weights_at_hand("mean-colour")) == (0, None)
    assert not plugin_faults()
    with pytest.raises(InputError, match="has no blocks"):
        canonical_name("mean-colour@2")
    with pytest.raises(ValueError, match="views must be uint8"):
        encoder.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_identity_and_provenance_are_completed_from_the_description(packages: Packages) -> None:
    install(packages)
    encoder = load_encoder("mean-colour", tile_px=64, fit="pad")
    assert encoder.identity == {
        "encoder": "mean-colour",
        "tile_px": 64,
        "fit": "pad",
        "revision": 2,
        "compute_dtype": "float32",
    }
    known = describe_encoder("mean-colour", tile_px=64, fit="pad").identity
    assert {name: encoder.identity[name] for name in known} == known
    said = {"title": "Mean colour", "licence": "MIT", "share": "allowed", "package": "colours 1.0"}
    assert said.items() <= encoder.provenance.items()


def test_an_encoder_without_weights_may_have_other_precisions(packages: Packages) -> None:
    install(packages)
    assert load_encoder("mean-colour", tile_px=64, dtype="bfloat16").identity["compute_dtype"] == "bfloat16"
    only = changed('share="allowed"', 'share="allowed", float32_only=True')
    assert "mean-colour is computed in float32, not in bfloat16" in fault(packages, only, dtype="bfloat16")
    deaf = changed('"float32" if dtype == "auto" else dtype', '"float32"')
    assert "mean-colour computes in float32, not in bfloat16" in fault(packages, deaf, dtype="bfloat16")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("import torch", "import no_such_package", "cannot be imported: ModuleNotFoundError"),
        ("import torch", "raise SystemError('half installed')", "cannot be imported: SystemError: half installed"),
        ("def load(", "def other(", "has no function load"),
        ("def describe(*, tile_px, fit)", "def describe(*, tile_px)", "failed in describe: TypeError"),
        ("    return Loaded(dtype, fit)", "    raise OSError('no licence')", "failed in load: OSError: no licence"),
        ("    return Description(", "    return dict(", "describes itself by a dict"),
        ('name="mean-colour", title', 'name="mean", title', "its name is 'mean', not 'mean-colour'"),
        ("grid=TokenGrid(3, 1, 1), tile_px", "grid=(3, 1, 1), tile_px", "its grid is no TokenGrid"),
        ("grid=TokenGrid(3, 1, 1), tile_px", "grid=TokenGrid(3, 0, 1), tile_px", "its grid.h is 0"),
        ("tile_px=tile_px,", "tile_px=512,", "its tile_px is 512, not 64"),
        ("parameters=0,", "parameters=-1,", "its parameters is -1"),
        ('share="allowed"', 'share="yes"', "its share is 'yes'"),
        ('licence="MIT"', "licence=None", "its licence is no text"),
        ('identity={"revision": 2}', "identity=None", "its identity is no mapping"),
        ('identity={"revision": 2}', 'identity={"at": torch.ones(1)}', "its identity cannot be written as JSON"),
        ('identity={"revision": 2}', 'identity={"encoder": "uni"}', "its identity has encoder = 'uni'"),
        ("    return Loaded(dtype, fit)", "    return None", "has no name and no grid and no identity"),
        ('self.provenance = {"package"', 'self.origin = {"package"', "has no provenance when it is loaded"),
        ("0, TokenGrid(3, 1, 1)\n", "0, TokenGrid(3, 2, 2)\n", "its grid is TokenGrid(d=3, h=2, w=2)"),
        ('{"revision": 2, "compute', '{"revision": 3, "compute', "its identity has revision = 3, not 2"),
        ('"compute_dtype":', '"precision":', "does not say in its identity with which compute_dtype"),
        ('{"package": "colours 1.0"}', '{"package": {1, 2}}', "its provenance cannot be written as JSON"),
    ],
)  # fmt: skip
def test_what_an_installed_encoder_cannot_be_is_one_explained_error(
    packages: Packages, old: str, new: str, words: str
) -> None:
    said = fault(packages, changed(old, new))
    assert words in said
    assert "[colours]" in said


def test_an_explained_error_of_the_package_itself_is_passed_on(packages: Packages) -> None:
    own = "    from store.errors import AccessError\n    raise AccessError('ask the authors', remedy='By mail.')"
    install(packages, changed("    return Loaded(dtype, fit)", own))
    with pytest.raises(AccessError, match="ask the authors"):
        load_encoder("mean-colour", tile_px=64)


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        ("views.float().mean((2, 3))", r"gave \(2, 3\) for a batch of views, not a tensor of \(2, 3, 1, 1\)"),
        ("views.float().mean((2, 3), keepdim=True)[:1]", r"gave \(1, 3, 1, 1\)"),
        ("None", "gave NoneType"),
        ("views.float().mean((2, 3), keepdim=True) / 0", "not finite"),
    ],
)
def test_tokens_that_cannot_be_are_refused(packages: Packages, gives: str, words: str) -> None:
    install(packages, changed("views.float().mean((2, 3), keepdim=True)", gives))
    encoder = load_encoder("mean-colour", tile_px=64)
    with pytest.raises(InputError, match=words):
        encoder.encode(torch.ones((2, 3, 64, 64), dtype=torch.uint8))


@pytest.mark.parametrize("name", ["uni", "UNI", "uni_v1"])
def test_a_name_of_the_table_is_refused_and_harms_no_other_encoder(packages: Packages, name: str) -> None:
    install(packages, name=name)
    with pytest.raises(InputError, match="which is an encoder of the table"):
        describe_encoder(name, tile_px=64)
    assert len(set(known_encoders())) == len(known_encoders())
    assert describe_encoder("stain", tile_px=64)
    (found,) = plugin_faults()
    assert "Rename its entry point" in str(found)


def test_a_name_of_two_packages_or_of_no_folder_is_refused(packages: Packages) -> None:
    install(packages)
    install(packages, name="Mean_Colour", module="hues")
    with pytest.raises(InputError, match="2 installed packages call their encoder"):
        describe_encoder("mean-colour", tile_px=64)
    install(packages, name="../hues", module="hues")
    assert describe_encoder("mean-colour", tile_px=64)
    with pytest.raises(InputError, match="cannot name a folder"):
        describe_encoder("../hues", tile_px=64)


def test_a_size_of_its_own_is_for_the_package_to_say(packages: Packages) -> None:
    install(packages)
    with pytest.raises(InputError, match=r"Leave it out of encoders\.input_px"):
        describe_encoder("mean-colour", tile_px=64, input_px=32)
