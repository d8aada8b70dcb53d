"""A socket that is read ahead: paramiko asks for the sixteen bytes of a packet's head, then for its rest, and each is a call to the system.

Each call also gives way to the other threads, which may be long in giving it back.
"""

from __future__ import annotations

import socket
from typing import Any

_AHEAD = 256 << 10  # bytes


class ReadAhead:
    """A connected socket for one reader. What is not about receiving is the socket's own."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = memoryview(bytearray(_AHEAD))
        self._at = self._end = 0

    def recv(self, limit: int) -> bytes:
        """Up to `limit` bytes, b"" at the end. Raises as `socket.socket.recv`."""
        if self._at == self._end:
            if limit >= _AHEAD:
                return self._socket.recv(limit)
            self._at, self._end = 0, self._socket.recv_into(self._buffer)
        start, self._at = self._at, min(self._at + limit, self._end)
        return bytes(self._buffer[start : self._at])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)
