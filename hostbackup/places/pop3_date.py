"""When a message came, as far as it tells itself: POP3 has no INTERNALDATE. And the writer that listens for it while a message goes by."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterator

from hostbackup.model import Receiver

HEADER = 64 * 1024  # bytes that are looked at
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_END = re.compile(rb"(?:\A|\r?\n)\r?\n")


def arrival(header: bytes) -> str:
    """The time of the topmost Received field (RFC 5321 §4.4: what the last server on the way wrote), else of Date, as INTERNALDATE; else ""."""
    written = ""
    for name, value in _fields(header):
        if name == b"received":
            if found := _date(value.rpartition(b";")[2]):
                return found
        elif name == b"date" and not written:
            written = _date(value)
    return written


def _fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names in lower case and values, unfolded."""
    end = _END.search(header)
    field = b""
    for line in [*(header[: end.start()] if end else header).split(b"\n"), b""]:
        if line[:1] in (b" ", b"\t") and field:
            field += line
            continue
        name, colon, value = field.partition(b":")
        if colon:
            yield name.strip().lower(), value
        field = line


def _date(text: bytes) -> str:
    """As `01-Jul-2026 02:44:25 +0900`, "" where it is no date. A time without a zone counts as UTC."""
    try:
        parsed = email.utils.parsedate_tz(text.decode("ascii", "replace").replace("\r", " "))
        if parsed is None:
            return ""
        year, month, day, hour, minute, second = parsed[:6]
        datetime.datetime(year, month, day, hour, minute, min(second, 59), tzinfo=datetime.UTC)
    except (ValueError, IndexError, TypeError, OverflowError):
        return ""
    zone = (parsed[9] or 0) // 60
    if not 1000 <= year <= 9999 or abs(zone) >= 24 * 60:
        return ""
    sign, minutes = "-" if zone < 0 else "+", abs(zone)
    return f"{day:02}-{_MONTHS[month - 1]}-{year} {hour:02}:{minute:02}:{min(second, 59):02} {sign}{minutes // 60:02}{minutes % 60:02}"


class Listening:
    """Passes a message on to its receiver and keeps the beginning of its header."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.size = 0
        self._header = bytearray()
        self._over = False

    def write(self, data: memoryview | bytes) -> None:
        self.receiver.write(data)
        self.size += len(data)
        if not self._over:
            before = len(self._header)
            self._header += data[: HEADER - before]
            self._over = len(self._header) >= HEADER or _END.search(self._header, max(0, before - 3)) is not None

    @property
    def arrived(self) -> str:
        return arrival(bytes(self._header))
