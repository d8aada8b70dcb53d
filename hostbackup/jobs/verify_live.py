"""What the vault says of a tree against what a live server says, on the old side and on the new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hostbackup.jobs.ledger import Ledger
from hostbackup.jobs.proofs import Tally, settle, settle_missed
from hostbackup.jobs.push_tree import pushed_claim as pushed_entry
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Entry, Failure, Item, Kind, Proof, Status, Stored
from hostbackup.places.base import Place
from hostbackup.places.exclude import Excludes
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.tree import TreeRoot

_MOVED_ON = "run `backup`, then `verify` again"


@dataclass(slots=True)
class OldTree:
    """Every entry of the snapshot is as the source has it now, and the source has nothing else."""

    state: PartState
    root: TreeRoot
    result: Result
    volatile: Excludes = field(default_factory=Excludes)

    def run(self, place: Place[Entry]) -> Tally[Entry]:
        tally: Tally[Entry] = Tally("old", self.state.part.id)
        try:
            for proof in place.prove(self._claims(tally)):
                if proof.status in (Status.CHANGED, Status.MISSING):
                    self._moved_on(tally, proof)
                else:
                    settle(self.result, tally, proof)
            self._new_ones(tally, place)
        finally:
            place.close()
        return tally

    def _claims(self, tally: Tally[Entry]) -> Iterator[Claim[Entry]]:
        for record in self.root.walk():
            if record.failed or record.stale:
                name, reason = record.item.label, record.failed or f"only an earlier version is in the vault: {record.stale}"
                settle_missed(self.result, tally, Failure("old", self.state.part.id, name, "unverified", reason, "run `backup`"), Status.UNVERIFIED)
            elif record.item.kind is not Kind.OTHER:
                yield Claim(record.item, record.digest, record.size)

    def _moved_on(self, tally: Tally[Entry], proof: Proof[Entry]) -> None:
        """The source is live: what changed or vanished since the snapshot is no difference, but unproven."""
        entry = proof.claim.item
        if entry.kind is Kind.DIR and proof.status is Status.CHANGED:
            tally.counts["verified"] += 1  # a folder's own time changes with what is in it, which is looked at by itself
            return
        if self.volatile.covers(entry.path, entry.kind is Kind.DIR):
            tally.counts["volatile"] += 1
            return
        reason = "is no longer there" if proof.status is Status.MISSING else "changed since the snapshot"
        failure = Failure("old", self.state.part.id, entry.path, "changed-since", reason, _MOVED_ON)
        settle_missed(self.result, tally, failure, Status.CHANGED)

    def _new_ones(self, tally: Tally[Entry], place: Place[Entry]) -> None:
        for listing in place.scan():
            known = {record.item.name for record in self.root.records(listing.container) if not record.vanished}
            for entry in listing.items:
                if entry.name not in known and entry.kind is not Kind.OTHER and not self.volatile.covers(entry.path, entry.kind is Kind.DIR):
                    failure = Failure("old", self.state.part.id, entry.path, "changed-since", "is new since the snapshot", _MOVED_ON)
                    settle_missed(self.result, tally, failure, Status.CHANGED)
            if listing.failure is not None:
                settle_missed(self.result, tally, listing.failure, Status.UNVERIFIED)


@dataclass(slots=True)
class NewTree:
    """What was pushed stands on the new server, byte for byte. What was never pushed is unverified; what the new side changed is its own."""

    state: PartState
    root: TreeRoot
    result: Result
    ledger: Ledger
    adapted: Excludes = field(default_factory=Excludes)

    def run(self, place: Place[Entry]) -> Tally[Entry]:
        tally: Tally[Entry] = Tally("new", self.state.part.id)
        try:
            for proof in place.prove(self._claims(tally)):
                if proof.status is Status.CHANGED:
                    failure = Failure(
                        "new", self.state.part.id, proof.claim.item.path, "changed-since", "was changed on the new server after the push"
                    )
                    settle_missed(self.result, tally, failure, Status.CHANGED)
                else:
                    settle(self.result, tally, proof)
        finally:
            place.close()
        return tally

    def _claims(self, tally: Tally[Entry]) -> Iterator[Claim[Entry]]:
        for record in self.root.walk():
            if record.item.kind is Kind.OTHER:
                continue
            claim = pushed_entry(self.ledger, record)
            if claim is not None:
                yield claim
            elif record.item.kind is Kind.DIR:
                yield Claim(record.item, "", 0)
            elif self.adapted.covers(record.item.path, False):
                tally.counts["adapted"] += 1
            else:
                reason = record.failed or "this version was not pushed"
                _not_pushed(self.result, tally, self.state, record, reason)


def _not_pushed(result: Result, tally: Tally[Item], state: PartState, record: Stored[Item], reason: str) -> None:
    failure = Failure("new", state.part.id, record.item.label, "unverified", reason, "run `push`")
    settle_missed(result, tally, failure, Status.UNVERIFIED)
