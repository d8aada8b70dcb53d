"""What passes over a line: turns, bytes, and the HTTP requests among them, counted without holding or changing anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

LONGEST_HEAD = 64 << 10  # bytes of a request's first line and fields together
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_CHUNKED = re.compile(rb"^transfer-encoding:[^\r\n]*\bchunked[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Traffic:
    """Of all connections together: turns, bytes to the server and from it, and how many requests of each method."""

    turns: int = 0
    up: int = 0
    down: int = 0
    methods: Mapping[str, int] = field(default_factory=dict)

    def since(self, earlier: Traffic) -> Traffic:
        """What came after `earlier`."""
        methods = Counter(self.methods) - Counter(earlier.methods)
        return Traffic(self.turns - earlier.turns, self.up - earlier.up, self.down - earlier.down, dict(methods))

    def document(self) -> dict[str, object]:
        """As JSON; Traffic(**document) reads it back."""
        return asdict(self)


class Requests:
    """Counts the requests of one connection from the bytes that go to the server (HTTP/1.1, RFC 9112 §6), however they are cut.

    A request that announces a body and is refused before it is sent (`Expect: 100-continue` answered with an error) is counted, but what follows it
    on the same connection is taken for that body.
    """

    def __init__(self, methods: Counter[str]) -> None:
        """`methods` is counted up; connections may share one."""
        self._methods = methods
        self._text = bytearray()  # of a head or a line that is not complete yet
        self._skip = 0  # bytes of a body, or of a part of one, that are still to come
        self._chunked = False
        self._trailing = False  # the last chunk of a body has been; fields may follow (RFC 9112 §7.1.2)

    def feed(self, data: memoryview) -> None:
        """The next bytes. ValueError if they are not HTTP."""
        begin, end = 0, len(data)
        while begin < end:
            if self._skip:
                step = min(self._skip, end - begin)
                self._skip -= step
                begin += step
                continue
            begin += self._take(data[begin:])

    def _take(self, data: memoryview) -> int:
        """Reads on in a head or in the line before a chunk; tells how many of the bytes belong to it."""
        stop = b"\r\n" if self._chunked else b"\r\n\r\n"
        held = len(self._text)
        self._text += data[: LONGEST_HEAD - held + len(stop)]
        found = self._text.find(stop, max(0, held - len(stop) + 1))
        if found < 0:
            if len(self._text) > LONGEST_HEAD:
                raise ValueError("what passes here is not HTTP/1.1: a head without an end")
            return len(data)
        text = bytes(self._text[:found])
        self._text.clear()
        if self._chunked:
            self._chunk(text)
        else:
            self._head(text)
        return found + len(stop) - held

    def _head(self, text: bytes) -> None:
        first = text.lstrip(b"\r\n").partition(b"\r\n")[0].split(b" ")
        if len(first) != 3 or not first[2].startswith(b"HTTP/1."):
            raise ValueError("what passes here is not HTTP/1.1: a request begins otherwise")
        self._methods[first[0].decode("ascii", "replace")] += 1
        if _CHUNKED.search(text):
            self._chunked = True
        elif told := _LENGTH.search(text):
            self._skip = int(told[1])

    def _chunk(self, line: bytes) -> None:
        """A line in a chunked body: the size of a chunk, or a field after the last one."""
        if self._trailing:
            self._chunked = self._trailing = bool(line)
            return
        size = int(line.partition(b";")[0], 16)
        self._skip = size + 2 if size else 0
        self._trailing = not size
