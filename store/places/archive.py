"""A zip file as a place to read caches from: its members are read where they lie, nothing is unpacked."""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from store.errors import AccessError, InputError, MissingViews, StorageError, VerificationError
from store.places.place import Content

_BLOCK = 1 << 20
_NAMED = 5
_UTF8 = 0x800  # of the name: the only flag of a plain member
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_LOCAL = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, length of name and of extra field
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*(/[A-Za-z0-9][A-Za-z0-9._@+-]*){1,3}")
_DAMAGED = "Fetch the archive again, or export it anew."


@dataclass(frozen=True)
class _Member:
    """Where a file lies in the archive, and the CRC-32 the archive states for it."""

    start: int
    size: int
    crc: int


class ZipPlace:
    """The caches in a zip file of plain, uncompressed members; see :class:`store.places.place.Place`.

    Refused when it is opened, with ``InputError`` naming the members: absolute names, ``..``, backslashes, drive
    letters and whatever else is no plain relative name, links and devices, names that are there twice (or differ in
    case only), compressed or encrypted members, and members that share bytes. ``VerificationError`` says that the file
    is cut or is no zip. Nothing in it can be changed. Close it, or use it as a context.
    """

    batch_files = 1

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError("There is no such file", where=path, remedy="Correct the path.") from error
        except PermissionError as error:
            raise AccessError(
                "The file may not be read with the rights at hand", where=path, remedy="Ask its owner."
            ) from error
        try:
            with (
                os.fdopen(os.dup(self._descriptor), "rb") as file,
                zipfile.ZipFile(file) as archive,
            ):
                self._members = self._checked(archive)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
            self.close()
            raise VerificationError(
                f"The file is no zip, or is cut or damaged ({error})", where=path, remedy=_DAMAGED
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ZipPlace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def folders(self) -> list[str]:
        """Return the names of the caches' folders, sorted."""
        return sorted(self.caches())

    def caches(self) -> list[str]:
        """Return the names of the caches' folders, in the order in which they were exported."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self._members))

    def files(self, folder: str) -> dict[str, int]:
        """Return every file below ``folder``, by its name relative to it, with its size in bytes."""
        return {
            name.removeprefix(f"{folder}/"): member.size
            for name, member in self._members.items()
            if name.startswith(f"{folder}/")
        }

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, checked against its CRC-32, or ``None`` where there is none."""
        member = self._members.get(name)
        if member is None:
            return None
        blocks: list[bytes] = []
        self.fetch(name, blocks.append)
        data = b"".join(blocks)
        if zlib.crc32(data) != member.crc:
            raise VerificationError("The member is damaged", where=f"{self.url}: {name}", remedy=_DAMAGED)
        return data

    def fetch(self, name: str, write: Callable[[bytes], object], start: int = 0) -> None:
        """Pass the content of a file from byte ``start`` on to ``write``, block by block."""
        member = self._members.get(name)
        if member is None:
            raise MissingViews("The archive has no such file", where=f"{self.url}: {name}", remedy=_DAMAGED)
        at, end = member.start + start, member.start + member.size
        while at < end:
            try:
                block = os.pread(self._descriptor, min(_BLOCK, end - at), at)
            except OSError as error:
                raise StorageError(
                    f"The archive cannot be read: {error.strerror}", where=self.url, remedy="Check its disk."
                ) from error
            if not block:
                raise StorageError("The archive ends too early", where=self.url, remedy=_DAMAGED)
            at += len(block)
            write(block)

    def send(self, files: Mapping[str, Content], *, new: bool = False) -> list[str]:
        """Raise ``InputError``: an archive is written once, by an export."""
        self._refuse()

    def remove(self, names: Iterable[str]) -> None:
        """Raise ``InputError``: an archive is written once, by an export."""
        self._refuse()

    def public(self) -> bool | None:
        """Return ``None``: a file does not tell who else has it."""
        return None

    def _refuse(self) -> NoReturn:
        raise InputError(
            "An archive is not changed once it is written",
            where=self.url,
            remedy="Export the cache into a new file.",
        )

    def _checked(self, archive: zipfile.ZipFile) -> dict[str, _Member]:
        infos = archive.infolist()
        doubled = Counter(info.orig_filename.casefold() for info in infos)
        faults = []
        for info in infos:
            fault = _fault(info)
            if fault is None and doubled[info.orig_filename.casefold()] > 1:
                fault = "is there twice"
            if fault:
                faults.append(f"{info.orig_filename!r} {fault}")
        if faults or not infos:
            raise InputError(
                f"The archive holds what it should not: {_some(faults)}"
                if faults
                else "The archive is empty",
                where=self.url,
                remedy="Nothing was taken from it. Give a file that was made by `frostgrid cache export`.",
            )
        members = {
            info.filename: _Member(self._start(info), info.file_size, info.CRC)
            for info in sorted(infos, key=lambda info: info.header_offset)
        }
        bounds = [(info.header_offset, members[info.filename]) for info in infos]
        bounds.sort(key=lambda bound: bound[0])
        ends = [(begin, member.start + member.size) for begin, member in bounds]
        ends.append((archive.start_dir, archive.start_dir))
        if any(end > begin for (_, end), (begin, _) in pairwise(ends)):
            raise zipfile.BadZipFile("its members share bytes")
        return members

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Return where the content of a member begins; its own header must say what the directory says."""
        header = os.pread(self._descriptor, _LOCAL.size, info.header_offset)
        if len(header) < _LOCAL.size:
            raise zipfile.BadZipFile(f"{info.filename} lies outside of the file")
        signature, flags, method, length, extra = _LOCAL.unpack(header)
        name = os.pread(self._descriptor, length, info.header_offset + _LOCAL.size)
        if (signature, flags, method) != (b"PK\3\4", info.flag_bits, 0) or name != info.filename.encode():
            raise zipfile.BadZipFile(f"{info.filename} is called something else where it lies")
        return int(info.header_offset + _LOCAL.size + length + extra)


def _fault(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if name.startswith("/") or ".." in name.split("/") or any(sign in name for sign in "\\:\0"):
        return "has a name that leads elsewhere"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed"
    if not _PLAIN.fullmatch(name) or info.flag_bits & ~_UTF8:
        return "is no plain file of a cache"
    return None


def _some(faults: Sequence[str]) -> str:
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return ", ".join(faults[:_NAMED]) + more
