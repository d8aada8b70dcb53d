"""SFTP servers for tests: OpenSSH's over a socket pair, and one that follows a script."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator

from hostbackup.protocols.sftp.client import Connection, SocketChannel
from hostbackup.protocols.sftp.packets import Code, Type, text

SERVER = "/usr/lib/openssh/sftp-server"


@contextlib.contextmanager
def openssh(*, timeout: float = 10.0) -> Iterator[Connection]:
    """A connection to a real sftp-server of its own."""
    near, far = socket.socketpair()
    with far:
        process = subprocess.Popen([SERVER, "-e"], stdin=far.fileno(), stdout=far.fileno(), stderr=subprocess.DEVNULL)
    connection = None
    try:
        connection = Connection.start(SocketChannel(near), timeout)
        yield connection
    finally:
        if connection is not None:
            connection.close()
        near.close()
        try:
            process.wait(5)
        finally:
            process.kill()
            process.wait()


Answer = Callable[[int, int, bytes], list[bytes]]
"""Type, number and body of a request; the packets to send back."""


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def status(number: int, code: int, message: bytes = b"") -> bytes:
    return frame(Type.STATUS, struct.pack(">II", number, code) + text(message) + text(b""))


def handle(number: int, name: bytes = b"h") -> bytes:
    return frame(Type.HANDLE, struct.pack(">I", number) + text(name))


def data(number: int, value: bytes) -> bytes:
    return frame(Type.DATA, struct.pack(">I", number) + text(value))


def attrs(number: int, size: int, mode: int = 0o100644, mtime: int = 1_700_000_000) -> bytes:
    return frame(Type.ATTRS, struct.pack(">IIQIIIII", number, 0xF, size, 0, 0, mode, mtime, mtime))


def names(number: int, *listed: tuple[bytes, bytes]) -> bytes:
    """`listed`: names, and attributes as bytes."""
    body = b"".join(text(name) + text(b"long") + told for name, told in listed)
    return frame(Type.NAME, struct.pack(">II", number, len(listed)) + body)


class Scripted:
    """A server in a thread that answers as it is told. `requests` are those it saw."""

    def __init__(self, answer: Answer, version: bytes | None = None) -> None:
        self._answer = answer
        self._version = frame(Type.VERSION, struct.pack(">I", 3)) if version is None else version
        self._near, self._far = socket.socketpair()
        self.requests: list[tuple[int, int, bytes]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = self._far.recv(count - len(got))
            if not more:
                raise EOFError
            got += more
        return got

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._exactly(9)
            self._far.sendall(self._version)
            while True:
                (length,) = struct.unpack(">I", self._exactly(4))
                packet = self._exactly(length)
                kind, number = struct.unpack_from(">BI", packet)
                self.requests.append((kind, number, packet[5:]))
                for reply in self._answer(kind, number, packet[5:]):
                    self._far.sendall(reply)
        self._far.close()

    def channel(self) -> SocketChannel:
        return SocketChannel(self._near)

    def connect(self, timeout: float = 5.0) -> Connection:
        return Connection.start(self.channel(), timeout)

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._near.close()


def read_body(body: bytes) -> tuple[int, int]:
    """Offset and length of a READ's body."""
    offset, length = struct.unpack(">QI", body[-12:])
    return offset, length


class FileServer:
    """Answers LSTAT, OPEN, FSTAT, READ and CLOSE for one file; `reading` may answer READs (number, offset, length) otherwise."""

    def __init__(self, content: bytes, reading: Callable[[int, int, int], list[bytes]] | None = None) -> None:
        self.content = content
        self.reading = reading

    def __call__(self, kind: int, number: int, body: bytes) -> list[bytes]:
        if kind in (Type.LSTAT, Type.FSTAT):
            return [attrs(number, len(self.content))]
        if kind == Type.OPEN:
            return [handle(number)]
        if kind == Type.READ:
            offset, length = read_body(body)
            return self.reading(number, offset, length) if self.reading else self.plain(number, offset, length)
        return [status(number, Code.OK)]

    def plain(self, number: int, offset: int, length: int) -> list[bytes]:
        part = self.content[offset : offset + length]
        return [data(number, part) if part else status(number, Code.EOF)]
