"""One logged-in IMAP connection: who is there, what it can do, its folders (RFC 3501, 2342, 5258, 6154)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hostbackup.errors import CertificateRefused, ConnectionFailed, LineCut, ProtocolBroken, Unreachable
from hostbackup.protocols.certificates import ANY, Trust, fingerprint
from hostbackup.protocols.imap import lexer, login, names, sets
from hostbackup.protocols.imap.channel import Channel, mailbox
from hostbackup.protocols.imap.deflate import Packing
from hostbackup.protocols.imap.framer import Data, Number, Response, Tagged, Untagged
from hostbackup.protocols.imap.lexer import Value
from hostbackup.protocols.imap.shared import SharedLogin
from hostbackup.protocols.imap.wire import Wire, plain
from hostbackup.protocols.limits import RateLimit
from hostbackup.protocols.net import connect_tcp


@dataclass(frozen=True, slots=True)
class ImapTarget:
    """Where and as whom to log in. TLS is verified against `host`, also where TCP goes to one of `addresses`.

    `password` is the mailbox's own, or that of `master`, who opens it on its owner's behalf; `token` is asked for at each login instead.
    """

    host: str
    user: str  # whose mailbox it is
    password: str = field(repr=False)
    port: int = 993
    security: Literal["tls", "starttls", "plain"] = "tls"
    addresses: tuple[str, ...] = ()
    timeout: float = 60.0  # seconds without a byte
    ca_file: Path | None = None  # PEM; only these authorities count then
    rate: RateLimit | None = None
    auth: Literal["auto", "password", "xoauth2", "oauthbearer"] = "auto"
    token: Callable[[], str] | None = field(default=None, repr=False)  # OAuth 2 access token
    master: str = ""
    separator: str = ""  # between the names of user and master; without it the two go apart, by SASL PLAIN
    shared: SharedLogin | None = None  # what is known of a password that many mailboxes share
    certificate: str = ""  # SHA256:…, the only certificate that counts then
    certificate_name: str = ""  # whose certificate it must be, if not `host`'s
    packing: Packing | None = None  # when to use COMPRESS=DEFLATE, where it is offered; never without
    tunnel: tuple[str, ...] = ()  # a command that speaks IMAP; then there is no TCP and no TLS of ours

    @property
    def protocol(self) -> str:
        return "imap"

    def connect(self, addresses: tuple[str, ...]) -> ImapSession:
        """As `connect`, at one of these addresses."""
        return connect(replace(self, addresses=addresses))

    @property
    def login(self) -> str:
        """The name that is logged in with."""
        if not self.master:
            return self.user
        return f"{self.user}{self.separator}{self.master}" if self.separator else self.master

    @property
    def authorize(self) -> str:
        """The mailbox, where another name logs in for it."""
        return self.user if self.master and not self.separator else ""

    def one_login(self, where: str) -> AbstractContextManager[None]:
        """What a login is tried within. Raises LoginRefused where a shared one was refused too often."""
        return contextlib.nullcontext() if self.shared is None else self.shared.one_login(where)

    def trust(self, *, any_certificate: bool = False) -> Trust:
        return Trust(self.certificate_name or self.host, self.ca_file, ANY if any_certificate else self.certificate)


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


_GOODBYE = 5.0  # seconds that saying goodbye may take
STATUS_ITEMS = b"(UIDVALIDITY UIDNEXT MESSAGES)"


def connect(target: ImapTarget) -> ImapSession:
    """Connects, verifies, logs in. Raises NameNotResolved, Unreachable, CertificateRefused, LoginRefused, LineCut or ProtocolBroken."""
    if target.tunnel:
        return _connect_through(target)
    if target.security != "plain":
        target.trust().context()  # what is wrong with it shows before anything is connected
    wire, address = _wire(target)
    try:
        channel, capabilities = login.log_in(wire, target)
    except CertificateRefused as error:
        if not target.certificate and (shown := _shown(target)):
            error.hint += f"; it shows {shown}: once its owner has confirmed that, pin it by `certificate`"
        raise
    return _session(target, channel, capabilities, address)


def _session(target: ImapTarget, channel: Channel, capabilities: frozenset[str], address: str = "") -> ImapSession:
    session = ImapSession(channel, capabilities, host=target.host, user=target.user, address=address, port=target.port)
    if target.packing is not None and session.offers("COMPRESS=DEFLATE"):
        channel.pack(target.packing)
    return session


def _wire(target: ImapTarget) -> tuple[Wire, str]:
    sock, address = connect_tcp(target.host, target.addresses, target.port, target.timeout)
    where = f"{target.host}:{target.port}" if address == target.host else f"{target.host}:{target.port} ({address})"
    return Wire(sock, where, target.timeout, target.rate), address


def _shown(target: ImapTarget) -> str:
    """The fingerprint of the certificate that was refused: on a connection of its own, on which nothing is sent. "" where there is none."""
    with contextlib.suppress(ConnectionFailed):
        wire, _ = _wire(target)
        return fingerprint(login.show_certificate(wire, target))
    return ""


def _connect_through(target: ImapTarget) -> ImapSession:
    from hostbackup.protocols.imap.tunnel import Tunnel

    tunnel = Tunnel(target.tunnel)
    wire = Wire(tunnel, f"{target.host} (through {tunnel.name})", target.timeout, target.rate)
    try:
        channel, capabilities = login.log_in(wire, target)
    except (LineCut, ProtocolBroken) as error:
        if tunnel.ended:
            raise Unreachable(f"the tunnel gives no IMAP session: {error.reason}; it {tunnel.ended}", where=error.where, hint=error.hint) from None
        raise
    return _session(target, channel, capabilities)


class ImapSession:
    """A logged-in connection. `channel` is for pipelined work; the methods here are one round trip each. Used by one thread at a time."""

    def __init__(self, channel: Channel, capabilities: frozenset[str], *, host: str = "", user: str = "", address: str = "", port: int = 0) -> None:
        self.channel = channel
        self.capabilities = capabilities
        self.host = host
        self.user = user
        self.address = address  # "" through a tunnel
        self.port = port
        self.on_end: Callable[[], object] = lambda: None  # hears once that the connection is closed, whoever closes it
        certificate = channel.wire.certificate()
        self.encrypted = bool(certificate)
        self.certificate_fingerprint = fingerprint(certificate) if certificate else ""
        self._namespaces: Namespaces | None = None
        self.qresync = False  # enabled: what was expunged is told by UID

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

    @property
    def namespaces(self) -> Namespaces:
        """Whose folders are where. Costs a round trip where `list_folders` was not called before."""
        if self._namespaces is None:
            told: list[Namespaces] = []
            if self.offers("NAMESPACE"):
                self.channel.run(b"NAMESPACE", on=functools.partial(_take_namespaces, told))
            self._namespaces = told[0] if told else Namespaces()
        return self._namespaces

    def list_folders(self, counters: dict[bytes, Selected] | None = None) -> tuple[list[Listed], list[Listed]]:
        """All mailboxes with what LIST can say of them, and the subscribed names (some of which may not exist). Learns the namespaces on the way.

        `counters` gets those of each mailbox, where the server tells them along (LIST-STATUS, RFC 5819).
        """
        channel = self.channel
        found: list[Listed] = []
        subscribed: list[Listed] = []
        spaces: list[Namespaces] = []
        command = [b"LIST", b'""', b'"*"']
        if self.offers("LIST-EXTENDED"):
            wanted = [b"SUBSCRIBED", b"SPECIAL-USE"] if self.offers("SPECIAL-USE") else [b"SUBSCRIBED"]
            if counters is not None and self.offers("LIST-STATUS"):
                wanted += [b"STATUS", self.status_items]
            command += [b"RETURN", b"(" + b" ".join(wanted) + b")"]
        if counters is not None:
            self._look_around()
        tag = channel.start(*command)
        others = [channel.start(b"LSUB", b'""', b'"*"')]
        if self._namespaces is None and self.offers("NAMESPACE"):
            others.append(channel.start(b"NAMESPACE"))
        takers = (self._collector(found, "LIST"), self._collector(subscribed, "LSUB"), functools.partial(_take_namespaces, spaces))

        def take(response: Response) -> None:
            if counters is not None:
                _take_status(counters, response)
            for taker in takers:  # none of the three disturbs another, so a server may answer them in any order
                taker(response)

        answer = channel.finish(tag, take)
        for other in others:
            channel.finish(other, take)
        if not answer.ok:
            raise ProtocolBroken(f"the server does not list its folders: {plain(answer.answer.text)}", where=self.where)
        if self._namespaces is None:
            self._namespaces = spaces[0] if spaces else Namespaces()
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
        self._look_around()
        answer = self.channel.run(b"STATUS", mailbox(name), STATUS_ITEMS, on=selected.take)
        return selected if answer.ok else None

    def counters(self, names: Iterable[bytes]) -> dict[bytes, Selected]:
        """Those of many mailboxes in one round trip, as far as the server tells them."""
        found: dict[bytes, Selected] = {}
        self._look_around()
        tags = [self.channel.start(b"STATUS", mailbox(name), self.status_items) for name in names if self.channel.at_once(mailbox(name))]
        for tag in tags:
            self.channel.finish(tag, functools.partial(_take_status, found))
        return found

    def _look_around(self) -> None:
        """Has the server look for what others did to the mailbox that is open: else its counters are told as this session last saw them (RFC 3501
        §6.3.10 warns of it, Dovecot does it). Waited for, since Dovecot answers what is sent behind it first."""
        if self.channel.in_mailbox:
            self.channel.run(b"NOOP")

    def open_mailbox(self, name: bytes, *, writable: bool = False) -> tuple[Selected, Tagged]:
        """EXAMINE, or SELECT where `writable`."""
        selected = Selected()
        answer = self.channel.run(b"SELECT" if writable else b"EXAMINE", mailbox(name), on=selected.take)
        return selected, answer

    def close(self) -> None:
        """Says goodbye where the line is free, and closes. May be called twice.

        Nobody waits for the answer: what was done is confirmed command by command, and a LOGOUT that gets lost ends the session just the same.
        """
        if not self.channel.busy:
            with contextlib.suppress(ConnectionFailed, OSError):
                self.channel.wire.sock.settimeout(_GOODBYE)
                self.channel.logout()
        self.drop()

    def drop(self) -> None:
        """Closes without a word: for a line in an unknown state, and from other threads."""
        self.channel.wire.close()
        told, self.on_end = self.on_end, lambda: None
        told()

    def _collector(self, into: list[Listed], kind: str = "LIST") -> Callable[[Response], None]:
        def collect(response: Response) -> None:
            if isinstance(response, Data) and response.kind == kind:
                try:
                    into.append(listed(response.values))
                except ValueError:
                    raise ProtocolBroken("the server sent a folder list that cannot be read", where=self.where) from None

        return collect


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


def _take_namespaces(into: list[Namespaces], response: Response) -> None:
    if isinstance(response, Data) and response.kind == "NAMESPACE" and len(response.values) == 3:
        with contextlib.suppress(ValueError):
            into.append(Namespaces(*(_namespaces(value) for value in response.values)))


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
