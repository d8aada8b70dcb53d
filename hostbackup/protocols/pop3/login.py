"""Logging in: STLS (RFC 2595), AUTH PLAIN (RFC 5034), APOP and USER/PASS (RFC 1939 §7), and what a refusal means (RFC 2449 §8.1, RFC 3206)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from hostbackup.errors import ConnectionFailed, LoginRefused, MailboxInUse, ProtocolBroken, ServerBusy
from hostbackup.protocols.busy import is_for_now
from hostbackup.protocols.imap import sasl
from hostbackup.protocols.imap.wire import plain
from hostbackup.protocols.pop3.channel import Channel, Reply, parse_reply
from hostbackup.protocols.pop3.session import Capabilities, Pop3Target, ask_capabilities

_LATER = "try again later; `connections` in the profile's section says how many at once"
_DROP = r"(?:mail ?drop|mail ?box|spool)"
_LOCKED = re.compile(rf"{_DROP}.*\b(?:locked|lock|in use|busy)\b|\b(?:lock|in use|busy)\b.*{_DROP}", re.IGNORECASE)  # of servers without codes
_TIMESTAMP = re.compile(rb"<[^<>@\s]+@[^<>@\s]*>")  # RFC 1939 §7, a msg-id of the greeting


def log_in(channel: Channel, target: Pop3Target) -> None:
    """Greeting, encryption as `target.security` says, login. Raises ConnectionFailed errors; a refused login is not tried another way."""
    wire = channel.wire
    if target.security == "tls":
        wire.start_tls(target.trust())
    greeting = _greeting(channel)
    capabilities = ask_capabilities(channel)
    if target.security == "starttls":
        capabilities = _encrypt(channel, target, capabilities)
    for what, text in (("user name", target.user), ("password", target.password)):
        if any(odd in text for odd in "\r\n\0"):
            raise LoginRefused(f"the {what} of {target.user!r} holds a line break or NUL, which no POP3 server can be told", where=wire.where)
    stamp = _TIMESTAMP.search(greeting.text)
    if target.security == "plain" and target.apop and stamp is not None:
        # MD5 is what the RFC has. It keeps the password itself off an unencrypted line, not from somebody who records the line and guesses.
        digest = hashlib.md5(stamp[0] + target.password.encode("utf-8"), usedforsecurity=False).hexdigest()
        hint = "check user and password; if they are right, this server cannot do APOP for them: say `apop = false`"
        _expect(channel, b"APOP %s %s" % (target.user.encode("utf-8"), digest.encode("ascii")), target, hint, digest)
        return
    if "PLAIN" in map(str.upper, capabilities.get("SASL", ())) and _auth_plain(channel, target):
        return
    _expect(channel, b"USER " + target.user.encode("utf-8"), target)
    _expect(channel, b"PASS " + target.password.encode("utf-8"), target)


def _greeting(channel: Channel) -> Reply:
    line = channel.line()
    greeting = parse_reply(line)
    if greeting is None:
        raise ProtocolBroken(f"this does not look like a POP3 server: {plain(line, 60)}", where=channel.wire.where, hint="check host and port")
    if not greeting.ok:
        raise ServerBusy(f"the server takes nobody at the moment: {greeting.said}", where=channel.wire.where, hint=_LATER)
    return greeting


def _encrypt(channel: Channel, target: Pop3Target, capabilities: Capabilities) -> Capabilities:
    """STLS, and what the server can do after it: what was told in the clear counts no more."""
    # A server without CAPA may know STLS all the same.
    reply = channel.run(b"STLS") if not capabilities or "STLS" in capabilities else Reply(False)
    if not reply.ok:
        hint = 'does it take `security = "tls"` on port 995?'
        raise ProtocolBroken("the server offers no STLS on this port", where=channel.wire.where, hint=hint)
    channel.wire.start_tls(target.trust())
    return ask_capabilities(channel)


def _auth_plain(channel: Channel, target: Pop3Target) -> bool:
    """False where the server does not take the mechanism after all. The credentials follow its leave: older servers know no initial response."""
    channel.start(b"AUTH PLAIN")
    line = channel.line()
    if parse_reply(line) is not None or not line.startswith(b"+"):
        return False
    told = b"\0%s\0%s" % (target.user.encode("utf-8"), target.password.encode("utf-8"))
    _expect(channel, base64.b64encode(told), target)
    return True


def _expect(channel: Channel, command: bytes, target: Pop3Target, hint: str = "check the user name and the password", digest: str = "") -> None:
    reply = channel.run(command)
    if not reply.ok:
        raise _refused(reply, channel, target, hint, [target.password, digest])


def _refused(reply: Reply, channel: Channel, target: Pop3Target, hint: str, told: Iterable[str]) -> ConnectionFailed:
    """`told`: what the server was told, and nobody else is to see."""
    text = sasl.masked(reply.said, told)  # some servers repeat what they were given
    where = channel.wire.where
    for_now = f"the server takes no login of {target.user} at the moment: {text}"
    if reply.code in ("IN-USE", "LOGIN-DELAY") or (not reply.code and _LOCKED.search(text)):
        return MailboxInUse(for_now, where=where, hint="try again later; does a mail program hold this mailbox open?")
    if reply.code == "SYS/TEMP" or (reply.code != "AUTH" and is_for_now(text)):
        return ServerBusy(for_now, where=where, hint=_LATER)
    if reply.code == "SYS/PERM":
        return ConnectionFailed(for_now, where=where, hint="ask the provider")
    return LoginRefused(f"the server refused the login of {target.user}: {text}", where=where, hint=hint)
