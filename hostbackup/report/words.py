"""Figures and names as people read them."""

from __future__ import annotations

import unicodedata
import urllib.parse

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str | bytes) -> str:
    """Text for a terminal: whatever could move the cursor, colour the screen or reverse the line is shown as an escape."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char == "\n" or unicodedata.category(char) not in _HIDDEN:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str | bytes) -> str:
    """As `printable`, with line breaks shown as escapes too."""
    return printable(text).replace("\n", "\\n")


def size(count: float) -> str:
    """Bytes, in units of 1000: `12.3 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"
    return f"{count:.1f} PB"


def number(count: int) -> str:
    return f"{count:,}"


def part_name(part: str) -> str:
    """A part's id (`mail/USER`, percent-encoded) as people write it."""
    return one_line(urllib.parse.unquote(part, errors="backslashreplace"))


def plural(count: int, one: str, many: str = "") -> str:
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def table(rows: list[list[str]], header: list[str]) -> list[str]:
    """Columns with two spaces between them; East Asian wide characters count as two."""
    widths = [max(_width(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell + " " * (widths[i] - _width(cell)) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
