"""What was pushed to a mailbox stands there: fetched back and compared, right after appending and whenever it is asked again.

A message that was proven once is done. What is gone later was moved, read or deleted by its owner: it is looked for by its bytes, counted and
listed, and no failure. Two things a user cannot do: change the bytes under a UID, and take back a number that the server has given out. Those
are damage. Everything else that is missing cannot be told from a deletion.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from hostbackup.errors import Exit
from hostbackup.jobs.backup_mail import message_key
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.mail_tally import FolderRow, MailTally
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Message, Method, Proof, Status, Stored, name_json
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_compare import Verdict
from hostbackup.places.mail_match import Matcher
from hostbackup.protocols.imap.session import Selected
from hostbackup.vault.layout import internaldate_epoch

SETTLED = ("done", "proven")
_GROUP = 4096  # claims put in the order of their places at a time: what moved between old folders would else part every batch
_NOTED = 200  # proofs that go to the journal in one write
_ELSEWHERE = 4096  # messages fetched to find what was moved; a search for more is given up
_ELSEWHERE_BYTES = 256 * 1024 * 1024
Spot = tuple[bytes, int, int]  # folder at the new server, UIDVALIDITY, UID


class Sent(NamedTuple):
    """A message of the snapshot, and what the journal knows of it: state `done` or `proven`."""

    record: Stored[Message]
    known: Record

    @property
    def spot(self) -> Spot:
        return key_name(self.known["folder"]), self.known["uidvalidity"], self.known["uid"]

    @property
    def target(self) -> bytes:
        """The folder it was appended to, also where it was moved since."""
        return key_name(self.known["appended"] if "appended" in self.known else self.known["folder"])

    @property
    def proven(self) -> bool:
        return bool(self.known["state"] == "proven")

    def message(self) -> Message:
        return Message(*self.spot, self.record.size)


class Missed(NamedTuple):
    """A sent message that is not where it was put. There may be very many: it holds no more than is needed."""

    record: Stored[Message]
    spot: Spot
    target: bytes
    proven: bool
    size: int  # as the new server told it, by which it may be found elsewhere


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
    _gone: list[Missed] = field(default_factory=list)
    _notes: list[Record] = field(default_factory=list)  # for the journal
    _not_kept: Counter[tuple[bytes, str]] = field(default_factory=Counter)
    _unseen: set[bytes] = field(default_factory=set)  # folders numbered anew, in which not all could be looked at

    def run(self, sent: Iterable[Sent]) -> None:
        """Fills the tally, and notes in the journal what is proven. Raises ConnectionFailed."""
        try:
            for proof in self.place.prove(self._claims(sent)):
                self._take(proof)
            if self._gone:
                self._sort_out()
        finally:
            self._write_notes()
        for row, counters in self._counted():
            row.there = counters.exists if counters else None
        self._tell_not_kept()
        self.ledger.sync()

    def forget_unanswered(self) -> None:
        """What was claimed and got no proof will be claimed again."""
        for many in self._waiting.values():
            for one in many:
                self._row(one).pushed -= 1
        self._waiting.clear()

    def _claims(self, sent: Iterable[Sent]) -> Iterator[Claim[Message]]:
        rows = iter(sent)
        # What was just appended comes in order, and is to be proven while more is appended.
        while group := sorted(itertools.islice(rows, 1 if self.fresh else _GROUP), key=lambda one: one.spot):
            for one in group:
                self._row(one).pushed += 1
                if not one.spot[2]:  # the server told no UID
                    self._miss(one)
                    continue
                self._waiting[one.spot].append(one)
                yield Claim(one.message(), one.record.digest, one.record.size)

    def _row(self, one: Sent) -> FolderRow:
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
            self._verified(one, proof)
        elif proof.status in (Status.MISSING, Status.CHANGED):
            self._miss(one)
        else:
            self._failed(one, proof)

    def _verified(self, one: Sent, proof: Proof[Message], place: Record | None = None) -> None:
        """`place`: what is to be noted of where it stands now."""
        row = self._row(one)
        facts = {**(place or {}), **(self._described(one, proof.found) if proof.found else {})}
        if proof.tier != "raw" and proof.found and one.known.get("size") != proof.found.size:
            facts["size"] = proof.found.size  # by which it is found again where it is moved
        if "appended" in one.known:
            self.tally.changed(row, one.record, "moved", proof.claim.item)
        else:
            self.tally.verified(proof, row)
        self._note(one, facts)

    def _failed(self, one: Sent, proof: Proof[Message]) -> None:
        row = self._row(one)
        if proof.status is Status.DIFFERENT:
            row.different += 1
        else:
            row.unproven += 1
        self.tally.alteration(proof)
        failure = proof.failure or self._failure(one, proof.status.value, proof.status.value)
        self._told(one.record)
        self.tally.tell(self.result, self.archive, one.record, failure, proof.status, new=proof.claim.item)

    def _described(self, one: Sent, found: Message) -> dict[str, Any]:
        """Compares flags and date with what was sent, or with what stood there when it was proven. Gives what is to be noted of them."""
        facts: dict[str, Any] = {}
        before: list[str] | None = one.known.get("flags")
        if before is not None and one.proven and set(before) != set(found.flags):
            self.tally.changed(self._row(one), one.record, "flags")
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

    def _note(self, one: Sent, facts: Mapping[str, Any]) -> None:
        if facts or not one.proven:
            self._notes.append({**one.known, "state": "proven", **facts})
            if len(self._notes) >= _NOTED:
                self._write_notes()

    def _write_notes(self) -> None:
        notes, self._notes = self._notes, []
        self.ledger.put(*notes)

    def _told(self, record: Stored[Message]) -> None:
        self.told.add((record.item.folder, record.item.uidvalidity, record.item.uid))

    def _failure(self, one: Sent | Missed, code: str, reason: str, hint: str = "") -> Failure:
        label = Message(*one.spot).label if one.spot[2] else one.record.item.label
        return Failure(self.tally.side, self.tally.part, label, code, reason, hint)

    def _tell_not_kept(self) -> None:
        for (folder, what), count in sorted(self._not_kept.items()):
            row = {"part": self.tally.part, **name_json(folder, "folder"), "lost": what, "messages": count}
            self.result.details.setdefault("not_kept", []).append(row)
        if self._not_kept:
            kinds = ", ".join(sorted({what for _, what in self._not_kept}))
            self.result.observer.warn(f"{self.tally.part}: the new server did not keep {kinds} as sent; the messages themselves are there")

    # -- what is not where it was put ---------------------------------------------------------------------------------------------------

    def _miss(self, one: Sent) -> None:
        self._gone.append(Missed(one.record, one.spot, one.target, one.proven, one.known.get("size", one.record.size)))

    def _sent(self, missed: Missed) -> Sent:
        known = self.ledger.get(message_key(missed.record.item))
        assert known is not None, "it was given as sent"
        return Sent(missed.record, known)

    def _sort_out(self) -> None:
        by_folder: dict[bytes, list[Missed]] = defaultdict(list)
        for missed in self._gone:
            by_folder[missed.spot[0]].append(missed)
        self._gone.clear()
        counters = self.place.counters(sorted(by_folder))
        taken = self._taken()
        left: list[Missed] = []
        for folder, many in by_folder.items():
            now = counters[folder]
            numbered_anew: list[Missed] = []
            for missed in many:
                anew = now is not None and now.uidvalidity != missed.spot[1]
                (numbered_anew if anew else left).append(missed)
            if numbered_anew:
                left += self._match_in(folder, numbered_anew, taken)
        by_folder.clear()
        for missed in self._elsewhere(left, taken):
            self._settle_gone(missed, counters[missed.spot[0]])

    def _taken(self) -> dict[tuple[bytes, int], set[int]]:
        """Of each folder and UIDVALIDITY at the new server the UIDs that the journal gives to messages."""
        self._write_notes()
        taken: dict[tuple[bytes, int], set[int]] = defaultdict(set)
        for known in self.ledger:
            if known["state"] in SETTLED and known["uid"]:
                taken[key_name(known["folder"]), known["uidvalidity"]].add(known["uid"])
        return taken

    def _match_in(self, folder: bytes, wanted: Sequence[Missed], taken: dict[tuple[bytes, int], set[int]]) -> list[Missed]:
        """In a folder that was numbered anew, or whose server told no UIDs, messages are known by their bytes. Gives those that are not there."""
        free: list[tuple[int, int, int]] = []
        for listing in self.place.look([folder]):
            if listing.failure is not None:
                self._unseen.add(folder)
            free += [(item.uidvalidity, item.uid, item.size) for item in listing.items if item.uid not in taken[folder, item.uidvalidity]]
        matcher = Matcher(((missed, missed.record.digest) for missed in wanted), self.reader)
        came_back = 0
        for message, came in self.place.fingerprints(Message(folder, *numbers) for numbers in free):
            came_back += 1
            found = matcher.take(came)
            if found is not None:
                self._verified_at(self._sent(found[0]), message, found[1])
                taken[folder, message.uidvalidity].add(message.uid)
        if came_back < len(free):
            self._unseen.add(folder)
        return matcher.rest()

    def _verified_at(self, one: Sent, message: Message, verdict: Verdict) -> None:
        claim = Claim(message, one.record.digest, one.record.size)
        proof = Proof(claim, Status.VERIFIED, Method.IMAP_FETCH, None, message, verdict.tier, verdict.reason)
        if one.spot[2]:
            self._row(one).changed["renumbered"] += 1
        self._verified(one, proof, {"uidvalidity": message.uidvalidity, "uid": message.uid})

    def _elsewhere(self, wanted: Sequence[Missed], taken: dict[tuple[bytes, int], set[int]]) -> list[Missed]:
        """Looks in every folder for what users moved, as long as few messages have the right sizes. Gives what is not found."""
        if not wanted:
            return []
        sizes = {missed.size for missed in wanted}
        alike: list[Message] = []
        weight = 0
        for listing in self.place.look([folder.name for folder in self.place.folders()]):
            free = [item for item in listing.items if item.size in sizes and item.uid not in taken[item.folder, item.uidvalidity]]
            weight += sum(item.size for item in free)
            if len(alike) <= _ELSEWHERE and weight <= _ELSEWHERE_BYTES:
                alike += free
        if len(alike) > _ELSEWHERE or weight > _ELSEWHERE_BYTES:
            self.result.observer.note(f"{self.tally.part}: too much at the new server could be what was moved there; it was not searched")
            return list(wanted)
        matcher = Matcher(((missed, missed.record.digest) for missed in wanted), self.reader)
        for message, came in self.place.fingerprints(alike):
            found = matcher.take(came)
            if found is not None:
                self._moved(self._sent(found[0]), message)
        return matcher.rest()

    def _moved(self, one: Sent, message: Message) -> None:
        """By its owner. If that came before it was proven, it is proven now."""
        row = self._row(one)
        self.tally.changed(row, one.record, "moved", message)
        place = {"folder": name_key(message.folder), "uidvalidity": message.uidvalidity, "uid": message.uid, "appended": name_key(one.target)}
        self._note(one, place)

    def _settle_gone(self, one: Missed, now: Selected | None) -> None:
        row = self.tally.row(one.record.item.folder, one.target)
        _, uidvalidity, uid = one.spot
        if now is not None and uid and now.uidvalidity == uidvalidity and 0 < now.uidnext <= uid:
            self._told(one.record)
            row.missing += 1
            reason = f"the new server lost it: it gave it this number, and now says that the next one is {now.uidnext}"
            failure = self._failure(one, "missing", reason, "ask its provider; `restore` has it out of the vault")
            self.tally.tell(self.result, self.archive, one.record, failure, Status.MISSING, new=Message(*one.spot), exit_code=Exit.DAMAGE)
        elif one.proven and one.spot[0] in self._unseen:
            row.unproven += 1
            reason = "its folder was numbered anew (UIDVALIDITY), and not every message in it could be looked at"
            failure = self._failure(one, "unverified", reason, "run `verify` again")
            self.tally.tell(self.result, self.archive, one.record, failure, Status.UNVERIFIED)
        elif one.proven:
            self.tally.changed(row, one.record, "gone")
        else:
            self._told(one.record)
            row.missing += 1
            reason = "the new server took it, but it was altered, moved out of sight or deleted there before it could be proven"
            failure = self._failure(one, "missing", reason, "look for it there; it is not appended again")
            self.tally.tell(self.result, self.archive, one.record, failure, Status.MISSING, new=Message(*one.spot) if uid else None)
