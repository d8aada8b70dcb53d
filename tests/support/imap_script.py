"""A small IMAP server in a thread that can be made to misbehave, for what no real server can be brought to do."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hostbackup.protocols.imap.session import ImapSession, ImapTarget, connect


class Hangup(Exception):
    """Raised by a hook: the server drops the connection there and then."""


@dataclass
class FakeBox:
    """A mailbox: messages by UID."""

    messages: dict[int, bytes] = field(default_factory=dict)
    uidvalidity: int = 7
    told: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)  # flags and date, where not the usual ones
    modseq: int = 1  # told where the server offers CONDSTORE
    modseqs: dict[int, int] = field(default_factory=dict)  # by UID, of messages that were marked
    next: int = 0  # UIDNEXT, where it is not the highest UID's
    options: dict[int, bytes] = field(default_factory=dict)  # by UID: flags and date as they were appended

    @property
    def uidnext(self) -> int:
        return max(self.next, max(self.messages, default=0) + 1)

    def mark(self, uid: int, flags: bytes) -> None:
        self.modseq += 1
        self.modseqs[uid] = self.modseq
        self.told[uid] = b"(" + flags + b")", b'" 1-Jul-2026 02:44:25 +0900"'

    def expunge(self, uid: int) -> None:
        self.next = self.uidnext
        del self.messages[uid]
        self.modseq += 1

    def add(self, data: bytes) -> None:
        self.modseq += 1
        self.messages[self.uidnext] = data


class Talk:
    """One connection as a hook sees it."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number  # 1 for the first connection
        self.box: FakeBox | None = None
        self._sock = sock
        self._file = sock.makefile("rb")

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Goes on in TLS, as the server of it."""
        self._file.close()
        self._sock = context.wrap_socket(self._sock, server_side=True)
        self._file = self._sock.makefile("rb")

    def command(self) -> bytes | None:
        """A whole command with its literals in place, without the final CRLF; None where the client left."""
        text = b""
        while True:
            line = self._file.readline()
            if not line:
                return None
            text += line
            literal = re.search(rb"\{(\d+)(\+?)\}\r\n$", line)
            if literal is None:
                return text[:-2]
            if not literal[2]:
                self.send(b"+ go on\r\n")
            text += self._file.read(int(literal[1]))


Hook = Callable[[Talk, bytes, str, bytes], bool]  # talk, tag, verb, the rest; True where it answered


def _leave_it(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
    return False


@dataclass
class FakeImap:
    """`hook` sees every command after the login first. `fetched` makes the FETCH response of one message's body, `kept` what an append leaves."""

    boxes: dict[bytes, FakeBox] = field(default_factory=lambda: {b"INBOX": FakeBox()})
    capabilities: bytes = b"IMAP4rev1 LITERAL+ UIDPLUS"
    hook: Hook = _leave_it
    fetched: Callable[[Talk, int, bytes], bytes] | None = None
    kept: Callable[[bytes], bytes] | None = None
    sizes: dict[int, int] = field(default_factory=dict)  # RFC822.SIZE where it lies
    refuse: Callable[[bytes, bytes], bytes | None] | None = None  # given flags with date, and bytes: what is said instead of taking a message
    told_uids: Callable[[FakeBox, bytes], bytes] | None = None  # given the UIDs as a set: the response code that an APPEND is answered with
    greeting: bytes = b"* OK hello\r\n"
    commands: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def factory(self) -> ImapSession:
        return connect(ImapTarget("127.0.0.1", "user", "secret", self.port, "plain", timeout=5.0))

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeImap]:
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
        talk = Talk(sock, number)
        with sock, talk, contextlib.suppress(OSError, Hangup):
            talk.send(self.greeting)
            while (command := talk.command()) is not None:
                tag, _, rest = command.partition(b" ")
                verb, _, rest = rest.partition(b" ")
                if verb.upper() == b"UID":
                    verb, _, rest = rest.partition(b" ")
                    verb = b"UID " + verb
                name = verb.decode().upper()
                self.commands.append(name.encode() + b" " + rest)
                if self.hook(talk, tag, name, rest):
                    continue
                if not self._answer(talk, tag, name, rest):
                    return

    def _answer(self, talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "CAPABILITY":
            talk.send(b"* CAPABILITY " + self.capabilities + b"\r\n")
        elif verb == "LIST":
            for name in self.boxes:
                talk.send(b'* LIST () "/" "' + name + b'"\r\n')
                if b"STATUS" in rest:
                    talk.send(self._status(name, rest))
        elif verb in ("EXAMINE", "SELECT"):
            box = self.boxes.get(rest.removesuffix(b" (CONDSTORE)").strip(b'"'))
            if box is None:
                talk.send(tag + b" NO [NONEXISTENT] no such mailbox\r\n")
                return True
            talk.box = box
            told = b"* %d EXISTS\r\n* OK [UIDVALIDITY %d] valid\r\n* OK [UIDNEXT %d] next\r\n"
            talk.send(told % (len(box.messages), box.uidvalidity, box.uidnext))
            if b"CONDSTORE" in self.capabilities:
                talk.send(b"* OK [HIGHESTMODSEQ %d] highest\r\n" % box.modseq)
        elif verb == "STATUS":
            name = rest.split(b" (")[0].strip(b'"')
            if name not in self.boxes:
                talk.send(tag + b" NO [NONEXISTENT] no such mailbox\r\n")
                return True
            talk.send(self._status(name, rest))
        elif verb == "UID FETCH":
            self._fetch(talk, rest)
        elif verb == "APPEND":
            return self._append(talk, tag, rest)
        elif verb == "CREATE":
            self.boxes[rest.split(b" (USE")[0].strip(b'"')] = FakeBox()
        elif verb == "LOGOUT":
            talk.send(b"* BYE bye\r\n" + tag + b" OK done\r\n")
            return False
        talk.send(tag + b" OK done\r\n")
        return True

    def _status(self, name: bytes, asked: bytes) -> bytes:
        box = self.boxes[name]
        told = b'* STATUS "%s" (UIDVALIDITY %d UIDNEXT %d MESSAGES %d' % (name, box.uidvalidity, box.uidnext, len(box.messages))
        return told + (b" HIGHESTMODSEQ %d)\r\n" % box.modseq if b"HIGHESTMODSEQ" in asked else b")\r\n")

    def _fetch(self, talk: Talk, rest: bytes) -> None:
        assert talk.box is not None
        text, _, items = rest.partition(b" ")
        since = re.search(rb"CHANGEDSINCE (\d+)", items)
        for sequence, uid in enumerate(sorted(talk.box.messages), 1):
            if not _within(uid, text, max(talk.box.messages)):
                continue
            body = talk.box.messages[uid]
            flags, date = talk.box.told.get(uid, (b"(\\Seen)", b'" 1-Jul-2026 02:44:25 +0900"'))
            if (part := re.search(rb"BODY\.PEEK\[\]<(\d+)\.(\d+)>", items)) is not None:
                piece = body[int(part[1]) : int(part[1]) + int(part[2])]
                made = b"* %d FETCH (UID %d BODY[]<%d> {%d}\r\n%s)\r\n" % (sequence, uid, int(part[1]), len(piece), piece)
                talk.send(made if self.fetched is None else self.fetched(talk, uid, made))
            elif b"BODY" in items:
                told = b"FLAGS %s INTERNALDATE %s " % (flags, date) if b"FLAGS" in items else b""
                made = b"* %d FETCH (UID %d %sBODY[] {%d}\r\n%s)\r\n" % (sequence, uid, told, len(body), body)
                talk.send(made if self.fetched is None else self.fetched(talk, uid, made))
            elif since is not None:
                modseq = talk.box.modseqs.get(uid, 1)
                if modseq > int(since[1]):
                    talk.send(b"* %d FETCH (UID %d FLAGS %s MODSEQ (%d))\r\n" % (sequence, uid, flags, modseq))
            elif items == b"(UID)":
                talk.send(b"* %d FETCH (UID %d)\r\n" % (sequence, uid))
            else:
                size = self.sizes.get(uid, len(body))
                talk.send(b"* %d FETCH (UID %d FLAGS %s INTERNALDATE %s RFC822.SIZE %d)\r\n" % (sequence, uid, flags, date, size))

    def _append(self, talk: Talk, tag: bytes, rest: bytes) -> bool:
        talk.send(self.append(tag, rest))
        return True

    def append(self, tag: bytes, rest: bytes) -> bytes:
        """One message or several (RFC 3502): all or none of them. Gives the answer."""
        name = re.match(rb'"([^"]*)"', rest)
        assert name is not None, rest
        box = self.boxes.get(name[1])
        if box is None:
            return tag + b" NO [TRYCREATE] no such mailbox\r\n"
        given = list(appended(rest))
        for options, body in given:
            refusal = self.refuse(options, body) if self.refuse is not None else None
            if refusal is not None:
                return tag + b" " + refusal + b"\r\n"
        first = box.uidnext
        for number, (options, body) in enumerate(given):
            box.messages[first + number] = body if self.kept is None else self.kept(body)
            flags, _, date = options.partition(b") ")
            box.told[first + number] = flags.removesuffix(b")") + b")", date or b'"28-Nov-2026 00:00:00 +0000"'
            box.options[first + number] = options
        uids = b"%d:%d" % (first, first + len(given) - 1) if len(given) > 1 else b"%d" % first
        told = self.told_uids(box, uids) if self.told_uids is not None else b"[APPENDUID %d %s] " % (box.uidvalidity, uids)
        return tag + b" OK " + told + b"done\r\n"


def appended(rest: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The messages of an APPEND's arguments: flags with the date, and the bytes."""
    at = rest.index(b'"', 1) + 1
    while at < len(rest):
        match = re.compile(rb' (\([^)]*\)(?: "[^"]*")?) ~?\{(\d+)\+?\}\r\n').match(rest, at)
        assert match is not None, rest[at : at + 200]
        at = match.end() + int(match[2])
        yield match[1], rest[match.end() : at]


def _within(uid: int, text: bytes, highest: int) -> bool:
    for part in text.split(b","):
        low, colon, high = part.partition(b":")
        first = int(low)
        last = (highest if high == b"*" else int(high)) if colon else first
        if min(first, last) <= uid <= max(first, last):
            return True
    return False
