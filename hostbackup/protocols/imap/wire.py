"""The bytes under IMAP: one socket with one read buffer, from the greeting to the last literal."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from hostbackup.errors import CertificateRefused, LineCut, ProtocolBroken
from hostbackup.protocols import certificates
from hostbackup.protocols.certificates import Trust
from hostbackup.protocols.imap.deflate import Deflated, Packing
from hostbackup.protocols.imap.tls import TlsSocket
from hostbackup.protocols.limits import RateLimit

CHUNK = 256 * 1024  # bytes: what one recv takes, and so the largest piece a literal is handed on in
_LIMITED = 64 * 1024  # bytes that move at once where their rate is bounded
_BULK = 16 * 1024  # bytes sent in one go that are contents and no commands
MAX_LINE = 1024 * 1024  # bytes of one line, literals not counted
_TIMING = re.compile(r"\s*\(\d+\.\d+(?: \+ \d+\.\d+)* secs\)\.?\Z")  # how long it took Dovecot to say so


def plain(text: bytes, limit: int = 200) -> str:
    """What a server said, safe to show: control characters and invalid UTF-8 escaped, cut to `limit` characters."""
    shown = _TIMING.sub("", text.decode("utf-8", "backslashreplace").strip())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class Line(Protocol):
    """What is needed of a socket; a tunnel's program has it too."""

    def settimeout(self, seconds: float, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes | memoryview, /) -> None: ...
    def close(self) -> None: ...


class Wire:
    """A connected socket. Every failure of the line becomes LineCut; reads and writes give up after `timeout` seconds without a byte.

    `rate` bounds how fast bytes move, both ways together.
    """

    def __init__(self, sock: Line, where: str, timeout: float, rate: RateLimit | None = None) -> None:
        self.sock = sock
        self.where = where
        self._timeout = timeout
        self._rate = rate
        self._buffer = b""
        self._at = 0
        self._closed = False
        self._line: Line = sock  # what bytes go through: the socket, or what packs them on their way
        self._packing: Packing | None = None
        self._since = 0.0  # when bytes last moved
        sock.settimeout(timeout)

    def wait_up_to(self, seconds: float) -> None:
        """From here on, how long may pass without a byte."""
        self._timeout = seconds
        self.sock.settimeout(seconds)

    def start_tls(self, trust: Trust) -> None:
        """Encrypts from here on, with whom `trust` accepts. Bytes that came before the handshake may be forged and end the session."""
        if self._at < len(self._buffer):
            raise ProtocolBroken("the server sent more after it agreed to STARTTLS", where=self.where)
        context = trust.context()
        try:
            self.sock = self._line = TlsSocket(self.sock, context, trust.name or None)
        except ssl.SSLCertVerificationError as error:
            raise certificates.refused(error, trust.name, self.where) from None
        except TimeoutError:
            raise LineCut(f"no answer to the TLS handshake within {self._timeout:g} s", where=self.where) from None
        except ssl.SSLError as error:
            raise ProtocolBroken(
                f"no TLS connection could be agreed on: {getattr(error, 'reason', None) or error}",
                where=self.where,
                hint="is this port one for TLS from the start?",
            ) from None
        except OSError as error:
            raise LineCut(f"the line was cut during the TLS handshake: {error.strerror or error}", where=self.where) from None
        except ValueError as error:  # UnicodeError among them: no name of DNS, so no certificate can be for it
            hint = "`host` must be a name that the certificate holds"
            raise CertificateRefused(f"no certificate can be for the name {trust.name}: {error}", where=self.where, hint=hint) from None
        trust.check(self.certificate(), self.where)

    def certificate(self) -> bytes:
        """The server's certificate in DER, b"" on a plain connection."""
        return self.sock.certificate() if isinstance(self.sock, TlsSocket) else b""

    def measure(self, packing: Packing) -> None:
        """Tells `packing` from now on how fast contents come and go."""
        self._packing = packing
        self._since = time.monotonic()

    @property
    def packed(self) -> bool:
        return self._line is not self.sock

    def pack(self) -> None:
        """Both sides deflate from here on, what the server sent already included (RFC 4978)."""
        self._line = Deflated(self.sock, self.where, self._buffer[self._at :], self._rate)
        self._rate = None
        self._buffer, self._at = b"", 0

    def send(self, data: bytes | memoryview) -> None:
        began = time.monotonic()
        pieces = [data] if self._rate is None else [data[at : at + _LIMITED] for at in range(0, len(data), _LIMITED)]
        with self._mapped("sending"):
            for piece in pieces:
                self._line.sendall(piece)
                if self._rate is not None:
                    self._rate.spend(len(piece))
        self._moved(len(data) if len(data) >= _BULK else 0, began)

    def readline(self) -> bytes:
        """One line, its LF included. Raises ProtocolBroken where it is longer than MAX_LINE."""
        end = self._buffer.find(b"\n", self._at)
        if end >= 0:
            line = self._buffer[self._at : end + 1]
            self._at = end + 1
            return line
        parts = [self._buffer[self._at :]]
        length = len(parts[0])
        while True:
            if length > MAX_LINE:
                raise ProtocolBroken(f"the server sent a line of more than {MAX_LINE} bytes", where=self.where)
            self._fill()
            end = self._buffer.find(b"\n")
            if end >= 0:
                break
            parts.append(self._buffer)
            length += len(self._buffer)
        parts.append(self._buffer[: end + 1])
        self._at = end + 1
        if length + end + 1 > MAX_LINE:
            raise ProtocolBroken(f"the server sent a line of more than {MAX_LINE} bytes", where=self.where)
        return b"".join(parts)

    def chunks(self, size: int) -> Iterator[memoryview]:
        """Exactly `size` bytes in pieces of at most CHUNK."""
        while size:
            if self._at >= len(self._buffer):
                self._fill(bulk=True)
            piece = memoryview(self._buffer)[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def feed(self, taker: Callable[[bytes, int], int]) -> None:
        """Gives what came, and where in it the unread part begins, to `taker` until it tells where it ended; below 0 it wants more."""
        while True:
            if self._at >= len(self._buffer):
                self._fill()
            end = taker(self._buffer, self._at)
            self._at = len(self._buffer) if end < 0 else end
            if end >= 0:
                return

    def read(self, size: int) -> bytes:
        return b"".join(self.chunks(size))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if isinstance(self.sock, socket.socket | TlsSocket):
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in it
            self.sock.close()

    def _fill(self, *, bulk: bool = False) -> None:
        began = time.monotonic()
        with self._mapped("waiting for an answer"):
            self._buffer = self._line.recv(CHUNK if self._rate is None else _LIMITED)
        self._at = 0
        if not self._buffer:
            raise LineCut("the server closed the connection", where=self.where)
        if self._rate is not None:
            self._rate.spend(len(self._buffer))
        self._moved(len(self._buffer) if bulk else 0, began)

    def _moved(self, size: int, began: float) -> None:
        """Notes that contents came or went since `began`; commands and answers (`size` 0) say nothing about how fast a line is."""
        if self._packing is not None:
            now = time.monotonic()
            if size:
                self._packing.measured(packed=self.packed, size=size, seconds=now - self._since, waited=now - began)
            self._since = now

    @contextlib.contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise LineCut(f"nothing moved for {self._timeout:g} s while {doing}", where=self.where) from None
        except OSError as error:  # ssl.SSLError among them
            reason = "this side closed it" if self._closed else error.strerror or str(error)
            raise LineCut(f"the line was cut while {doing}: {reason}", where=self.where) from None
