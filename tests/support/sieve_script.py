"""A scripted ManageSieve server on loopback: answers each line that begins a command as a test says. No TLS, so targets are "plain"."""

from __future__ import annotations

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


@dataclass
class Scripted:
    port: int
    commands: list[bytes] = field(default_factory=list)

    def target(self, *, password: str = "secret", security: str = "plain", timeout: float = 5.0) -> ImapTarget:
        return ImapTarget(
            "mail.example.test", "taro", password, self.port, "plain" if security == "plain" else "tls", ("127.0.0.1",), timeout=timeout
        )


@contextmanager
def scripted(answer: Answer = agreeable, greeting: bytes | None = GREETING) -> Iterator[Scripted]:
    """Serves any number of connections, one after the other. `greeting` None: the line is cut before a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Scripted(listener.getsockname()[1])
    thread = threading.Thread(target=_serve, args=(listener, server, answer, greeting), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _serve(listener: socket.socket, server: Scripted, answer: Answer, greeting: bytes | None) -> None:
    while True:
        try:
            line, _ = listener.accept()
        except OSError:
            return
        with line:
            line.settimeout(10)
            if greeting is None:
                continue
            try:
                line.sendall(greeting)
                with line.makefile("rb") as lines:
                    while command := _command(lines.readline, lines.read):
                        server.commands.append(command)
                        told = answer(command)
                        if told is None:
                            break
                        line.sendall(told)
            except OSError:
                continue


def _command(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> bytes:
    command = readline()
    while literal := re.search(rb"\{(\d+)\+\}\r\n\Z", command):
        command += read(int(literal[1])) + readline()
    return command
