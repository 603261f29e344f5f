"""Installed packages, as pip would leave them: a module or none, and what they say they bring along."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from stages.decoders.plugins import installed_decoders
from stages.encoders.plugins import plugins


class Packages:
    """Packages in ``folder``, besides those of this environment; see :func:`installed`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: set[str] = set()

    def install(
        self, module: str, code: str | None = None, *, entries: str = "", version: str = "1.0"
    ) -> None:
        """Install, or install again, a package of one module; ``entries`` are the lines of its entry points.

        Without ``code`` it has lost its module.
        """
        if code is not None:
            (self.folder / f"{module}.py").write_text(dedent(code))
        about = self.folder / f"{module}-{version}.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
        (about / "entry_points.txt").write_text(entries)
        self.modules.add(module)
        self.forget()

    def remove(self, module: str) -> None:
        """Uninstall a package, whatever its version."""
        (self.folder / f"{module}.py").unlink(missing_ok=True)
        for about in self.folder.glob(f"{module}-*.dist-info"):
            shutil.rmtree(about)
        self.forget()

    def forget(self) -> None:
        """Forget what was found and imported of them."""
        for module in self.modules:
            sys.modules.pop(module, None)
        installed_decoders.cache_clear()
        plugins.cache_clear()


@contextmanager
def installed(folder: Path) -> Iterator[Packages]:
    """Give the block a place to install packages in; they are gone afterwards."""
    folder.mkdir()
    packages = Packages(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        packages.forget()
        yield packages
    packages.forget()
