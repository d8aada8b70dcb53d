"""Mailbox names: modified UTF-7 (RFC 3501 §5.1.3) and how they stand in a command.

Names are kept as the bytes that the server sent. Text is for people and for names that a person wrote.
"""

from __future__ import annotations

import binascii
import re

_SHIFTED = re.compile(rb"&([^-&]*)-")
_QUOTABLE = re.compile(rb"[\x01-\x09\x0b\x0c\x0e-\x7f]*")


def encode(text: str) -> bytes:
    """Text in modified UTF-7. Raises ValueError (UnicodeEncodeError) for lone surrogates."""
    out = bytearray()
    pending: list[str] = []

    def flush() -> None:
        if pending:
            packed = binascii.b2a_base64("".join(pending).encode("utf-16-be"), newline=False)
            out.extend(b"&" + packed.rstrip(b"=").replace(b"/", b",") + b"-")
            pending.clear()

    for char in text:
        if " " <= char <= "~":
            flush()
            out.extend(b"&-" if char == "&" else char.encode("ascii"))
        else:
            pending.append(char)
    flush()
    return bytes(out)


def decode(name: bytes) -> str:
    """The text of a name. Raises ValueError where it is not canonical modified UTF-7: `encode` gives exactly the same bytes back."""
    at = 0
    out: list[str] = []
    for match in _SHIFTED.finditer(name):
        out.append(name[at : match.start()].decode("ascii"))
        out.append(_unshift(match[1]))
        at = match.end()
    out.append(name[at:].decode("ascii"))
    text = "".join(out)
    if encode(text) != name:
        raise ValueError("not canonical modified UTF-7")
    return text


def display(name: bytes) -> str:
    """A name for people and for matching with names that people wrote: decoded where it is valid, else as visible as it can be.

    Raw UTF-8 (which some servers send) is read as such; broken shifts stay as they stand; other bytes become `\\xNN`.
    """
    try:
        return decode(name)
    except ValueError:
        return "".join(_lenient(part) for part in re.split(rb"(&[^-&]*-)", name))


def quote(name: bytes) -> bytes | None:
    """The quoted string (RFC 3501 §9) for a command, or None where only a literal can hold it (8-bit, NUL, CR, LF)."""
    if _QUOTABLE.fullmatch(name) is None:
        return None
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def is_inbox(name: bytes) -> bool:
    """INBOX is one mailbox in whatever case it is written (RFC 3501 §5.1)."""
    return name.upper() == b"INBOX"


def _unshift(packed: bytes) -> str:
    if not packed:
        return "&"
    base64 = packed.replace(b",", b"/")
    raw = binascii.a2b_base64(base64 + b"=" * (-len(base64) % 4), strict_mode=True)
    return raw.decode("utf-16-be")


def _lenient(part: bytes) -> str:
    if part.startswith(b"&") and part.endswith(b"-"):
        try:
            return _unshift(part[1:-1])
        except ValueError:
            pass
    return part.decode("utf-8", "backslashreplace")
