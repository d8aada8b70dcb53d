"""COMPRESS=DEFLATE (RFC 4978): one stream of deflate (RFC 1951) each way under everything that follows, where that was measured to pay.

Measured with Dovecot 2.3 on a busy machine of two cores: mail with attachments became 1.47 times smaller (base64 alone 1.3, text 3.6) and came at 5
to 6 MB/s, as fast as one of its processes packs; left plain, at 23 MB/s. So packing is for lines slower than that, and what counts is what was seen
of this line.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from hostbackup.errors import ProtocolBroken

if TYPE_CHECKING:
    from hostbackup.protocols.imap.wire import Line
    from hostbackup.protocols.limits import RateLimit

_RAW = -zlib.MAX_WBITS  # no header, no checksum
_LEVEL = 6
_PACKED = 64 * 1024  # bytes taken from the line at once, packed
_STRETCH = 3.0  # seconds measured before a line is judged
_STARVED = 0.3  # share of the time in which nothing came: then the line is what limits
_FAST = 6_250_000  # bytes a second (50 Mbit/s) from which a line is never called slow: servers pack no faster
_WORTH_KEEPING = 1.1


class Deflated:
    """A line on which both sides deflate. `begun` is what had come of the server's stream already; `rate` counts what goes over the wire."""

    def __init__(self, line: Line, where: str, begun: bytes, rate: RateLimit | None) -> None:
        self._line = line
        self._where = where
        self._rate = rate
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW)
        self._inflate = zlib.decompressobj(_RAW)
        self._rest = begun
        self._more = bool(begun)  # there may be more to give without another look at the line

    def settimeout(self, seconds: float) -> None:
        self._line.settimeout(seconds)

    def sendall(self, data: bytes | memoryview) -> None:
        packed = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._line.sendall(packed)
        if self._rate is not None:
            self._rate.spend(len(packed))

    def recv(self, size: int) -> bytes:
        """At most `size` bytes however well they were packed; b"" at the end of the line. Raises ProtocolBroken for what is no deflate."""
        while True:
            if self._inflate.eof:
                if self._inflate.unused_data or self._line.recv(_PACKED):
                    raise ProtocolBroken("the server ended its packed stream and went on", where=self._where)
                return b""
            if not self._more:
                self._rest = self._line.recv(_PACKED)
                if not self._rest:
                    return b""
                if self._rate is not None:
                    self._rate.spend(len(self._rest))
            try:
                data = self._inflate.decompress(self._rest, size)
            except zlib.error as error:
                raise ProtocolBroken(f"what the server packs cannot be unpacked: {error}", where=self._where) from None
            self._rest = self._inflate.unconsumed_tail
            self._more = len(data) == size or bool(self._rest)
            if data:
                return data

    def close(self) -> None:
        self._line.close()


class Packing:
    """Whether connections to one server are to be packed; shared by all of them, and by several threads.

    Once on, it stays on for a connection; where that did not make mail come faster, the next connections are left plain.
    """

    def __init__(self, mode: Literal["auto", "always", "never"] = "auto", note: Callable[[str], object] = lambda text: None) -> None:
        self.on = mode == "always"
        self._judging = mode == "auto"
        self._note = note
        self._lock = threading.Lock()
        self._plain_rate = 0.0  # bytes a second before
        self._begin()

    def _begin(self) -> None:
        self._size = 0
        self._seconds = self._waited = 0.0

    def measured(self, *, packed: bool, size: int, seconds: float, waited: float) -> None:
        """Takes note of mail that came or went: its bytes unpacked, how long it took, and for how much of that the line was waited for."""
        if not self._judging or packed is not self.on:
            return
        with self._lock:
            self._size, self._seconds, self._waited = self._size + size, self._seconds + seconds, self._waited + waited
            if self._seconds < _STRETCH:
                return
            rate = self._size / self._seconds
            if self.on and rate < self._plain_rate * _WORTH_KEEPING:
                self.on = self._judging = False
                self._note("packing did not make mail come faster: new connections are left plain")
            elif not self.on and rate < _FAST and self._waited > self._seconds * _STARVED:
                self.on, self._plain_rate = True, rate
                self._note(f"the line is slow ({rate / 1e6:.1f} MB/s): mail travels packed where the server can (COMPRESS=DEFLATE)")
            self._begin()
