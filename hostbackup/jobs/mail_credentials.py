"""Who logs in to a mailbox, and with what: its own password, an access token, or a master's, as the profile's section says."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hostbackup.accounts import Account
from hostbackup.errors import LoginRefused, SecretError
from hostbackup.profile import Imap
from hostbackup.secrets import Secret, SecretSource

_TOKEN = re.compile(r"[\x21-\x7e]+")
_HARMLESS = re.compile(r"\w[\w.@+%=:,/-]*")  # to any shell, and no option


class Secrets(Protocol):
    """Where passwords come from during a run; each is had once. `on_secret` hears of every other that comes into use."""

    @property
    def on_secret(self) -> Callable[[Secret], object]: ...
    def secret(self, source: SecretSource, where: str) -> str: ...
    def mail_password(self, side: str, account: Account, host: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Credentials:
    """`password` is the mailbox's or the master's; `token` gives a fresh access token instead."""

    password: str = ""
    token: Callable[[], str] | None = None
    master: str = ""
    separator: str = ""


def credentials(section: Imap, side: str, account: Account, host: str, secrets: Secrets) -> Credentials:
    """Raises SecretError where nothing is known to log in with and nobody can be asked."""
    if section.master is not None:
        password = secrets.secret(section.master.password, f"{side}.imap.master.password")
        return Credentials(password, master=section.master.user, separator=section.master.separator or "")
    source = account.token or (section.token if section.auth != "auto" or not account.password else None)
    if source is not None:
        return Credentials(token=functools.partial(_token, source.for_user(account.user), f"{side}.imap {account.user}", secrets.on_secret))
    if section.auth in ("xoauth2", "oauthbearer"):
        raise SecretError("no token is known for this account", where=f"{side}.imap {account.user}", hint="add `token` to the profile")
    if section.tunnel and not account.password:
        return Credentials()  # what greets with PREAUTH asks nobody
    return Credentials(secrets.mail_password(side, account, host))


def _token(source: SecretSource, where: str, on_secret: Callable[[Secret], object]) -> str:
    """A fresh access token. Raises LoginRefused where there is none: like a password that is refused, it concerns one account."""
    try:
        secret = Secret(source.resolve(where).reveal().strip())
    except SecretError as error:
        raise LoginRefused(f"there is no access token: {error.reason}", where=where, hint=error.hint) from None
    on_secret(secret)
    if not _TOKEN.fullmatch(secret.reveal()):
        raise LoginRefused(f"{source} gives no access token but several words or lines", where=where, hint="it must print the token alone")
    return secret.reveal()


def tunnel(section: Imap, account: Account, host: str, where: str) -> tuple[str, ...]:
    """The command that leads to an account's mailbox. Raises LoginRefused for names that a shell at the other end of `ssh` could take for more."""
    words = section.tunnel or ()
    for mark, value in (("{user}", account.user), ("{host}", host)):
        if any(mark in word for word in words) and not _HARMLESS.fullmatch(value):
            raise LoginRefused(f"{value!a} cannot stand in a tunnel's command: a shell could take it for more than a name", where=where)
    return tuple(word.replace("{user}", account.user).replace("{host}", host) for word in words)
