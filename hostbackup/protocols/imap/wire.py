"""The bytes under IMAP: one socket with one read buffer, from the greeting to the last literal.

imaplib reads its lines through the same `Wire` while logging in, so nothing that the server sent early is lost when the framer takes over.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator

from hostbackup.errors import CertificateRefused, ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.protocols.limits import RateLimit

CHUNK = 64 * 1024  # bytes: what one recv takes, and so the largest piece a literal is handed on in
MAX_LINE = 1024 * 1024  # bytes of one line, literals not counted


def plain(text: bytes, limit: int = 200) -> str:
    """What a server said, safe to show: control characters and invalid UTF-8 escaped, cut to `limit` characters."""
    shown = text.decode("utf-8", "backslashreplace").strip()
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class Wire:
    """A connected socket. Every failure of the line becomes LineCut; reads and writes give up after `timeout` seconds without a byte.

    `rate` bounds how fast bytes move, both ways together.
    """

    def __init__(self, sock: socket.socket, where: str, timeout: float, rate: RateLimit | None = None) -> None:
        self.sock = sock
        self.where = where
        self._timeout = timeout
        self._rate = rate
        self._buffer = b""
        self._at = 0
        self._closed = False
        sock.settimeout(timeout)
        with contextlib.suppress(OSError):  # a socket pair has no such option
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Encrypts from here on; the certificate must be `host`'s. Bytes that came before the handshake may be forged and end the session."""
        if self._at < len(self._buffer):
            raise ProtocolBroken("the server sent more after it agreed to STARTTLS", where=self.where)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise certificate_refused(error, host, self.where) from None
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
            raise CertificateRefused(f"no certificate can be for the name {host}: {error}", where=self.where, hint=hint) from None

    def certificate(self) -> bytes:
        """The server's certificate in DER, b"" on a plain connection."""
        return (self.sock.getpeercert(binary_form=True) or b"") if isinstance(self.sock, ssl.SSLSocket) else b""

    def send(self, data: bytes | memoryview) -> None:
        with self._mapped("sending"):
            if self._rate is None:
                self.sock.sendall(data)
                return
            for at in range(0, len(data), CHUNK):
                piece = data[at : at + CHUNK]
                self.sock.sendall(piece)
                self._rate.spend(len(piece))

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
                self._fill()
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
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()

    def _fill(self) -> None:
        with self._mapped("waiting for an answer"):
            self._buffer = self.sock.recv(CHUNK)
        self._at = 0
        if not self._buffer:
            raise LineCut("the server closed the connection", where=self.where)
        if self._rate is not None:
            self._rate.spend(len(self._buffer))

    @contextlib.contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise LineCut(f"nothing moved for {self._timeout:g} s while {doing}", where=self.where) from None
        except OSError as error:  # ssl.SSLError among them
            reason = "this side closed it" if self._closed else error.strerror or str(error)
            raise LineCut(f"the line was cut while {doing}: {reason}", where=self.where) from None


_CERTIFICATE_REASONS = {  # X509_V_ERR_*, openssl-verification-options(1)
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "comes from an unknown issuer",
    20: "comes from an unknown issuer",
    21: "comes from an unknown issuer",
    23: "has been revoked",
    62: "is for another name",
    64: "is for another name",
}


def certificate_refused(error: ssl.SSLCertVerificationError, host: str, where: str) -> ConnectionFailed:
    """Why a certificate was refused, in words."""
    reason = _CERTIFICATE_REASONS.get(error.verify_code, f"was refused ({error.verify_message})")
    if error.verify_code in (62, 64):
        hint = f"`host` must be a name that the certificate holds; it was compared with {host}. Set `address` to reach another machine"
    elif error.verify_code in (9, 10):
        hint = "ask the provider to renew it, or check this machine's clock"
    else:
        hint = "is this the right server, or does it use a private certificate authority?"
    return CertificateRefused(f"the server's certificate {reason}", where=where, hint=hint)
