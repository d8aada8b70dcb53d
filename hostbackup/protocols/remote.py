"""What a login to an SSH server offers, whichever client made it: SFTP channels and remote commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.sftp.client import ByteChannel

_SHELL_WAIT = 10.0  # seconds a harmless command may take


class Ran(NamedTuple):
    """What a remote command did. `exit` is -1 where a signal ended it or the server told nothing."""

    exit: int
    stdout: bytes
    stderr: bytes


class Running(Protocol):
    """A remote command under way. Iterated once: gives what it writes to standard output, feeding its standard input meanwhile.

    Iterating raises LineCut where the line is gone or nothing moves for too long. Only so much output is taken in advance as the channel's window.
    """

    @property
    def exit(self) -> int:
        """The exit code once iterated to the end; -1 before, and where a signal ended the command or the server told nothing."""
        ...

    @property
    def stderr(self) -> bytes:
        """What it has written to standard error so far, the first 64 KiB of it."""
        ...

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Ends the command, whatever is under way. May be called twice."""
        ...


class Login(Protocol):
    """One login. Used by several threads; closed once, by whoever made it."""

    @property
    def address(self) -> str:
        """Where TCP went."""
        ...

    @property
    def port(self) -> int: ...

    @property
    def host_key_fingerprint(self) -> str:
        """`SHA256:…`, as OpenSSH prints it."""
        ...

    @property
    def host_key_type(self) -> str: ...

    @property
    def server_version(self) -> str:
        """The server's identification string (RFC 4253, section 4.2)."""
        ...

    @property
    def alive(self) -> bool: ...

    def open_sftp_channel(self) -> ByteChannel:
        """A new channel with the SFTP subsystem on it. Raises LineCut, or ProtocolBroken where the server refuses."""
        ...

    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Running:
        """Starts a command. `timeout`: seconds without any progress. Raises LineCut, or ProtocolBroken where the server runs no commands."""
        ...

    def run(self, command: str | bytes, stdin: bytes | Iterable[bytes] | None = None, *, timeout: float | None = None) -> Ran:
        """Runs a command to its end. Raises as `start` and as iterating does."""
        ...

    def has_shell(self) -> bool:
        """Whether remote commands are allowed and work. Asked once, by a harmless command."""
        ...

    def abort(self) -> None:
        """Drops the line without a word: never blocks."""
        ...

    def close(self) -> None:
        """Ends the login. May be called twice."""
        ...


class Commands(ABC):
    """What follows for a Login from `start` alone, whichever client it is. `shell` is "never" where commands are not wanted."""

    def __init__(self, shell: str) -> None:
        self.shell = shell
        self._has_shell: bool | None = None

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    @abstractmethod
    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Running: ...

    def run(self, command: str | bytes, stdin: bytes | Iterable[bytes] | None = None, *, timeout: float | None = None) -> Ran:
        """As `Login.run`."""
        told = command if isinstance(command, bytes) else command.encode("utf-8", "surrogateescape")
        running = self.start(told, [stdin] if isinstance(stdin, bytes) else stdin or (), timeout=timeout)
        out = b"".join(running)
        return Ran(running.exit, out, running.stderr)

    def has_shell(self) -> bool:
        """As `Login.has_shell`."""
        if self._has_shell is None:
            self._has_shell = self.shell != "never" and self._probe_shell()
        return self._has_shell

    def _probe_shell(self) -> bool:
        try:
            ran = self.run("printf 'hostbackup-%s' shell", timeout=_SHELL_WAIT)
        except ProtocolBroken:
            return False
        except LineCut:
            if self.alive:
                return False
            raise
        return ran.stdout.endswith(b"hostbackup-shell")
