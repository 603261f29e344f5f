"""One part at a place while it is being pushed: what stands there, and making records and bytes agree."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from store.disk_errors import storage_errors
from store.errors import DamagedGrid, InputError, MissingViews, VerificationError
from store.parts import Part, parse_part
from store.places.place import UNKNOWN, Content, Place
from store.records import ShardRecord
from store.sealing import listing
from store.sharing.arriving import Arrival, fetch
from store.sharing.offers import OfferedPart
from store.sharing.work import Work
from store.verify import differing
from store.writer import inspect

_BLOCK = 8 << 20


class StandingPart:
    """The part ``here``, which lies in a local cache, as it lies in ``folder`` at a place.

    ``records`` is what is known to lie there whole: of each shard its record, whoever sent it; ``sent`` is what this
    push has put there.
    """

    def __init__(self, place: Place, folder: str, here: Part, offered: OfferedPart | None) -> None:
        self.here = here
        self.there = replace(here, folder=Path(folder, here.name))
        self.sealed = offered is not None and offered.sealed
        self.listed = {} if offered is None else dict(offered.records)
        self.records = {shard: self.listed[shard] for shard in offered.whole} if offered else {}
        self.sent: dict[int, ShardRecord] = {}
        self._place = place
        if offered is not None and offered.part.slots != here.slots:
            raise InputError(
                f"The part was planned here with {here.slots} views a shard, and there with {offered.part.slots}",
                where=self.where(self.there.folder),
                remedy="Push to another place, or plan both sides with the same number of views a shard.",
            )

    def where(self, path: Path) -> str:
        """Return a file of ``there`` as messages show it."""
        return f"{self._place.url}/{path.as_posix()}"

    def send_documents(self) -> None:
        """Send the table of views and the metadata; what is there of them stays."""
        contents = {
            (self.there.folder / name).as_posix(): data for name, data in _documents(self.here).items()
        }
        while contents:
            left = self._place.send(contents, new=True)
            contents = {name: contents[name] for name in left[1:]}
        name = (self.there.folder / "part.json").as_posix()
        found = parse_part(
            self.there.folder,
            self._place.read(name) or b"",
            f"{self._place.url}/{name}",
            self.here.cache,
            self.here.spec,
        )
        if found.slots != self.here.slots:
            raise InputError(
                f"The part was planned here with {self.here.slots} views a shard, and there with {found.slots}",
                where=f"{self._place.url}/{name}",
                remedy="Push to another place, or plan both sides with the same number of views a shard.",
            )

    def send(self, records: Sequence[ShardRecord], work: Work) -> list[ShardRecord]:
        """Send shards with their markers, and return those of ``records`` that were sent.

        A shard that somebody else has finished there meanwhile is left as it is.
        """
        open_records, single = list(records), self._place.batch_files == 1
        left: set[str] = set()
        # A batch is refused as a whole, so it is tried before anything is asked.
        for look in (single, not single):
            if look:
                open_records = [record for record in open_records if not self._finished_meanwhile(record)]
            left = set(self._place.send(self._pairs(open_records), new=True)) if open_records else set()
            if not left or single:
                break
        for record in open_records:
            if left & self._pairs([record]).keys():
                self._settle(record, work)
            else:
                self._note(record)
        return [record for record in open_records if record.id.shard in self.sent]

    def recorded(self, shard: int) -> ShardRecord | None:
        """Return what is recorded of a shard there now, by its marker or the manifest; None where nothing is.

        Whether the shard itself lies there whole is not looked at.
        """
        found = self._marked(shard)
        if found is None:
            found = self._sealed().get(shard)
            self.sealed = found is not None
        if found is None:
            self.listed.pop(shard, None)
        else:
            self.listed[shard] = found
        return found

    def mend(self, record: ShardRecord) -> None:
        """Put a shard in the place of one that has a record there and is lost or cut.

        Raises ``VerificationError`` if the manifest there is of other bytes than ours.
        """
        shard = record.id.shard
        if self.listed[shard].summary == record.summary:
            self._place.send({self._shard(shard): self.here.shard_path(shard)})
        elif not self.sealed:
            self._place.remove([self._marker(shard)])
            self._place.send(self._pairs([record]))
        else:
            raise VerificationError(
                "A shard is lost or cut there, and the one here holds the same views in other bytes",
                where=self.where(self.there.shard_path(shard)),
                remedy=f"Remove {self.where(self.there.manifest)}, then push again: what is whole there is taken over.",
            )
        self._note(record)

    def seal(self, files: Mapping[str, int], work: Work) -> bool:
        """Send the manifest if every shard lies there, as ``files``, a new listing of the cache, says; then tidy up.

        Returns whether the part is sealed.
        """
        if files.get(f"{self.here.name}/manifest.json") or self._complete(files):
            self._agree(work)
            self._tidy(files)
            return True
        return False

    def _complete(self, files: Mapping[str, int]) -> bool:
        """Send the manifest if every shard lies there; returns whether one is there now."""
        names = {shard: self._shard(shard).partition("/")[2] for shard in range(self.here.shards)}
        for shard, name in names.items():
            if shard not in self.records and name in files:
                record = self._marked(shard)
                if record:
                    self.records[shard] = record
        sizes = {shard: files.get(names[shard]) for shard in self.records}
        whole = [n for n, size in sizes.items() if size in (self.records[n].summary.bytes, UNKNOWN)]
        if len(whole) < self.here.shards:
            return False
        for name, data in _documents(self.here).items():
            if self._place.read((self.there.folder / name).as_posix()) != data:
                self._place.send({(self.there.folder / name).as_posix(): data})
        self._place.send({self.there.manifest.as_posix(): self._manifest(self.records)}, new=True)
        return True

    def _agree(self, work: Work) -> None:
        """Make the manifest there, if another push has made it, say of the shards we sent what they are.

        It differs only where the store could not refuse a taken name and both have sent the same shard.
        """
        if not self.sent:
            return
        listed = self._sealed()
        differing = [
            shard for shard, sent in self.sent.items() if listed.get(shard, sent).summary != sent.summary
        ]
        found = {shard: self._inspected(shard, work) for shard in differing}
        true = {shard: record for shard, record in found.items() if record and record != listed[shard]}
        if true:
            self._place.send({self.there.manifest.as_posix(): self._manifest({**listed, **true})})

    def _manifest(self, records: Mapping[int, ShardRecord]) -> bytes:
        return listing(self.here, dict(sorted(records.items())), _documents(self.here))

    def _tidy(self, files: Iterable[str]) -> None:
        prefix = f"{self.here.name}/"
        ours = {self._marker(shard) for shard in range(self.here.shards)}
        ours.add(self.there.reopened.as_posix())
        folder = self.there.folder.parent.as_posix()
        there = {f"{folder}/{name}" for name in files if name.startswith(prefix)}
        claims = {name for name in there if name.startswith(f"{self.there.lease_folder.as_posix()}/")}
        self._place.remove(sorted(ours & there | claims))  # those of workers that were lost

    def _finished_meanwhile(self, record: ShardRecord) -> bool:
        shard = record.id.shard
        if shard not in self.records:
            found = self._marked(shard) or self._sealed().get(shard)
            if found:
                self.records[shard] = found
        return shard in self.records

    def _settle(self, record: ShardRecord, work: Work) -> None:
        """Send one shard where something lies already, or find out what that is.

        Another push may have finished the shard, an earlier one may have been cut off between shard and marker. What
        lies there whole stays and has its own record, whatever the marker says; what does not is replaced.
        """
        shard = record.id.shard
        if not self._place.send(self._pairs([record]), new=True):
            self._note(record)
            return
        found = self._inspected(shard, work)
        if found is None:
            self._place.send(self._pairs([record]))
            self._note(record)
            return
        standing = self._marked(shard) or self._sealed().get(shard)
        if standing is None or standing.summary != found.summary:
            self._place.send({self._marker(shard): found.marker()})
        self.records[shard] = found
        if found.summary == record.summary:
            self._note(record)

    def _note(self, record: ShardRecord) -> None:
        self.records[record.id.shard] = self.sent[record.id.shard] = record

    def _inspected(self, shard: int, work: Work) -> ShardRecord | None:
        """Read the shard that lies there and return its record; ``None`` if it is cut, damaged or another."""
        with tempfile.TemporaryDirectory() as folder:
            part = replace(self.here, folder=Path(folder, self.here.name))
            path = part.shard_path(shard)
            with storage_errors(path):
                path.parent.mkdir(parents=True)
            try:
                with Arrival(path, None, None) as arrival:
                    fetch(self._place, self._shard(shard), arrival, work)
            except MissingViews:
                return None
            return inspect(part, shard)

    def _marked(self, shard: int) -> ShardRecord | None:
        data = self._place.read(self._marker(shard))
        return self.there.marker_record(shard, data) if data else None

    def _sealed(self) -> dict[int, ShardRecord]:
        data = self._place.read(self.there.manifest.as_posix())
        if not data:
            return {}
        found = self.there.listed_records(data, self.where(self.there.manifest), sealed=True)
        self.records.update(found)
        return found

    def _pairs(self, records: Iterable[ShardRecord]) -> dict[str, Content]:
        """Return what is sent of shards: each followed by its marker."""
        pairs: dict[str, Content] = {}
        for record in records:
            pairs[self._shard(record.id.shard)] = self.here.shard_path(record.id.shard)
            pairs[self._marker(record.id.shard)] = record.marker()
        return pairs

    def _shard(self, shard: int) -> str:
        return self.there.shard_path(shard).as_posix()

    def _marker(self, shard: int) -> str:
        return self.there.marker_path(shard).as_posix()


def expect_sound(part: Part, record: ShardRecord) -> None:
    """Raise ``DamagedGrid`` naming tiles, views and file unless a shard here is still what was written."""
    path = part.shard_path(record.id.shard)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        digest = hashlib.sha256()
    if digest.hexdigest() != record.summary.sha256:
        rows = differing(path, part, record)
        raise DamagedGrid(
            f"The shard with {rows[0]}"
            + (f" and {len(rows) - 1} more views" if rows[1:] else "")
            + " is damaged",
            where=path,
            remedy="It was not pushed; the others were. Delete the file and extract again.",
        )


def _documents(part: Part) -> dict[str, bytes]:
    with storage_errors(part.folder):
        return part.contents()
