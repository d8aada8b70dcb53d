"""TLS over a socket by way of memory: what lies ready is taken from the system in one call, however small the records are that it came in.

An `ssl.SSLSocket` asks the system twice for each record. Mail servers send records of a few KiB, so with them that is most of the work.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Protocol

_RAW = 256 * 1024  # bytes taken from the system in one call
_RECORD = 16 * 1024  # the most that one record holds (RFC 8446 §5.1)


class Line(Protocol):
    """What carries the records: a socket, or what stands for one."""

    def settimeout(self, seconds: float, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes | memoryview, /) -> None: ...
    def close(self) -> None: ...


class TlsSocket:
    """Shakes hands at once, and has the methods that a `Wire` uses of a socket. Raises what `ssl.SSLSocket` raises."""

    def __init__(self, sock: Line, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._sock = sock
        self._coming = ssl.MemoryBIO()
        self._going = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._coming, self._going, server_hostname=server_hostname)
        self._ready = bytearray(_RAW + _RECORD)
        self._over = False
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._send_on()
                self._take_in()
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # nobody may be there any more: that must not hide what was wrong
                    self._send_on()  # the alert that tells the server why
                raise
            else:
                self._send_on()
                return

    def _take_in(self) -> None:
        data = self._sock.recv(_RAW)
        if data:
            self._coming.write(data)
        else:
            self._coming.write_eof()

    def _send_on(self) -> None:
        if self._going.pending:
            self._sock.sendall(self._going.read())

    def recv(self, size: int) -> bytes:
        """What there is, at least a byte and at most about `size`; b"" at the end, announced or not."""
        ready, have = memoryview(self._ready), 0
        size = min(size, _RAW)
        while True:
            try:
                while have < size:
                    got = self._into(ready[have:])
                    if not got:
                        break
                    have += got
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._over = True
            self._send_on()  # an answer to a change of keys, for one
            if have or self._over:
                return bytes(ready[:have])
            self._take_in()

    def _into(self, place: memoryview) -> int:
        return int(self._object.read(_RECORD, place))

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of it."""
        view = memoryview(data)
        while view:
            view = view[self._object.write(view[: 4 * _RAW]) :]
            self._send_on()

    def certificate(self) -> bytes:
        """The server's certificate in DER."""
        return self._object.getpeercert(True) or b""

    def settimeout(self, seconds: float) -> None:
        self._sock.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        if isinstance(self._sock, socket.socket):
            self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()
