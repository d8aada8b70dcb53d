"""Mail accounts to hold to the contract, with hands to change them behind the place's back. imaplib is the independent witness."""

from __future__ import annotations

import imaplib
import os
import poplib
import pwd
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from hostbackup.model import Failure, Folder, Listing, Message, Method, Part, Stored
from hostbackup.places.base import Place
from hostbackup.places.mail import MailAccount
from hostbackup.places.pop3 import Pop3Account
from hostbackup.protocols.imap.session import connect
from hostbackup.protocols.pop3.session import connect as connect_pop3
from tests.support.dovecot import Dovecot
from tests.support.mail_server import MailServer
from tests.support.memory import DATE, MemoryMail, digest_of

MailState = dict[bytes, list[tuple[object, ...]]]
_TOLD = tuple(re.compile(told) for told in (rb"UID (\d+)", rb"FLAGS \(([^)]*)\)", rb'INTERNALDATE "([^"]+)"', rb"RFC822\.SIZE (\d+)"))  # in any order


def mail(number: int, size: int = 200, *, body: bytes = b"") -> bytes:
    """A message of at least so many bytes, unlike every other number's."""
    head = b"From: taro@example.test\r\nMessage-ID: <%d@example.test>\r\nSubject: %d\r\n\r\n" % (number, number)
    body = body or (b"line %d of a letter\r\n" % number) * (max(0, size - len(head)) // 20 + 1)
    return head + body


class MailPlace(Place[Message], Protocol):
    def scan(self, since: Mapping[bytes, Folder] | None = None, /) -> Iterator[Listing[Message]]: ...

    def prepare(self, folders: Iterable[Folder], /) -> Iterable[Failure]: ...


class MailWorld(ABC):
    """A mailbox of its own: INBOX, and what the test makes."""

    place: MailPlace
    method = Method.IMAP_FETCH
    refused: frozenset[bytes] = frozenset()  # folder names that this server does not make

    def handed_out(self, data: bytes) -> bytes:
        """What the server gives for a message that was delivered so."""
        return data

    @abstractmethod
    def another(self) -> MailPlace: ...

    @abstractmethod
    def name(self, *parts: bytes) -> bytes:
        """The wire name of a folder that may be made."""

    @abstractmethod
    def make(self, folder: bytes) -> None: ...

    @abstractmethod
    def drop(self, folder: bytes) -> None: ...

    @abstractmethod
    def deliver(self, folder: bytes, data: bytes, *, flags: tuple[str, ...] = (), internaldate: str = DATE) -> Message:
        """The message as the server tells it."""

    @abstractmethod
    def fill(self, contents: Sequence[bytes]) -> list[Message]:
        """Very many into INBOX at once, as the server tells them."""

    @abstractmethod
    def expunge(self, message: Message) -> None: ...

    @abstractmethod
    def flag(self, message: Message, *flags: str) -> None:
        """These are the message's flags from now on."""

    @abstractmethod
    def state(self) -> MailState:
        """Of each folder its messages' UIDs, flags, dates and digests."""


class MemoryMailWorld(MailWorld):
    def __init__(self) -> None:
        self.account = MemoryMail()
        self.account.box(b"INBOX")
        self.place: MailPlace = self.account

    def another(self) -> MailPlace:
        other = MemoryMail()
        other.boxes = self.account.boxes
        return other

    def name(self, *parts: bytes) -> bytes:
        return b"/".join(parts)

    def make(self, folder: bytes) -> None:
        self.account.box(folder)

    def drop(self, folder: bytes) -> None:
        del self.account.boxes[folder]

    def deliver(self, folder: bytes, data: bytes, *, flags: tuple[str, ...] = (), internaldate: str = DATE) -> Message:
        return self.account.deliver(folder, data, flags=flags, internaldate=internaldate)

    def fill(self, contents: Sequence[bytes]) -> list[Message]:
        return [self.account.deliver(b"INBOX", data) for data in contents]

    def expunge(self, message: Message) -> None:
        self.account.boxes[message.folder].expunge(message.uid)

    def flag(self, message: Message, *flags: str) -> None:
        self.account.boxes[message.folder].flag(message.uid, flags)

    def state(self) -> MailState:
        return {
            name: [(uid, letter.flags, letter.internaldate, digest_of(letter.data)) for uid, letter in sorted(box.letters.items())]
            for name, box in self.account.boxes.items()
        }


class ServerWorld(MailWorld):
    """An account on a real server."""

    def __init__(self, server: MailServer, user: str) -> None:
        self._server = server
        self._user = user
        self.place = self.another()
        with self._witness() as imap:
            for folder in (b"INBOX", *(self.name(known) for known in (b"Sent", b"Drafts", b"Trash"))):
                imap.create(_quoted(folder))

    def another(self) -> MailPlace:
        return MailAccount(lambda: connect(self._server.target(self._user)), side="old", part=Part("mail", self._user))

    def name(self, *parts: bytes) -> bytes:
        return self._server.name(*parts)

    def make(self, folder: bytes) -> None:
        with self._witness() as imap:
            _good(imap.create(_quoted(folder)))

    def drop(self, folder: bytes) -> None:
        with self._witness() as imap:
            _good(imap.delete(_quoted(folder)))

    def deliver(self, folder: bytes, data: bytes, *, flags: tuple[str, ...] = (), internaldate: str = DATE) -> Message:
        with self._witness() as imap:
            _good(imap.append(_quoted(folder), f"({' '.join(flags)})", f'"{internaldate}"', data))
            return self._listed(imap, folder)[-1]

    def expunge(self, message: Message) -> None:
        with self._witness() as imap:
            _good(imap.select(_quoted(message.folder)))
            _good(imap.uid("STORE", str(message.uid), "+FLAGS", r"(\Deleted)"))
            _good(imap.expunge())

    def flag(self, message: Message, *flags: str) -> None:
        with self._witness() as imap:
            _good(imap.select(_quoted(message.folder)))
            _good(imap.uid("STORE", str(message.uid), "FLAGS", f"({' '.join(flags)})"))

    def state(self) -> MailState:
        with self._witness() as imap:
            names = [bytes(row).rsplit(b" ", 1)[1].strip(b'"') for row in imap.list()[1] if isinstance(row, bytes)]
            return {name: self._seen(imap, name) for name in names}

    def _seen(self, imap: imaplib.IMAP4, folder: bytes) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for message in self._listed(imap, folder):
            body = _good(imap.uid("FETCH", str(message.uid), "(BODY.PEEK[])"))
            rows.append((message.uid, message.flags, message.internaldate, digest_of(body[0][1])))
        return rows

    def _listed(self, imap: imaplib.IMAP4, folder: bytes) -> list[Message]:
        count = int(_good(imap.select(_quoted(folder), readonly=True))[0])
        uidvalidity = int(imap.response("UIDVALIDITY")[1][0] or 0)
        if not count:
            return []
        found = []
        for row in _good(imap.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE)")):
            uid, told, date, size = (_found(one, row) for one in _TOLD)
            flags = tuple(sorted(flag for flag in told.decode().split() if flag != "\\Recent"))
            found.append(Message(folder, uidvalidity, int(uid), int(size), date.decode(), flags))
        return found

    @contextmanager
    def _witness(self) -> Iterator[imaplib.IMAP4]:
        imap = imaplib.IMAP4("127.0.0.1", self._server.ports["plain"], timeout=20)
        try:
            imap.login(self._user, self._server.users[self._user])
            yield imap
        finally:
            imap.logout()


class DovecotWorld(ServerWorld):
    def __init__(self, server: Dovecot, user: str) -> None:
        self._dovecot = server
        super().__init__(server, user)

    def fill(self, contents: Sequence[bytes]) -> list[Message]:
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        maildir = self._dovecot.maildir(self._user)
        now = int(time.time())
        for number, data in enumerate(contents):
            path = maildir / "cur" / f"{now}.M{number:06d}P1.test,S={len(data)}:2,"
            path.write_bytes(data)
            os.chown(path, owner.pw_uid, owner.pw_gid)
        with self._witness() as imap:
            return self._listed(imap, b"INBOX")


class Pop3World(DovecotWorld):
    """The same mailbox as POP3 shows it. poplib is the witness of names and sizes; the numbers that the place gives are known to it beforehand."""

    method = Method.POP3_RETR

    def __init__(self, server: Dovecot, user: str) -> None:
        self._messages: dict[str, Message] = {}
        super().__init__(server, user)

    def another(self) -> MailPlace:
        place = Pop3Account(lambda: connect_pop3(self._dovecot.pop3_target(self._user)), side="old", part=Part("mail", self._user))
        place.recall(self._remembered, 1)
        return cast(MailPlace, place)  # what holds for an INBOX to be read prepares nothing

    def handed_out(self, data: bytes) -> bytes:
        return data if data.endswith(b"\r\n") else data + b"\r\n"

    def deliver(self, folder: bytes, data: bytes, *, flags: tuple[str, ...] = (), internaldate: str = DATE) -> Message:
        super().deliver(folder, data, flags=flags, internaldate=internaldate)
        return self._look()[-1]

    def fill(self, contents: Sequence[bytes]) -> list[Message]:
        super().fill(contents)
        return self._look()

    def expunge(self, message: Message) -> None:
        with self._witness() as imap:
            _good(imap.select("INBOX"))
            uid = int(message.uidl[:8], 16)  # of pop3_uidl_format %08Xu%08Xv
            _good(imap.uid("STORE", str(uid), "+FLAGS", r"(\Deleted)"))
            _good(imap.expunge())
        self.place.close()

    def state(self) -> MailState:
        self.place.close()  # a server may mark what was read when the session ends
        return super().state()

    def _remembered(self) -> list[Stored[Message]]:
        return [Stored(message) for message in self._messages.values()]

    def _look(self) -> list[Message]:
        pop = poplib.POP3("127.0.0.1", self._dovecot.ports["pop3"], timeout=20)
        try:
            pop.user(self._user)
            pop.pass_(self._dovecot.users[self._user])
            names = [row.split()[1].decode() for row in pop.uidl()[1]]
            sizes = [int(row.split()[1]) for row in pop.list()[1]]
        finally:
            pop.close()
        for name, size in zip(names, sizes, strict=True):
            self._messages.setdefault(name, Message(b"INBOX", 1, len(self._messages) + 1, size, uidl=name))
        assert isinstance(self.place, Pop3Account)
        self.place.close()
        self.place.recall(self._remembered, 1)
        return [self._messages[name] for name in names]


class CyrusWorld(ServerWorld):
    refused = frozenset((b"100%", b'quo"te'))

    def fill(self, contents: Sequence[bytes]) -> list[Message]:
        with self._witness() as imap:
            imap.send(b"FILL APPEND INBOX" + b"".join(b" {%d+}\r\n%b" % (len(data), data) for data in contents) + b"\r\n")
            answer = imap.readline()
            assert answer.startswith(b"FILL OK"), answer
            return self._listed(imap, b"INBOX")


def _found(pattern: re.Pattern[bytes], row: bytes) -> bytes:
    found = pattern.search(row)
    assert found is not None, row
    return found[1]


def _quoted(folder: bytes) -> str:
    escaped = folder.decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _good(answer: tuple[str, list[Any]]) -> list[Any]:
    assert answer[0] == "OK", answer
    return answer[1]
