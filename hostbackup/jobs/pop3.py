"""Mailboxes of an old server that has POP3 and nothing else: logging in, telling it from the new server, remembering who is who."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hostbackup.accounts import Account
from hostbackup.errors import NameNotResolved, ProfileError
from hostbackup.model import Part
from hostbackup.profile import Pop3
from hostbackup.profile.root import login_at

if TYPE_CHECKING:
    from hostbackup.jobs.connect import Connections
    from hostbackup.places.base import MailSource
    from hostbackup.places.mail_prove import Reader
    from hostbackup.places.pop3 import Pop3Account
    from hostbackup.places.pop3_check import Again
    from hostbackup.protocols.pop3.session import Pop3Session, Pop3Target
    from hostbackup.vault.mailbox import MailRoot

SECTION = "old.pop3"
WEAKER = "the inbox alone is seen and proven: no sent mail, drafts and folders, no flags, no true dates of arrival"
_INBOX = b"INBOX"


def section(connections: Connections) -> Pop3:
    found = connections.profile.old.pop3
    if found is None:
        raise ProfileError(f"[{SECTION}] is missing", where=str(connections.profile.file), hint=f"these mailboxes need a section [{SECTION}]")
    return found


def target(connections: Connections, account: Account) -> Pop3Target:
    """Raises SecretError where no password is known and nobody can be asked: that account is not covered."""
    from hostbackup.protocols.pop3.session import Pop3Target

    told = section(connections)
    host, address = login_at(told, account)
    return Pop3Target(
        host=host,
        user=account.user,
        password=connections.mail_password("old", account, host),
        port=told.port,
        security=told.security,
        addresses=tuple(address),
        timeout=connections.limits.stall,
        ca_file=told.ca_file,
        rate=connections.limits.rate,
        certificate=told.certificate or "",
        certificate_name=told.certificate_name or "",
        apop=told.apop,
    )


def mailbox(connections: Connections, account: Account, part_user: str, reader: Reader | None = None) -> Pop3Account:
    """`reader` opens stored messages, for proofs."""
    from hostbackup.places.pop3 import Pop3Account

    told = section(connections)
    where = target(connections, account)
    line = connections.logins.line("old", where, told.connections, functools.partial(_see, connections))

    def log_in() -> Pop3Session:
        _tell_weaker(connections, told, where.host)
        return line.main()

    return Pop3Account(
        log_in,
        side="old",
        part=Part("mail", part_user),
        observer=connections.observer,
        reader=reader,
        allow_expire_0=told.allow_expire_0,
        pause=connections.logins.rest,
    )


def _tell_weaker(connections: Connections, told: Pop3, host: str) -> None:
    from hostbackup.jobs.connect import weaker_mail

    name = f"{SECTION} {host}"
    connections.weaker(name, "POP3", WEAKER)
    for setting, meaning in weaker_mail(told):
        connections.weaker(name, setting, meaning)
    if told.allow_expire_0:
        connections.weaker(name, "allow_expire_0 = true", "a server that deletes what was retrieved is read all the same")


def _see(connections: Connections, made: Pop3Session) -> None:
    """Raises WrongMachine. An account may have a host of its own, which the section's check did not cover."""
    see_endpoint(connections, made.host, [made.address])
    connections.identity.see_address(SECTION, made.address)


# -- old stays old --------------------------------------------------------------------------------------------------------------------------


def _telling(addresses: Iterable[str]) -> list[str]:
    """Without those of this machine: they are the ends of tunnels, and say nothing about who is at the other end."""
    return [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_loopback]


def see_endpoint(connections: Connections, host: str, addresses: Iterable[str]) -> None:
    """Raises WrongMachine where the server is at an address of the new mail server. Ports cannot tell: POP3 never has that of IMAP."""
    identity, found = connections.identity, _telling(addresses)
    for port in sorted({port for _, port in identity.new_endpoints.get("new.imap", ())}):
        identity.see_endpoint(SECTION, host, found, port)


def check_old_endpoint(connections: Connections) -> None:
    """The section's addresses, before anybody logs in. Raises WrongMachine; a name that does not resolve is told later."""
    told = connections.profile.old.pop3
    if told is not None:
        try:
            found = connections.addresses(told.host, told.port, told.address)
        except NameNotResolved:
            return
        see_endpoint(connections, told.host, found)


def check_new_endpoint(connections: Connections) -> None:
    """Raises WrongMachine where [new.imap] leads to the old POP3 server's address."""
    told, new = connections.profile.old.pop3, connections.profile.new.imap
    if told is not None and new is not None:
        try:
            found = connections.addresses(told.host, told.port, told.address)
        except NameNotResolved:
            return
        connections.identity.see_new_endpoint("new.imap", new.host, SECTION, _telling(found), new.port)


# -- from run to run ------------------------------------------------------------------------------------------------------------------------


def remember(place: MailSource, root: MailRoot | None, look_again: Callable[[], Again] | None = None) -> None:
    """Tells a POP3 account which message had which number, as the last manifest has it, and which to look at again. No other place needs to know."""
    recall = getattr(place, "recall", None)  # by name, since POP3 is not loaded only to find that an account is none of it
    if recall is not None and root is not None:
        folder = root.folder(_INBOX)
        recall(lambda: root.records(_INBOX), folder.uidnext if folder else 1, look_again() if look_again else None)
