"""A small POP3 server in a thread that can be made to misbehave, for what no real server can be brought to do."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hostbackup.protocols.pop3.session import Pop3Session, Pop3Target, connect


class Hangup(Exception):
    """Raised by a hook: the server drops the connection there and then."""


class Talk:
    """One connection as a hook sees it, with the messages that it was shown when it began."""

    def __init__(self, sock: socket.socket, number: int, messages: list[FakeMessage]) -> None:
        self.number = number  # 1 for the first connection
        self.messages = messages
        self._sock = sock
        self.file = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def end(self) -> None:
        self.file.close()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class FakeMessage:
    data: bytes
    uidl: str
    told: int = -1  # octets in LIST where they are not true


Hook = Callable[[Talk, bytes, bytes], bool]  # talk, verb, the rest; True where it answered


def _leave_it(talk: Talk, verb: bytes, rest: bytes) -> bool:
    return False


@dataclass
class FakePop3:
    """`hook` sees every command first. Users are anyone with the password "secret"."""

    messages: list[FakeMessage] = field(default_factory=list)
    capabilities: bytes = b"TOP UIDL PIPELINING RESP-CODES"  # b"" = the server does not know CAPA
    hook: Hook = _leave_it
    greeting: bytes = b"+OK hello\r\n"
    refusal: bytes = b"-ERR [AUTH] no\r\n"
    commands: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def put(self, *contents: bytes) -> None:
        for data in contents:
            self.messages.append(FakeMessage(data, f"U{len(self.messages) + 1:04}"))

    def target(self, **changed: object) -> Pop3Target:
        made: dict[str, object] = {"host": "127.0.0.1", "user": "taro", "password": "secret", "port": self.port, "security": "plain", "timeout": 30.0}
        return Pop3Target(**(made | changed))  # type: ignore[arg-type]

    def factory(self) -> Pop3Session:
        return connect(self.target())

    def count(self, verb: bytes) -> int:
        return sum(1 for command in self.commands if command.split(b" ")[0] == verb)

    @contextlib.contextmanager
    def running(self) -> Iterator[FakePop3]:
        threads: list[threading.Thread] = []
        sockets: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]

            def accept() -> None:
                while True:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        return
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.connections += 1
                    sockets.append(sock)
                    thread = threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True)
                    threads.append(thread)
                    thread.start()

            acceptor = threading.Thread(target=accept, daemon=True)
            acceptor.start()
            try:
                yield self
            finally:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                listener.close()
                acceptor.join(5)
                for sock in sockets:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join(5)

    def _serve(self, sock: socket.socket, number: int) -> None:
        talk = Talk(sock, number, list(self.messages))
        with sock, contextlib.suppress(OSError, Hangup, ValueError):
            try:
                talk.send(self.greeting)
                while line := talk.file.readline():
                    verb, _, rest = line.rstrip(b"\r\n").partition(b" ")
                    self.commands.append(line.rstrip(b"\r\n"))
                    if not self.hook(talk, verb, rest):
                        self._answer(talk, verb, rest)
            finally:
                talk.end()

    def _answer(self, talk: Talk, verb: bytes, rest: bytes) -> None:
        if verb == b"CAPA" and self.capabilities:
            talk.send(b"+OK\r\n" + b"".join(re.sub(rb"_", b" ", one) + b"\r\n" for one in self.capabilities.split()) + b".\r\n")
        elif verb == b"USER":
            talk.send(b"+OK\r\n")
        elif verb == b"PASS":
            talk.send(b"+OK in\r\n" if rest == b"secret" else self.refusal)
        elif verb == b"APOP":
            stamp = re.search(rb"<.*>", self.greeting)
            assert stamp is not None
            right = hashlib.md5(stamp[0] + b"secret").hexdigest().encode()
            talk.send(b"+OK in\r\n" if rest.split() == [b"taro", right] else self.refusal)
        elif verb == b"STAT":
            talk.send(b"+OK %d %d\r\n" % (len(talk.messages), sum(len(one.data) for one in talk.messages)))
        elif verb == b"LIST":
            rows = [b"%d %d\r\n" % (n, one.told if one.told >= 0 else len(one.data)) for n, one in enumerate(talk.messages, 1)]
            talk.send(b"+OK\r\n" + b"".join(rows) + b".\r\n")
        elif verb == b"UIDL":
            rows = [b"%d %s\r\n" % (n, one.uidl.encode()) for n, one in enumerate(talk.messages, 1)]
            talk.send(b"+OK\r\n" + b"".join(rows) + b".\r\n")
        elif verb == b"RETR" and int(rest) <= len(talk.messages):
            talk.send(b"+OK\r\n" + stuff(talk.messages[int(rest) - 1].data))
        elif verb == b"TOP" and int(rest.split()[0]) <= len(talk.messages):
            header, empty, _ = talk.messages[int(rest.split()[0]) - 1].data.partition(b"\r\n\r\n")
            talk.send(b"+OK\r\n" + stuff(header + empty))
        else:
            talk.send(b"-ERR what\r\n")


def stuff(data: bytes) -> bytes:
    """`data` as a server sends it, its end included. What does not end with CRLF gets one: the protocol has no other way."""
    if data and not data.endswith(b"\r\n"):
        data += b"\r\n"
    return ((b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:] if data else b"") + b".\r\n"
