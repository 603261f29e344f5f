"""Unpacking an archive from the network: only plain files of expected names, into one folder, never over others."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.tiles.fetch import require_space
from store.errors import InputError, StorageError, VerificationError

_BLOCK = 1 << 20
_LITTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})  # what desktops leave beside the files


@dataclass(frozen=True)
class Unpacked:
    """The file names that are now in the folder, and the members that were left out for their names."""

    names: list[str]
    left_out: list[str]


def unpack(archive: Path, folder: Path, pattern: re.Pattern[str]) -> Unpacked:
    """Unpack the members whose file name matches ``pattern`` into ``folder``, whatever folder the archive has them in.

    A file appears under its name only when it is complete and its CRC agrees; one that is there with the same content
    is kept. Nothing is unpacked, and ``InputError`` raised, where a member is a link, has an absolute or climbing
    path, is encrypted or shares its name with another, where no name matches, or where a file with another content is
    in the way. Raises ``VerificationError`` for a damaged archive and ``StorageError`` where the disk has no room or
    cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members, left_out = _choose(archive, opened, pattern)
            folder.mkdir(parents=True, exist_ok=True)
            missing = [member for member in members if not _same(folder, member)]
            require_space(folder, sum(member.file_size for member in missing))
            for member in missing:
                _extract(opened, member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise VerificationError(
            f"the archive is truncated or damaged ({error})",
            where=archive,
            remedy="Remove it and fetch it again.",
        ) from error
    except NotImplementedError as error:
        raise InputError(
            f"the archive is compressed in a way that cannot be read here ({error})",
            where=archive,
            remedy=f"Unpack it with another program into {folder}.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"unpacking failed ({error})", where=folder, remedy="Make room, or choose another."
        ) from error
    return Unpacked(sorted(_name(member) for member in members), left_out)


def _choose(
    archive: Path, opened: zipfile.ZipFile, pattern: re.Pattern[str]
) -> tuple[list[zipfile.ZipInfo], list[str]]:
    members: list[zipfile.ZipInfo] = []
    left_out: list[str] = []
    unsafe: list[str] = []
    for member in opened.infolist():
        problem = _problem(member)
        if problem:
            unsafe.append(f"{member.filename!r} {problem}")
        elif member.is_dir() or _is_litter(member):
            continue
        elif not pattern.fullmatch(_name(member)):
            left_out.append(member.filename)
        elif any(_name(member) == _name(other) for other in members):
            unsafe.append(f"{member.filename!r} is there twice")
        else:
            members.append(member)
    if unsafe or not members:
        what = f"holds what it should not: {_some(unsafe)}" if unsafe else "holds none of the expected files"
        if not unsafe and left_out:
            what += f", but {_some(left_out)}"
        raise InputError(
            f"the archive {what}",
            where=archive,
            remedy="Fetch it again from the data set's own page; nothing was unpacked.",
        )
    return members, left_out


def _problem(member: zipfile.ZipInfo) -> str | None:
    mode = member.external_attr >> 16
    path = PurePosixPath(member.filename)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        return "has a path that leads elsewhere"
    if member.flag_bits & 0x1:
        return "is encrypted"
    return None


def _same(folder: Path, member: zipfile.ZipInfo) -> bool:
    """Return whether the member is there already; refuse to touch a file with another content."""
    path = folder / _name(member)
    if not path.exists():
        return False
    if path.is_file() and path.stat().st_size == member.file_size and _crc(path) == member.CRC:
        return True
    raise InputError(
        "a file with another content is in the way",
        where=path,
        remedy="Move it elsewhere and run the command again.",
    )


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    part = folder / f".{_name(member)}.part"
    try:
        with opened.open(member) as source, part.open("wb") as out:
            while block := source.read(_BLOCK):
                out.write(block)
        part.replace(folder / _name(member))
    finally:
        part.unlink(missing_ok=True)


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name


def _is_litter(member: zipfile.ZipInfo) -> bool:
    return any(part in _LITTER or part.startswith(".") for part in PurePosixPath(member.filename).parts)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
