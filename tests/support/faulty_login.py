"""Trees on SFTP servers that misbehave (`tests.support.faulty_sftp`), with no ssh between: quick to start, and without a shell."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Method, Part
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols.limits import Limits
from hostbackup.protocols.remote import Ran, Running
from hostbackup.protocols.sftp.client import SocketChannel
from tests.support.faulty_sftp import Faults, Front
from tests.support.worlds import DiskWorld

PART = Part("web", "site")


class FaultyLogin:
    """As a `hostbackup.protocols.remote.Login`."""

    address = "127.0.0.1"
    port = 22
    host_key_fingerprint = "SHA256:none"
    host_key_type = "none"
    server_version = "SSH-2.0-OpenSSH_9.9"

    def __init__(self, server: Faulty) -> None:
        self._server = server
        self._ends: list[socket.socket] = []
        self.alive = True

    def open_sftp_channel(self) -> SocketChannel:
        near, far = socket.socketpair()
        self._ends.append(far)

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with far:
                front.serve()

        self._server.channels += 1
        front = Front(Faults(self._server.words), lambda: far.recv(1 << 18), far.sendall, hang_up, self._server.channels)
        threading.Thread(target=serve, daemon=True).start()
        return SocketChannel(near)

    def start(self, command: bytes, stdin: Iterable[bytes] = (), *, timeout: float | None = None) -> Running:
        raise ProtocolBroken("no commands here")

    def run(self, command: str | bytes, stdin: bytes | Iterable[bytes] | None = None, *, timeout: float | None = None) -> Ran:
        raise ProtocolBroken("no commands here")

    def has_shell(self) -> bool:
        return False

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        self.alive = False
        for far in self._ends:
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)


class Faulty:
    """A server. `logins` and `channels` were made so far."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.logins = 0
        self.channels = 0

    def login(self) -> FaultyLogin:
        self.logins += 1
        return FaultyLogin(self)


@contextlib.contextmanager
def faulty_tree(root: Path, *words: str, channels: int = 2, stall: float = 20.0) -> Iterator[SftpTree]:
    tree = SftpTree(Faulty(*words).login, str(root), side="old", part=PART, channels=channels, limits=Limits(stall=stall), pause=lambda _: None)
    try:
        yield tree
    finally:
        tree.close()


@contextlib.contextmanager
def faulty_world(root: Path, *words: str) -> Iterator[DiskWorld]:
    """A world to hold to the contract."""
    server = Faulty(*words)
    places: list[SftpTree] = []

    def make(root: Path, exclude: Sequence[str]) -> SftpTree:
        tree = SftpTree(server.login, str(root), side="old", part=PART, exclude=exclude, channels=2, pause=lambda _: None)
        places.append(tree)
        return tree

    try:
        yield DiskWorld(root, make, Method.SFTP_SECOND_READ)
    finally:
        for place in places:
            place.close()
