"""What every job works with: the profile, the vault, the connections, and somebody who listens."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hostbackup.errors import UsageError
from hostbackup.jobs.connect import Ask, Connections
from hostbackup.jobs.identity import Identity
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.ledger import Ledger
from hostbackup.model import Observer, Part
from hostbackup.profile import BucketCopy, PathCopy, Profile
from hostbackup.protocols.limits import UNLIMITED, Limits
from hostbackup.vault.vault import Vault

if TYPE_CHECKING:
    from hostbackup.vault.packs.seal import Identities


@dataclass(slots=True)
class Job:
    """One run of one command, or all steps of a `sync`."""

    profile: Profile
    vault: Vault
    connections: Connections
    observer: Observer
    key_file: Path | None = None  # with secret keys of encrypted copies; before what the profile names
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    @classmethod
    def of(cls, profile: Profile, vault: Vault, observer: Observer, ask: Ask | None = None, limits: Limits = UNLIMITED) -> Job:
        identity = Identity(vault.state) if vault.mode != "read" else Identity.reading(vault.state)
        return cls(profile, vault, Connections(profile, identity, observer, ask, limits=limits), observer)

    def identities(self, copy: BucketCopy | PathCopy) -> Identities | None:
        """The secret keys at hand for an encrypted copy. Raises UsageError."""
        return self.connections.identities(copy, self.key_file)

    @property
    def now(self) -> str:
        return stamp(self.started)

    @property
    def scratch(self) -> Path:
        """Where a run's temporary files go: the vault's disk, tidied by the next run if this one dies; elsewhere if the vault is only read."""
        return self.vault.incoming if self.vault.mode != "read" else Path(tempfile.gettempdir())

    @property
    def web_parts(self) -> list[Part]:
        return [Part("web", web.name) for web in self.profile.old.web]

    @property
    def mail_parts(self) -> list[Part]:
        return [Part("mail", account.user) for account in self.profile.old_accounts()]

    @property
    def local_parts(self) -> list[Part]:
        return [Part("local", local.name) for local in self.profile.local]

    @contextmanager
    def ledger(self, name: str) -> Iterator[Ledger]:
        """The journal `state/NAME`, with an index. Synced at the end, however that comes."""
        ledger = Ledger(self.vault.state.journal(name), self.scratch)
        try:
            yield ledger
        finally:
            try:
                ledger.sync()
            finally:
                ledger.close()

    def find_part(self, text: str) -> Part:
        """The part a person means: `web/public_html`, or `public_html` where only one is called that. Raises UsageError."""
        parts = [*self.web_parts, *self.mail_parts, *self.local_parts]
        filters = [Part("sieve", part.name) for part in self.mail_parts]  # by their whole name alone: else a user would be two parts
        found = [part for part in (*parts, *filters) if text in (part.id, str(part))] or [part for part in parts if text == part.name]
        if len(found) == 1:
            return found[0]
        known = ", ".join(str(part) for part in parts)
        raise UsageError(f"{'no' if not found else 'more than one'} part is called {text!r}", hint=f"the profile has: {known}")


def resume_journal(part: Part) -> str:
    return "resume-" + part.id.replace("/", "-")


def push_journal(part: Part, target: str) -> str:
    """One journal for each part and target: `target` names where it goes (host, port, path or user)."""
    from hostbackup.model import component

    return f"push-{part.id.replace('/', '-')}-{component(target)}"
