"""What was pushed to a mailbox stands there: fetched back and compared, right after appending and whenever it is asked again.

A message that was proven once is done. What is gone later was moved, read or deleted by its owner: it is looked for by its bytes, counted and
listed, and no failure. Two things a user cannot do: change the bytes under a UID, and take back a number that the server has given out. Those
are damage. Everything else that is missing cannot be told from a deletion.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from hostbackup.errors import Exit
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.mail_missing import Missing
from hostbackup.jobs.mail_sent import Missed, Sent, Spot
from hostbackup.jobs.mail_tally import FolderRow, MailTally
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Message, Proof, Status, Stored, name_json
from hostbackup.places.mail import MailAccount
from hostbackup.protocols.imap.session import Selected
from hostbackup.vault.layout import internaldate_epoch

_GROUP = 4096  # claims put in the order of their places at a time: what moved between old folders would else part every batch
_NOTED = 200  # proofs that go to the journal in one write


@dataclass(slots=True)
class NewSide:
    """Proves what `sent` gives. `fresh`: it was appended in this run, so that flags which are not there were not kept."""

    place: MailAccount
    ledger: Ledger
    archive: Archive
    reader: Callable[[str], BinaryIO]
    result: Result
    tally: MailTally
    fresh: bool = False
    told: set[tuple[bytes, int, int]] = field(default_factory=set)  # messages of the snapshot that were told as exceptions
    _waiting: dict[Spot, deque[Sent]] = field(default_factory=lambda: defaultdict(deque))
    _notes: list[Record] = field(default_factory=list)  # for the journal
    _not_kept: Counter[tuple[bytes, str]] = field(default_factory=Counter)
    missing: Missing = field(init=False)

    def __post_init__(self) -> None:
        self.missing = Missing(self)

    def run(self, sent: Iterable[Sent]) -> None:
        """Fills the tally, and notes in the journal what is proven. Raises ConnectionFailed."""
        try:
            for proof in self.place.prove(self._claims(sent)):
                self._take(proof)
            self.missing.sort_out()
        finally:
            self.write_notes()
        for row, counters in self._counted():
            row.there = counters.exists if counters else None
        self._tell_not_kept()
        self.ledger.sync()

    def forget_unanswered(self) -> None:
        """What was claimed and got no proof will be claimed again."""
        for many in self._waiting.values():
            for one in many:
                self.row(one).pushed -= 1
        self._waiting.clear()

    def _claims(self, sent: Iterable[Sent]) -> Iterator[Claim[Message]]:
        rows = iter(sent)
        # What was just appended comes in order, and is to be proven while more is appended.
        while group := sorted(itertools.islice(rows, 1 if self.fresh else _GROUP), key=lambda one: one.spot):
            for one in group:
                self.row(one).pushed += 1
                if not one.spot[2]:  # the server told no UID
                    self.missing.note(one)
                    continue
                self._waiting[one.spot].append(one)
                yield Claim(one.message(), one.record.digest, one.record.size)

    def row(self, one: Sent) -> FolderRow:
        return self.tally.row(one.record.item.folder, one.target)

    def _counted(self) -> Iterator[tuple[FolderRow, Selected | None]]:
        rows = [row for row in self.tally.rows.values() if row.new]
        counters = self.place.counters(sorted({row.new for row in rows}))
        return ((row, counters[row.new]) for row in rows)

    # -- one proof ----------------------------------------------------------------------------------------------------------------------

    def _take(self, proof: Proof[Message]) -> None:
        item = proof.claim.item
        spot = item.folder, item.uidvalidity, item.uid
        one = self._waiting[spot].popleft()
        if not self._waiting[spot]:
            del self._waiting[spot]
        if not self.fresh:  # else it counted when it was appended
            self.result.observer.advance(entries=1, size=one.record.size)
        if proof.status is Status.VERIFIED:
            self.verified(one, proof)
        elif proof.status in (Status.MISSING, Status.CHANGED):
            self.missing.note(one)
        elif proof.failure is not None and proof.failure.code == "empty":
            # Bytes that stand under a number never change: nothing at all is another message, whatever keeps the server from giving it.
            reason = f"the server gives an empty message instead of {one.record.size} bytes"
            failure = replace(proof.failure, code="different", reason=reason, hint="ask its provider; the vault has the message")
            self.tell_failed(one, replace(proof, status=Status.DIFFERENT, failure=failure))
        elif not (proof.tier and self.missing.note_unlike(one, proof)):
            self.tell_failed(one, proof)

    def verified(self, one: Sent, proof: Proof[Message], place: Record | None = None) -> None:
        """`place`: what is to be noted of where it stands now."""
        row = self.row(one)
        facts = {**(place or {}), **(self._described(one, proof.found) if proof.found else {})}
        if proof.tier != "raw" and proof.found and one.known.get("size") != proof.found.size:
            facts["size"] = proof.found.size  # by which it is found again where it is moved
        if "appended" in one.known:
            self.tally.changed(row, one.record, "moved", proof.claim.item)
        else:
            self.tally.verified(proof, row)
        self.journal(one, facts)

    def tell_failed(self, one: Sent, proof: Proof[Message]) -> None:
        row = self.row(one)
        if proof.status is Status.DIFFERENT:
            row.different += 1
        else:
            row.unproven += 1
        self.tally.alteration(proof)
        why = proof.failure
        failure = self.failure(one, why.code, why.reason, why.hint) if why else self.failure(one, proof.status.value, proof.status.value)
        self.tell(one.record, failure, proof.status, proof.claim.item)

    def _described(self, one: Sent, found: Message) -> dict[str, Any]:
        """Compares flags and date with what was sent, or with what stood there when it was proven. Gives what is to be noted of them."""
        facts: dict[str, Any] = {}
        before: list[str] | None = one.known.get("flags")
        if before is not None and one.proven and set(before) != set(found.flags):
            self.tally.changed(self.row(one), one.record, "flags")
        if before is not None and not one.proven and self.fresh:
            there = {flag.lower() for flag in found.flags}
            self._not_kept.update((found.folder, flag) for flag in before if flag.lower() not in there)
        if before is None or not one.proven:
            facts["flags"] = list(found.flags)
        sent = one.known.get("date", one.record.item.internaldate)
        if sent != found.internaldate and (epoch := internaldate_epoch(sent)) is not None and epoch != internaldate_epoch(found.internaldate):
            self._not_kept[found.folder, "INTERNALDATE"] += 1
            facts["date"] = found.internaldate
        return facts

    def journal(self, one: Sent, facts: Mapping[str, Any]) -> None:
        if facts or not one.proven:
            self._notes.append({**one.known, "state": "proven", **facts})
            if len(self._notes) >= _NOTED:
                self.write_notes()

    def write_notes(self) -> None:
        notes, self._notes = self._notes, []
        self.ledger.put(*notes)

    def tell(self, record: Stored[Message], failure: Failure, status: Status, new: Message | None, exit_code: Exit | None = None) -> None:
        """Adds an exception. `new`: where it was put."""
        self.told.add((record.item.folder, record.item.uidvalidity, record.item.uid))
        self.tally.tell(self.result, self.archive, record, failure, status, new=new, exit_code=exit_code)

    def failure(self, one: Sent | Missed, code: str, reason: str, hint: str = "") -> Failure:
        """By the name that the message has on the old server, as every other failure of a push."""
        return Failure(self.tally.side, self.tally.part, one.record.item.label, code, reason, hint)

    def _tell_not_kept(self) -> None:
        for (folder, what), count in sorted(self._not_kept.items()):
            row = {"part": self.tally.part, **name_json(folder, "folder"), "lost": what, "messages": count}
            self.result.details.setdefault("not_kept", []).append(row)
        if self._not_kept:
            kinds = ", ".join(sorted({what for _, what in self._not_kept}))
            self.result.observer.warn(f"{self.tally.part}: the new server did not keep {kinds} as sent; the messages themselves are there")
