"""Where caches lie: a folder of this machine, a bucket, a data set repository."""

from __future__ import annotations

from pathlib import Path

from store.places.local_place import LocalPlace
from store.places.place import UNKNOWN, Content, Place

__all__ = ["UNKNOWN", "Content", "LocalPlace", "Place", "open_place"]


def open_place(url: str | Path) -> Place:
    """Return the place a person names: ``hf://datasets/owner/name[@revision][/folder]``, a URL, or a local path.

    Nothing is looked at yet. Raises ``InputError`` for a URL of no known kind, or whose package is not installed.
    """
    text = str(url)
    if isinstance(url, Path) or "://" not in text:
        return LocalPlace(Path(text).expanduser())
    scheme, _, rest = text.partition("://")
    if scheme in ("file", "local"):
        return LocalPlace(Path("/" + rest.lstrip("/")))
    if scheme == "hf":
        from store.places.hub import HubPlace  # huggingface_hub takes a moment to load

        return HubPlace(text)
    from store.places.fsspec_place import FsspecPlace  # so do fsspec's file systems

    return FsspecPlace(text)
