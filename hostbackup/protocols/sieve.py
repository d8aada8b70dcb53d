"""Sieve filters over ManageSieve (RFC 5804): managesieve speaks, over a `Wire` that keeps time-outs, TLS and bytes right. Loaded when it is needed.

managesieve keeps the order of commands and reads the grammar of answers. Not taken from it: its socket, which waits for ever where a line ends;
its TLS, which goes on in the clear where a server offers none; its login, of passwords alone; its log, which holds them; its strings, which lose
bytes that are not UTF-8.
"""

# managesieve has no type information, so its class counts as Any.
# mypy: disable-error-code=misc

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import managesieve

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, NotOffered, ProtocolBroken, Unreachable
from hostbackup.protocols.certificates import Trust
from hostbackup.protocols.imap import sasl
from hostbackup.protocols.imap.session import ImapTarget
from hostbackup.protocols.imap.wire import Wire, plain
from hostbackup.protocols.net import connect_tcp

LARGEST = 16 * 1024 * 1024  # bytes of a script: more than any server takes, little enough for memory
_KNOCK = 3.5  # seconds for a connection, as one that is lost is asked for again after 1 and 3: many servers have no such port, and a silent firewall
_GREETING = 10.0  # seconds in which a server that is there greets
_AHEAD = 16  # commands under way at once,
_AHEAD_BYTES = 16 * 1024  # and their bytes: so few that sending them never waits for the answers to be read
_GOODBYE = 5.0  # seconds to wait for an answer to LOGOUT
_WORDS = 400  # characters of what a server says that are shown

# RFC 5804 §4: a code is in parentheses, and may hold quoted strings. managesieve's own pattern takes parentheses of the text for the code's.
_ANSWER = re.compile(r'(?P<type>OK|NO|BYE)(?: \((?P<code>(?:[^")]|"(?:[^"\\]|\\.)*")*)\))?(?: (?P<data>.*))?$')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LITERAL = re.compile(r"\{(\d+)\+?\}$")
_QUOTABLE = re.compile(rb"[\x20\x21\x23-\x5b\x5d-\x7e]{0,1024}")
_NEVER = 'check `sieve_port`, or set `sieve = "never"` to leave filters out'
_FOR_NOW = ("TRYLATER",)  # RFC 5804 §1.3: says nothing about the password


@dataclass(frozen=True, slots=True)
class Script:
    """A line of LISTSCRIPTS."""

    name: bytes
    active: bool = False


class Silent(LineCut):
    """Somebody took the connection and never greeted."""


class Refused(Exception):
    """The server said NO to a command. `code` is its response code in capitals, "" where it gave none; `text` what it said, safe to show."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Client(managesieve.MANAGESIEVE):
    """managesieve on a wire of ours. Strings hold bytes that are not UTF-8 as surrogates."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.answered = False
        self._greeted = False
        self._reply: bytes | None = None  # what a login answers to a server that says something before its verdict
        self._owed = False
        super().__init__("", 0)

    # -- what managesieve reads and writes by --

    def _open(self, host: str, port: int) -> None:
        self.sock = self.wire.sock

    def _close(self) -> None:
        self.wire.close()

    def _send(self, data: bytes) -> None:
        self.wire.send(data)

    def _read(self, size: int) -> bytes:
        if size > LARGEST:
            raise ProtocolBroken(f"the server announced {size} bytes at once", where=self.wire.where)
        return self.wire.read(size)

    def _readline(self) -> str:
        if self._owed and self._reply is not None:
            self.wire.send(_literal(self._reply) + b"\r\n")
            self._owed, self._reply = False, None
        line = self.wire.readline()
        if not self._greeted and line[:1] not in (b'"', b"{", b"O", b"N", b"B"):  # another protocol, whose greeting would be waited on for ever
            raise self.error(line.decode("utf-8", "replace"))
        self._greeted = True
        return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape") + "\r\n"

    def _readstring(self, data: str) -> tuple[str, str]:
        """The string that `data`, the rest of a line, begins with, and what follows it on its line."""
        if quoted := _QUOTED.match(data):
            return re.sub(r"\\(.)", r"\1", quoted[1]), data[quoted.end() :]
        if literal := _LITERAL.match(data):
            return self._read(int(literal[1])).decode("utf-8", "surrogateescape"), self._get_line()
        word, _, rest = data.partition(" ")
        if not word or word[0] in '"{':
            raise self.error("a string that is none")
        return word, f" {rest}" if rest else ""

    def _match(self, pattern: re.Pattern[str], text: str) -> bool:
        if pattern is not managesieve.Oknobye:
            return bool(super()._match(pattern, text))
        found = bool(super()._match(_ANSWER, text))
        self._owed = not found
        return found

    def _get_response(self) -> tuple[str, Any]:
        kind, data = super()._get_response()
        if kind == "BYE":
            raise LineCut(f"the server ended the session: {self.said() or 'no reason given'}", where=self.wire.where)
        self.answered = kind == "OK"
        return kind, data

    def _log(self, level: int, message: str, *args: Any) -> None:
        """Nothing: it would hold passwords."""

    def _print_log(self) -> None:
        """Nothing, for the same reason."""

    # -- what is added --

    def said(self) -> str:
        """What the server said with its last answer, in one line."""
        text = " ".join((self.response_text or "").split())
        return plain(text.encode("utf-8", "surrogateescape"), _WORDS)

    def encrypt(self, trust: Trust) -> None:
        """STARTTLS (RFC 5804 §2.2). What the server told in the clear counts no more."""
        if self._simple_command(b"STARTTLS") != "OK":
            raise ProtocolBroken(f"the server refused STARTTLS: {self.said()}", where=self.wire.where)
        self.wire.start_tls(trust)
        self.capabilities: list[str] = []
        self.loginmechs: list[str] = []
        self.supports_tls = 0
        self._parse_capabilities(self._get_response()[1])

    def authenticate_by(self, attempt: sasl.Attempt) -> bool:
        """AUTHENTICATE (RFC 5804 §2.1), whether the server lets us in."""
        self._reply = base64.b64encode(attempt.after_error)
        kind, _ = self._command(b"AUTHENTICATE", _string(attempt.mechanism.encode()), _literal(base64.b64encode(attempt.response)))
        self._reply = None
        if kind == "OK":
            self.state = "AUTH"
        return bool(kind == "OK")

    def ask(self, name: bytes, *arguments: bytes) -> list[list[str | None]]:
        """A command's data. Raises Refused where the server says NO."""
        self.wire.send(b" ".join((name, *arguments)) + b"\r\n")
        return self.answer()

    def answer(self) -> list[list[str | None]]:
        """The data of the next answer. Raises Refused where it is NO."""
        kind, data = self._get_response()
        if kind != "OK":
            raise Refused((self.response_code or "").split(" ")[0].upper(), self.said() or "no reason given")
        return data  # type: ignore[no-any-return]


class SieveSession:
    """One logged-in connection. Each method is one round trip. Used by one thread at a time."""

    def __init__(self, client: _Client, address: str) -> None:
        self._client = client
        self.address = address
        self.on_end: Callable[[], object] = lambda: None  # hears once that the connection is closed, whoever closes it
        self.extensions = frozenset(client.capabilities)  # of the Sieve language, such as "fileinto"
        self.software: str = client.implementation

    @property
    def where(self) -> str:
        return self._client.wire.where

    def scripts(self) -> list[Script]:
        """LISTSCRIPTS. Raises Refused."""
        with _in_words(self._client.wire):
            return [Script(_bytes(row[0]), str(row[1] or "").upper() == "ACTIVE") for row in self._client.ask(b"LISTSCRIPTS")]

    def get(self, name: bytes) -> bytes | None:
        """The bytes of a script; None where there is none of that name. Raises Refused."""
        self._client.wire.send(_get(name))
        found = self._got()
        if isinstance(found, Refused):
            raise found
        return found

    def get_all(self, names: Sequence[bytes]) -> Iterator[bytes | Refused | None]:
        """The same of many, in their order and to be taken to the end, several asked for at a time. Refused is given, not raised."""
        for lot in _lots([_get(name) for name in names]):
            self._client.wire.send(b"".join(lot))
            for _ in lot:
                yield self._got()

    def _got(self) -> bytes | Refused | None:
        with _in_words(self._client.wire):
            try:
                rows = self._client.answer()
            except Refused as refused:
                return None if refused.code == "NONEXISTENT" else refused
            if len(rows) != 1:
                raise ProtocolBroken("the server sent a script as something else than one string", where=self.where)
            return _bytes(rows[0][0])

    def put(self, name: bytes, script: bytes) -> None:
        """PUTSCRIPT: makes it, or replaces the one of that name. Raises Refused, also where the server does not understand the script."""
        with _in_words(self._client.wire):
            self._client.ask(b"PUTSCRIPT", _string(name), _literal(script))

    def activate(self, name: bytes) -> None:
        """SETACTIVE: from now on this script, and no other, filters what arrives. Raises Refused."""
        with _in_words(self._client.wire):
            self._client.ask(b"SETACTIVE", _string(name))

    def close(self) -> None:
        """Logs out and closes. May be called twice."""
        with contextlib.suppress(ConnectionFailed, OSError, Refused), _in_words(self._client.wire):
            self._client.wire.sock.settimeout(_GOODBYE)
            self._client.ask(b"LOGOUT")
        self.drop()

    def drop(self) -> None:
        """Closes without a word; from other threads too."""
        self._client.wire.close()
        told, self.on_end = self.on_end, lambda: None
        told()


class Greeted:
    """A connection to a server that has said what it offers, and that nobody has logged in on."""

    def __init__(self, client: _Client, address: str) -> None:
        self._client = client
        self._address = address

    def log_in(self, target: ImapTarget) -> SieveSession:
        """Encrypts by STARTTLS unless `security` is "plain", logs in. Raises what `connect` raises, the connection closed then."""
        wire = self._client.wire
        try:
            wire.wait_up_to(target.timeout)
            with _in_words(wire):
                _log_in(self._client, target)
                return SieveSession(self._client, self._address)
        except BaseException:
            wire.close()
            raise

    def close(self) -> None:
        self._client.wire.close()


def connect(target: ImapTarget) -> SieveSession:
    """Connects, encrypts, logs in. `target`: as for the mailbox, with the port of ManageSieve.

    Raises NotOffered where nothing listens on the port; NameNotResolved, Unreachable, CertificateRefused, LoginRefused, LineCut, ProtocolBroken.
    """
    return greet(target).log_in(target)


def greet(target: ImapTarget) -> Greeted:
    """Connects and hears the greeting. Raises NotOffered where nothing listens on the port; NameNotResolved, Unreachable, LineCut, ProtocolBroken."""
    if target.tunnel:
        raise NotOffered("the tunnel leads to IMAP alone", where=target.host)
    try:
        sock, address = connect_tcp(target.host, target.addresses, target.port, min(_KNOCK, target.timeout))
    except Unreachable as error:
        raise NotOffered(f"the server offers no ManageSieve: {error.reason}") from None
    where = f"{target.host}:{target.port}" if address == target.host else f"{target.host}:{target.port} ({address})"
    wire = Wire(sock, where, min(_GREETING, target.timeout), target.rate)
    try:
        with _in_words(wire):
            client = _Client(wire)
        if not client.answered:
            raise Unreachable(f"the server takes no session at the moment: {client.said()}", where=where, hint="try again later")
    except LineCut as error:
        wire.close()
        kind = Silent if isinstance(error.__context__, TimeoutError) else LineCut
        raise kind(f"the port of filters is open, and no greeting came: {error.reason}", where=where, hint=_NEVER) from None
    except BaseException:
        wire.close()
        raise
    return Greeted(client, address)


def _log_in(client: _Client, target: ImapTarget) -> None:
    wire = client.wire
    if target.security != "plain":
        if not client.supports_tls:
            hint = 'ask the provider why this port is not encrypted, or set `sieve = "never"` to leave filters out'
            raise ProtocolBroken("the server offers no encryption (STARTTLS) for filters; no password was sent", where=wire.where, hint=hint)
        client.encrypt(target.trust())
    token = target.token() if target.token else ""
    attempt = _attempt(target, token, {mechanism.upper() for mechanism in client.loginmechs})
    if attempt is None:
        offered = plain(", ".join(client.loginmechs).encode("utf-8", "replace")) or "none"
        raise LoginRefused(f"the server takes no login for filters as the mailbox does; its ways: {offered}", where=wire.where)
    if not client.authenticate_by(attempt):
        raise _refused(client, target, token)


def _attempt(target: ImapTarget, token: str, offered: set[str]) -> sasl.Attempt | None:
    """How to log in, None where the server has no way for it."""
    if token:
        if target.auth != "xoauth2" and "OAUTHBEARER" in offered:
            return sasl.oauthbearer(target.login, token, target.host, target.port)
        return sasl.xoauth2(target.login, token) if target.auth != "oauthbearer" and "XOAUTH2" in offered else None
    try:
        return sasl.plain(target.login, target.password, target.authorize) if "PLAIN" in offered else None
    except ValueError as error:
        raise LoginRefused(f"no server can take this login: {error}", where=target.host) from None


def _refused(client: _Client, target: ImapTarget, token: str) -> ConnectionFailed:
    text = sasl.masked(client.said() or "no reason given", [secret for secret in (target.password, token) if secret])
    if (client.response_code or "").split(" ")[0].upper() in _FOR_NOW:
        return Unreachable(f"the server takes no login of {target.user} at the moment: {text}", where=client.wire.where, hint="try again later")
    hint = "if the mailbox opens with it, ask the provider whether filters need another"
    return LoginRefused(f"the server refused the login of {target.user} for filters: {text}", where=client.wire.where, hint=hint)


def _get(name: bytes) -> bytes:
    return b"GETSCRIPT " + _string(name) + b"\r\n"


def _lots(commands: Sequence[bytes]) -> Iterator[list[bytes]]:
    lot: list[bytes] = []
    size = 0
    for command in commands:
        if lot and (len(lot) >= _AHEAD or size + len(command) > _AHEAD_BYTES):
            yield lot
            lot, size = [], 0
        lot.append(command)
        size += len(command)
    if lot:
        yield lot


def _string(name: bytes) -> bytes:
    """A name as an argument: quoted where it is plain ASCII, else a literal that needs no leave (RFC 5804 §4)."""
    return b'"' + name + b'"' if _QUOTABLE.fullmatch(name) else _literal(name)


def _literal(data: bytes) -> bytes:
    return b"{%d+}\r\n" % len(data) + data


def _bytes(text: str | None) -> bytes:
    return (text or "").encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _in_words(wire: Wire) -> Iterator[None]:
    """What managesieve raises, in this project's words. It checks what it reads by assertions and by using it."""
    try:
        yield
    except (managesieve.MANAGESIEVE.error, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"this does not look like a ManageSieve server: {plain(str(error).encode('utf-8', 'replace')) or type(error).__name__}"
        raise ProtocolBroken(reason, where=wire.where, hint=_NEVER) from None
