"""The manifest of a mailbox: a root that lists folders and, for each, ranges of 4,096 UIDs.

A range has two manifests: what never changes of a message (UID, digest, date), and its flags. A day of reading mail rewrites only flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hostbackup.errors import Damaged
from hostbackup.model import Folder, Message, Part, Stored, name_json
from hostbackup.vault.layout import folder_names, mail_prefix
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.records import (
    Line,
    PartTotals,
    Totals,
    canonical,
    count,
    folder_from_line,
    folder_line,
    message_line,
    message_record,
    nonsense,
)
from hostbackup.vault.tree import VERSION, parts_totals, read_root

RANGE = 4096  # UIDs a range


@dataclass(frozen=True, slots=True)
class RangeRef(Totals):
    """The messages of one folder and UIDVALIDITY with UIDs from range × 4096 on."""

    uidvalidity: int = 0
    range: int = 0
    messages: str = ""  # digest of the manifest that lists them
    flags: str = ""  # digest of the manifest of their flags, "" where none has any

    def line(self) -> Line:
        line: Line = {"type": "range", "uidvalidity": self.uidvalidity, "range": self.range, "messages": self.messages, **self.as_json()}
        if self.flags:
            line["flags"] = self.flags
        return line


def _range_ref(line: Line) -> RangeRef:
    totals = Totals.from_json(line)
    return RangeRef(*totals.numbers(), int(line["uidvalidity"]), int(line["range"]), str(line["messages"]), str(line.get("flags", "")))


class MailRoot:
    """Reads the manifest of a mailbox. Holds folders and refs in memory, no messages."""

    def __init__(self, manifests: Manifests, digest: str, header: Line, folders: dict[bytes, tuple[Folder, list[RangeRef]]]) -> None:
        self._manifests = manifests
        self.digest = digest
        self.part = Part.parse(header["part"])
        self.meta: dict[str, Any] = header.get("meta", {})
        self.totals = parts_totals(header, digest)
        self._folders = folders

    @classmethod
    def open(cls, manifests: Manifests, digest: str) -> MailRoot:
        """Raises Damaged where the root is not what was written, VaultTooNew where a newer version wrote it."""
        lines = read_root(manifests, digest, "mail")
        header = next(lines)
        folders: dict[bytes, tuple[Folder, list[RangeRef]]] = {}
        refs: list[RangeRef] | None = None
        try:
            for line in lines:
                if line["type"] == "folder":
                    folder = folder_from_line(line)
                    refs = []
                    folders[folder.name] = folder, refs
                elif line["type"] == "range" and refs is not None:
                    refs.append(_range_ref(line))
                else:
                    raise ValueError(f"unexpected {line['type']!r}")
            return cls(manifests, digest, header, folders)
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"a line of this manifest makes no sense: {nonsense(error)}", where=manifests.where(digest)) from error

    def folders(self) -> list[Folder]:
        """In the order they were written."""
        return [folder for folder, _ in self._folders.values()]

    def folder(self, name: bytes) -> Folder | None:
        found = self._folders.get(name)
        return found[0] if found else None

    def refs(self, folder: bytes) -> list[RangeRef]:
        """The ranges of a folder in order; none where there is no such folder."""
        return list(self._folders[folder][1]) if folder in self._folders else []

    def ranges(self, folder: bytes) -> list[tuple[int, int, RangeRef]]:
        """(UIDVALIDITY, range number, ref) of a folder, earlier UIDVALIDITYs first, UIDs ascending."""
        return [(ref.uidvalidity, ref.range, ref) for ref in self.refs(folder)]

    def manifests(self) -> Iterator[str]:
        """The digests of every manifest of this mailbox, the root first."""
        yield self.digest
        for _, refs in self._folders.values():
            for ref in refs:
                yield ref.messages
                if ref.flags:
                    yield ref.flags

    def range_records(self, folder: bytes, uidvalidity: int, number: int) -> list[Stored[Message]]:
        """The records of one range, UIDs ascending; none where there is no such range."""
        for ref in self.refs(folder):
            if (ref.uidvalidity, ref.range) == (uidvalidity, number):
                return list(self.segment(folder, ref))
        return []

    def segment(self, folder: bytes, ref: RangeRef) -> Iterator[Stored[Message]]:
        """The records of one range, flags joined in. Raises Damaged."""
        where = self._manifests.where(ref.messages)
        try:
            flags = {int(line["uid"]): tuple(map(str, line["flags"])) for line in self._manifests.get(ref.flags)} if ref.flags else {}
            for line in self._manifests.get(ref.messages):
                yield message_record(line, folder, ref.uidvalidity, flags.get(int(line["uid"]), ()))
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"a message of this manifest makes no sense: {nonsense(error)}", where=where) from error

    def digests(self, folder: bytes, ref: RangeRef) -> list[str]:
        """Those of a range's live messages, a fraction of the work of `segment`. Raises Damaged."""
        if folder not in self._folders:
            return []
        lines = self._manifests.lines(ref.messages)
        return [line["digest"] for line in lines if "digest" in line and "vanished" not in line]

    def range_segments(self, folder: bytes) -> Iterator[Iterator[Stored[Message]]]:
        """The records of a folder, range by range, those left out of which all vanished."""
        return (self.segment(folder, ref) for ref in self.refs(folder) if ref.live)

    def records(self, folder: bytes) -> Iterator[Stored[Message]]:
        """All of a folder, range by range, vanished ones included."""
        for ref in self.refs(folder):
            yield from self.segment(folder, ref)

    def walk(self, *, vanished: bool = False) -> Iterator[Stored[Message]]:
        """Every message, folder by folder. `vanished`: with those no longer there."""
        for name in self._folders:
            for record in self.records(name):
                if vanished or not record.vanished:
                    yield record


class MailWriter:
    """Writes the manifest of a mailbox: a folder, then its ranges in order, then the next folder. Durable after the manifests' next flush."""

    def __init__(self, manifests: Manifests, part: Part, meta: dict[str, Any]) -> None:
        self._manifests = manifests
        self._part = part
        self._meta = meta
        self._folders: dict[bytes, tuple[Folder, list[RangeRef]]] = {}
        self._current: Folder | None = None
        self._seen: set[int] = set()  # UIDVALIDITYs of the current folder
        self._totals = Totals()

    def folder(self, folder: Folder) -> None:
        """Begins a folder. Raises ValueError where it was there already."""
        if folder.name in self._folders:
            raise ValueError(f"folder {folder.name!r} twice")
        self._folders[folder.name] = folder, []
        self._current = folder
        self._seen = set()
        self._totals = self._totals + Totals(folders=1)

    def _push(self, ref: RangeRef) -> None:
        if self._current is None:
            raise ValueError("a range before any folder")
        refs = self._folders[self._current.name][1]
        if refs and refs[-1].uidvalidity == ref.uidvalidity:
            if ref.range <= refs[-1].range:
                raise ValueError(f"range {ref.range} after {refs[-1].range}")
        elif ref.uidvalidity in self._seen:
            raise ValueError(f"UIDVALIDITY {ref.uidvalidity} comes back")
        self._seen.add(ref.uidvalidity)
        refs.append(ref)
        self._totals = self._totals + ref

    def add(self, records: Iterable[Stored[Message]]) -> None:
        """One range of the current folder, UIDs ascending. Raises ValueError where it is not one range, or out of order."""
        batch = list(records)
        if not batch:
            return
        item = batch[0].item
        place = item.folder, item.uidvalidity, item.uid // RANGE
        if self._current is None or item.folder != self._current.name:
            raise ValueError(f"a message of {item.folder!r} outside its folder")
        last = -1
        for record in batch:
            item = record.item
            if (item.folder, item.uidvalidity, item.uid // RANGE) != place or item.uid <= last:
                raise ValueError(f"UID {item.uid} after {last}: UIDs come ascending, one range at a time")
            last = item.uid
        messages = self._manifests.put_bytes(b"".join(canonical(message_line(record)) for record in batch))
        flagged = [{"uid": record.item.uid, "flags": sorted(record.item.flags)} for record in batch if record.item.flags]
        flags = self._manifests.put(flagged) if flagged else ""
        self._push(RangeRef(*count(batch).numbers(), place[1], place[2], messages, flags))

    def keep(self, ref: RangeRef) -> None:
        """One range of the current folder, just as an earlier manifest has it."""
        self._push(ref)

    def stored(self, folder: Folder) -> int:
        """How many messages of a folder, as it is numbered now, are there with their contents."""
        return sum(ref.entries for ref in self._folders[folder.name][1] if ref.uidvalidity == folder.uidvalidity)

    def finish(self) -> PartTotals:
        """Writes the root, with the Maildir++ name that each folder has in the view. Its digest, and the totals of the part."""
        names = folder_names([folder for folder, _ in self._folders.values()], mail_prefix(self._meta))
        header: Line = {"type": "mail", "version": VERSION, "part": self._part.id, "meta": self._meta, "totals": self._totals.as_json()}
        lines: list[Line] = [header]
        for folder, refs in self._folders.values():
            lines.append({**folder_line(folder), **name_json(names[folder.name], "maildir")})
            lines += [ref.line() for ref in refs]
        return parts_totals(header, self._manifests.put(lines))
