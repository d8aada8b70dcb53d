"""Where mailboxes are: mail servers that speak IMAP or POP3, and their accounts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from hostbackup.errors import WrongValue
from hostbackup.profile.fields import (
    Addresses,
    Certificate,
    Connections,
    Host,
    Line,
    LocalPath,
    Many,
    Patience,
    Port,
    Words,
    with_default,
)
from hostbackup.profile.shape import After, Section, after, before, made
from hostbackup.secrets import SecretSource

Security = Literal["tls", "starttls", "plain"]


class MailAccount(Section):
    """One mailbox, in addition to those of the accounts CSV."""

    user: Line
    """Login name."""
    password: SecretSource | None = None
    """Login password; asked for at a terminal if absent."""
    address: Addresses = ()
    """Where TCP goes for this account, instead of the section's address."""
    new_user: Line | None = None
    """Login name at the new server, if it differs."""
    new_password: SecretSource | None = None
    """Password at the new server, if it differs."""
    host: Host | None = None
    """Server of this account, instead of the section's host."""


class Mail(Section):
    """What IMAP and POP3 sections have in common."""

    host: Host
    """The mail server's name: for TLS and for people."""
    address: Addresses = ()
    """Where TCP goes: one IP address or several, tried in order. Without it, DNS decides."""
    port: Port
    """TCP port; the usual one of the protocol and its security by default."""
    security: Security = "tls"
    """tls from the first byte, starttls, or plain (unencrypted, and said so in the output)."""
    accounts: LocalPath | None = None
    """CSV with the columns user,password[,address,new_user,new_password,host]."""
    account: Many[MailAccount] = ()
    """Accounts one by one."""
    ca_file: LocalPath | None = None
    """PEM file of the certificate authorities to trust instead of the system's."""
    certificate: Certificate | None = None
    """The server's only accepted certificate, as SHA256:… fingerprint; its name, issuer and dates do not matter then."""
    certificate_name: Host | None = None
    """The name that the certificate is for, where it is not host."""
    connections: Connections = 6
    """Connections to the mail server at once, all accounts together: web hosts allow 10 to 20 for each address; at most 4 of them for one account."""

    @after
    def _each_account_once(self) -> None:
        users = [account.user for account in self.account]
        for user in users:
            if users.count(user) > 1:
                raise WrongValue(f"two accounts of the user {user!r}; keep one of them")

    @after
    def _one_certificate(self) -> None:
        if self.certificate and (self.certificate_name or self.ca_file):
            raise WrongValue("certificate alone decides; take out certificate_name and ca_file")
        if self.security == "plain" and (self.certificate or self.certificate_name):
            raise WrongValue('security = "plain" shows no certificate; take out certificate and certificate_name')


class ImapAccount(MailAccount):
    """One mailbox, in addition to those of the accounts CSV."""

    token: SecretSource | None = None
    """OAuth 2 access token instead of a password; asked for anew at each login."""

    @after
    def _one_of_both(self) -> None:
        if self.token and self.password:
            raise WrongValue("has password and token; keep one of them")


class Master(Section):
    """Somebody who may open every mailbox of a server, so that no account needs a password of its own."""

    user: Line
    """The master's name."""
    password: SecretSource
    """The master's password."""
    separator: Line | None = None
    """What joins a mailbox's name and the master's into a login name (Dovecot: often \"*\"); without it the two go apart, by SASL PLAIN."""


class Imap(Mail):
    """A mail server that speaks IMAP."""

    port: Port = 993
    """TCP port: 993 for tls, 143 for starttls and plain by default."""
    account: Many[ImapAccount] = ()
    """Accounts one by one."""
    auth: Literal["auto", "password", "xoauth2", "oauthbearer"] = "auto"
    """How to log in; auto: by what is known of an account, password or token, and the best way that the server offers for it."""
    token: SecretSource | None = None
    """OAuth 2 access tokens of accounts without a password, usually { command = ["…", "{user}"] }; asked for anew at each login."""
    master: Master | None = None
    """Somebody who opens every mailbox of this section; passwords of accounts do not count then."""
    compress: Literal["auto", "always", "never"] = "auto"
    """Have mail packed on its way where the server can (COMPRESS=DEFLATE); auto: where the line turns out to be slow."""
    shared: bool = False
    """Whether folders that others share with an account are taken along with its own; `check` lists them either way (old side only)."""
    patience: Patience = 14.0
    """Seconds that `push` waits after a cut for mail which the server may still be at work on, before it appends it again (new side only)."""
    tunnel: Words | None = None
    """A command that speaks IMAP on its input and output instead of a TCP connection; {user} and {host} stand for an account's."""
    sieve: Literal["auto", "never"] = "auto"
    """Are the accounts' filters (Sieve scripts) part of the move: where the server offers them by ManageSieve, or never."""
    sieve_port: Port = 4190
    """TCP port of ManageSieve, on the same host with the same logins; encrypted by STARTTLS unless security is plain."""

    @before
    @classmethod
    def _default_port(cls, value: Any) -> Any:
        insecure = isinstance(value, dict) and value.get("security") in ("starttls", "plain")
        return with_default(value, "port", 143 if insecure else None)

    @after
    def _one_way_in(self) -> None:
        tokens = self.token is not None or any(account.token for account in self.account)
        if tokens and self.auth == "password":
            raise WrongValue('a token is of no use with auth = "password"')
        if not tokens and self.auth in ("xoauth2", "oauthbearer"):
            raise WrongValue(f'auth = "{self.auth}" needs a token, such as {{ command = ["access-token", "{{user}}"] }}')
        if self.master and (tokens or self.auth in ("xoauth2", "oauthbearer")):
            raise WrongValue("a master logs in by password; keep either master or token")

    @after
    def _one_kind_of_line(self) -> None:
        told = self.given
        if self.tunnel:
            unused = [key for key in ("address", "port", "security", "ca_file", "certificate", "certificate_name") if key in told]
            if unused or any(account.address for account in self.account):
                raise WrongValue(f"with tunnel there is no TCP and no TLS of ours; take out {', '.join(unused) or 'the address of accounts'}")


class Pop3(Mail):
    """A mail server that speaks only POP3."""

    port: Port = 995
    """TCP port: 995 for tls, 110 for starttls and plain by default."""
    apop: bool = True
    """On a plain connection, log in by APOP where the server offers it, so that the password itself is not sent."""
    allow_expire_0: bool = False
    """Read also from a server that says (EXPIRE 0) it deletes what was retrieved; without this it is left alone."""

    @before
    @classmethod
    def _default_port(cls, value: Any) -> Any:
        insecure = isinstance(value, dict) and value.get("security") in ("starttls", "plain")
        return with_default(value, "port", 110 if insecure else None)


def _folders(value: dict[str, str]) -> dict[str, str]:
    for old, new in value.items():
        if not old or not new.strip("/"):
            raise WrongValue(f"{old!r} = {new!r}: expected the names of two folders")
    return value


class MailRules(Section):
    """What applies to mail as a whole."""

    expected: LocalPath | None = None
    """The provider's list of mailboxes, one a line; one that is not covered fails the gates."""
    folders: Annotated[dict[str, str], After(_folders)] = made(default_factory=dict)
    """Old folder name = new folder name, before SPECIAL-USE and the built-in table; two old names with one new name become one folder."""
