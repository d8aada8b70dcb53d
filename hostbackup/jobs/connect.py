"""From a profile's sections to places and stores: secrets resolved, addresses fixed for the run, identities checked at every login."""

from __future__ import annotations

import contextlib
import functools
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hostbackup.accounts import Account
from hostbackup.errors import ConnectionFailed, LoginRefused, NameNotResolved, NotCovered, ProfileError, SecretError
from hostbackup.jobs import pop3, store_facts
from hostbackup.jobs.accounts_pool import AccountsPool, AccountWork
from hostbackup.jobs.connect_sieve import FilterLogins
from hostbackup.jobs.identity import Identity
from hostbackup.jobs.mail_logins import AccountLine, MailLogins
from hostbackup.jobs.result import Result
from hostbackup.model import Observer, Part
from hostbackup.profile import BucketCopy, Imap, PathCopy, Pop3, Profile, Ssh
from hostbackup.profile.root import login_at
from hostbackup.protocols.limits import UNLIMITED, Limits
from hostbackup.secrets import Secret, SecretSource

if TYPE_CHECKING:
    from hostbackup.places.base import MailSource
    from hostbackup.places.local import LocalTree
    from hostbackup.places.mail import MailAccount
    from hostbackup.places.sieve import SieveTree
    from hostbackup.protocols.imap.deflate import Packing
    from hostbackup.protocols.imap.session import ImapSession, ImapTarget
    from hostbackup.protocols.imap.shared import SharedLogin
    from hostbackup.vault.packs.seal import Identities
    from hostbackup.vault.state import StateFolder
    from hostbackup.vault.stores import Store

Ask = Callable[[str], str]  # shows a question at the terminal, returns what was typed unseen


def weaker_mail(section: Imap | Pop3) -> Iterator[tuple[str, str]]:
    """What a mail section does not hold to as strictly as by default: setting and meaning."""
    if section.security == "plain":
        yield f"plain {'IMAP' if isinstance(section, Imap) else 'POP3'}", "passwords and mail cross the network unencrypted"
    if section.certificate:
        yield f'certificate = "{section.certificate}"', "only this certificate is accepted, whatever its name, its issuer and its dates"
    if section.certificate_name:
        yield f'certificate_name = "{section.certificate_name}"', "the certificate is verified against this name and not against host"
    if isinstance(section, Imap) and section.tunnel:
        yield f"tunnel = {section.tunnel[0]}", "who answers, and whether it is encrypted, is up to this command"


@dataclass(slots=True)
class Connections:
    """Makes every connection of a run. A name is resolved once: a run never moves over to another machine half-way."""

    profile: Profile
    identity: Identity = field(default_factory=Identity)
    observer: Observer = field(default_factory=Observer)
    ask: Ask | None = None
    on_secret: Callable[[Secret], object] = lambda secret: None  # hears of every secret in use, so that nothing printed shows one
    limits: Limits = UNLIMITED
    _addresses: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)  # what was said once is enough for a run
    _weak: dict[str, dict[str, Any]] = field(default_factory=dict)
    _secrets: dict[str, Secret] = field(default_factory=dict)
    _masters: dict[str, SharedLogin] = field(default_factory=dict)  # by mail server
    _packings: dict[str, Packing] = field(default_factory=dict)  # by mail server
    ssh_addresses: dict[str, str] = field(default_factory=dict)  # by side, as the first login of the run found it
    _imap_addresses: dict[tuple[str, str], str] = field(default_factory=dict)  # by side and host, where a mailbox was met
    logins: MailLogins = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # what is warned of
    _no_secret: dict[str, SecretError] = field(default_factory=dict)
    filter_logins: FilterLogins = field(init=False)
    ssh_refused: dict[str, LoginRefused] = field(default_factory=dict)  # by side: a refused login is never tried twice, whoever asks

    def __post_init__(self) -> None:
        self.logins = MailLogins(self.addresses, self.observer.note, self.observer.waiting)
        self.filter_logins = FilterLogins(self.logins)

    def _warn_once(self, text: str) -> None:
        with self._lock:
            new = text not in self._warned
            self._warned.add(text)
        if new:
            self.observer.warn(text)

    def weaker(self, section: str, setting: str, meaning: str) -> None:
        """A weaker setting that somebody chose and that is in use now: said out loud, and on record."""
        self._warn_once(f"{section}: {setting}, {meaning}")
        self._weak.setdefault(f"{section} {setting}", {"type": "weaker-setting", "section": section, "setting": setting, "meaning": meaning})

    def weaker_settings(self) -> list[dict[str, Any]]:
        """One line of evidence for each weaker setting that was in use (docs/vault-format.md)."""
        return list(self._weak.values())

    # -- secrets ------------------------------------------------------------------------------------------------------------------------

    def secret(self, source: SecretSource, where: str) -> str:
        if where in self._no_secret:
            raise self._no_secret[where]
        if where not in self._secrets:
            try:
                self._remember(where, source.resolve(where))
            except SecretError as error:
                self._no_secret[where] = error  # a program that gave nothing is not run again
                raise
        return self._secrets[where].reveal()

    def _remember(self, where: str, secret: Secret) -> None:
        self._secrets[where] = secret
        self.on_secret(secret)

    def prompt(self, where: str, question: str) -> str | None:
        if where not in self._secrets:
            if self.ask is None:
                return None
            self._remember(where, Secret(self.ask(question)))
        return self._secrets[where].reveal()

    # -- addresses and identity ---------------------------------------------------------------------------------------------------------

    def addresses(self, host: str, port: int, given: Sequence[str]) -> tuple[str, ...]:
        """Where TCP goes. Raises NameNotResolved."""
        from hostbackup.protocols import net

        if given:
            return tuple(given)
        if (host, port) not in self._addresses:
            self._addresses.setdefault((host, port), net.resolve(host, port))  # any thread may ask; all get the same answer
        return self._addresses[host, port]

    def reach(self, section: Ssh | Imap) -> tuple[str, ...]:
        """The addresses of a section's server, none where a tunnel leads there. Raises NameNotResolved."""
        if isinstance(section, Imap) and section.tunnel:
            return ()
        return self.addresses(section.host, section.port, section.address)

    def learn_new_endpoints(self) -> None:
        """Notes where the new sections lead, to recognise an old one that leads there too. A new name that does not resolve yet is no matter."""
        new = self.profile.new
        endpoints: dict[str, set[tuple[str, int]]] = {}
        for name, section in (("new.ssh", new.ssh), ("new.imap", new.imap)):
            if section is None:
                continue
            try:
                found = self.reach(section)
            except NameNotResolved:
                continue
            endpoints[name] = {(address, section.port) for address in found}
        self.identity.new_endpoints = endpoints

    def check_old_endpoints(self, *, web: bool = True, mail: bool = True) -> None:
        """Raises WrongMachine, before anything is read, where an old section leads to a new one. A name that does not resolve is told later."""
        self.learn_new_endpoints()
        old = self.profile.old
        sections = (("old.ssh", old.ssh if web else None), ("old.imap", old.imap if mail else None))
        for name, section in sections:
            if section is not None:
                try:
                    found = self.reach(section)
                except NameNotResolved:
                    continue
                self.identity.see_endpoint(name, section.host, found, section.port)
        if mail:
            pop3.check_old_endpoint(self)

    def check_new_endpoints(self, *, web: bool = True, mail: bool = True) -> None:
        """Raises WrongMachine where a new section leads to an old one: before DNS is switched, the new names may still do so."""
        self.learn_new_endpoints()
        old, new = self.profile.old, self.profile.new
        for kind, one, other in (("ssh", old.ssh if web else None, new.ssh), ("imap", old.imap if mail else None, new.imap)):
            if one is not None and other is not None:
                try:
                    found = self.reach(one)
                except NameNotResolved:
                    continue
                self.identity.see_new_endpoint(f"new.{kind}", other.host, f"old.{kind}", found, one.port)
        if mail:
            pop3.check_new_endpoint(self)

    # -- folders of this machine ----------------------------------------------------------------------------------------------------------

    def local_tree(self, name: str, path: Path) -> LocalTree:
        from hostbackup.places.local import LocalTree

        return LocalTree(path, side="old", part=Part("local", name))

    # -- IMAP ---------------------------------------------------------------------------------------------------------------------------

    def imap_section(self, side: str) -> Imap:
        section = (self.profile.old if side == "old" else self.profile.new).imap
        if section is None:
            raise ProfileError(f"[{side}.imap] is missing", where=str(self.profile.file), hint=f"mailboxes need a section [{side}.imap]")
        return section

    def imap_target(self, side: str, account: Account) -> ImapTarget:
        """Raises SecretError where no password is known and nobody can be asked: that account is not covered."""
        from hostbackup.jobs import mail_credentials
        from hostbackup.protocols.imap.session import ImapTarget
        from hostbackup.protocols.imap.shared import SharedLogin

        section = self.imap_section(side)
        host, address = login_at(section, account)
        found = mail_credentials.credentials(section, side, account, host, self)
        tunnel = mail_credentials.tunnel(section, account, host, f"{side}.imap {account.user}")
        for setting, meaning in weaker_mail(section):
            self.weaker(f"{side}.imap {host}", setting, meaning)
        return ImapTarget(
            host=host,
            user=account.user,
            password=found.password,
            port=section.port,
            security=section.security,
            addresses=tuple(address),
            timeout=self.limits.stall,
            ca_file=section.ca_file,
            rate=self.limits.rate,
            auth=section.auth,
            token=found.token,
            master=found.master,
            separator=found.separator,
            shared=self._masters.setdefault(f"{side}.imap {host}", SharedLogin()) if found.master else None,
            certificate=section.certificate or "",
            certificate_name=section.certificate_name or "",
            packing=self._packing(side, section, host),
            tunnel=tunnel,
        )

    def _packing(self, side: str, section: Imap, host: str) -> Packing | None:
        """What is known of the line to a mail server: shared by all its connections of the run."""
        from hostbackup.protocols.imap.deflate import Packing

        if section.compress == "never":
            return None
        where = f"{side}.imap {host}"
        return self._packings.setdefault(where, Packing(section.compress, lambda text: self.observer.note(f"{where}: {text}")))

    def mail_password(self, side: str, account: Account, host: str) -> str:
        where = f"{side}.{account.protocol} {account.user}"
        if account.password:
            password: str | None = self.secret(account.password, where)
        else:
            password = self.prompt(where, f"Password of {account.user} at {host} (nothing: leave this mailbox out)")
        if not password:
            raise NotCovered(
                "no password is known for this account", where=where, hint="add it to the profile or the accounts CSV, or run at a terminal"
            )
        return password

    def mail_line(self, side: str, account: Account) -> AccountLine[ImapSession]:
        """The account's connections, none of which is open yet. Raises SecretError, as `imap_target`."""
        target = self.imap_target(side, account)
        refused = functools.partial(self.filter_logins.refused, side, target.host, target.user)
        return self.logins.line(side, target, self.imap_section(side).connections, functools.partial(self._see_mail, side), refused)

    def _see_mail(self, side: str, made: ImapSession) -> None:
        if side == "old" and made.address:  # an account may have a host of its own, which the section's check did not cover
            self.identity.see_endpoint("old.imap", made.host, [made.address], made.port)
            self.identity.see_address("old.imap", made.address)
        self._imap_addresses[side, made.host] = made.address

    def learn_passwords(self, side: str, accounts: Iterable[Account]) -> None:
        """Has every secret of these accounts looked up, one after the other: later, in threads, nobody is asked and no program is run."""
        for account in accounts:
            with contextlib.suppress(SecretError):  # told when it is that account's turn
                if account.protocol == "pop3" and side == "old":
                    pop3.target(self, account)
                else:
                    self.imap_target(side, account)

    def accounts_pool(self, side: str, title: str, accounts: Sequence[Account]) -> AccountsPool:
        """To work on these accounts at once. Whoever has to be asked for passwords is asked here, one after the other."""
        self.learn_passwords(side, accounts)
        return AccountsPool(self.logins, self.identity, self.observer, title, len(accounts) > 1)

    def account_work(self, pool: AccountsPool, side: str, account: Account, part_user: str) -> AccountWork:
        """One account's share of the pool's work; `part_user` as for its mailbox."""
        over_pop3 = account.protocol == "pop3" and side == "old"
        section = pop3.section(self) if over_pop3 else self.imap_section(side)
        server = login_at(section, account)[0], section.port
        return AccountWork(Part("mail", part_user), side, Result(pool.observer()), server=server, limit=section.connections)

    def mailbox(self, side: str, account: Account, part_user: str, reader: Callable[[str], BinaryIO] | None = None) -> MailAccount:
        """`part_user` is the old server's name of the account: parts are called by it on both sides. `reader` opens stored messages, for proofs."""
        from hostbackup.places.mail import MailAccount

        shared = side == "old" and self.imap_section(side).shared
        part = Part("mail", part_user)
        line = self.mail_line(side, account)
        return MailAccount(
            line.main, side=side, part=part, observer=self.observer, reader=reader, shared=shared, pause=self.logins.rest, spare=line.spare
        )

    def knock_for_filters(self, side: str, accounts: Iterable[Account]) -> None:
        """Finds out, while their mail is worked on, whether the servers of these accounts offer filters."""
        port = self.imap_section(side).sieve_port
        for account in {account.host or "": account for account in accounts}.values():
            with contextlib.suppress(SecretError, ConnectionFailed):  # told when it is that account's turn
                self.filter_logins.knock(self.imap_target(side, account), port)

    def filters(
        self, side: str, account: Account, part_user: str, good: Mapping[bytes, str] | None = None, names: Mapping[bytes, bytes] | None = None
    ) -> SieveTree:
        """The Sieve scripts of an account; `part_user` as for its mailbox, the rest as in `SieveTree`. Goes where its mailbox was met in this run."""
        from hostbackup.places.sieve import SieveTree

        imap = self.imap_target(side, account)  # which tells where the section is unencrypted: that goes for filters too
        section = self.imap_section(side)
        log_in = self.filter_logins.factory(side, imap, section.sieve_port, self._imap_addresses.get((side, imap.host), ""), section.connections)
        return SieveTree(log_in, side=side, part=Part("sieve", part_user), good=good, names=names)

    def old_mailbox(self, account: Account, part_user: str, reader: Callable[[str], BinaryIO] | None = None) -> MailSource:
        """The account at the old server, by the protocol that it has there."""
        return pop3.mailbox(self, account, part_user, reader) if account.protocol == "pop3" else self.mailbox("old", account, part_user, reader)

    # -- copies -------------------------------------------------------------------------------------------------------------------------

    def identities(self, copy: BucketCopy | PathCopy, given: Path | None = None) -> Identities | None:
        """The secret keys to a copy: of the file that was given, else of the one that the profile names. None where there is none."""
        from hostbackup.vault.packs.seal import Identities

        path = given or copy.identity
        return Identities(path, self.ask) if path is not None and copy.encrypt_to else None

    def store(self, copy: BucketCopy | PathCopy, state: StateFolder | None = None) -> Store:
        """Where a copy lies. `state`: the vault's, which may know from earlier runs how a bucket behaves (`store_facts.keep`).

        Raises PlaceMissing for a folder that is not there; a bucket is first asked when it is used.
        """
        if isinstance(copy, PathCopy):
            from hostbackup.vault.disk import FolderStore

            return FolderStore(copy.path)
        from hostbackup.protocols.s3 import S3Target
        from hostbackup.vault.bucket import BucketStore

        where = f"copy {copy.name}"
        target = S3Target(
            bucket=copy.bucket,
            prefix=copy.prefix,
            endpoint=copy.endpoint,
            access_key=self.secret(copy.access_key, f"{where} access_key") if copy.access_key else None,
            secret_key=self.secret(copy.secret_key, f"{where} secret_key") if copy.secret_key else None,
            region=copy.region,
            addressing=copy.addressing,
            storage_class=copy.storage_class,
            sse=copy.sse,
            sse_key=copy.sse_key,
            retain_days=copy.retain_days or 0,
            retain_mode=copy.retain_mode or "governance",
            ca=str(copy.ca_file) if copy.ca_file else None,
            proxy=self._proxy(copy, where),
        )
        return BucketStore(target, facts=store_facts.known(state, copy.name, target.place))

    def _proxy(self, copy: BucketCopy, where: str) -> str | None:
        if not (copy.proxy and copy.proxy_password):
            return copy.proxy
        password = urllib.parse.quote(self.secret(copy.proxy_password, f"{where} proxy_password"), safe="")
        self.on_secret(Secret(password))  # as it stands in the address
        scheme, _, rest = copy.proxy.partition("://")
        user, _, host = rest.rpartition("@")
        return f"{scheme}://{user}:{password}@{host}"
