"""How the view, and a restore, lay out what is in the vault: pure functions from manifest records to paths.

web/NAME/…  local/NAME/…       the tree as it was; sieve/USER/… too: a mailbox's filters
mail/USER/                     Maildir++: INBOX is the folder itself, every other is `.Folder.Sub` in it
"""

from __future__ import annotations

import base64
import calendar
import datetime
import hashlib
import re
from collections.abc import Iterable
from typing import Any

from hostbackup.model import Entry, Folder, Kind, Message, Part, Stored, name_from_json, name_json

MAILDIR = (b"cur", b"new", b"tmp")
KEYWORDS_FILE = b"dovecot-keywords"
SUBSCRIPTIONS_FILE = b"subscriptions"
_WIDEST_NS = 2**63 - 1  # either way: what fits a file system's call
_LETTERS = {"\\draft": "D", "\\flagged": "F", "\\answered": "R", "\\seen": "S", "\\deleted": "T"}
_FORWARDED = "$forwarded"
_UNSAFE = re.compile(rb"[./\\\x00-\x1f\x7f]")
_LONGEST = 255  # bytes of a name that file systems hold
_CUT = 230  # bytes that are kept of a longer one
_SPLIT = re.compile(rb"\\[0-9a-f]?\Z")  # an escape that was cut in two
_ESCAPED = re.compile(rb"\\([0-9a-f]{2})")
_MONTHS = {name: number for number, name in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)}
_DATE = re.compile(r"\s*(\d{1,2})-([A-Za-z]{3})-(\d{4})\s+(\d{1,2}):(\d{2}):(\d{2})(?:\s*([+-])(\d{2})(\d{2}))?")


def part_path(part: Part) -> tuple[bytes, bytes]:
    """The two folders that lead to a part: its kind, and its name as one portable component."""
    kind, _, name = part.id.partition("/")
    return kind.encode("ascii"), name.encode("ascii")


# ------------------------------------------------------------ trees


def tree_meta(root: Entry | None) -> dict[str, Any]:
    """What the header of a tree's manifest tells of its top folder, where the place told it: `{"root": {"mode": …, "mtime_ns": …}}`."""
    return {"root": {"mode": root.mode, "mtime_ns": root.mtime_ns}} if root is not None and (root.mode or root.mtime_ns) else {}


def tree_top(meta: dict[str, Any]) -> Entry | None:
    """A tree's top folder with the mode and time that `meta` tells (0 where it tells one of them only); None where it tells neither."""
    told = meta.get("root")
    facts = [told.get("mode", 0), told.get("mtime_ns", 0)] if isinstance(told, dict) else []
    if not any(facts) or any(type(fact) is not int for fact in facts):
        return None
    mode, mtime_ns = facts
    return Entry(b"", Kind.DIR, 0, max(-_WIDEST_NS, min(_WIDEST_NS, mtime_ns)), mode & 0o7777)


# ------------------------------------------------------------ mail folders


def mail_meta(user: str, prefix: bytes = b"", separator: bytes = b"") -> dict[str, Any]:
    """The header of a mailbox's manifest: its user, and prefix (`INBOX.`) and separator of the personal namespace (RFC 2342)."""
    return {"user": user, **name_json(prefix, "prefix"), **name_json(separator, "separator")}


def mail_prefix(meta: dict[str, Any]) -> bytes:
    """The personal namespace's prefix that `meta` tells; b"" where it tells none."""
    return name_from_json(meta, "prefix") if "prefix" in meta or "prefix_b64" in meta else b""


def escape_component(component: bytes) -> bytes:
    """One component of a mail folder as Maildir++ can hold it: `.`, `/`, `\\` and control bytes as `\\xx`; an empty one is a lone `\\`."""
    return _UNSAFE.sub(lambda found: b"\\%02x" % found[0][0], component) or b"\\"


def unescape_component(text: bytes) -> bytes:
    """The inverse of `escape_component`."""
    return b"" if text == b"\\" else _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text)


def folder_path(folder: Folder, prefix: bytes = b"") -> list[bytes]:
    """The components of a mail folder's name below the personal namespace; none for INBOX."""
    name = folder.name
    if name.upper() == b"INBOX":
        return []
    if prefix and name.startswith(prefix) and name != prefix:
        name = name[len(prefix) :]
    return name.split(folder.separator) if folder.separator else [name]


def folder_name(folder: Folder, prefix: bytes = b"") -> bytes:
    """Where a mail folder stands in its Maildir++: b"" for INBOX, else `.Folder.Sub` in modified UTF-7."""
    return b"".join(b"." + escape_component(component) for component in folder_path(folder, prefix))


def _holdable(name: bytes, wire: bytes) -> bytes:
    """A Maildir++ name is one name of a file system: what is longer than that holds is cut between characters, and told apart by a digest."""
    if len(name) <= _LONGEST:
        return name
    kept = _SPLIT.sub(b"", name[:_CUT])
    shifted = kept.rfind(b"&")
    if shifted >= 0 and b"-" not in kept[shifted:]:  # modified UTF-7 (RFC 3501 §5.1.3): eight letters hold three UTF-16 units
        packed = kept[shifted + 1 :]
        packed = packed[: len(packed) // 8 * 8]
        while packed and not _is_whole(packed):
            packed = packed[:-8]
        kept = kept[:shifted] + (b"&" + packed + b"-" if packed else b"")
    return kept + b"\\~" + hashlib.sha256(wire).hexdigest()[:8].encode()


def _is_whole(packed: bytes) -> bool:
    try:
        return bool(base64.b64decode(packed.replace(b",", b"/"), validate=True).decode("utf-16-be"))
    except ValueError:
        return False


def folder_names(folders: Iterable[Folder], prefix: bytes = b"") -> dict[bytes, bytes]:
    """Wire name to Maildir++ name for all folders of one mailbox. Two that would meet are told apart by `\\~2`, in the order of their wire names.

    Names that differ only in case are told apart too: not every file system can. One that no file system can hold ends early.
    """
    chosen: dict[bytes, bytes] = {}
    taken: set[bytes] = set()
    for folder in sorted(folders, key=lambda folder: (folder.name.upper() != b"INBOX", folder.name)):
        plain = name = _holdable(folder_name(folder, prefix), folder.name)
        number = 1
        while name.lower() in taken:
            number += 1
            name = (plain or b".INBOX") + b"\\~%d" % number
        taken.add(name.lower())
        chosen[folder.name] = name
    return chosen


# ------------------------------------------------------------ messages


def internaldate_epoch(text: str) -> int | None:
    """Seconds since the epoch of an INTERNALDATE (RFC 9051 date-time), None where it is no date. Impossible days count on: 31-Jun is 1 July."""
    found = _DATE.match(text)
    month = _MONTHS.get(found[2].lower()) if found else None
    if found is None or month is None:
        return None
    day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
    if not 1 <= year <= 9999 or not 1 <= day <= 31:
        return None
    offset = (int(found[8]) * 3600 + int(found[9]) * 60) * (-1 if found[7] == "-" else 1) if found[7] else 0
    return calendar.timegm((year, month, 1, 0, 0, 0)) + (day - 1) * 86400 + hour * 3600 + minute * 60 + second - offset


def internaldate_day(text: str) -> datetime.date | None:
    """The day of an INTERNALDATE as it is written, whatever its time and zone: so SEARCH SINCE counts (RFC 9051 §6.4.4). None where it is no date."""
    found = _DATE.match(text)
    if found is None or internaldate_epoch(text) is None:
        return None
    return datetime.date(int(found[3]), _MONTHS[found[2].lower()], 1) + datetime.timedelta(days=int(found[1]) - 1)


class Keywords:
    """Dovecot's table of one mail folder: the letter of each keyword, given in the order they are first met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def letter(self, keyword: str) -> str:
        """`a` to `z`; "" from the 27th on: those stand in the manifest, and in no file name."""
        number = self._numbers.setdefault(keyword, len(self._numbers))
        return chr(ord("a") + number) if number < 26 else ""

    def file(self) -> bytes:
        """The contents of `dovecot-keywords`: index, space, name. b"" where there is no keyword."""
        lines = (f"{number} {_one_line(name)}\n" for name, number in self._numbers.items() if number < 26)
        return "".join(lines).encode("utf-8", "backslashreplace")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() and character != " " else "_" for character in text)


def flag_letters(flags: Iterable[str], keywords: Keywords) -> str:
    """The flags of a Maildir file name, sorted: D draft, F flagged, P forwarded, R replied, S seen, T deleted, a…z keywords.

    `$Forwarded` has both its own letter and a keyword's: mutt reads the one, Dovecot the other.
    """
    letters = set()
    for flag in flags:
        letter = _LETTERS.get(flag.lower())
        if letter is None:
            letter = keywords.letter(flag) if not flag.startswith("\\") else ""
        letters |= {letter, "P"} if flag.lower() == _FORWARDED else {letter}
    return "".join(sorted(letters))


def message_name(record: Stored[Message], keywords: Keywords, separator: str = ":") -> bytes:
    """The Maildir file name of a message: `EPOCH.V<uidvalidity>U<uid>.<digest12>:2,FLAGS`. `separator` is `;` where `:` is refused."""
    item = record.item
    epoch = max(internaldate_epoch(item.internaldate) or 0, 0)
    letters = flag_letters(item.flags, keywords)
    return f"{epoch}.V{item.uidvalidity}U{item.uid}.{record.digest[:12]}{separator}2,{letters}".encode("ascii")


def message_mtime_ns(record: Stored[Message]) -> int:
    """The mtime of a message's file: its INTERNALDATE, or the epoch where that is no date."""
    return (internaldate_epoch(record.item.internaldate) or 0) * 1_000_000_000


def subscriptions_file(folders: Iterable[Folder], names: dict[bytes, bytes]) -> bytes:
    """The contents of a Maildir++ `subscriptions` file: one subscribed folder a line, components joined by dots."""
    lines = sorted(names[folder.name].removeprefix(b".") or b"INBOX" for folder in folders if folder.subscribed and folder.name in names)
    return b"".join(line + b"\n" for line in lines)


# ------------------------------------------------------------ SHA256SUMS


def sums_line(digest: str, path: bytes) -> bytes:
    """One line of SHA256SUMS as GNU sha256sum writes it: a leading backslash where the name holds a backslash, a newline or a return."""
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != path else b"") + digest.encode("ascii") + b"  " + escaped + b"\n"


def parse_sums_line(line: bytes) -> tuple[str, bytes]:
    """The inverse of `sums_line`: digest and path. Raises ValueError."""
    text = line.removesuffix(b"\n")
    escaped = text.startswith(b"\\")
    text = text.removeprefix(b"\\") if escaped else text
    digest, path = text[:64], text[66:]
    if len(digest) != 64 or text[64:66] not in (b"  ", b" *") or not path:
        raise ValueError(f"not a line of SHA256SUMS: {line[:120]!r}")
    if escaped:
        path = re.sub(rb"\\(.)", lambda found: {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}[found[1]], path)
    return digest.decode("ascii"), path
