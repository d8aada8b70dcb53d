"""The manifest of a tree (web and local parts): a root that lists segments, segments that list entries.

A folder is one segment, or several where it is large; where the root itself would grow large, index manifests stand between. Boundaries depend on
names alone, so that one change moves one boundary at most and everything else is stored already.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hostbackup.errors import Damaged, VaultTooNew
from hostbackup.model import Entry, Kind, Part, Stored, name_from_json, name_json
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.records import Line, PartTotals, Totals, canonical, check_path, count, entry_line, entry_record, nonsense, order

VERSION = 1
SEGMENT_NAMES = 4096  # a folder up to here, and up to SEGMENT_BYTES, is one segment
SEGMENT_BYTES = 512 * 1024
_SEGMENT_AVERAGE = 1024
_PLAIN = frozenset({"name", "name_b64", "kind", "size", "mtime_ns", "mode", "target", "target_b64", "digest"})  # keys of a record with no story to it
INDEX_REFS = 512  # a list of refs longer than this is grouped
_INDEX_AVERAGE = 256
_INDEX_LARGEST = 1024
_INDEXES_HELD = 16


@dataclass(frozen=True, slots=True)
class SegmentRef(Totals):
    """One segment of a folder, with what it holds. `first`: the name it begins with where the folder has several, else b""."""

    digest: str = ""
    folder: bytes = b""
    first: bytes = b""

    def line(self) -> Line:
        line: Line = {"type": "segment", "digest": self.digest, **name_json(self.folder, "folder"), **self.as_json()}
        if self.first:
            line.update(name_json(self.first, "first"))
        return line

    @property
    def span(self) -> tuple[bytes, bytes]:
        return self.folder, self.folder

    @property
    def boundary_key(self) -> bytes:
        return self.folder + b"\0" + self.first


@dataclass(frozen=True, slots=True)
class IndexRef(Totals):
    """An index manifest: refs of the folders from `begin` to `end`, both included."""

    digest: str = ""
    begin: bytes = b""
    end: bytes = b""
    boundary_key: bytes = b""  # that of its last ref; not stored

    def line(self) -> Line:
        return {"type": "index", "digest": self.digest, **name_json(self.begin, "begin"), **name_json(self.end, "end"), **self.as_json()}

    @property
    def span(self) -> tuple[bytes, bytes]:
        return self.begin, self.end


Ref = SegmentRef | IndexRef


def _cut(key: bytes, average: int, salt: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(salt + key).digest()[:8]) % average == 0


def _ref(line: Line, where: str) -> Ref:
    try:
        totals = Totals.from_json(line).numbers()
        if line["type"] == "segment":
            first = name_from_json(line, "first") if "first" in line or "first_b64" in line else b""
            return SegmentRef(*totals, str(line["digest"]), check_path(name_from_json(line, "folder")), first)
        if line["type"] == "index":
            return IndexRef(*totals, str(line["digest"]), check_path(name_from_json(line, "begin")), check_path(name_from_json(line, "end")))
    except (KeyError, ValueError, TypeError) as error:
        raise Damaged(f"a line of this manifest makes no sense: {nonsense(error)}", where=where) from error
    raise Damaged(f"a line of an unknown type: {line['type']!r}", where=where)


def read_root(manifests: Manifests, digest: str, kind: str) -> Iterator[Line]:
    """The lines of a root manifest, the header first, its kind and version checked."""
    lines = manifests.get(digest)
    header = next(lines, None)
    if header is None or header.get("type") != kind:
        raise Damaged(f"not the root of a {kind} manifest", where=manifests.where(digest))
    if header.get("version") != VERSION:
        raise VaultTooNew(f"a manifest of version {header.get('version')!r}", where=manifests.where(digest), hint="use a newer hostbackup")
    yield header
    yield from lines


def parts_totals(header: Line, digest: str) -> PartTotals:
    totals = Totals.from_json(header.get("totals", {}))
    return PartTotals(*totals.numbers(), digest)


class TreeRoot:
    """Reads the manifest of a tree. Holds the root's own refs in memory, nothing below them."""

    def __init__(self, manifests: Manifests, digest: str, header: Line, refs: list[Ref]) -> None:
        self._manifests = manifests
        self.digest = digest
        self.part = Part.parse(header["part"])
        self.meta: dict[str, Any] = header.get("meta", {})
        self.totals = parts_totals(header, digest)
        self._refs = refs
        self._ends: dict[str, list[bytes]] = {digest: [order(ref.span[1]) for ref in refs]}
        self._indexes: dict[str, list[Ref]] = {}  # the last few that were read: lookups come folder by folder

    @classmethod
    def open(cls, manifests: Manifests, digest: str) -> TreeRoot:
        """Raises Damaged where the root or its header is not what was written, VaultTooNew where a newer version wrote it."""
        lines = read_root(manifests, digest, "tree")
        header = next(lines)
        where = manifests.where(digest)
        refs = [_ref(line, where) for line in lines]
        try:
            return cls(manifests, digest, header, refs)
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"the header of this manifest makes no sense: {nonsense(error)}", where=where) from error

    def _below(self, refs: Iterable[Ref]) -> Iterator[SegmentRef]:
        for ref in refs:
            if isinstance(ref, SegmentRef):
                yield ref
            else:
                yield from self._below(self._index(ref))

    def _index(self, ref: IndexRef) -> list[Ref]:
        refs = self._indexes.pop(ref.digest, None)
        if refs is None:
            where = self._manifests.where(ref.digest)
            refs = [_ref(line, where) for line in self._manifests.lines(ref.digest)]
            self._ends[ref.digest] = [order(inner.span[1]) for inner in refs]
            if len(self._indexes) >= _INDEXES_HELD:
                oldest = next(iter(self._indexes))
                del self._indexes[oldest], self._ends[oldest]
        self._indexes[ref.digest] = refs
        return refs

    def segments(self) -> Iterator[SegmentRef]:
        """All segments in order, index by index."""
        return self._below(self._refs)

    def indexes(self) -> Iterator[str]:
        """The digests of the index manifests between root and segments."""

        def below(refs: Iterable[Ref]) -> Iterator[str]:
            for ref in refs:
                if isinstance(ref, IndexRef):
                    yield ref.digest
                    yield from below(self._index(ref))

        return below(self._refs)

    def manifests(self) -> Iterator[str]:
        """The digests of every manifest of this tree, the root first."""
        yield self.digest
        yield from self.indexes()
        for ref in self.segments():
            yield ref.digest

    def folders(self) -> Iterator[bytes]:
        """Every folder that was listed, b"" first, a folder before those in it; siblings by name."""
        for folder, _ in self.by_folder():
            yield folder

    def by_folder(self) -> Iterator[tuple[bytes, list[SegmentRef]]]:
        """Every folder with its segments."""
        current: list[SegmentRef] = []
        for ref in self.segments():
            if current and current[0].folder != ref.folder:
                yield current[0].folder, current
                current = []
            current.append(ref)
        if current:
            yield current[0].folder, current

    def refs(self, folder: bytes) -> list[SegmentRef]:
        """The segments of one folder; none where it was never listed."""
        found: list[SegmentRef] = []
        self._gather(self.digest, self._refs, order(folder), found)
        return found

    def _gather(self, digest: str, refs: list[Ref], wanted: bytes, found: list[SegmentRef]) -> None:
        ends = self._ends[digest]
        for at in range(bisect.bisect_left(ends, wanted), len(refs)):
            ref = refs[at]
            if isinstance(ref, IndexRef):
                if order(ref.begin) > wanted:
                    return
                self._gather(ref.digest, self._index(ref), wanted, found)
            elif ends[at] == wanted:
                found.append(ref)
            else:
                return

    def lines(self, ref: SegmentRef) -> Iterator[Line]:
        """The lines of one segment as they stand there, by name. Raises Damaged."""
        return self._manifests.get(ref.digest)

    def segment(self, ref: SegmentRef) -> Iterator[Stored[Entry]]:
        """The records of one segment, by name. Raises Damaged."""
        return (self.record(ref, line) for line in self.lines(ref))

    def record(self, ref: SegmentRef, line: Line) -> Stored[Entry]:
        """What a line of a segment says. Raises Damaged."""
        try:
            return entry_record(line, ref.folder)
        except (KeyError, ValueError, TypeError) as error:
            where = self._manifests.where(ref.digest)
            raise Damaged(f"an entry of this manifest makes no sense: {nonsense(error)}", where=where) from error

    def records(self, folder: bytes) -> list[Stored[Entry]]:
        """All of a folder by name, vanished ones included; nothing where it was never listed."""
        return [record for ref in self.refs(folder) for record in self.segment(ref)]

    def unchanged(self, folder: bytes, entries: Sequence[Entry]) -> list[str] | None:
        """The digests of a folder's files, where its records are just these entries, all live and whole: none stale, failed or racy. Else None.

        `entries` are sorted by name. Says of nearly every folder that it is as it was, without making a record of each line. Raises Damaged.
        """
        refs = self.refs(folder)
        if not refs or sum(ref.entries + ref.folders + ref.links for ref in refs) != len(entries):
            return None
        lines = [line for ref in refs for line in self._manifests.lines(ref.digest)]
        if len(lines) != len(entries):
            return None
        start = len(folder) + 1 if folder else 0
        digests: list[str] = []
        for line, entry in zip(lines, entries, strict=True):
            told = line.get
            if (
                told("mtime_ns", 0) != entry.mtime_ns
                or told("size", 0) != entry.size
                or told("mode", 0) != entry.mode
                or told("kind") != entry.kind
                or not line.keys() <= _PLAIN
            ):
                return None
            if name_from_json(line) != entry.path[start:] or (name_from_json(line, "target") if entry.target else b"") != entry.target:
                return None
            if entry.kind is Kind.FILE:
                digests.append(told("digest", ""))
        return digests if all(digests) else None

    def walk(self, *, vanished: bool = False) -> Iterator[Stored[Entry]]:
        """Everything, parents before children. `vanished`: with what is no longer there."""
        for ref in self.segments():
            for record in self.segment(ref):
                if vanished or not record.vanished:
                    yield record

    def find(self, path: bytes) -> Stored[Entry] | None:
        """The record of one path: the live one, else one that vanished."""
        folder, _, name = path.rpartition(b"/")
        chosen: SegmentRef | None = None
        for ref in self.refs(folder):
            if ref.first and ref.first > name and chosen is not None:
                break
            chosen = ref
        if chosen is None:
            return None
        return next((record for record in self.segment(chosen) if record.item.path == path), None)


class _Level:
    """A list of refs that turns itself into groups once it is long."""

    def __init__(self, manifests: Manifests, number: int = 0) -> None:
        self._manifests = manifests
        self._number = number
        self._salt = b"index %d\0" % number  # each level has boundaries of its own
        self._refs: list[Ref] = []
        self._above: _Level | None = None

    def add(self, ref: Ref) -> None:
        self._refs.append(ref)
        if self._above is not None:
            self._group_at(len(self._refs))
        elif len(self._refs) > INDEX_REFS:
            self._above = _Level(self._manifests, self._number + 1)
            refs, self._refs = self._refs, []
            for earlier in refs:
                self._refs.append(earlier)
                self._group_at(len(self._refs))

    def _group_at(self, length: int) -> None:
        if length >= _INDEX_LARGEST or _cut(self._refs[-1].boundary_key, _INDEX_AVERAGE, self._salt):
            self._group()

    def _group(self) -> None:
        refs, self._refs = self._refs, []
        assert self._above is not None
        totals = Totals()
        for ref in refs:
            totals = totals + ref
        digest = self._manifests.put(ref.line() for ref in refs)
        self._above.add(IndexRef(*totals.numbers(), digest, refs[0].span[0], refs[-1].span[1], refs[-1].boundary_key))

    def finish(self) -> list[Ref]:
        if self._above is None:
            return self._refs
        if self._refs:
            self._group()
        return self._above.finish()


class TreeWriter:
    """Writes the manifest of a tree, folder by folder in the order of `records.order`. Durable after the manifests' next flush."""

    def __init__(self, manifests: Manifests, part: Part, meta: dict[str, Any]) -> None:
        self._manifests = manifests
        self._part = part
        self._meta = meta
        self._level = _Level(manifests)
        self._last: bytes | None = None
        self._totals = Totals()

    def _enter(self, folder: bytes) -> None:
        check_path(folder)
        if self._last is not None and order(folder) <= order(self._last):
            raise ValueError(f"folder {folder!r} after {self._last!r}: folders come in order, each once")
        self._last = folder

    def _push(self, ref: SegmentRef) -> None:
        self._totals = self._totals + ref
        self._level.add(ref)

    def add(self, folder: bytes, records: Iterable[Stored[Entry]]) -> None:
        """All records of one folder, sorted by name. Raises ValueError where they are not.

        A name may come again for entries of other kinds that stood there once: the live one first, the vanished ones after it.
        """
        self._enter(folder)
        batch: list[Stored[Entry]] = []
        lines: list[bytes] = []
        previous = b""
        for record in records:
            name = record.item.name
            if record.item.parent != folder or name < previous or (name == previous and not record.vanished):
                raise ValueError(f"{record.item.path!r} after {previous!r} in {folder!r}: names come sorted, and live once")
            previous = name
            batch.append(record)
            lines.append(canonical(entry_line(record)))
        ends = _boundaries(batch, lines)
        start = 0
        for end in ends:
            digest = self._manifests.put_bytes(b"".join(lines[start:end]))
            counted = count(batch[start:end])
            first = batch[start].item.name if len(ends) > 1 else b""
            self._push(SegmentRef(*counted.numbers(), digest, folder, first))
            start = end

    def keep(self, refs: Iterable[SegmentRef]) -> None:
        """One folder, just as an earlier manifest has it."""
        refs = list(refs)
        if refs:
            self._enter(refs[0].folder)
            if any(ref.folder != refs[0].folder for ref in refs):
                raise ValueError("segments of several folders")
            for ref in refs:
                self._push(ref)

    def finish(self) -> PartTotals:
        """Writes the root. Its digest, and the totals of the part."""
        refs = self._level.finish()
        header: Line = {"type": "tree", "version": VERSION, "part": self._part.id, "meta": self._meta, "totals": self._totals.as_json()}
        digest = self._manifests.put([header, *(ref.line() for ref in refs)])
        return parts_totals(header, digest)


def _boundaries(records: list[Stored[Entry]], lines: list[bytes]) -> list[int]:
    """Where the segments of one folder end. A small folder, also an empty one, is one segment."""
    if len(lines) <= SEGMENT_NAMES and sum(map(len, lines)) <= SEGMENT_BYTES:
        return [len(lines)]
    ends: list[int] = []
    names = size = 0
    for number, (record, line) in enumerate(zip(records, lines, strict=True), 1):
        names += 1
        size += len(line)
        if number < len(records) and records[number].item.name == record.item.name:
            continue  # all that bear one name stand in one segment
        if names >= SEGMENT_NAMES or size >= SEGMENT_BYTES or _cut(record.item.name, _SEGMENT_AVERAGE, b"segment\0"):
            ends.append(number)
            names = size = 0
    if not ends or ends[-1] != len(lines):
        ends.append(len(lines))
    return ends
