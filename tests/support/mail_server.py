"""What every IMAP server of the tests offers, whatever it is made of."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from hostbackup.protocols.imap.session import ImapSession, ImapTarget, connect

HOST = "mail.example.test"  # the name in the certificate; nothing resolves it, `addresses` leads there
USERS = {"taro@example.test": "secret", "hanako@example.test": "ひみつ パスワード"}


@dataclass(frozen=True)
class Layout:
    """How a server names its folders."""

    prefix: str
    separator: str


INBOX_DOT = Layout("INBOX.", ".")
PLAIN_SLASH = Layout("", "/")


@dataclass
class MailServer:
    """A running server. `ports` has "plain" (STARTTLS too) and "tls"."""

    base: Path
    layout: Layout
    ports: dict[str, int]
    authority: Path
    users: dict[str, str] = field(default_factory=lambda: dict(USERS))

    def target(
        self, user: str = "taro@example.test", *, security: str = "plain", host: str = HOST, password: str | None = None, trusted: bool = True
    ) -> ImapTarget:
        secret = self.users[user] if password is None else password
        port = self.ports["tls" if security == "tls" else "plain"]
        ca_file = self.authority if trusted else None
        if security == "tls":
            return ImapTarget(host, user, secret, port, "tls", ("127.0.0.1",), 20.0, ca_file)
        return ImapTarget(host, user, secret, port, "starttls" if security == "starttls" else "plain", ("127.0.0.1",), 20.0, ca_file)

    def session(self, user: str = "taro@example.test") -> ImapSession:
        return connect(self.target(user))

    def name(self, *parts: bytes) -> bytes:
        """The wire name of a folder below the personal prefix."""
        return self.layout.prefix.encode() + self.layout.separator.encode().join(parts)

    def log(self) -> str:
        """What the server has to say about itself."""
        return ""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until_it_answers(process: subprocess.Popen[bytes], server: MailServer) -> None:
    """Returns when the server greets. RuntimeError, with what it said, if it ends or never does."""
    deadline = time.monotonic() + 20
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {(server.base / 'stderr').read_text()}{server.log()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.ports["plain"]), 1) as probe:
            probe.settimeout(5)
            if probe.recv(100).startswith(b"* OK"):
                return
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the master and all its children at once: they are one process group, and nothing of theirs is kept."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def group_of(user: str) -> str:
    """The name of a user's first group."""
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
