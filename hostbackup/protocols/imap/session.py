"""One logged-in IMAP connection: who is there, what it can do, its folders (RFC 3501, 2342, 5258, 6154)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hostbackup.errors import ConnectionFailed, ProtocolBroken
from hostbackup.protocols.imap import lexer, names, sets
from hostbackup.protocols.imap.channel import Channel, mailbox
from hostbackup.protocols.imap.framer import Data, Number, Response, Tagged, Untagged
from hostbackup.protocols.imap.lexer import Value
from hostbackup.protocols.imap.wire import Wire, plain
from hostbackup.protocols.limits import RateLimit
from hostbackup.protocols.net import connect_tcp


@dataclass(frozen=True, slots=True)
class ImapTarget:
    """Where and as whom to log in. TLS is verified against `host`, also where TCP goes to one of `addresses`."""

    host: str
    user: str
    password: str = field(repr=False)
    port: int = 993
    security: Literal["tls", "starttls", "plain"] = "tls"
    addresses: tuple[str, ...] = ()
    timeout: float = 60.0  # seconds without a byte
    ca_file: Path | None = None  # PEM; only these authorities count then
    rate: RateLimit | None = None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A prefix and its separator (RFC 2342), b"" where there is none."""

    prefix: bytes
    separator: bytes


@dataclass(frozen=True, slots=True)
class Namespaces:
    personal: tuple[Namespace, ...] = ()
    others: tuple[Namespace, ...] = ()
    shared: tuple[Namespace, ...] = ()

    def is_foreign(self, name: bytes) -> bool:
        """Whether a folder belongs to somebody else: the longest prefix that fits it decides."""
        best = -1
        foreign = False
        for spaces, not_ours in ((self.personal, False), (self.others, True), (self.shared, True)):
            for space in spaces:
                fits = name.startswith(space.prefix) or (space.separator and name == space.prefix.removesuffix(space.separator))
                if fits and len(space.prefix) > best:
                    best, foreign = len(space.prefix), not_ours
        return foreign


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of LIST or LSUB: attributes as sent, the name's bytes, the separator (b"" for none)."""

    name: bytes
    separator: bytes
    attributes: tuple[str, ...]

    def has(self, attribute: str) -> bool:
        return any(attribute.lower() == one.lower() for one in self.attributes)

    def is_mailbox(self, name: bytes) -> bool:
        """Whether this line says that the mailbox `name` is there."""
        same = self.name == name or (names.is_inbox(name) and names.is_inbox(self.name))
        return same and not self.has("\\Noselect") and not self.has("\\NonExistent")


@dataclass(slots=True)
class Selected:
    """What SELECT, EXAMINE or STATUS tells of a mailbox. Give `take` the untagged responses."""

    uidvalidity: int = 0
    uidnext: int = 0
    exists: int = 0
    highestmodseq: int = 0  # RFC 7162; 0 where it was not told, or the mailbox keeps none
    permanent_flags: tuple[str, ...] | None = None
    moved: bool = False  # messages came or went since `exists` was first told
    expunged: int = 0
    _told: bool = False

    def take(self, response: Response) -> None:
        if isinstance(response, Number):
            if response.kind == "EXISTS":
                self.moved = self.moved or (self._told and response.value != self.exists)
                self.exists, self._told = response.value, True
            elif response.kind == "EXPUNGE":
                self.exists -= 1
                self.expunged += 1
                self.moved = True
        elif isinstance(response, Untagged):
            args = response.answer.args
            with contextlib.suppress(ValueError, IndexError):
                if response.answer.code == "UIDVALIDITY":
                    self.uidvalidity = lexer.number(args[0])
                elif response.answer.code == "UIDNEXT":
                    self.uidnext = lexer.number(args[0])
                elif response.answer.code == "HIGHESTMODSEQ":
                    self.highestmodseq = lexer.number(args[0])
                elif response.answer.code == "PERMANENTFLAGS":
                    self.permanent_flags = lexer.words(args[0])
        elif isinstance(response, Data) and response.kind == "STATUS":
            self._status(response)
        elif isinstance(response, Data) and response.kind == "VANISHED":
            gone, earlier = vanished(response.values)
            if not earlier:  # with QRESYNC this stands for EXPUNGE
                lost = sum(high - low + 1 for low, high in gone)
                self.exists -= lost
                self.expunged += lost
                self.moved = True

    def _status(self, response: Data) -> None:
        pairs = response.values[1] if len(response.values) > 1 else None
        if not isinstance(pairs, list) or len(pairs) % 2:
            return
        with contextlib.suppress(ValueError):
            told = {lexer.word(pairs[at]).upper(): lexer.number(pairs[at + 1]) for at in range(0, len(pairs), 2)}
            self.uidvalidity = told.get("UIDVALIDITY", self.uidvalidity)
            self.uidnext = told.get("UIDNEXT", self.uidnext)
            self.exists = told.get("MESSAGES", self.exists)
            self.highestmodseq = told.get("HIGHESTMODSEQ", self.highestmodseq)


_GOODBYE = 5.0  # seconds to wait for an answer to LOGOUT
STATUS_ITEMS = b"(UIDVALIDITY UIDNEXT MESSAGES)"


def connect(target: ImapTarget) -> ImapSession:
    """Connects, verifies, logs in. Raises NameNotResolved, Unreachable, CertificateRefused, LoginRefused, LineCut or ProtocolBroken."""
    from hostbackup.protocols.imap.login import log_in

    sock, address = connect_tcp(target.host, target.addresses, target.port, target.timeout)
    where = f"{target.host}:{target.port}" if address == target.host else f"{target.host}:{target.port} ({address})"
    wire = Wire(sock, where, target.timeout, target.rate)
    channel = log_in(wire, target)
    try:
        return ImapSession(channel, host=target.host, user=target.user, address=address, port=target.port)
    except BaseException:
        wire.close()
        raise


class ImapSession:
    """A logged-in connection. `channel` is for pipelined work; the methods here are one round trip each. Used by one thread at a time."""

    def __init__(self, channel: Channel, *, host: str = "", user: str = "", address: str = "", port: int = 0) -> None:
        self.channel = channel
        self.host = host
        self.user = user
        self.address = address
        self.port = port
        certificate = channel.wire.certificate()
        self.encrypted = bool(certificate)
        self.certificate_fingerprint = "SHA256:" + hashlib.sha256(certificate).hexdigest() if certificate else ""
        self.qresync = False  # enabled: what was expunged is told by UID
        self.capabilities = self._ask_capabilities()
        channel.learn(self.capabilities)
        self.namespaces = self._ask_namespaces() if self.offers("NAMESPACE") else Namespaces()

    @property
    def where(self) -> str:
        return self.channel.wire.where

    def offers(self, capability: str) -> bool:
        return capability.upper() in self.capabilities

    @property
    def condstore(self) -> bool:
        """Whether mailboxes tell by HIGHESTMODSEQ that something in them changed (RFC 7162)."""
        return self.offers("CONDSTORE") or self.offers("QRESYNC")

    @property
    def status_items(self) -> bytes:
        return STATUS_ITEMS[:-1] + b" HIGHESTMODSEQ)" if self.condstore else STATUS_ITEMS

    def list_folders(self, counters: dict[bytes, Selected] | None = None) -> tuple[list[Listed], list[Listed]]:
        """All mailboxes with what LIST can say of them in one go, and the subscribed names (some of which may not exist).

        `counters` gets those of each mailbox, where the server tells them along (LIST-STATUS, RFC 5819).
        """
        channel = self.channel
        found: list[Listed] = []
        subscribed: list[Listed] = []
        command = [b"LIST", b'""', b'"*"']
        if self.offers("LIST-EXTENDED"):
            wanted = [b"SUBSCRIBED", b"SPECIAL-USE"] if self.offers("SPECIAL-USE") else [b"SUBSCRIBED"]
            if counters is not None and self.offers("LIST-STATUS"):
                wanted += [b"STATUS", self.status_items]
            command += [b"RETURN", b"(" + b" ".join(wanted) + b")"]
        tags = (channel.start(*command), channel.start(b"LSUB", b'""', b'"*"'))
        for tag, into in zip(tags, (found, subscribed), strict=True):
            answer = channel.finish(tag, self._collector(into, counters))
            if not answer.ok and into is found:
                raise ProtocolBroken(f"the server does not list its folders: {plain(answer.answer.text)}", where=self.where)
        return found, subscribed

    def root_separator(self) -> bytes:
        """The hierarchy separator by `LIST "" ""`, for servers without NAMESPACE."""
        found: list[Listed] = []
        self.channel.run(b"LIST", b'""', b'""', on=self._collector(found))
        return found[0].separator if found else b""

    def exists(self, name: bytes) -> bool:
        """Whether a mailbox of this name can be opened, as LIST tells."""
        found: list[Listed] = []
        self.channel.run(b"LIST", b'""', mailbox(name), on=self._collector(found))
        return any(one.is_mailbox(name) for one in found)

    def status(self, name: bytes) -> Selected | None:
        """Counters of a mailbox that is not selected, None where the server says NO."""
        selected = Selected()
        answer = self.channel.run(b"STATUS", mailbox(name), STATUS_ITEMS, on=selected.take)
        return selected if answer.ok else None

    def counters(self, names: Iterable[bytes]) -> dict[bytes, Selected]:
        """Those of many mailboxes in one round trip, as far as the server tells them."""
        found: dict[bytes, Selected] = {}
        tags = [self.channel.start(b"STATUS", mailbox(name), self.status_items) for name in names if self.channel.at_once(mailbox(name))]
        for tag in tags:
            self.channel.finish(tag, functools.partial(_take_status, found))
        return found

    def open_mailbox(self, name: bytes, *, writable: bool = False) -> tuple[Selected, Tagged]:
        """EXAMINE, or SELECT where `writable`."""
        selected = Selected()
        answer = self.channel.run(b"SELECT" if writable else b"EXAMINE", mailbox(name), on=selected.take)
        return selected, answer

    def close(self) -> None:
        """Logs out where the line is free, and closes. May be called twice."""
        if not self.channel.busy:
            with contextlib.suppress(ConnectionFailed, OSError):
                self.channel.wire.sock.settimeout(_GOODBYE)
                self.channel.logout()
        self.channel.wire.close()

    def drop(self) -> None:
        """Closes without a word: for a line in an unknown state, and from other threads."""
        self.channel.wire.close()

    def _collector(self, into: list[Listed], counters: dict[bytes, Selected] | None = None) -> Callable[[Response], None]:
        def collect(response: Response) -> None:
            if counters is not None:
                _take_status(counters, response)
            if isinstance(response, Data) and response.kind in ("LIST", "LSUB"):
                try:
                    into.append(listed(response.values))
                except ValueError:
                    raise ProtocolBroken("the server sent a folder list that cannot be read", where=self.where) from None

        return collect

    def _ask_capabilities(self) -> frozenset[str]:
        found: set[str] = set()

        def take(response: Response) -> None:
            if isinstance(response, Data) and response.kind == "CAPABILITY":
                found.update(lexer.word(value).upper() for value in response.values if isinstance(value, bytes))

        answer = self.channel.run(b"CAPABILITY", on=take)
        if not answer.ok or not found:
            raise ProtocolBroken("the server does not tell its capabilities", where=self.where)
        return frozenset(found)

    def _ask_namespaces(self) -> Namespaces:
        found: list[tuple[Value, ...]] = []

        def take(response: Response) -> None:
            if isinstance(response, Data) and response.kind == "NAMESPACE":
                found.append(response.values)

        self.channel.run(b"NAMESPACE", on=take)
        if not found or len(found[0]) != 3:
            return Namespaces()
        with contextlib.suppress(ValueError):
            return Namespaces(*(_namespaces(value) for value in found[0]))
        return Namespaces()


def _take_status(into: dict[bytes, Selected], response: Response) -> None:
    if isinstance(response, Data) and response.kind == "STATUS" and response.values:
        with contextlib.suppress(ValueError):
            name = lexer.string(response.values[0])
            into.setdefault(b"INBOX" if names.is_inbox(name) else name, Selected()).take(response)


def vanished(values: tuple[Value, ...]) -> tuple[list[tuple[int, int]], bool]:
    """A VANISHED response (RFC 7162 §3.2.10): runs of UIDs, and whether they went before the mailbox was opened. No run where it is malformed."""
    earlier = bool(values) and isinstance(values[0], list)
    with contextlib.suppress(ValueError, IndexError):
        return sets.runs(lexer.string(values[1 if earlier else 0])), earlier
    return [], earlier


def listed(values: tuple[Value, ...]) -> Listed:
    """A LIST or LSUB response. Raises ValueError where it is malformed."""
    if len(values) < 3:
        raise ValueError("a folder without a name")
    separator = b"" if values[1] is None else lexer.string(values[1])
    name = lexer.string(values[2])
    # RFC 3501 §5.1: INBOX is one name in any case; kept in one spelling it is one key everywhere.
    return Listed(b"INBOX" if names.is_inbox(name) else name, separator, lexer.words(values[0]))


def _namespaces(value: Value) -> tuple[Namespace, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError("not a namespace list")
    found = []
    for one in value:
        if not isinstance(one, list) or len(one) < 2:
            raise ValueError("not a namespace")
        found.append(Namespace(lexer.string(one[0]), b"" if one[1] is None else lexer.string(one[1])))
    return tuple(found)
