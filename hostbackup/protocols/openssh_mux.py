"""Sessions over a login that an `ssh` process holds: the client's side of OpenSSH's PROTOCOL.mux, version 4.

The process listens on a Unix socket. A session is asked for with three descriptors (standard input, output and error); from then on `ssh` reads
and writes those itself, natively encrypted, and no byte of theirs passes here. The control socket stays open as long as the session is wanted,
and says in the end how it ended. Closing it ends the session.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence

_VERSION = 4
_HELLO, _NEW_SESSION = 0x00000001, 0x10000002
_PERMISSION_DENIED, _FAILURE, _EXIT_MESSAGE, _SESSION_OPENED = 0x80000002, 0x80000003, 0x80000004, 0x80000006
_NO_ESCAPE = 0xFFFFFFFF
_LONGEST = 1 << 16  # bytes of a message of the ssh process: its longest is a reason in words
_REQUEST = 1  # a control socket asks for one thing only


class Refused(Exception):
    """The server, or the ssh process, does not give this session. The reason is the message."""


class MuxSession:
    """One session: `fileno` is readable once `exit` may be known. Raises OSError (TimeoutError too) where the ssh process is gone or stuck."""

    def __init__(self, path: str, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._held = b""
        self.exit = -1  # of the remote command; -1 where none was told
        self.ended = False
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            self._send(struct.pack(">II", _HELLO, _VERSION))
            kind, body = self._receive(time.monotonic() + timeout)
            if kind != _HELLO or struct.unpack_from(">I", body) != (_VERSION,):
                raise ConnectionError("the ssh process speaks another version of its control protocol")
        except BaseException:
            self._socket.close()
            raise

    def open(self, command: bytes, descriptors: Sequence[int], *, subsystem: bool = False, timeout: float) -> None:
        """Starts a command, or a subsystem called so, on descriptors for its standard input, output and error. They may be closed afterwards.

        Raises Refused, or OSError. That the server runs the command is not told: a session that ends without an exit code did not.
        """
        flags = struct.pack(">IIII", 0, 0, 0, subsystem)  # no terminal, no X11, no agent
        self._send(struct.pack(">III", _NEW_SESSION, _REQUEST, 0) + flags + struct.pack(">II", _NO_ESCAPE, 0) + _text(command))
        for descriptor in descriptors:  # one byte each, as the ssh process takes them
            socket.send_fds(self._socket, [b"\0"], [descriptor])
        kind, body = self._receive(time.monotonic() + timeout)
        if kind in (_PERMISSION_DENIED, _FAILURE):
            (length,) = struct.unpack_from(">I", body, 4)
            raise Refused(body[8 : 8 + length].decode("utf-8", "replace") or "no reason given")
        if kind != _SESSION_OPENED:
            raise ConnectionError(f"the ssh process answered with message {kind:#x}")
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> None:
        """Takes in what the ssh process has said by now: `exit` and `ended`."""
        while not self.ended:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._held += data
            self.ended = not data
            while (message := self._message()) is not None:
                kind, body = message
                if kind == _EXIT_MESSAGE and len(body) >= 8:
                    self.exit = struct.unpack_from(">I", body, 4)[0]

    def wait(self, timeout: float) -> None:
        """Waits until the session has ended, for so many seconds at most."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):
            while not self.ended and (left := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(1, socket.MSG_PEEK):
                    self.ended = True
                    return
                self._socket.setblocking(False)
                self.take()

    def hang_up(self) -> None:
        """Ends the session; whoever waits on `fileno` is woken."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the session, whatever is under way. May be called twice."""
        self._socket.close()

    def _send(self, message: bytes) -> None:
        self._socket.sendall(struct.pack(">I", len(message)) + message)

    def _message(self) -> tuple[int, bytes] | None:
        """The next whole message: its type and body."""
        if len(self._held) < 8:
            return None
        length, kind = struct.unpack_from(">II", self._held)
        if not 4 <= length <= _LONGEST:
            raise ConnectionError("the ssh process sent a malformed control message")
        if len(self._held) < 4 + length:
            return None
        body, self._held = self._held[8 : 4 + length], self._held[4 + length :]
        return kind, body

    def _receive(self, deadline: float) -> tuple[int, bytes]:
        while True:
            message = self._message()
            if message is not None:
                return message
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the ssh process does not answer")
            self._socket.settimeout(left)
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionError("the ssh process ended the session")
            self._held += data


def _text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def pair(size: int) -> tuple[socket.socket, socket.socket]:
    """A connected pair, near and far end, each with room for about `size` bytes on the way; as much as the system allows."""
    near, far = socket.socketpair()
    for one in (near, far):
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return near, far


def accepts(path: str) -> bool:
    """Whether an ssh process listens there and answers."""
    if not os.path.exists(path):  # noqa: PTH110
        return False
    try:
        MuxSession(path, 1.0).close()
    except OSError:
        return False
    return True
