"""The profile as a whole: its sections, what they mean together, and its JSON Schema."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from hostbackup import secrets
from hostbackup.accounts import Account, read_accounts, read_mailboxes
from hostbackup.errors import ProfileError, SecretError, WrongValue
from hostbackup.profile.copies import Copy, PathCopy
from hostbackup.profile.fields import LocalPath, Many, Name
from hostbackup.profile.leaving import Contract, Domain
from hostbackup.profile.mail import ImapAccount, Mail, MailRules
from hostbackup.profile.sections import New, Old, Pace, Sync
from hostbackup.profile.shape import Called, Section, after, made
from hostbackup.profile.trees import Local
from hostbackup.secrets import SecretSource


class Profile(Section):
    """A hostbackup profile: one customer's move from an old server to a new one."""

    name: Name
    """What the move is called; the file's name without .toml by default."""
    vault: LocalPath
    """The folder of the backup; made on the first run, mode 0700."""
    view: Literal["link", "copy", "none"] = "link"
    """How latest/ is made: linked to the objects where possible, copied, or not at all."""
    old: Old = made(default_factory=Old)
    """The server that is left."""
    mail: MailRules = made(default_factory=MailRules)
    """What applies to mail as a whole."""
    local: Many[Local] = ()
    """Folders on this machine that belong to the move."""
    new: New = made(default_factory=New)
    """The server that is moved to."""
    copies: Annotated[Many[Copy], Called("copy")] = ()
    """Where the vault is copied to."""
    domain: Domain | None = None
    """The domain and its zone."""
    contract: Contract | None = None
    """The contract's calendar."""
    limits: Pace = made(default_factory=Pace)
    """How hard a run may work servers and the line."""
    sync: Sync = made(default_factory=Sync)
    """What `hostbackup sync` does."""

    @property
    def file(self) -> Path:
        """Where the profile was read from."""
        return cast(Path, self.__dict__.get("_file", Path("profile.toml")))

    def was_read_from(self, file: Path) -> None:
        self.__dict__["_file"] = file

    @after
    def _consistent(self) -> None:
        _once([local.name for local in self.local], "local", "folders")
        _once([copy.name for copy in self.copies], "copy", "copies")
        _apart(self.vault, self.local, self.copies)
        known = [web.name for web in self.old.web]
        for web in self.new.web:
            if web.source not in known:
                there = f"there are {', '.join(known)}" if known else "there is no [[old.web]] at all"
                raise WrongValue(f"new.web.from = {web.source!r} names no old.web; {there}")

    def old_accounts(self) -> list[Account]:
        """The mailboxes of the old server: those of the CSV, then those of the profile. Raises AccountsError or ProfileError.

        IMAP comes first, and shows more: an account of [old.pop3] that stands in [old.imap] too is the latter's.
        """
        return self._old_accounts

    @cached_property
    def _old_accounts(self) -> list[Account]:
        accounts = self._accounts(self.old.imap, "old.imap")
        better = {account.user for account in accounts}
        only_pop3 = [account for account in self._accounts(self.old.pop3, "old.pop3") if account.user not in better]
        return accounts + [replace(account, protocol="pop3") for account in only_pop3]

    @cached_property
    def _new_accounts(self) -> dict[str, Account]:
        return {account.user: account for account in self._accounts(self.new.imap, "new.imap")}

    def _accounts(self, section: Mail | None, where: str) -> list[Account]:
        if section is None:
            return []
        accounts = read_accounts(section.accounts) if section.accounts else []
        rows = {account.user: account.where for account in accounts}
        for index, told in enumerate(section.account):
            key = f"{where}.account[{index}]"
            if told.user in rows:
                raise ProfileError(f"user {told.user!r} is also in {rows[told.user]}; keep one of the two", where=f"{self.file}: {key}")
            accounts.append(
                Account(
                    user=told.user,
                    password=told.password,
                    address=told.address,
                    new_user=told.new_user or "",
                    new_password=told.new_password,
                    host=told.host or "",
                    token=told.token if isinstance(told, ImapAccount) else None,
                    where=key,
                )
            )
        return accounts

    def expected_mailboxes(self) -> list[str] | None:
        """The provider's list, None where the profile names none. Raises AccountsError."""
        return self._expected

    @cached_property
    def _expected(self) -> list[str] | None:
        return read_mailboxes(self.mail.expected) if self.mail.expected else None

    def new_account_for(self, account: Account) -> Account:
        """How an old account logs in at the new server.

        Its name is `new_user`, else the same. Its password is `new_password`, else the one [new.imap] has for that name, else the same, unless
        there is a token for it at the new server.
        `address` and `host` are those that [new.imap] has for that name; the old account's never count here.
        """
        user = account.new_user or account.user
        told = self._new_accounts.get(user)
        token = told.token if told else None
        by_token = token or (self.new.imap and self.new.imap.token)
        password = account.new_password or (told.password if told else None) or (None if by_token else account.password)
        return Account(
            user=user,
            password=password,
            address=told.address if told else (),
            host=told.host if told else "",
            token=token,
            where=told.where if told else account.where,
        )

    def secrets(self) -> list[tuple[str, SecretSource]]:
        """Every secret the profile itself names, with its key."""
        return list(_secrets(self, ""))

    def check_secrets(self, *sections: str) -> list[SecretError]:
        """What is missing, as far as it can be known without a network and without running a command, all at once.

        `sections` narrows it to keys that begin so: `check_secrets("old", "copy")`. A passphrase or a password that a person can be asked for
        is no secret of the profile, so its absence is none of this.
        """
        return secrets.check((key, source) for key, source in self.secrets() if not sections or key.startswith(sections))

    def need(self, key: str, command: str) -> None:
        """Raises ProfileError unless the profile has the section `key`, such as `old.ssh`, which `command` cannot do without."""
        here: Any = self
        for part in key.split("."):
            here = getattr(here, "copies" if part == "copy" else part, None)
        if not here:
            raise ProfileError(f"`{command}` needs a section [{key}]", where=str(self.file), hint="profiles/example.toml shows one")


def login_at(section: Mail, account: Account) -> tuple[str, tuple[str, ...]]:
    """Host and addresses of an account. A host of its own is not looked for at the section's addresses."""
    host = account.host or section.host
    return host, account.address or (section.address if host == section.host else ())


def _once(names: list[str], section: str, what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise WrongValue(f"two [[{section}]] {what} named {name!r}; give one of them a name = …")


def _apart(vault: Path, local: Iterable[Local], copies: Iterable[Copy]) -> None:
    """Sources, vault and copies on this machine must not lie in one another: a backup would read itself, a copy would go down with the vault."""
    ours = [("the vault", vault)]
    for copy in copies:
        if isinstance(copy, PathCopy):
            if _overlap(copy.path, vault):
                raise WrongValue(f"[[copy]] {copy.name!r}: {copy.path} and the vault {vault} lie in one another; a copy belongs on another disk")
            ours.append((f"[[copy]] {copy.name!r}", copy.path))
    for folder in local:
        for what, path in ours:
            if _overlap(folder.path, path):
                raise WrongValue(f"[[local]] {folder.name!r}: {folder.path} and {what} ({path}) lie in one another; a backup would back up itself")


def _overlap(one: Path, other: Path) -> bool:
    """Whether two folders are the same, or one contains the other; symlinks are followed."""
    first, second = (Path(os.path.realpath(path)) for path in (one, other))
    return first.is_relative_to(second) or second.is_relative_to(first)


def _secrets(value: object, key: str) -> Iterator[tuple[str, SecretSource]]:
    if isinstance(value, SecretSource):
        yield key, value
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from _secrets(inner, f"{key}[{index}]")
    elif isinstance(value, Section):
        for one in value.keys().values():
            yield from _secrets(getattr(value, one.name), f"{key}.{one.called}" if key else one.called)
