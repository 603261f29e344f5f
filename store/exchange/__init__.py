"""Caches as single files for other people and other programs: HDF5, zip, and the layout of MIL tools."""

from __future__ import annotations

from store.exchange.archive import export_zip, import_zip
from store.exchange.hdf5 import export_hdf5, import_hdf5
from store.exchange.incoming import Imported
from store.exchange.outgoing import Exported
from store.exchange.pooled import export_pooled

__all__ = ["Exported", "Imported", "export_hdf5", "export_pooled", "export_zip", "import_hdf5", "import_zip"]
