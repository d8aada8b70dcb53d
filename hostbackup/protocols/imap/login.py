"""Connecting and logging in by imapclient, over a `Wire` that the framer goes on with. Loaded only when a connection is made."""

# imapclient has no type information, so its class counts as Any.
# mypy: disable-error-code=misc

from __future__ import annotations

import contextlib
import imaplib
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from imapclient import IMAPClient
from imapclient.exceptions import IMAPClientError

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, ProtocolBroken, Unreachable
from hostbackup.protocols.imap import names
from hostbackup.protocols.imap.channel import Argument, Channel, Lit
from hostbackup.protocols.imap.wire import Wire, plain
from hostbackup.protocols.tls import verifying_context

if TYPE_CHECKING:
    from hostbackup.protocols.imap.session import ImapTarget

# Response codes (RFC 5530, RFC 9051 §7.1) of a refusal that says nothing about the password.
_FOR_NOW = ("UNAVAILABLE", "INUSE", "LIMIT", "SERVERBUG", "CONTACTADMIN", "THROTTLED")


class _Imap4(imaplib.IMAP4):
    """imaplib with all its reading and writing done by a Wire."""

    def __init__(self, wire: Wire, host: str, port: int) -> None:
        self._wire = wire
        super().__init__(host, port)

    def open(self, host: str = "", port: int = 143, timeout: float | None = None) -> None:
        self.host = host
        self.port = port
        self.sock = self._wire.sock

    def read(self, size: int) -> bytes:
        return self._wire.read(size)

    def readline(self) -> bytes:
        return self._wire.readline()

    def send(self, data: Any) -> None:
        self._wire.send(bytes(data))

    def shutdown(self) -> None:
        self._wire.close()

    def starttls(self, ssl_context: ssl.SSLContext | None = None) -> Any:
        if ssl_context is None:
            raise self.error("STARTTLS without a context that verifies")
        status, data = self._simple_command("STARTTLS")
        if status != "OK":
            raise self.error(data[-1].decode("utf-8", "replace"))
        self._wire.start_tls(ssl_context, self.host)
        self.sock = self._wire.sock
        self._tls_established = True
        self.untagged_responses.clear()  # what came in the clear counts no more
        self._get_capabilities()
        return status, data


class _Client(IMAPClient):
    """imapclient on a wire of ours."""

    def __init__(self, wire: Wire, host: str, port: int, timeout: float) -> None:
        self._wire = wire
        super().__init__(host, port, ssl=False, timeout=timeout)
        self._imap.debug = 0  # imapclient sets 5, which formats every byte for its log

    def _create_IMAP4(self) -> imaplib.IMAP4:
        return _Imap4(self._wire, self.host, self.port)


def log_in(wire: Wire, target: ImapTarget) -> Channel:
    """Greeting, encryption as `target.security` says, login. Raises ConnectionFailed errors; a refused login is not tried another way."""
    try:
        with _imapclient_errors(wire):
            return _log_in(wire, target)
    except BaseException:
        wire.close()
        raise


def _log_in(wire: Wire, target: ImapTarget) -> Channel:
    if target.security == "tls":
        wire.start_tls(verifying_context(target.ca_file), target.host)
    client = _Client(wire, target.host, target.port, target.timeout)
    greeted_in = client._imap.state == "AUTH"
    if target.security == "starttls":
        if greeted_in or not client.has_capability("STARTTLS"):
            raise ProtocolBroken("the server offers no STARTTLS on this port", where=wire.where, hint='does it take `security = "tls"` on port 993?')
        client.starttls(verifying_context(target.ca_file))
    if greeted_in:
        return Channel(wire)
    if client.has_capability("AUTH=PLAIN") and "\0" not in target.user + target.password:
        with _refusal(wire, target):
            client.plain_login(target.user, target.password)
        return Channel(wire)
    if client.has_capability("LOGINDISABLED"):
        hint = 'set `security = "tls"` or "starttls"' if target.security == "plain" else "this server wants another way of logging in"
        raise LoginRefused("the server takes no password on this connection", where=wire.where, hint=hint)
    return _plain_login_command(wire, target)


def _plain_login_command(wire: Wire, target: ImapTarget) -> Channel:
    """LOGIN (RFC 3501 §6.2.3); what a quoted string cannot hold goes as a literal in UTF-8."""
    channel = Channel(wire)
    answer = channel.run(b"LOGIN", _astring(target.user), _astring(target.password))
    if not answer.ok:
        code = f"[{answer.answer.code}] " if answer.answer.code else ""
        raise _refused(code + plain(answer.answer.text), wire, target)
    return channel


def _astring(text: str) -> Argument:
    raw = text.encode("utf-8")
    quoted = names.quote(raw)
    return Lit(raw) if quoted is None else quoted


def _refused(text: str, wire: Wire, target: ImapTarget) -> ConnectionFailed:
    if len(target.password) > 3:  # some servers repeat what they were given; hiding a shorter one would show it
        text = text.replace(target.password, "********")
    if any(f"[{code}" in text.upper() for code in _FOR_NOW):
        return Unreachable(f"the server takes no login of {target.user} at the moment: {text}", where=wire.where, hint="try again later")
    return LoginRefused(f"the server refused the login of {target.user}: {text}", where=wire.where, hint="check the user name and the password")


@contextlib.contextmanager
def _refusal(wire: Wire, target: ImapTarget) -> Iterator[None]:
    """Tells a refused login from a session that the server ended meanwhile."""
    try:
        yield
    except IMAPClientError as error:
        text = plain(str(error).encode("utf-8", "replace"))
        if isinstance(error.__context__, imaplib.IMAP4.abort):
            raise LineCut("the server ended the session during the login", where=wire.where) from None
        raise _refused(text, wire, target) from None


@contextlib.contextmanager
def _imapclient_errors(wire: Wire) -> Iterator[None]:
    """What imaplib and imapclient raise before the login, in this project's words."""
    try:
        yield
    except imaplib.IMAP4.abort as error:
        raise LineCut(f"the server ended the session: {_said(error)}", where=wire.where) from None
    except (imaplib.IMAP4.error, ValueError) as error:  # imaplib takes what it reads for ASCII
        raise ProtocolBroken(f"this does not look like an IMAP server: {_said(error)}", where=wire.where, hint="check host and port") from None


def _said(error: Exception) -> str:
    return plain(str(error).encode("utf-8", "replace"))
