"""A program that speaks IMAP on its standard input and output, as a line: `ssh root@mail.example.jp /usr/lib/dovecot/imap -u …`."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from hostbackup.errors import Unreachable
from hostbackup.protocols.imap.wire import plain

_END = 3.0  # seconds a program may take to end of itself once its input has ended
_TOLD = 300  # bytes of what it last said on standard error


class Tunnel:
    """The running program as what a `Wire` needs of a socket. No shell is involved, and Ctrl-C at the terminal does not reach it before us.

    Pipes and no socket pair: Dovecot's `imap` takes a socket for inetd and does not serve.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.name = command[0]
        self.ended = ""  # once it is closed: how it ended of itself, and what it said last
        if sys.platform == "win32":
            raise Unreachable("a tunnel needs a system on which pipes can be waited for, which Windows is not", where=self.name)
        self._timeout: float | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads would stop the program)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said.fileno(), process_group=0, bufsize=0
            )
        except OSError as error:
            self._said.close()
            raise Unreachable(
                f"the tunnel's program cannot be run: {error.strerror}", where=self.name, hint="check `tunnel` in the profile"
            ) from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def recv(self, size: int) -> bytes:
        return os.read(self._ready(self._from, selectors.EVENT_READ), size)

    def sendall(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            fd = self._ready(self._to, selectors.EVENT_WRITE)
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(fd, rest) :]

    def _ready(self, pipe: IO[bytes], event: int) -> int:
        """The pipe's descriptor once it can be used. Raises TimeoutError."""
        if pipe.closed:
            raise BrokenPipeError("the tunnel is closed")
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(self._timeout):
                raise TimeoutError
        return pipe.fileno()

    def close(self) -> None:
        """Ends the program's input, then the program, and with it whatever it started. May be called twice."""
        if self._said.closed:
            return
        self._to.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ended = f"ended with {self._process.wait(_END)}"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._from.close()
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _TOLD))
        said = plain(self._said.read().replace(b"\r", b"").replace(b"\n", b" "), _TOLD)
        self.ended += f": {said}" if self.ended and said else ""
        self._said.close()
