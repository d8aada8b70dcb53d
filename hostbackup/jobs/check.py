"""Preflight: is every server there, is it the right one, what does it hold, is there room. Changes nothing on any of them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hostbackup import osal
from hostbackup.accounts import Account
from hostbackup.errors import ConnectionFailed, Damaged, HostKeyUnknown, NotOffered, PlaceMissing, SecretError, UsageError, WrongMachine
from hostbackup.jobs import connect_ssh, pop3
from hostbackup.jobs.accounts_pool import AccountWork
from hostbackup.jobs.check_copies import check_copy
from hostbackup.jobs.connect import Connections
from hostbackup.jobs.coverage import tell_coverage
from hostbackup.jobs.result import Result
from hostbackup.model import Entry, Failure, Folder, Kind, Part, name_json
from hostbackup.places.base import Place
from hostbackup.profile import Profile, Ssh, Web
from hostbackup.vault.vault import Vault

_SETTINGS = re.compile(
    rb"(^|/)(wp-config\.php|configuration\.php|settings\.php|config\.php|database\.php|\.env|\.htaccess|\.user\.ini|php\.ini|parameters\.yml)$"
)
_SETTINGS_SIZE = 256 * 1024
_DATABASE = re.compile(rb"(?im)(DB_HOST|DB_SERVER|database_host|\$host\b|DATABASE_URL)['\"\s,:=>)]+([^\s'\";,]{1,120})")
_RATE = 8_000_000  # bytes a second that an ordinary line to a web host carries: the estimate's only guess
_ENTRY_SECONDS = 0.0005
_LARGE = 256 << 20  # bytes of a file with which another client makes a difference that is felt


@dataclass(slots=True)
class Check:
    """Use: `run()`. `trust` records the first key of an unknown host; `probe` may write to a bucket, and tidies up."""

    profile: Profile
    connections: Connections
    result: Result
    vault: Vault | None = None
    trust: bool = False
    probe: bool = False
    _bytes: int = field(default=0, init=False)
    _mail_bytes: int = field(default=0, init=False)  # of mail whose size is told
    _entries: int = field(default=0, init=False)
    _largest: int = field(default=0, init=False)  # bytes of the largest file

    def run(self) -> Result:
        self.connections.learn_new_endpoints()
        self.result.details["servers"] = []
        old, new = self.profile.old, self.profile.new
        for side, section in (("old", old.ssh), ("new", new.ssh)):
            if section is not None:
                self._try(side, f"{side}.ssh", partial(self._ssh, side, section))
        tell_coverage(self.profile, self.result)
        for side, imap in (("old", old.imap), ("new", new.imap)):
            if imap is not None:
                self._accounts(side)
        if old.pop3 is not None:
            self._pop3_accounts()
        for local in self.profile.local:
            part = Part("local", local.name)
            self._try("old", part.id, partial(self._local, part, local.path))
        for copy in self.profile.copies:
            look = partial(check_copy, self.connections, copy, self.result, self.vault, probe=self.probe)
            self._try(f"copy:{copy.name}", "", look)
        self._room()
        if not (self.result.done or self.result.undone):
            raise UsageError(
                "the profile names no server, folder or copy", where=str(self.profile.file), hint="add [old.ssh], [old.imap] or [old.pop3]"
            )
        return self.result

    def _try(self, side: str, part: str, work: Callable[[], None], into: Result | None = None) -> None:
        result = into or self.result
        try:
            work()
        except (ConnectionFailed, PlaceMissing, WrongMachine, SecretError, Damaged) as error:
            result.fail_part(error, side=side, part=part)
        else:
            result.done += 1

    # -- SSH ----------------------------------------------------------------------------------------------------------------------------

    def _ssh(self, side: str, section: Ssh) -> None:
        client = connect_ssh.client(self.connections, side)
        target = connect_ssh.target(self.connections, side)
        self.result.observer.phase(f"{side}.ssh {section.host}")
        row: dict[str, Any] = {
            "section": f"{side}.ssh",
            "host": section.host,
            "port": section.port,
            "client": section.client,
            "legacy": section.legacy,
        }
        self.result.details["servers"].append(row)
        if side == "old":
            found = self.connections.addresses(section.host, section.port, section.address)
            self.connections.identity.see_endpoint("old.ssh", section.host, found, section.port)
        else:
            self.connections.check_new_endpoints(mail=False)
        kind, fingerprint, key = client.scan_host_key(target)
        row["host_key"] = f"{kind} {fingerprint}"
        log_in = connect_ssh.factory(self.connections, side)
        try:
            session = log_in()
        except HostKeyUnknown:
            if not self.trust:
                raise
            row["recorded_in"] = str(client.record_host_key(target, section.known_hosts, key))
            session = log_in()
        try:
            row.update(address=session.address, software=session.server_version, shell=section.shell == "auto" and session.has_shell())
        finally:
            session.close()
        if side == "old":
            for web in self.profile.old.web:
                part = Part("web", web.name)
                self._try("old", part.id, partial(self._web, part, web))
        # The old side comes first: by now it is known what there is to move to the new one as well.
        if section.client == "paramiko" and self._largest >= _LARGE and (version := self._openssh()):
            # Its window of 2 MiB is 200 MB/s at 10 ms, about what the built-in client does on any line.
            row["advice"] = f'with a round trip below 10 ms, large files move faster with client = "openssh" (OpenSSH {version} is installed)'

    def _openssh(self) -> str:
        """The version of the system's ssh program, "" where there is none that will do."""
        from hostbackup.protocols import openssh

        try:
            return ".".join(map(str, openssh.openssh_version(openssh.program())))
        except (UsageError, ConnectionFailed):
            return ""

    def _web(self, part: Part, web: Web) -> None:
        self._tree(part, connect_ssh.old_tree(self.connections, web))

    def _local(self, part: Part, path: Path) -> None:
        self._tree(part, self.connections.local_tree(part.name, path))

    def _tree(self, part: Part, place: Place[Entry]) -> None:
        self.result.observer.phase(f"{part}: looking")
        row = Counter(files=0, folders=0, links=0, other=0, bytes=0)
        counters = {Kind.FILE: "files", Kind.DIR: "folders", Kind.LINK: "links", Kind.OTHER: "other"}
        settings: list[Entry] = []
        try:
            for listing in place.scan():
                if listing.failure is not None:
                    self.result.fail(listing.failure)
                for entry in listing.items:
                    row[counters[entry.kind]] += 1
                    row["bytes"] += entry.size
                    self._largest = max(self._largest, entry.size)
                    if entry.kind is Kind.FILE and entry.size <= _SETTINGS_SIZE and _SETTINGS.search(entry.path):
                        settings.append(entry)
                self.result.observer.advance(entries=len(listing.items))
            self._settings(part, place, settings)
        finally:
            place.close()
        self.result.details.setdefault("parts", []).append({"part": part.id, **row})
        self._entries += row["files"]
        self._bytes += row["bytes"]
        self.result.counts["files"] += row["files"]
        self.result.counts["bytes"] += row["bytes"]

    def _settings(self, part: Part, place: Place[Entry], wanted: list[Entry]) -> None:
        """Files that name a database host or an absolute path of the old server: what somebody must adapt on the new one."""
        memory = Memory()
        for read in place.read(wanted, memory):
            for what in _names_in(memory.contents.pop(read.digest, b"")):
                row = {"part": part.id, **name_json(read.item.path), "names": what}
                self.result.details.setdefault("to_adapt", []).append(row)

    # -- IMAP ---------------------------------------------------------------------------------------------------------------------------

    def _accounts(self, side: str) -> None:
        section = self.connections.imap_section(side)
        if side == "old":
            try:
                found = self.connections.reach(section)
                self.connections.identity.see_endpoint("old.imap", section.host, found, section.port)
            except (ConnectionFailed, WrongMachine) as error:
                self.result.fail_part(error, side=side, part="old.imap")
                return
        accounts = [account for account in self.profile.old_accounts() if side == "new" or account.protocol == "imap"]
        logins = [account if side == "old" else self.profile.new_account_for(account) for account in accounts]
        self._pool(side, f"{side}.imap {section.host}", accounts, logins, self._mailbox)

    def _pool(self, side: str, title: str, accounts: list[Account], logins: list[Account], look: Callable[[AccountWork, Account], None]) -> None:
        pool = self.connections.accounts_pool(side, title, logins)
        works = [self.connections.account_work(pool, side, login, account.user) for account, login in zip(accounts, logins, strict=True)]
        for login, work in zip(logins, works, strict=True):
            work.work = partial(look, work, login)
        pool.run(works)
        for work in works:
            self.result.add(work.result)
            self._entries += work.result.counts["messages"]
            self._mail_bytes += work.result.counts["bytes"]

    def _mailbox(self, work: AccountWork, account: Account) -> None:
        """Runs in a thread of its own, beside others."""
        side, part, result = work.side, work.part, work.result
        result.observer.phase(f"{side}.imap {account.user}")
        place = self.connections.mailbox(side, account, part.name)
        row: dict[str, Any] = {"section": f"{side}.imap", "user": account.user, "folders": 0, "messages": 0}
        try:
            folders: list[Folder] = place.folders()
            seen: dict[str, int] = {}
            for folder in folders:
                status = place.status(folder.name)
                if status is not None:
                    row["messages"] += status.exists
                    seen[folder.name.decode("latin-1")] = status.uidvalidity
            row["folders"] = len(folders)
            if place.foreign:
                from hostbackup.protocols.imap.names import display

                row["shared"] = [display(name) for name in place.foreign]
            row["capabilities"] = place.capabilities()
            if side == "old":
                self.connections.identity.see_mailbox("old.imap", account.user, seen)
        finally:
            place.close()
        result.details.setdefault("mailboxes", []).append(row)
        if side == "old":
            result.counts["messages"] += row["messages"]
        if self.connections.imap_section(side).sieve != "never":
            filters = Part("sieve", part.name)
            self._try(side, filters.id, partial(self._filters, side, filters, account, row, result), result)

    def _filters(self, side: str, part: Part, account: Account, row: dict[str, Any], result: Result) -> None:
        """How many filters there are, once the mailbox has let us in."""
        place = self.connections.filters(side, account, part.name)
        try:
            for listing in place.scan():
                if listing.failure is not None:
                    result.fail(listing.failure)
                row["filters"] = sum(entry.kind is Kind.FILE for entry in listing.items)
        except NotOffered as error:
            result.not_covered(error, side=side, part=part.id)
        finally:
            place.close()

    # -- POP3 ---------------------------------------------------------------------------------------------------------------------------

    def _pop3_accounts(self) -> None:
        try:
            pop3.check_old_endpoint(self.connections)
        except WrongMachine as error:
            self.result.fail_part(error, side="old", part=pop3.SECTION)
            return
        accounts = [account for account in self.profile.old_accounts() if account.protocol == "pop3"]
        self._pool("old", pop3.SECTION, accounts, accounts, self._inbox)

    def _inbox(self, work: AccountWork, account: Account) -> None:
        """Runs in a thread of its own, beside others."""
        result = work.result
        result.observer.phase(f"{pop3.SECTION} {account.user}")
        place = pop3.mailbox(self.connections, account, work.part.name)
        try:
            messages, size = place.totals()
            row = {"section": pop3.SECTION, "user": account.user, "folders": 1, "messages": messages, "bytes": size}
            row["capabilities"] = place.capabilities()
        finally:
            place.close()
        result.details.setdefault("mailboxes", []).append(row)
        result.counts["messages"] += messages
        result.counts["bytes"] += size

    # -- room ---------------------------------------------------------------------------------------------------------------------------

    def _room(self) -> None:
        """Free disk where the vault is or will be, and how long a first run may take."""
        folder = self.profile.vault
        while not folder.exists():
            folder = folder.parent
        free = osal.free_bytes(folder)
        self.result.details["vault"] = {"path": str(self.profile.vault), "exists": self.vault is not None, "free_bytes": free}
        self.result.details["estimate"] = {"bytes": self._bytes, "seconds": round(self._bytes / _RATE + self._entries * _ENTRY_SECONDS, 1)}
        coming = self._bytes + self._mail_bytes
        if self.vault is None and free < coming * 1.1:
            reason = f"{free} bytes are free and {coming} would come"
            self.result.fail(Failure("vault", "", str(self.profile.vault).encode(), "disk-full", reason, "put the vault on a larger disk"))


def _names_in(data: bytes) -> list[str]:
    found = [f"database host {match[2].decode('utf-8', 'backslashreplace')}" for match in _DATABASE.finditer(data)]
    paths = sorted(
        {match[0].decode("utf-8", "backslashreplace") for match in re.finditer(rb"/(?:home|var/www|usr/home|export)/[\w./@-]{2,120}", data)}
    )
    return found + [f"path {path}" for path in paths[:5]]


class Memory:
    """A sink for a few small files."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def open(self, size_hint: int = 0) -> Held:
        return Held(self.contents)


class Held:
    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = contents
        self._data = bytearray()

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._data += data

    def commit(self) -> tuple[str, int]:
        digest = hashlib.sha256(self._data).hexdigest()
        self._contents[digest] = bytes(self._data)
        return digest, len(self._data)

    def abort(self) -> None:
        self._data.clear()
