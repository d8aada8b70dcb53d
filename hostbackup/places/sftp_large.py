"""The contents of one large file over SFTP: many READs under way, as many bytes a READ as the server has proven to give, a window that grows.

What is learned of a server (`Reading`) counts for the whole place: its channels lead to the same program.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hostbackup.errors import ProtocolBroken
from hostbackup.protocols.sftp.client import DEFAULT_CHUNK, Steps
from hostbackup.protocols.sftp.packets import Code, Request, Status, read

WINDOW = 4 << 20  # bytes of one file under way, at first
SPARE = 12 << 20  # bytes that the windows of all files may take beyond that, so that memory stays flat
AHEAD = 2  # windows hold so many times what comes in one round trip: enough never to wait for the server's first byte
LONGEST = 255 * 1024  # bytes asked for at once where the server tells no limit: a packet of 256 KiB is what most can make
_WORTH = 1 << 20  # bytes left of a file that is worth trying a length the server tells …
_WORTH_A_LINE = 16 << 20  # … and one it tells nothing of, which some drop the line for
_LEAST = 512

Write = Callable[[memoryview], object]


class Reading:
    """How a server is best asked for large files. `chunk` is the most bytes a READ may ask for: what the server has proven to bring."""

    def __init__(self, spare: int = SPARE) -> None:
        self.chunk = DEFAULT_CHUNK
        self.spare = spare
        self.round_trip = 0.0  # seconds, the shortest seen; 0 before any
        self._tried = False
        self._lowered = False

    def answered(self, seconds: float) -> None:
        """A request that costs the server nothing was answered within so many seconds."""
        self.round_trip = min(self.round_trip or seconds, seconds)

    def try_out(self, told: int, left: int) -> int:
        """The length of a READ that should be tried now, or 0. Not 0 once only: a server that drops the line over it is left alone.

        `told`: the server's own limit, DEFAULT_CHUNK where it tells none. `left`: bytes of the file.
        """
        is_told = told > DEFAULT_CHUNK
        if self._tried or left < (_WORTH if is_told else _WORTH_A_LINE):
            return 0
        self._tried = True
        return told if is_told else LONGEST

    def proven(self, length: int) -> None:
        if not self._lowered:
            self.chunk = max(self.chunk, length)

    def lower(self, length: int) -> None:
        """The server gave so many bytes where it had more to give: it is asked for no more than that from now on."""
        self.chunk = max(_LEAST, min(self.chunk, length))
        self._tried = self._lowered = True


class Window:
    """How far reading runs ahead of what has come: what the line brings in two round trips, out of what the place has to spare.

    On a line that waits for requests, that doubles it until the line is full. Once it is full, or the disk is what takes long, it stays.
    """

    def __init__(self, reading: Reading, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = WINDOW
        self._reading = reading
        self._clock = clock
        self._taken = 0
        self._since = clock()
        self._come = 0

    def took(self, count: int) -> None:
        """So many bytes more have come."""
        self._come += count
        if self._come < self.size:
            return
        now = self._clock()
        rate = self._come / max(now - self._since, 1e-6)
        more = min(int(AHEAD * rate * self._reading.round_trip) - self.size, self._reading.spare)
        if more > 0:
            self._reading.spare -= more
            self._taken += more
            self.size += more
        self._since, self._come = now, 0

    def close(self) -> None:
        """Gives back what it had taken. May be called twice."""
        self._reading.spare += self._taken
        self._taken = 0
        self.size = WINDOW


@dataclass(frozen=True, slots=True)
class _Asked:
    offset: int
    length: int
    short: int = 0  # the rest of a READ that gave only so many bytes


class Stream:
    """Bytes `start` to `size` of an open file, given to `write` in order; fewer where the file ends earlier."""

    def __init__(self, handle: bytes, start: int, size: int, reading: Reading, write: Write) -> None:
        self._handle = handle
        self._reading = reading
        self._write = write
        self._end = size
        self._asked = start  # up to here all has been asked for
        self.written = start
        self._rests: deque[_Asked] = deque()
        self._early: dict[int, memoryview] = {}  # replies ahead of their turn
        self._refused: Status | None = None

    def run(self, told: int) -> Steps[int | Status]:
        """How far the file was written, or why the server refused. `told`: the longest READ that the server says it answers.

        Every reply is awaited, so that the handle can be closed after it.
        """
        window = Window(self._reading)
        try:
            longer = self._reading.try_out(told, self._end - self.written)
            if longer:
                yield from self._probe(longer)
            due = 0
            while True:
                requests = self._requests(window.size)
                due += len(requests)
                if not due:
                    return self.written if self._refused is None else self._refused
                reply = yield requests
                due -= 1
                before = self.written
                self._take(reply.mark, reply.value)
                window.took(self.written - before)
        finally:
            window.close()

    def _requests(self, window: int) -> list[Request]:
        requests: list[Request] = []
        if self._refused is not None:
            return requests
        while self._rests:
            rest = self._rests.popleft()
            for at in range(0, rest.length, self._reading.chunk):
                piece = _Asked(rest.offset + at, min(self._reading.chunk, rest.length - at), 0 if at else rest.short)
                requests.append(self._request(piece))
        while self._asked < self._end and self._asked - self.written < window:
            length = min(self._reading.chunk, self._end - self._asked)
            requests.append(self._request(_Asked(self._asked, length)))
            self._asked += length
        return requests

    def _request(self, asked: _Asked) -> Request:
        return read(self._handle, asked.offset, asked.length, asked)

    def _take(self, asked: _Asked, value: object) -> None:
        if isinstance(value, memoryview) and value:
            if len(value) > asked.length:
                raise ProtocolBroken("the server sent more than a READ asked for")
            if asked.short:
                self._reading.lower(asked.short)  # there was more to give, then
            self._early[asked.offset] = value
            left = asked.length - len(value)
            if left:
                self._rests.append(_Asked(asked.offset + len(value), left, len(value)))
            self._in_order()
        elif isinstance(value, memoryview) or (isinstance(value, Status) and value.code == Code.EOF):
            self._end = min(self._end, asked.offset)
        else:
            self._refused = value if isinstance(value, Status) else Status(Code.FAILURE, b"an answer of the wrong kind")

    def _in_order(self) -> None:
        while (data := self._early.pop(self.written, None)) is not None:
            self._write(data)
            self.written += len(data)

    def _probe(self, length: int) -> Steps[None]:
        """Reads the next bytes twice, by one long READ and by short ones. What both agree on proves the length; what the short ones give is kept."""
        start = self.written
        pieces = [_Asked(start + at, min(DEFAULT_CHUNK, length - at)) for at in range(0, length, DEFAULT_CHUNK)]
        self._asked = start + length
        requests = [read(self._handle, start, length), *map(self._request, pieces)]
        due, long, short = len(requests), b"", bytearray()
        write, self._write = self._write, short.extend
        reply = yield requests
        while True:
            due -= 1
            if reply.mark is not None:
                self._take(reply.mark, reply.value)
            elif isinstance(reply.value, memoryview) and len(reply.value) <= length:
                long = bytes(reply.value)
            more = self._requests(0)  # rests of short answers
            due += len(more)
            if not due:
                break
            reply = yield more
        self._write = write
        if short:
            write(memoryview(bytes(short)))
        if long and short.startswith(long):
            self._reading.proven(len(long))
