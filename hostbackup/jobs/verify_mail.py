"""What the vault says of a mailbox against what a live server says, on the old side and on the new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from hostbackup.jobs import doubts
from hostbackup.jobs.backup_mail import GONE
from hostbackup.jobs.identity import Identity
from hostbackup.jobs.ledger import Ledger
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.mail_proof import NewSide
from hostbackup.jobs.mail_sent import SETTLED, Sent, known_of
from hostbackup.jobs.mail_tally import MailTally
from hostbackup.jobs.pop3 import remember
from hostbackup.jobs.push_mail import why_not_pushed
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import MessageKey
from hostbackup.model import Claim, Failure, Message, Proof, Status, Stored
from hostbackup.places.base import MailSource
from hostbackup.places.mail import MailAccount
from hostbackup.protocols.imap.session import Selected
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.vault import Vault

_MOVED_ON = "run `backup`, then `verify` again"
_RANGE = 4096  # UIDs of one Listing and of one range of a manifest


@dataclass(slots=True)
class OldMail:
    """Every message of the snapshot is as the source has it, and the source has no other. `run` raises WrongMachine where it is another server."""

    state: PartState
    root: MailRoot
    vault: Vault
    result: Result
    identity: Identity
    _tally: MailTally = field(init=False)
    _archive: Archive = field(init=False)
    _other: set[MessageKey] = field(default_factory=set)  # messages that the server has other bytes of
    _fresh: Counter[bytes] = field(default_factory=Counter)  # by folder, messages with numbers that the server gave after the snapshot

    def __post_init__(self) -> None:
        self._tally = MailTally("old", self.state.part.id)
        self._archive = Archive(self.vault, self.root, self.state.part)

    def run(self, place: MailSource) -> MailTally:
        remember(place, self.root)
        try:
            counters = place.counters([folder.name for folder in place.folders()])
            seen = {name.decode("latin-1"): told.uidvalidity for name, told in counters.items() if told is not None and told.uidvalidity}
            self.identity.see_mailbox("old.imap", self.state.part.name, seen)
            self._rows(counters)
            for proof in place.prove(self._claims()):
                self._take(proof)
            self._new_ones(place)
            self._unseen(counters)
            self._tally.close_alike(self.result, "changed-since", Status.CHANGED)
            doubts.keep(self.vault.state, self.state.part, self._other)
        finally:
            place.close()
        return self._tally

    def _rows(self, counters: Mapping[bytes, Selected | None]) -> None:
        for folder in self.root.folders():
            if GONE not in folder.attributes or any(ref.live for ref in self.root.refs(folder.name)):
                self._tally.row(folder.name)
        for name, now in counters.items():
            if now is not None:
                row = self._tally.row(name)
                row.there, row.uidvalidity, row.uidnext = now.exists, now.uidvalidity, now.uidnext

    def _claims(self) -> Iterator[Claim[Message]]:
        for record in self.root.walk():
            row = self._tally.row(record.item.folder)
            row.messages += 1
            if record.digest:
                yield Claim(record.item, record.digest, record.size)
            else:
                row.unproven += 1
                failure = Failure("old", self.state.part.id, record.item.label, "unverified", record.failed or "never came whole", "run `backup`")
                self._tally.tell(self.result, self._archive, record, failure, Status.UNVERIFIED)

    def _take(self, proof: Proof[Message]) -> None:
        item = proof.claim.item
        row = self._tally.row(item.folder)
        record = Stored(item, proof.claim.digest, proof.claim.size)
        self.result.observer.advance(entries=1, size=record.size)
        if proof.status is Status.VERIFIED:
            self._tally.verified(proof, row)
        elif proof.status in (Status.CHANGED, Status.MISSING):
            row.changed["gone" if proof.status is Status.MISSING else "renumbered"] += 1
            reason = "is no longer there" if proof.status is Status.MISSING else "its folder was renumbered (UIDVALIDITY) since the snapshot"
            self._tally.tell_alike(self.result, self._archive, record, self._changed(item, reason), Status.CHANGED)
        else:
            if proof.status is Status.DIFFERENT:
                row.different += 1
            else:
                row.unproven += 1
            self._tally.alteration(proof)
            failure = proof.failure or Failure("old", self.state.part.id, item.label, proof.status.value, proof.status.value)
            if proof.status is Status.DIFFERENT or proof.tier:
                self._other.add((item.folder, item.uidvalidity, item.uid))
                failure = replace(failure, hint="run `backup`: it fetches this message again, and keeps the other one in the earlier snapshots")
            self._tally.tell(self.result, self._archive, record, failure, proof.status)

    def _changed(self, item: Message, reason: str) -> Failure:
        return Failure("old", self.state.part.id, item.label, "changed-since", reason, _MOVED_ON)

    def _new_ones(self, place: MailSource) -> None:
        before = {folder.name: folder for folder in self.root.folders()}
        for listing in place.scan():
            if listing.failure is not None:
                self._tally.row(listing.container).unproven += 1
                self._tally.counts[Status.UNVERIFIED.value] += 1
                self._tally.exception(listing.failure.name, Status.UNVERIFIED, listing.failure.reason)
                self.result.fail(listing.failure)
            if not listing.items or listing.folder is None:
                continue
            first = listing.items[0]
            known = {record.item.uid for record in self.root.range_records(first.folder, first.uidvalidity, first.uid // _RANGE)}
            folder = before.get(first.folder)
            for message in listing.items:
                if folder is not None and message.uid >= folder.uidnext:
                    self._fresh[first.folder] += 1
                if message.uid not in known:
                    self._tally.row(first.folder).fresh += 1
                    failure = self._changed(message, "is new since the snapshot")
                    self._tally.tell_alike(self.result, self._archive, Stored(message), failure, Status.CHANGED)

    def _unseen(self, counters: Mapping[bytes, Selected | None]) -> None:
        """UIDs only ascend (RFC 3501 §2.3.1.1): numbers given since the snapshot, under which nothing stands, were mail that came and went."""
        for folder in self.root.folders():
            now = counters.get(folder.name)
            if now is None or now.uidvalidity != folder.uidvalidity or not folder.uidnext:
                continue
            unseen = now.uidnext - folder.uidnext - self._fresh[folder.name]
            if unseen > 0:
                self._tally.row(folder.name).unseen = unseen
        unseen = sum(row.unseen for row in self._tally.rows.values())
        if unseen:
            told = f"up to {unseen:,} messages came and went at the old server since the snapshot, and nobody saw them (gaps in UIDs)"
            self.result.observer.warn(f"{self.state.part}: {told}")


@dataclass(slots=True)
class NewMail:
    """What was appended stands on the new server. What users moved, read or deleted after it was proven is theirs."""

    state: PartState
    root: MailRoot
    vault: Vault
    result: Result
    ledger: Ledger
    targets: Mapping[bytes, bytes]  # old folder -> new folder, as the pushes decided
    _tally: MailTally = field(init=False)
    _archive: Archive = field(init=False)

    def __post_init__(self) -> None:
        self._tally = MailTally("new", self.state.part.id)
        self._archive = Archive(self.vault, self.root, self.state.part)

    def run(self, place: MailAccount) -> MailTally:
        try:
            NewSide(place, self.ledger, self._archive, self.vault.objects.read, self.result, self._tally).run(self._sent())
            self._tally.close_alike(self.result, "unverified", Status.UNVERIFIED)
        finally:
            place.close()
        return self._tally

    def _sent(self) -> Iterator[Sent]:
        """The messages of the snapshot that were pushed. The others are told."""
        for folder in self.root.folders():
            if GONE in folder.attributes:
                continue
            home = self.targets.get(folder.name, b"")
            self._tally.row(folder.name, home)
            for record in self.root.records(folder.name):
                if record.vanished:
                    continue
                known = known_of(self.ledger, record)
                if known is not None and known["state"] in SETTLED:
                    one = Sent(record, known)
                    self._tally.row(folder.name, one.target).messages += 1
                    yield one
                    continue
                row = self._tally.row(folder.name, home)
                row.messages += 1
                row.not_pushed += 1
                failure = Failure("new", self.state.part.id, record.item.label, "unverified", why_not_pushed(self.ledger, record), "run `push`")
                self._tally.tell_alike(self.result, self._archive, record, failure, Status.UNVERIFIED)
