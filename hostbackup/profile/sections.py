"""The sections of a profile. Every key is described where it stands; `hostbackup schema` prints these sentences."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from hostbackup.errors import WrongValue
from hostbackup.profile.fields import (
    Addresses,
    Bucket,
    Certificate,
    Connections,
    Days,
    Endpoint,
    Host,
    Line,
    LocalPath,
    Many,
    Moment,
    Name,
    Patience,
    Patterns,
    Pin,
    Port,
    Prefix,
    Rate,
    Recipient,
    RemotePath,
    Requests,
    Stall,
    TimeZone,
    Words,
    Yearly,
    last_part,
    with_default,
)
from hostbackup.profile.shape import Called, NotEmpty, OneOf, Range, Section, after, before, made
from hostbackup.secrets import SecretSource

Security = Literal["tls", "starttls", "plain"]
Step = Literal["check", "backup", "verify", "push", "copy", "dns", "report"]


class Ssh(Section):
    """How to reach a server by SSH (SFTP)."""

    host: Host
    """The server's name: for known_hosts and for people."""
    address: Addresses = ()
    """Where TCP goes: one IP address or several, tried in order. Without it, DNS decides."""
    port: Port = 22
    """TCP port."""
    user: Line | None = None
    """Login name; without it ~/.ssh/config decides, then the local user's name."""
    password: SecretSource | None = None
    """Login password. Without password and key the agent and ~/.ssh/config are used, then a person is asked."""
    key: LocalPath | None = None
    """Private key file."""
    passphrase: SecretSource | None = None
    """What opens the private key."""
    host_key: Pin | None = None
    """The server's only accepted key, as SHA256:… fingerprint. Without it known_hosts decides, strictly."""
    known_hosts: LocalPath | None = None
    """File of known host keys; ~/.ssh/known_hosts by default."""
    shell: Literal["auto", "never"] = "auto"
    """May commands (sha256sum) be run on the server, where it allows them."""
    client: Literal["paramiko", "openssh"] = "paramiko"
    """What speaks SSH: the built-in library, or the system's ssh program (OpenSSH 8.5 or newer; faster with large files)."""
    legacy: bool = False
    """Accept SHA-1 signatures and key exchange and old ciphers, for servers that have nothing else (client = "openssh")."""

    @after
    def _consistent(self) -> None:
        if self.passphrase and not self.key:
            raise WrongValue("passphrase is of use only with key")
        if self.legacy and self.client != "openssh":
            raise WrongValue('legacy = true needs client = "openssh"')


class Web(Section):
    """One web tree on the old server."""

    path: RemotePath
    """Folder on the server, absolute or relative to the login folder."""
    name: Name
    """What it is called in the vault; by default the path's last part."""
    exclude: Patterns = ()
    """gitignore patterns of what is left out."""
    volatile: Patterns = ()
    """gitignore patterns of what is backed up but not expected to stand still."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        return _named_by_path(value)


class NewWeb(Section):
    """Where one web tree goes on the new server."""

    source: Annotated[str, Called("from")]
    """The name of an [[old.web]]."""
    path: RemotePath
    """Folder on the new server, absolute or relative to the login folder."""
    adapted: Patterns = ()
    """gitignore patterns of files that the new server has in a version of its own: written only if absent."""


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


class Old(Section):
    """The server that is left. It is only ever read."""

    ssh: Ssh | None = None
    """SSH access."""
    web: Many[Web] = ()
    """Web trees to bring out."""
    imap: Imap | None = None
    """Mailboxes to bring out."""
    pop3: Pop3 | None = None
    """Mailboxes of a server without IMAP, by POP3: the inbox alone. An account that stands in [old.imap] too is read by IMAP."""

    @after
    def _each_name_once(self) -> None:
        _no_two([web.name for web in self.web], "web trees", "give one of them a name = …")


class New(Section):
    """The server that is moved to."""

    ssh: Ssh | None = None
    """SSH access."""
    web: Many[NewWeb] = ()
    """Where web trees go."""
    imap: Imap | None = None
    """Where mailboxes go."""

    @after
    def _each_path_once(self) -> None:
        _no_two([web.path.rstrip("/") for web in self.web], "web trees at the path", "each tree needs a folder of its own")


class MailRules(Section):
    """What applies to mail as a whole."""

    expected: LocalPath | None = None
    """The provider's list of mailboxes, one a line; one that is not covered fails the gates."""
    folders: dict[str, str] = made(default_factory=dict)
    """Old folder name = new folder name, before SPECIAL-USE and the built-in table; two old names with one new name become one folder."""


class Local(Section):
    """A folder on this machine that belongs to the move."""

    path: LocalPath
    """The folder; relative to the profile."""
    name: Name
    """What it is called in the vault; by default the path's last part."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        return _named_by_path(value, local=True)


class BucketCopy(Section):
    """A copy of the vault in an S3-compatible bucket."""

    name: Name
    """What the copy is called; bucket/prefix by default."""
    bucket: Bucket
    """The bucket's name."""
    prefix: Prefix = ""
    """Where in the bucket."""
    endpoint: Endpoint | None = None
    """The store's address; Amazon's own by default."""
    region: Line | None = None
    """The store's region, where it wants one."""
    access_key: SecretSource | None = None
    """Key id; without both keys boto3 looks where it always does."""
    secret_key: SecretSource | None = None
    """Secret key."""
    encrypt_to: Many[Recipient] = ()
    """age recipients: what leaves this machine is encrypted to them."""
    mode: Literal["vault", "mirror"] = "vault"
    """vault: a copy from which everything can be restored; mirror: the newest state as plain files."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        where = [value.get("bucket"), value.get("prefix", "")]
        return with_default(value, "name", "/".join(where).strip("/") if all(isinstance(text, str) for text in where) else "?")

    @after
    def _both_keys(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            raise WrongValue("needs access_key and secret_key, or neither")


class PathCopy(Section):
    """A copy of the vault on another disk."""

    name: Name
    """What the copy is called; the path by default."""
    path: LocalPath
    """A folder that exists; on another device than the vault, to count as off-machine."""
    encrypt_to: Many[Recipient] = ()
    """age recipients: what is copied is encrypted to them."""
    mode: Literal["vault", "mirror"] = "vault"
    """vault: a copy from which everything can be restored; mirror: the newest state as plain files."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        path = value.get("path") if isinstance(value, dict) else None
        return with_default(value, "name", (path.rstrip("/\\") or path) if isinstance(path, str) else "?")


def _copy_form(value: object) -> type[BucketCopy | PathCopy]:
    table = value if isinstance(value, dict) else {}
    if ("bucket" in table) == ("path" in table):
        raise WrongValue("needs either bucket or path")
    return BucketCopy if "bucket" in table else PathCopy


Copy = Annotated[BucketCopy | PathCopy, OneOf(_copy_form)]


class Domain(Section):
    """The domain and its zone."""

    name: Host
    """The domain's name."""
    zone: LocalPath | None = None
    """The zone as handed over by the provider."""
    new_nameservers: Many[Host] = ()
    """The name servers after the move."""
    dns_now: Literal["old-host", "new-host", "self", "other"] | None = None
    """Who runs the zone today."""
    dns_after: Literal["old-host", "new-host", "self", "other"] | None = None
    """Who will run it."""
    transfer: bool | None = None
    """Does the registration move too (AuthCode, a month of validity left)."""
    expires: date | None = None
    """When the registration expires."""
    authcode: SecretSource | None = None
    """The code that lets the registration move."""
    authcode_issued: date | None = None
    """When the code was issued; it lapses."""


class Contract(Section):
    """The contract's calendar: what is known so far, and the provider's rules. Days, and times without an offset, are those of `timezone`."""

    provider: Literal["j-motto"] | None = None
    """A preset of the rules below."""
    timezone: TimeZone = "Asia/Tokyo"
    """Where the provider's days begin and end."""
    notice_posted: date | None = None
    """When the notice was sent."""
    notice_accepted: date | None = None
    """When the provider accepted it."""
    end: date | None = None
    """Last day of the old contract, as confirmed by the provider."""
    new_start: date | None = None
    """First day of the new contract."""
    switch_wanted: Moment | None = None
    """When DNS is to be switched."""
    switch_booked: Moment | None = None
    """The switch as booked with the provider."""
    switched: Moment | None = None
    """When DNS was switched."""
    overlap_days: Days | None = None
    """Days for which both servers are wanted after the switch."""
    closed_days: Many[date | Yearly] = ()
    """Days on which the provider does not work, beside weekends and public holidays; \"12-29\" is meant every year."""
    asked: dict[str, str | bool | int | date] = made(default_factory=dict)
    """Answers from the provider: question = answer."""
    groupware: Literal["keep", "cancel", "none", "unknown"] = "unknown"
    """What becomes of a groupware contract beside the hosting."""
    cutoff_day: Annotated[int, Range(least=1, most=31)] | None = None
    """Rule: a notice accepted up to this day of a month counts for that month."""
    end_months: Annotated[int, Range(least=0, most=24)] | None = None
    """Rule: the contract ends with the month so many months after the one the notice counts for."""
    switch_lead_days: Days | None = None
    """Rule: how many days ahead a switch must be booked."""
    transfer_business_days: Days | None = None
    """Rule: business days that a transfer of the registration may take."""
    domain_days_left: Days | None = None
    """Rule: days of validity the registration must have left at its transfer."""
    authcode_days: Days | None = None
    """Rule: days after its issue until which the AuthCode may be used."""
    quiet_days: Days | None = None
    """Rule: days without late mail at the old server before it may go."""


class Pace(Section):
    """How hard a run may work servers and the line. The options of the same names come before these."""

    bwlimit: Rate | None = None
    """Bytes a second, of web and mail together and both ways: 500K, 2M."""
    connections: Connections = 1
    """Logins at once on an SSH server; each has several channels, and more may help where a server slows down each."""
    requests: Requests | None = None
    """SFTP requests without a reply at once on a server; without it, as many as pay."""
    stall_timeout: Stall = 60.0
    """Seconds without a byte from a server that owes an answer, after which the line counts as cut."""


class Sync(Section):
    """What `hostbackup sync` does."""

    steps: Annotated[Many[Step], NotEmpty()] = ("backup", "verify", "copy")
    """The steps, in order; one whose section is absent is skipped."""


def _named_by_path(value: Any, *, local: bool = False) -> Any:
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or "\0" in path:
        return with_default(value, "name", "?")  # the path's own error says it all
    default = last_part(Path(path).as_posix() if local else path)
    if default is None and "name" not in value:
        raise WrongValue(f"the path {path!r} ends in no name; add name = …")
    return with_default(value, "name", default)


def _no_two(names: list[str], what: str, hint: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise WrongValue(f"two {what} {name!r}; {hint}")
