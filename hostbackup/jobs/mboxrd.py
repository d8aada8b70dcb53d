"""The mboxrd format: many messages in one file, so that each can be had back byte for byte.

A message stands after a line `From MAILER-DAEMON DATE`, and before an empty line. Every line of it that matches `^>*From ` gets one more `>`; so
a line that begins with `From ` always begins a message. Lines end with LF alone for this: the CR of CRLF is kept as it is, like every other byte.
A message that does not end with LF gets one, which its record in the side file tells. To get a message back: take what stands between two `From `
lines, drop the last LF, drop another where the record says so, and take one `>` from every line that matches `^>+From `.
"""

from __future__ import annotations

import datetime
import re

_QUOTABLE = re.compile(rb"^(?=>*From )", re.MULTILINE)
_UNDECIDED = re.compile(rb">*(?:F(?:r(?:om?)?)?)?")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_EPOCH = datetime.datetime(1970, 1, 1)


def from_line(epoch: int | None) -> bytes:
    """The line before a message received `epoch` seconds after 1970, in UTC (asctime); 1970 where that is unknown or out of range."""
    try:
        when = _EPOCH + datetime.timedelta(seconds=epoch or 0)
    except OverflowError:
        when = _EPOCH
    day, month = _DAYS[when.weekday()], _MONTHS[when.month - 1]
    return f"From MAILER-DAEMON {day} {month} {when.day:2d} {when:%H:%M:%S} {when.year:04d}\n".encode("ascii")


class Quoter:
    """Quotes one message that comes in pieces of any size; holds back no more than the beginning of a line."""

    def __init__(self) -> None:
        self._held = b""
        self._at_start = True
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        """What can be written now."""
        if not data:
            return b""
        self._last = data[-1:]
        data = self._held + data
        self._held = b""
        first = 0 if self._at_start else data.find(b"\n") + 1
        if not self._at_start and not first:
            return data
        last = data.rfind(b"\n", first) + 1 or first
        if _UNDECIDED.fullmatch(data, last):
            data, self._held = data[:last], data[last:]
            self._at_start = True
        else:
            self._at_start = False
        return data[:first] + _QUOTABLE.sub(b">", data[first:])

    def finish(self) -> tuple[bytes, bool]:
        """What is left, with the empty line after the message; and whether an LF was added to it."""
        added = self._last != b"\n"
        return self._held + (b"\n\n" if added else b"\n"), added
