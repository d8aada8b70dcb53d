"""What two copies of a message still have in common, in tiers: equal bytes, line endings, added headers, or only the body.

Mail servers rewrite what they are given: line endings become CRLF, a Received or X- header comes on top, headers are folded anew. Each copy is
read once, as a stream, into a fingerprint of a few digests and its header; fingerprints are compared, never the copies themselves.

"A line ending" is CRLF, CR or LF, each alike, and a message that does not end in one is taken as if it did. The header ends at the first empty
line (RFC 5322 §2.1); a field is a line and the lines after it that begin with a space or a tab (§2.2.3).
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

HEADER_BYTES = 1024 * 1024  # a longer header is not compared field by field
_CHUNK = 1024 * 1024
_NAMES_TOLD = 8
_NAME_LENGTH = 60
_LETTER = (b"message-id", b"date", b"from", b"to", b"cc", b"subject", b"received")  # what tells one message from another with the same body
_EMPTY = hashlib.sha256().hexdigest()


class Tier(enum.StrEnum):
    """What two copies agree in. The stronger come first."""

    RAW = "raw"  # every byte
    LINE_ENDINGS = "line-endings"  # every byte but those of line endings
    ADDED_HEADERS = "added-headers"  # every header field, in order and as it was, and the body; the other copy has more header fields
    BODY = "body"  # the body, line endings aside; header fields were changed or left out
    DIFFERENT = "different"  # none of these


SOUND = (Tier.RAW, Tier.LINE_ENDINGS, Tier.ADDED_HEADERS)  # nothing that the sender wrote is lost


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that a comparison needs of one copy.

    `raw`, `lines` and `body` are SHA-256: of the bytes; of the bytes with every line ending as LF; of the body, likewise. Copies that agree in
    the tier `line-endings` have the same `lines`, and those that agree in any weaker one the same `body`, so that many can be matched by
    looking these up. The body of a message that has none is that of every other such message.
    """

    size: int  # bytes
    raw: str
    lines: str
    body: str
    header: bytes | None  # line endings as LF, without the empty line; None where it is longer than HEADER_BYTES

    @property
    def has_body(self) -> bool:
        return self.body != _EMPTY

    def fields(self) -> list[bytes]:
        """The header's fields with their continuation lines; none of a header that is too long."""
        found: list[bytes] = []
        for line in _lines(self.header or b""):
            if line[:1] in (b" ", b"\t") and found:
                found[-1] += b"\n" + line
            else:
                found.append(line)
        return found


def _lines(text: bytes) -> list[bytes]:
    return text.removesuffix(b"\n").split(b"\n") if text else []


class Fingerprinter:
    """Makes a fingerprint of what is written to it, in pieces of any length. Holds no more than a header."""

    def __init__(self) -> None:
        self._size = 0
        self._raw = hashlib.sha256()
        self._lines = hashlib.sha256()
        self._body = hashlib.sha256()
        self._return_held = False  # the last byte was a CR, whose LF may be the next
        self._ended = True  # what came so far ends in a line ending, or is nothing
        self._head = bytearray()
        self._in_header = True
        self._too_long = False

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._size += len(data)
        self._raw.update(data)
        text = bytes(data)
        if self._return_held:
            text = b"\r" + text
        self._return_held = text.endswith(b"\r")
        if self._return_held:
            text = text[:-1]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._take(text)

    def finish(self) -> Fingerprint:
        """Of all that was written. Nothing may be written after."""
        if self._return_held or not self._ended:
            self._take(b"\n")
        header = None if self._too_long else bytes(self._head)
        return Fingerprint(self._size, self._raw.hexdigest(), self._lines.hexdigest(), self._body.hexdigest(), header)

    def _take(self, text: bytes) -> None:
        """Takes in text whose line endings are LF."""
        if not text:
            return
        self._lines.update(text)
        self._ended = text.endswith(b"\n")
        if not self._in_header:
            self._body.update(text)
            return
        begin = max(0, len(self._head) - 1)
        first = not self._head and not self._too_long
        self._head += text
        if first and text.startswith(b"\n"):  # it has no header at all
            self._body_from(0, 1)
        elif (at := self._head.find(b"\n\n", begin)) >= 0:
            self._body_from(at + 1, at + 2)
        elif len(self._head) > HEADER_BYTES:
            self._too_long = True
            del self._head[:-1]

    def _body_from(self, end: int, begin: int) -> None:
        self._in_header = False
        self._too_long = self._too_long or end > HEADER_BYTES  # the same, however large the pieces are
        self._body.update(memoryview(self._head)[begin:])
        self._head = self._head[:end]


def fingerprint(stream: BinaryIO) -> Fingerprint:
    """Reads a stream to its end. Raises what reading raises."""
    maker = Fingerprinter()
    while chunk := stream.read(_CHUNK):
        maker.write(chunk)
    return maker.finish()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The strongest tier that holds, and in words what differs ("" for `raw`). Names of headers in it are as the servers gave them."""

    tier: Tier
    reason: str = ""


def compare(stored: Fingerprint, found: Fingerprint) -> Verdict:
    """How far `found` still is the message that was `stored`."""
    if stored.raw == found.raw:
        return Verdict(Tier.RAW)
    if stored.lines == found.lines:
        return Verdict(Tier.LINE_ENDINGS, "the server changed line endings")
    sizes = f"{found.size} bytes instead of {stored.size}" if found.size != stored.size else f"{found.size} bytes with another digest"
    if stored.body != found.body:
        agree = ": its headers are as they were, its body is not" if stored.header == found.header and stored.header else ""
        return Verdict(Tier.DIFFERENT, f"the server gives {sizes}{agree}")
    if stored.header is None or found.header is None:
        if not stored.has_body:
            return Verdict(Tier.DIFFERENT, f"the server gives {sizes}")
        return Verdict(Tier.BODY, "its headers differ, and are too long to tell in what; its body is as it was")
    return _by_fields(stored, found, sizes)


def same_letter(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two copies with one body are one message, into whose header a server wrote: what the sender and the way here put there is alike."""
    if one.body != other.body or one.header is None or other.header is None:
        return False
    return [field for field in one.fields() if _name(field) in _LETTER] == [field for field in other.fields() if _name(field) in _LETTER]


def _name(field: bytes) -> bytes:
    return field.partition(b":")[0].strip().lower()


def _by_fields(stored: Fingerprint, found: Fingerprint, sizes: str) -> Verdict:
    before, after = stored.fields(), found.fields()
    added = _added(before, after)
    if added is not None:
        reason = f"the server added headers: {_names(added)}" if added else "the empty line after the headers came or went"
        return Verdict(Tier.ADDED_HEADERS, reason)
    kept = Counter(before) & Counter(after)
    if not stored.has_body and not kept:
        return Verdict(Tier.DIFFERENT, f"the server gives {sizes}: none of its headers is as it was, and it has no body")
    gone, new = [field for field in before if field not in kept], [field for field in after if field not in kept]
    told = [f"{what}: {_names(fields)}" for what, fields in (("changed or left out", gone), ("new", new)) if fields]
    return Verdict(Tier.BODY, f"the server rewrote headers ({'; '.join(told) or 'in another order, or not as often'}); its body is as it was")


def _added(before: list[bytes], after: list[bytes]) -> list[bytes] | None:
    """What `after` has beside all of `before` in its order; None where it does not have that."""
    added: list[bytes] = []
    at = 0
    for field in after:
        if at < len(before) and field == before[at]:
            at += 1
        else:
            added.append(field)
    return added if at == len(before) else None


def _names(fields: list[bytes]) -> str:
    """The names of header fields for a person: each once, in the order they come, the first few."""
    names = list(dict.fromkeys(field.partition(b":")[0].strip()[:_NAME_LENGTH].decode("utf-8", "backslashreplace") for field in fields))
    more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    return ", ".join(names[:_NAMES_TOLD]) + more
