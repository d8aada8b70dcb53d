"""A scripted ManageSieve server on loopback: answers each line that begins a command as a test says. No TLS, so targets are "plain"."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hostbackup.protocols.imap.session import ImapTarget

GREETING = b'"IMPLEMENTATION" "Scripted"\r\n"SASL" "PLAIN"\r\n"SIEVE" "fileinto"\r\nOK "ready"\r\n'
Answer = Callable[[bytes], bytes | None]  # a command with its literals to what is sent back; None ends the line


def agreeable(command: bytes) -> bytes | None:
    return b'OK "done"\r\n'


_NAME = re.compile(rb'[A-Z]+ (?:"((?:[^"\\\\]|\\\\.)*)"|\{(\d+)\+\}\r\n)', re.DOTALL)


@dataclass
class Shelf:
    """Answers as a server does that holds these scripts; one whose contents are None is listed and not handed out."""

    scripts: dict[bytes, bytes | None] = field(default_factory=dict)
    active: bytes | None = None
    refuses: dict[bytes, bytes] = field(default_factory=dict)  # the beginning of a command to what is answered

    def __call__(self, command: bytes) -> bytes | None:
        told = next((answer for begin, answer in self.refuses.items() if command.startswith(begin)), None)
        if told is not None:
            return told
        verb = command.split()[0]
        if verb == b"LISTSCRIPTS":
            rows = (_literal(name) + (b" ACTIVE" if name == self.active else b"") + b"\r\n" for name in self.scripts)
            return b"".join(rows) + b"OK\r\n"
        if verb not in (b"GETSCRIPT", b"PUTSCRIPT", b"SETACTIVE"):
            return agreeable(command)
        name, rest = _argument(command)
        if verb == b"PUTSCRIPT":
            self.scripts[name] = rest.partition(b"\r\n")[2].removesuffix(b"\r\n")
        elif name not in self.scripts:
            return b'NO (NONEXISTENT) "no such script"\r\n'
        elif verb == b"SETACTIVE":
            self.active = name
        else:
            data = self.scripts[name]
            return b'NO "it cannot be read"\r\n' if data is None else _literal(data) + b"\r\nOK\r\n"
        return b"OK\r\n"


def _literal(data: bytes) -> bytes:
    return b"{%d}\r\n%s" % (len(data), data)


def _argument(command: bytes) -> tuple[bytes, bytes]:
    """The first string of a command, and what follows it."""
    found = _NAME.match(command)
    assert found is not None, command
    if found[2] is None:
        return re.sub(rb"\\\\(.)", rb"\1", found[1]), command[found.end() :]
    end = found.end() + int(found[2])
    return command[found.end() : end], command[end:]


@dataclass
class Scripted:
    port: int
    commands: list[bytes] = field(default_factory=list)
    connections: int = 0

    def target(self, *, password: str = "secret", security: str = "plain", timeout: float = 5.0) -> ImapTarget:
        return ImapTarget(
            "mail.example.test", "taro", password, self.port, "plain" if security == "plain" else "tls", ("127.0.0.1",), timeout=timeout
        )


@contextmanager
def scripted(answer: Answer = agreeable, greeting: bytes | None = GREETING) -> Iterator[Scripted]:
    """Serves any number of connections at once. `greeting` None: the line is cut before a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Scripted(listener.getsockname()[1])
    thread = threading.Thread(target=_listen, args=(listener, server, answer, greeting), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _listen(listener: socket.socket, server: Scripted, answer: Answer, greeting: bytes | None) -> None:
    talks: list[threading.Thread] = []
    while True:
        try:
            line, _ = listener.accept()
        except OSError:
            break
        server.connections += 1
        talks.append(threading.Thread(target=_serve, args=(line, server, answer, greeting), daemon=True))
        talks[-1].start()
    for talk in talks:
        talk.join(10)


def _serve(line: socket.socket, server: Scripted, answer: Answer, greeting: bytes | None) -> None:
    with line:
        line.settimeout(10)
        if greeting is None:
            return
        with contextlib.suppress(OSError):
            line.sendall(greeting)
            with line.makefile("rb") as lines:
                while command := _command(lines.readline, lines.read):
                    server.commands.append(command)
                    told = answer(command)
                    if told is None:
                        break
                    line.sendall(told)


def _command(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> bytes:
    command = readline()
    while literal := re.search(rb"\{(\d+)\+\}\r\n\Z", command):
        command += read(int(literal[1])) + readline()
    return command


@contextmanager
def unanswered() -> Iterator[int]:
    """A port that takes nobody in and refuses nobody, as where a firewall drops what comes: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(listener.getsockname())
        yield listener.getsockname()[1]
