"""One line of a manifest: canonical JSON, and what an entry, a message or a segment looks like in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from hostbackup.errors import Damaged
from hostbackup.model import Entry, Folder, Kind, Message, Stored, name_from_json, name_json

Line = dict[str, Any]

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical(line: Line) -> bytes:
    """One line of canonical JSON: keys sorted by code point, no spaces, UTF-8, one newline. Equal values give equal bytes.

    A lone surrogate, which UTF-8 has no bytes for, is written as its JSON escape.
    """
    return _encode(line).encode("utf-8", "backslashreplace") + b"\n"


def parse_line(line: bytes, where: str) -> Line:
    """The inverse of `canonical`. Raises Damaged."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise Damaged("a line that is no JSON", where=where) from error
    if not isinstance(value, dict):
        raise Damaged("a line that is no JSON object", where=where)
    return value


def parse_lines(data: bytes, where: str) -> list[Line]:
    """`parse_line` for each line of `data`, several times faster: the lines are read as one JSON array. Raises Damaged."""
    lines = [line for line in data.split(b"\n") if line]
    try:
        values = json.loads((b"[" + b",".join(lines) + b"]").decode("utf-8", "surrogatepass"))
    except ValueError:
        values = []
    if len(values) == len(lines) and all(type(value) is dict for value in values):
        return list(values)
    return [parse_line(line, where) for line in lines]  # says what is wrong, and where


class NotAName(ValueError):
    """What cannot be one component of a path. Its text is in words."""


def nonsense(error: Exception) -> str:
    """Why a document, or a line of it, makes no sense, in words; `error` is what came of reading it."""
    if isinstance(error, NotAName):
        return str(error)
    if isinstance(error, json.JSONDecodeError | UnicodeError):
        return "it is no JSON"
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]}" if error.args and isinstance(error.args[0], str) else "it lacks something"
    return "a value in it is of the wrong kind"


def check_component(name: bytes) -> bytes:
    """`name`, if it can be one component of a path. Raises ValueError: a manifest may be anybody's, and must not lead out of its folder."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise NotAName(f"not a name: {name.decode('utf-8', 'backslashreplace')}")
    return name


def check_path(path: bytes) -> bytes:
    """`path`, if it is b"" or made of good components. Raises ValueError."""
    if path:
        for name in path.split(b"/"):
            check_component(name)
    return path


def order(path: bytes) -> bytes:
    """Sort key that puts a folder right before what is in it: paths compare component by component."""
    return path.replace(b"/", b"\0")


@dataclass(frozen=True, slots=True)
class Totals:
    """What a segment, or a whole part, holds. `entries` and `bytes` count files or messages whose contents are stored."""

    entries: int = 0
    bytes: int = 0
    folders: int = 0
    links: int = 0
    failed: int = 0
    stale: int = 0
    vanished: int = 0
    racy: int = 0

    def __add__(self, other: Totals) -> Totals:
        added = {name: getattr(self, name) + getattr(other, name) for name in COUNTERS}
        return Totals(**added)

    @property
    def live(self) -> bool:
        """Whether anything is there that did not vanish."""
        return bool(self.entries or self.folders or self.links or self.failed)

    def numbers(self) -> tuple[int, int, int, int, int, int, int, int]:
        """The counters in the order they are declared: the first arguments of every class below."""
        return self.entries, self.bytes, self.folders, self.links, self.failed, self.stale, self.vanished, self.racy

    def as_json(self) -> dict[str, int]:
        return {name: value for name in COUNTERS if (value := getattr(self, name))}

    @classmethod
    def from_json(cls, line: Line) -> Totals:
        return cls(*(int(line.get(name, 0)) for name in COUNTERS))


COUNTERS = tuple(field.name for field in fields(Totals))


@dataclass(frozen=True, slots=True)
class PartTotals(Totals):
    """The totals of a part, with the digest of its root manifest."""

    root: str = ""


AnyStored = TypeVar("AnyStored", Stored[Entry], Stored[Message])


def count(records: Iterable[Stored[Entry]] | Iterable[Stored[Message]]) -> Totals:
    entries = size = folders = links = failed = stale = vanished = racy = 0
    for record in records:
        if record.vanished:
            vanished += 1
            continue
        kind = record.item.kind if isinstance(record.item, Entry) else Kind.FILE
        folders += kind is Kind.DIR
        links += kind is Kind.LINK
        if record.digest:
            entries += 1
            size += record.size
        failed += bool(record.failed)
        stale += bool(record.stale)
        racy += record.racy
    return Totals(entries, size, folders, links, failed, stale, vanished, racy)


# ------------------------------------------------------------ entries of a tree


def _story(record: Stored[Entry] | Stored[Message], line: Line) -> Line:
    if record.digest:
        line["digest"] = record.digest
    if record.size != record.item.size:
        line["stored"] = record.size
    if record.stale:
        line["stale"] = record.stale
    if record.failed:
        line["failed"] = record.failed
    if record.vanished:
        line["vanished"] = record.vanished
    if record.racy:
        line["racy"] = True
    return line


def entry_line(record: Stored[Entry]) -> Line:
    item = record.item
    line: Line = {**name_json(check_component(item.name)), "kind": str(item.kind)}
    if item.size:
        line["size"] = item.size
    if item.mtime_ns:
        line["mtime_ns"] = item.mtime_ns
    if item.mode:
        line["mode"] = item.mode
    if item.target:
        line.update(name_json(item.target, "target"))
    return _story(record, line)


def stored_size(line: Line) -> int:
    """How many bytes are stored for a line of an entry or a message. 0 where it makes no sense."""
    size = line["stored"] if "stored" in line else line.get("size", 0)
    return size if type(size) is int else 0


def entry_record(line: Line, folder: bytes) -> Stored[Entry]:
    """Raises KeyError, ValueError or TypeError where the line is no entry."""
    name = check_component(name_from_json(line))
    size = int(line.get("size", 0))
    target = name_from_json(line, "target") if "target" in line or "target_b64" in line else b""
    item = Entry(folder + b"/" + name if folder else name, Kind(line["kind"]), size, int(line.get("mtime_ns", 0)), int(line.get("mode", 0)), target)
    record: Stored[Entry] = _stored(item, line, size)
    return record


def _stored(item: Any, line: Line, size: int) -> Any:
    return Stored(
        item,
        line.get("digest", ""),
        int(line.get("stored", size)),
        line.get("stale", ""),
        line.get("failed", ""),
        line.get("vanished", ""),
        bool(line.get("racy", False)),
    )


# ------------------------------------------------------------ messages and mail folders


def message_line(record: Stored[Message]) -> Line:
    item = record.item
    line: Line = {"uid": item.uid, "internaldate": item.internaldate}
    if item.size:
        line["size"] = item.size
    if item.uidl:
        line["uidl"] = item.uidl
    return _story(record, line)


def message_record(line: Line, folder: bytes, uidvalidity: int, flags: tuple[str, ...]) -> Stored[Message]:
    """Raises KeyError, ValueError or TypeError where the line is no message."""
    size = int(line.get("size", 0))
    item = Message(folder, uidvalidity, int(line["uid"]), size, str(line["internaldate"]), flags, str(line.get("uidl", "")))
    record: Stored[Message] = _stored(item, line, size)
    return record


def folder_line(folder: Folder) -> Line:
    line: Line = {"type": "folder", **name_json(folder.name), **name_json(folder.separator, "separator")}
    line.update(uidvalidity=folder.uidvalidity, uidnext=folder.uidnext, exists=folder.exists)
    if folder.attributes:
        line["attributes"] = list(folder.attributes)
    if folder.special_use:
        line["special_use"] = folder.special_use
    if folder.subscribed:
        line["subscribed"] = True
    if folder.highestmodseq:
        line["highestmodseq"] = folder.highestmodseq
    return line


def folder_from_line(line: Line) -> Folder:
    """Raises KeyError, ValueError or TypeError where the line is no folder."""
    return Folder(
        name_from_json(line),
        name_from_json(line, "separator"),
        tuple(line.get("attributes", ())),
        line.get("special_use", ""),
        bool(line.get("subscribed", False)),
        int(line["uidvalidity"]),
        int(line["uidnext"]),
        int(line["exists"]),
        int(line.get("highestmodseq", 0)),
    )
