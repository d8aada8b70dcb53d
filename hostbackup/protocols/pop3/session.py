"""One logged-in POP3 connection (RFC 1939, 2449): what the server can do, its list of messages, messages.

Nothing here ever sends DELE, nor QUIT: a session that ends without it "MUST not remove any messages from the maildrop" (RFC 1939 §6). RSET before
the end has servers forget what they noted of the session; Dovecot would mark as read what was retrieved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hostbackup.errors import ConnectionFailed, ProtocolBroken
from hostbackup.protocols.certificates import Trust
from hostbackup.protocols.imap.wire import Wire, plain
from hostbackup.protocols.limits import RateLimit
from hostbackup.protocols.net import connect_tcp
from hostbackup.protocols.pop3.channel import Channel, Reply

_GOODBYE = 5.0  # seconds to wait for an answer to RSET
Capabilities = dict[str, tuple[str, ...]]  # arguments by upper-case name


@dataclass(frozen=True, slots=True)
class Pop3Target:
    """Where and as whom to log in. TLS is verified against `host`, also where TCP goes to one of `addresses`."""

    host: str
    user: str
    password: str = field(repr=False)
    port: int = 995
    security: Literal["tls", "starttls", "plain"] = "tls"
    addresses: tuple[str, ...] = ()
    timeout: float = 60.0  # seconds without a byte
    ca_file: Path | None = None  # PEM; only these authorities count then
    rate: RateLimit | None = None
    certificate: str = ""  # the only accepted one, as SHA256:…, whatever its name
    certificate_name: str = ""  # where it is for another name than host
    apop: bool = True  # on a plain connection, where the server offers it

    @property
    def protocol(self) -> str:
        return "pop3"

    @property
    def tunnel(self) -> tuple[str, ...]:
        """None: POP3 goes over TCP alone."""
        return ()

    def connect(self, addresses: tuple[str, ...]) -> Pop3Session:
        """As `connect`, at one of these addresses."""
        return connect(replace(self, addresses=addresses))

    def trust(self) -> Trust:
        return Trust(self.certificate_name or self.host, self.ca_file, self.certificate)


@dataclass(frozen=True, slots=True)
class Slot:
    """One message as the server lists it in this session: its number, octets as told by LIST, UIDL ("" where there is none)."""

    number: int
    size: int
    uidl: str = ""


def connect(target: Pop3Target) -> Pop3Session:
    """Connects, verifies, logs in. Raises NameNotResolved, Unreachable, CertificateRefused, LoginRefused, LineCut or ProtocolBroken."""
    from hostbackup.protocols.pop3.login import log_in

    target.trust().context()  # what is wrong with it shows before anything is connected
    sock, address = connect_tcp(target.host, target.addresses, target.port, target.timeout)
    where = f"{target.host}:{target.port}" if address == target.host else f"{target.host}:{target.port} ({address})"
    wire = Wire(sock, where, target.timeout, target.rate)
    try:
        channel = Channel(wire)
        log_in(channel, target)
        return Pop3Session(channel, target.host, address)
    except BaseException:
        wire.close()
        raise


def ask_capabilities(channel: Channel) -> Capabilities:
    """What CAPA tells; nothing where the server does not know the command."""
    if not channel.run(b"CAPA").ok:
        return {}
    found: Capabilities = {}
    for line in channel.items():
        name, *arguments = line.decode("ascii", "replace").split() or [""]
        found[name.upper()] = tuple(arguments)
    return found


class Pop3Session:
    """A logged-in connection. The server shows the messages that were there when it logged in, under numbers that count in it alone."""

    def __init__(self, channel: Channel, host: str = "", address: str = "") -> None:
        self.channel = channel
        self.host = host
        self.address = address
        self.on_end: Callable[[], object] = lambda: None  # hears once that the connection is closed, whoever closes it
        self._waiting = 0  # messages asked for that have not come
        self._ended = False
        self.encrypted = bool(channel.wire.certificate())
        self.capabilities = ask_capabilities(channel)

    @property
    def where(self) -> str:
        return self.channel.wire.where

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent before earlier ones are answered (RFC 2449 §6.6)."""
        return "PIPELINING" in self.capabilities

    @property
    def has_top(self) -> bool:
        """Whether a message's header can be had alone (RFC 2449 §6.1)."""
        return "TOP" in self.capabilities

    @property
    def expire(self) -> str:
        """Days for which the server keeps messages, "0" where it deletes what was retrieved, "" where it tells nothing or NEVER (RFC 2449 §6.7)."""
        told = self.capabilities.get("EXPIRE", ())
        return "" if not told or told[0].upper() == "NEVER" else told[0].lstrip("0") or "0"

    def stat(self) -> tuple[int, int]:
        """How many messages there are, and their octets."""
        return self._counted(self.channel.run(b"STAT"))

    def _counted(self, reply: Reply) -> tuple[int, int]:
        numbers = reply.text.split()[:2]
        if not reply.ok or len(numbers) < 2 or not all(_is_number(one) for one in numbers):
            raise ProtocolBroken(f"the server does not tell how much there is: {reply.said}", where=self.where)
        return int(numbers[0]), int(numbers[1])

    def contents(self) -> tuple[int, list[Slot]]:
        """How many messages the server says there are, and those that it lists, by number.

        Without UIDLs where the server has none for some of them. Raises ProtocolBroken where it lists nothing.
        """
        if self.pipelining:
            for command in (b"STAT", b"LIST", b"UIDL"):
                self.channel.start(command)
        told, _ = self._counted(self._answer(b"STAT"))
        reply = self._answer(b"LIST")
        if not reply.ok:
            raise ProtocolBroken(f"the server does not list its messages: {reply.said}", where=self.where)
        sizes: dict[int, int] = {}
        for line in self.channel.items():
            number, size, *_ = [*line.split(), b"", b""]
            if not _is_number(number) or not _is_number(size) or int(number) in sizes:
                raise ProtocolBroken(f"the server sent a list that cannot be read: {plain(line, 60)}", where=self.where)
            sizes[int(number)] = int(size)
        names = self._names() if self._answer(b"UIDL").ok else {}
        complete = names.keys() == sizes.keys()
        return told, [Slot(number, sizes[number], names[number] if complete else "") for number in sorted(sizes)]

    def _answer(self, command: bytes) -> Reply:
        """The answer to a command, which has been sent already where the server allows that."""
        return self.channel.reply() if self.pipelining else self.channel.run(command)

    def _names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for line in self.channel.items():
            number, _, name = line.strip().partition(b" ")
            if _is_number(number) and name.strip():
                names[int(number)] = name.strip().decode("latin-1")
        return names

    def ask(self, number: int) -> None:
        """Queues RETR. Answers are taken by `take`, in the order of asking."""
        self._waiting += 1
        self.channel.start(b"RETR %d" % number)

    def ask_header(self, number: int) -> None:
        """Queues TOP for a message's header alone; as `ask`. Only where the session `has_top`."""
        self._waiting += 1
        self.channel.start(b"TOP %d 0" % number)

    def take(self, write: Callable[[memoryview | bytes], object], limit: int) -> Reply:
        """The answer to the next that was asked for; the message goes to `write`. Raises ProtocolBroken where it has more than `limit` bytes."""
        reply = self.channel.reply()
        if reply.ok:
            self.channel.message(reply, write, limit)
        self._waiting -= 1
        return reply

    def close(self) -> None:
        """Takes back whatever the session may have marked, where the line is free, and ends it without QUIT. May be called twice."""
        if not self._waiting and not self._ended:
            self._ended = True
            with contextlib.suppress(ConnectionFailed, OSError):
                self.channel.wire.sock.settimeout(_GOODBYE)
                self.channel.run(b"RSET")
        self._close()

    def drop(self) -> None:
        """Closes without a word: for a line in an unknown state, and from other threads."""
        self._ended = True
        self._close()

    def _close(self) -> None:
        self.channel.wire.close()
        told, self.on_end = self.on_end, lambda: None
        told()


def _is_number(text: bytes) -> bool:
    return text.isdigit() and len(text) < 20
