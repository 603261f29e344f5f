"""The commands that bring caches into other forms and back: convert, export and import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.commands.options import (
    LocalPath,
    cache_root_option,
    json_option,
    optional_study_option,
    quiet_option,
    runs_option,
    threads_option,
)
from pipeline.console import Talk, bytes_text, print_json
from pipeline.study import Study
from store.errors import InputError

if TYPE_CHECKING:
    from store import GridStore

HDF5_SUFFIXES = (".h5", ".hdf5")


@click.command()
@click.argument("cache", metavar="CACHE")
@click.option("--to", "encoding", type=click.Choice(["int8"]), required=True, help="The new encoding.")
@click.option(
    "--max-error",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Largest error of a view, as a share of a channel's standard deviation; beyond it nothing of the shard is "
    "stored. [default: 0.03]",
)
@click.option(
    "--cache",
    "root",
    type=LocalPath(file_okay=False),
    metavar="DIRECTORY",
    help="Where to. [default: beside CACHE]",
)
@threads_option
@json_option
@quiet_option
def convert(
    cache: str,
    encoding: str,
    max_error: float | None,
    root: Path | None,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a cache of half the size beside CACHE, and say what that costs. The original stays.

    Train from it with encoding = "int8" in the [cache] of the study.
    """
    from pipeline.naming import local_store
    from store.convert import convert as converted
    from store.int8 import MAX_ERROR

    store = local_store(cache)
    talk = Talk(quiet=quiet)
    with talk.bar(f"Converting {store.path.name}", "views") as update:
        made = converted(
            store,
            root or store.path.parent,
            encoding,
            max_error=MAX_ERROR if max_error is None else max_error,
            threads=threads,
            on_progress=update,
        )
    error = made.reader().encoding_error()
    before, after = store.status(), made.status()
    found = {
        "from": str(store.path),
        "to": str(made.path),
        "views": after.views_done,
        "bytes_before": before.bytes,
        "bytes": after.bytes,
        "int8_error": None if error is None else error._asdict(),
    }
    if as_json:
        print_json(found)
        return
    click.echo(made.path)
    talk.say(f"{after.views_done} views, {bytes_text(before.bytes)} → {bytes_text(after.bytes)}")
    if error is not None:
        talk.say(
            f"error: {100 * error.mean_rms:.2f} % of a channel's σ in the mean view, "
            f"{100 * error.max_rms:.2f} % in the worst"
        )


@click.command()
@click.argument("cache", metavar="CACHE")
@click.argument("out", type=LocalPath(), metavar="OUT.h5|OUT.zip|FOLDER")
@click.option(
    "--pooled",
    is_flag=True,
    help="Into FOLDER one HDF5 file an image, features (N, d) and coords (N, 2), as CLAM and TRIDENT read them.",
)
@click.option(
    "--masks",
    metavar="FOLDER",
    help="The views store whose masks go into the file. [default: the one beside CACHE that fits, if there is one]",
)
@click.option("--no-masks", is_flag=True, help="Without masks.")
@click.option("--gzip", is_flag=True, help="Make an HDF5 file about a quarter smaller, and slower to read.")
@optional_study_option("Only the views of this study, with its masks.")
@runs_option
@threads_option
@json_option
@quiet_option
def export(
    cache: str,
    out: Path,
    pooled: bool,
    masks: str | None,
    no_masks: bool,
    gzip: bool,
    study: Study | None,
    runs: Path,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a cache with its masks as one HDF5 file (any reader opens it), one zip (bit for bit), or for MIL tools.

    An existing file is never replaced. frostgrid cache import takes zip and HDF5 back; not the HDF5 of an int8 cache,
    which holds the float16 values it is read as, of which its bytes cannot be made again: its zip has them.
    """
    from pipeline.naming import local_store
    from pipeline.sharing import chosen_views, masks_beside
    from pipeline.workspace import VIEWS
    from store.exchange import export_hdf5, export_pooled, export_zip

    if masks is not None and no_masks:
        raise InputError("--masks and --no-masks contradict each other", remedy="Give one of them.")
    store = local_store(cache)
    kind = "pooled" if pooled else _kind(out)
    if kind == "zip" and study is not None:
        raise InputError(
            "A zip holds caches as they are, not a part of them",
            where=out,
            remedy="Leave --study out, or export to .h5.",
        )
    if gzip and kind != "hdf5":
        raise InputError("--gzip is for HDF5 files", where=out, remedy="Leave it out, or export to .h5.")
    views = chosen_views(study, runs, threads) if study is not None else None
    talk = Talk(quiet=quiet)
    beside: GridStore | None = None
    if not no_masks and store.slug != VIEWS:
        beside = local_store(masks) if masks is not None else masks_beside(store)
        if beside is None and kind != "pooled":
            talk.say(f"no masks: there is no views store beside {store.path.name} that fits")
    with talk.bar(f"Exporting {store.path.name}", "bytes" if kind == "zip" else "views") as update:
        if kind == "zip":
            made = export_zip(store, out, beside=[] if beside is None else [beside], on_progress=update)
        elif kind == "hdf5":
            compression: Literal["gzip"] | None = "gzip" if gzip else None
            made = export_hdf5(
                store, out, masks=beside, views=views, compression=compression, on_progress=update
            )
        else:
            made = export_pooled(store, out, masks=_needed(beside, store), views=views, on_progress=update)
    importable = kind == "zip" or (kind == "hdf5" and store.spec.encoding == "exact")
    if as_json:
        found = {"path": str(made.path), "views": made.views, "masks": made.masks, "bytes": made.bytes}
        print_json({**found, "importable": importable})
        return
    click.echo(made.path)
    masks = f", {made.masks} of them with a mask" if made.masks else ""
    talk.say(f"{made.views} views{masks}, {bytes_text(made.bytes)}")
    if kind == "hdf5" and not importable:
        talk.say(
            "frostgrid cache import does not take this file: of the float16 values in it the int8 cache cannot be made "
            "again byte for byte. Export to .zip to bring it back."
        )


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@cache_root_option
@json_option
@quiet_option
def import_(file: Path, root: Path, as_json: bool, quiet: bool) -> None:
    """Bring an exported zip or HDF5 file back into a folder of caches; every grid is checked.

    What a cache there holds already is kept, what it lacks is added. The HDF5 file of an int8 cache is refused: it does
    not hold the stored bytes, as the zip does.
    """
    from store.exchange import import_hdf5, import_zip

    talk = Talk(quiet=quiet)
    zipped = _kind(file) == "zip"
    with talk.bar(f"Importing {file.name}", "bytes" if zipped else "views") as update:
        done = (import_zip if zipped else import_hdf5)(file, root, on_progress=update)
    status = done.store.status()
    found: dict[str, Any] = {
        "cache": str(done.store.path),
        "views": done.views,
        "views_added": done.added,
        "masks_added": done.masks_added,
        "views_done": status.views_done,
        "views_planned": status.views_planned,
        "bytes": status.bytes,
    }
    if as_json:
        print_json(found)
        return
    click.echo(done.store.path)
    kept = done.views - done.added
    if not done.added:
        told = f"all {done.views} views were there already"
    else:
        told = f"{done.added} views added" + (f", {kept} were there already" if kept else "")
    if done.masks_added:
        told += f"; {done.masks_added} masks added"
    talk.say(
        f"{told}; the cache has {status.views_done} of {status.views_planned} views, {bytes_text(status.bytes)}"
    )


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix == ".zip":
        return "zip"
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    raise InputError(
        "The name does not say which form is meant", where=file, remedy="Let it end in .h5 or in .zip."
    )


def _needed(masks: GridStore | None, store: GridStore) -> GridStore:
    if masks is not None:
        return masks
    raise InputError(
        "Where the views lie in their images is kept in the views store, and there is none",
        where=store.path.parent,
        remedy="Give it with --masks FOLDER; frostgrid extract writes it.",
    )
