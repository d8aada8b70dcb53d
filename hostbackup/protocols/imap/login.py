"""From a connected wire to a logged-in channel: greeting, encryption, one login in the way that the target names (RFC 3501, 4959, 2595).

What a server tells of itself unasked, in its greeting and when it lets somebody in, is used as it comes: each question less is a round trip less.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, NoReturn

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, MailboxInUse, ProtocolBroken, ServerBusy
from hostbackup.protocols.busy import is_for_now
from hostbackup.protocols.imap import lexer, names, sasl
from hostbackup.protocols.imap.channel import Argument, Channel, Lit
from hostbackup.protocols.imap.framer import Answer, Continue, Data, Response, Tagged, Untagged
from hostbackup.protocols.imap.lexer import Value
from hostbackup.protocols.imap.wire import Wire, plain

if TYPE_CHECKING:
    from hostbackup.protocols.imap.session import ImapTarget

# Response codes (RFC 5530, RFC 9051 §7.1) of a refusal that says nothing about the password.
_FOR_NOW = ("UNAVAILABLE", "INUSE", "LIMIT", "SERVERBUG", "CONTACTADMIN", "THROTTLED")
_LATER = "try again later; `connections` in the profile's section says how many at once"


def log_in(wire: Wire, target: ImapTarget) -> tuple[Channel, frozenset[str]]:
    """Greeting, encryption as `target.security` says, login; gives the channel and what the server offers now.

    Raises ConnectionFailed errors; a refused login is not tried another way.
    """
    login = _Login(wire, target)
    try:
        return login.run()
    except BaseException as error:
        wire.close()
        if isinstance(error, ConnectionFailed):
            error.reason = login.masked(error.reason)
            error.args = (error.reason,)
            if isinstance(error, LineCut) and is_for_now(error.reason):  # said in a BYE
                raise ServerBusy(error.reason, where=error.where, hint=_LATER) from None
        raise


def show_certificate(wire: Wire, target: ImapTarget) -> bytes:
    """The certificate (DER) that a server shows, whoever issued it, without a word about who asks. Raises ConnectionFailed."""
    try:
        login = _Login(wire, target)
        login.encrypt(any_certificate=True)
        return wire.certificate()
    finally:
        wire.close()


class _Login:
    def __init__(self, wire: Wire, target: ImapTarget) -> None:
        self._wire = wire
        self._target = target
        self._channel = Channel(wire)
        self._offered: frozenset[str] = frozenset()  # none: not known
        self._secrets = [secret for secret in (target.password,) if secret]

    def run(self) -> tuple[Channel, frozenset[str]]:
        if not self.encrypt():
            self._know()
            with self._target.one_login(self._wire.where):
                self._log_in()
        self._know()
        return self._channel, self._offered

    def masked(self, text: str) -> str:
        """What the server said, without what it was given."""
        return sasl.masked(text, self._secrets)

    # -- greeting and encryption --------------------------------------------------------------------------------------------------------

    def encrypt(self, *, any_certificate: bool = False) -> bool:
        """Greeting and encryption, in the order that `security` asks for. Whether the server took us for logged in from the start."""
        target, wire = self._target, self._wire
        trust = target.trust(any_certificate=any_certificate)
        if target.security == "tls" and not target.tunnel:
            wire.start_tls(trust)
        greeted_in = self._greeting()
        if target.security == "starttls" and not target.tunnel:
            if not greeted_in:
                self._know()
            # Who is logged in before any encryption may be somebody in between: RFC 9051 §11.1.
            if greeted_in or not self._offers("STARTTLS"):
                hint = 'does it take `security = "tls"` on port 993?'
                raise ProtocolBroken("the server offers no STARTTLS on this port", where=wire.where, hint=hint)
            answer = self._channel.run(b"STARTTLS")
            if not answer.ok:
                raise ProtocolBroken(f"the server refuses STARTTLS: {plain(answer.answer.text)}", where=wire.where)
            wire.start_tls(trust)
            self._offered = frozenset()  # what came in the clear counts no more
        return greeted_in

    def _greeting(self) -> bool:
        try:
            response = self._channel.next()
        except ProtocolBroken as error:
            hint = "check host and port"
            raise ProtocolBroken(f"this does not look like an IMAP server: {error.reason}", where=self._wire.where, hint=hint) from None
        if not isinstance(response, Untagged) or response.answer.status not in ("OK", "PREAUTH"):
            raise ProtocolBroken("this does not look like an IMAP server: no greeting", where=self._wire.where, hint="check host and port")
        self._hear(response)
        return response.answer.status == "PREAUTH"

    # -- capabilities -------------------------------------------------------------------------------------------------------------------

    def _offers(self, capability: str) -> bool:
        return capability in self._offered

    def _know(self) -> None:
        """Asks for the capabilities where the server has not told them of itself."""
        if not self._offered:
            answer = self._channel.run(b"CAPABILITY", on=self._hear)
            self._hear(answer)
            if not answer.ok or not self._offered:
                raise ProtocolBroken("the server does not tell its capabilities", where=self._wire.where)
        self._channel.learn(self._offered)

    def _hear(self, response: Response) -> None:
        told: tuple[Value, ...] = ()
        if isinstance(response, Data) and response.kind == "CAPABILITY":
            told = response.values
        elif isinstance(response, Tagged | Untagged) and response.answer.code == "CAPABILITY":
            told = response.answer.args
        if told:
            self._offered = frozenset(lexer.word(value).upper() for value in told if isinstance(value, bytes))

    # -- login --------------------------------------------------------------------------------------------------------------------------

    def _log_in(self) -> None:
        target = self._target
        if target.token is not None:
            return self._authenticate(self._token_attempt(target.token()))
        if not target.password:
            hint = "set a password, or make the tunnel's command one that greets with PREAUTH"
            raise LoginRefused(f"the server wants a password of {target.user}, and none is known", where=self._wire.where, hint=hint)
        if self._offers("AUTH=PLAIN"):
            try:
                attempt = sasl.plain(target.login, target.password, target.authorize)
            except ValueError as error:
                raise LoginRefused(f"no server can take this login: {error}", where=self._wire.where) from None
            return self._authenticate(attempt)
        if target.authorize:
            hint = 'this server needs a master name such as `user*master`: set `separator` (often "*") beside `user` and `password`'
            raise LoginRefused("the server offers no login on behalf of others (AUTH=PLAIN)", where=self._wire.where, hint=hint)
        if self._offers("LOGINDISABLED"):
            hint = 'set `security = "tls"` or "starttls"' if target.security == "plain" else "this server wants another way of logging in"
            raise LoginRefused("the server takes no password on this connection", where=self._wire.where, hint=hint)
        return self._login_command()

    def _token_attempt(self, token: str) -> sasl.Attempt:
        target = self._target
        self._secrets.append(token)
        if target.auth != "xoauth2" and self._offers("AUTH=OAUTHBEARER"):
            return sasl.oauthbearer(target.login, token, target.host, target.port)
        if target.auth != "oauthbearer" and self._offers("AUTH=XOAUTH2"):
            return sasl.xoauth2(target.login, token)
        wanted = {"xoauth2": "XOAUTH2", "oauthbearer": "OAUTHBEARER"}.get(target.auth, "OAUTHBEARER or XOAUTH2")
        ways = ", ".join(sorted(one.removeprefix("AUTH=") for one in self._offered if one.startswith("AUTH="))) or "none"
        raise LoginRefused(f"the server takes no token by {wanted}; its ways of logging in: {plain(ways.encode())}", where=self._wire.where)

    def _authenticate(self, attempt: sasl.Attempt) -> None:
        """AUTHENTICATE (RFC 3501 §6.2.2), the first message with the command where the server has SASL-IR (RFC 4959)."""
        channel = self._channel
        coded = base64.b64encode(attempt.response)
        self._secrets.append(coded.decode("ascii"))
        name = attempt.mechanism.encode("ascii")
        at_once = self._offers("SASL-IR")
        waiting = [base64.b64encode(attempt.after_error)] if at_once else [coded, base64.b64encode(attempt.after_error)]
        channel.start(b"AUTHENTICATE", name, *([coded] if at_once else []))
        explanation = b""
        self._offered = frozenset()  # what held before a login need not hold after it
        for _ in range(1000):
            response = channel.next()
            self._hear(response)
            if isinstance(response, Tagged):
                if not response.ok:
                    self._refused(response.answer, sasl.explained(explanation))
                return
            if isinstance(response, Continue):
                if not waiting:
                    break
                explanation = response.text
                channel.put(waiting.pop(0) + b"\r\n")
        raise ProtocolBroken(f"the server asks for more than a login by {attempt.mechanism} has to say", where=self._wire.where)

    def _login_command(self) -> None:
        """LOGIN (RFC 3501 §6.2.3); what a quoted string cannot hold goes as a literal in UTF-8."""
        self._offered = frozenset()
        answer = self._channel.run(b"LOGIN", _astring(self._target.login), _astring(self._target.password), on=self._hear)
        self._hear(answer)
        if not answer.ok:
            self._refused(answer.answer, "")

    def _refused(self, answer: Answer, explanation: str) -> NoReturn:
        target = self._target
        said = f"[{answer.code}] " if answer.code else ""
        said += answer.text.decode("utf-8", "backslashreplace") + (f" ({explanation})" if explanation else "")
        text = plain(self.masked(said).encode())
        who = target.user if target.login == target.user and not target.authorize else f"{target.user} (as {target.login})"
        if answer.code in _FOR_NOW or is_for_now(text):
            busy = MailboxInUse if answer.code == "INUSE" else ServerBusy
            raise busy(f"the server takes no login of {who} at the moment: {text}", where=self._wire.where, hint=_LATER)
        hint = "check the user name and the password"
        if target.token is not None:
            hint = "is the token fresh, for this mailbox, and may it be used for IMAP?"
        elif target.authorize or target.login != target.user:
            hint = "check the master user's name and password, and that this mailbox exists"
        raise LoginRefused(f"the server refused the login of {who}: {text}", where=self._wire.where, hint=hint)


def _astring(text: str) -> Argument:
    raw = text.encode("utf-8")
    quoted = names.quote(raw)
    return Lit(raw) if quoted is None else quoted
