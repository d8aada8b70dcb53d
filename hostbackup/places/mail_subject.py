"""The subject of a message as a person would write it down, out of the first bytes of the message."""

from __future__ import annotations

import re
from email.errors import HeaderParseError
from email.header import decode_header

HEAD_BYTES = 64 * 1024  # where a subject is looked for
_LONGEST = 120  # characters
_FIELD = re.compile(rb"^subject[ \t]*:((?:[^\n]*(?:\n[ \t])?)*)", re.IGNORECASE | re.MULTILINE)


def subject_of(head: bytes) -> str:
    """Decoded (RFC 2047), unfolded, shortened; "" where there is none. Control characters in it are the sender's: show it with care."""
    text = head.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    header = b"" if text.startswith(b"\n") else text.partition(b"\n\n")[0]
    found = _FIELD.search(header)
    if found is None:
        return ""
    raw = found[1].replace(b"\n", b"").strip()
    decoded = " ".join(_decoded(raw).split())
    return decoded if len(decoded) <= _LONGEST else decoded[: _LONGEST - 1] + "…"


def _decoded(raw: bytes) -> str:
    if b"=?" not in raw or not raw.isascii():
        return _guessed(raw)
    try:
        parts = decode_header(raw.decode("ascii"))
    except (HeaderParseError, ValueError):
        return _guessed(raw)
    return "".join(part if isinstance(part, str) else _in_charset(part, charset) for part, charset in parts)


def _in_charset(part: bytes, charset: str | None) -> str:
    try:
        return part.decode(charset or "ascii", "backslashreplace")
    except (LookupError, UnicodeError):
        return _guessed(part)


def _guessed(raw: bytes) -> str:
    """Bytes that say nothing of their character set: what Japanese mail programs have put there."""
    for charset in ("iso-2022-jp",) if b"\x1b$" in raw else ("utf-8", "cp932"):
        try:
            return raw.decode(charset)
        except UnicodeDecodeError:
            continue
    return raw.decode("utf-8", "backslashreplace")
