"""The end of a multi-line response and the dots before it (RFC 1939 §3), over pieces of any length.

A line that begins with a dot is sent with one more; a dot alone ends the response. Lines end with CRLF: a bare LF or CR is a byte like any
other, and a dot after it is the message's own. Only of a server that ends its status lines with a bare LF the lines end so too.
"""

from __future__ import annotations

from collections.abc import Callable

MORE = -1
_UNDECIDED = (b"", b".", b".\r")  # what a line may begin with that is perhaps the last


class Unstuffer:
    """Hands on the contents of one multi-line response. `write` gets pieces of what `feed` is given; nothing is kept but two bytes."""

    def __init__(self, write: Callable[[memoryview | bytes], object], *, bare_lf: bool = False) -> None:
        self._write = write
        self._mark = b"\n." if bare_lf else b"\r\n."
        self._ends = (b".\n", b".\r\n") if bare_lf else (b".\r\n",)
        self._held = b""  # read, and not yet known to be contents
        self._fresh = True  # a line begins here
        self._return = False  # the last byte was a CR, which may be the first of a line's end

    def feed(self, data: bytes, at: int = 0) -> int:
        """Takes `data` from `at` on. Where the response ended in it, gives the place after it, else MORE."""
        while True:
            if self._fresh:
                head = self._held + data[at : at + 3 - len(self._held)]
                for end in self._ends:
                    if head.startswith(end):
                        return at + len(end) - len(self._held)
                if head in _UNDECIDED:
                    self._held = head
                    return MORE
                at += self._begin(head)
            if at >= len(data):
                return MORE
            at = self._line(data, at)
            if at < 0:
                return MORE

    def _begin(self, head: bytes) -> int:
        """A line of contents; how many bytes of its `head` that were not held before are used up.

        Of two dots one is the server's. A single one is from a server that does not stuff, and stays.
        """
        held, self._held, self._fresh, self._return = self._held, b"", False, False
        if head.startswith(b".."):
            self._write(b".")
            return 2 - len(held)
        if held:
            self._write(held)
            self._return = held.endswith(b"\r")
        return 0

    def _line(self, data: bytes, at: int) -> int:
        """Hands on up to the next line that begins with a dot; the place of that line, or MORE."""
        newline = self._mark[:-1]
        if self._return and newline == b"\r\n" and data.startswith(b"\n", at):
            self._write(b"\n")
            self._fresh, self._return = True, False
            return at + 1
        found = data.find(self._mark, at)
        if found >= 0:
            at_line = found + len(newline)
            self._write(memoryview(data)[at:at_line])
            self._fresh, self._return = True, False
            return at_line
        self._write(memoryview(data)[at:])
        self._fresh = data.endswith(newline, at)
        self._return = data.endswith(b"\r", at)
        return MORE
