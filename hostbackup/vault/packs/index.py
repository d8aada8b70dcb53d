"""Index files: which contents lie in which blob of a copy. JSON lines; a later number adds to, or takes back, what an earlier one says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import Damaged, VaultTooNew
from hostbackup.vault.hashing import is_digest
from hostbackup.vault.packs.catalog import Blob, Dropped
from hostbackup.vault.packs.pack import KINDS, Member
from hostbackup.vault.records import Line, canonical, parse_lines

VERSION = 1
PREFIX = "index/"
MEMBERS = 50_000  # that one file lists, about: such a one is a few MB, and what it says some ten times that in memory
_NAME = re.compile(r"(\d{6,})-([0-9a-f]{64})\.jsonl(\.age)?\Z")

Row = tuple[Blob, Sequence[Member]]


@dataclass(frozen=True, slots=True)
class Index:
    """What one file says."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def index_name(number: int, stored: bytes, end: str) -> str:
    """The name of an index file below `index/`: its number, and the SHA-256 of its bytes as they are stored."""
    return f"{number:06d}-{hashlib.sha256(stored).hexdigest()}.jsonl{end}"


def index_number(name: str) -> int:
    """0 where this is no name of an index file."""
    found = _NAME.match(name)
    return int(found[1]) if found else 0


def index_digest(name: str) -> str:
    """The SHA-256 that its stored bytes must have; "" where this is no name of an index file."""
    found = _NAME.match(name)
    return found[2] if found else ""


def index_bytes(index: Index) -> bytes:
    """The contents of an index file."""
    lines: list[Line] = [{"type": "index", "version": VERSION}]
    lines += ({"dropped": key} | ({"until": until} if until else {}) for key, until in index.dropped)
    lines += (_line(blob, members) for blob, members in index.rows)
    return b"".join(map(canonical, lines))


def _line(blob: Blob, members: Sequence[Member]) -> dict[str, Any]:
    told = {"key": blob.key, "size": blob.size, "sha256": blob.sha256, "kind": blob.kind, "members": [list(member) for member in members]}
    extra = {"checksum": blob.checksum, "until": blob.until}
    return told | {key: value for key, value in extra.items() if value}


def parse_index(data: bytes, where: str) -> Index:
    """The inverse of `index_bytes`. Raises Damaged, or VaultTooNew."""
    index = Index()
    try:
        lines = iter(parse_lines(data, where))
        first = next(lines)
        if first["type"] != "index":
            raise ValueError("not an index")
        if first["version"] > VERSION:
            raise VaultTooNew("this index was written by a newer hostbackup", where=where, hint="install a newer hostbackup")
        for line in lines:
            if "dropped" in line:
                index.dropped.append(Dropped(_text(line["dropped"]), _text(line.get("until", ""))))
            else:
                index.rows.append(_row(line))
    except (StopIteration, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise Damaged("this is no index of a copy", where=where) from error
    return index


def _row(line: dict[str, Any]) -> Row:
    extra = _text(line.get("checksum", "")), _text(line.get("until", ""))
    blob = Blob(_text(line["key"]), _number(line["size"]), _text(line["sha256"]), _text(line["kind"]), *extra)
    members = [_member(*member) for member in line["members"]]
    if blob.kind not in KINDS or not is_digest(blob.sha256):
        raise ValueError("not a blob")
    return blob, members


def _member(digest: object, offset: object, length: object, size: object, packing: object) -> Member:
    member = Member(_text(digest), _number(offset), _number(length), _number(size), _text(packing))
    if not is_digest(member.digest) or member.packing not in ("", "zstd"):
        raise ValueError("not a member")
    return member


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isascii():
        raise TypeError("not a text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("not a number of bytes")
    return value


def portions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in lists, each for one index file."""
    some: list[Row] = []
    number = 0
    for row in rows:
        some.append(row)
        number += len(row[1])
        if number >= MEMBERS or len(some) >= MEMBERS:
            yield some
            some, number = [], 0
    if some:
        yield some
