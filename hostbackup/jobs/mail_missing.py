"""Messages that are not where they were put on the new server: looked for by their bytes, and told as what they then are.

What is gone was moved or deleted by its owner, which is no failure, as long as that can be told: where a folder cannot be looked through, it may
hold the message. A number that the server gave and takes back is a loss, and so is a mailbox made anew with nothing in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hostbackup.errors import Exit
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.mail_sent import SETTLED, Missed, Sent, known_of, was_taken_back
from hostbackup.model import Claim, Message, Method, Proof, Status
from hostbackup.places.mail_compare import Verdict
from hostbackup.places.mail_match import Matcher
from hostbackup.protocols.imap.session import Selected

if TYPE_CHECKING:
    from hostbackup.jobs.mail_proof import NewSide

_ELSEWHERE = 4096  # messages fetched to find what was moved; a search for more is given up
_ELSEWHERE_BYTES = 256 * 1024 * 1024
_UNLIKE = 1024  # proofs of other bytes that are kept until it is known whether the server only told its numbers in another order
_Taken = dict[tuple[bytes, int], set[int]]  # of each folder and UIDVALIDITY at the new server the UIDs that the journal gives to messages


class Missing:
    """What `side` misses. `note` it, then `sort_out`."""

    def __init__(self, side: NewSide) -> None:
        self._side = side
        self._gone: list[Missed] = []
        self._names: dict[bytes, bytes] = {}  # of folders, each once: the journal makes them anew for every message
        self._unlike: list[tuple[Sent, Proof[Message]]] = []
        self._unseen: set[bytes] = set()  # folders numbered anew, in which not all could be looked at
        self.blind = ""  # why not all that may have been moved could be looked at

    def note(self, one: Sent) -> None:
        """Is not where it was put, or was given no number."""
        folder, uidvalidity, uid = one.spot
        spot = self._names.setdefault(folder, folder), uidvalidity, uid
        target = self._names.setdefault(one.target, one.target)
        self._gone.append(Missed(one.record, spot, target, one.proven, one.known.get("size", one.record.size)))

    def note_unlike(self, one: Sent, proof: Proof[Message]) -> bool:
        """Other bytes stand under the number that was told for it. False where that is not worth another look."""
        if one.proven or len(self._unlike) >= _UNLIKE:
            return False
        self._unlike.append((one, proof))
        return True

    def sort_out(self) -> None:
        """Looks for all that was noted, and tells what came of it. Raises ConnectionFailed."""
        if self._unlike:
            self._sort_out_unlike()
        if self._gone:
            gone, self._gone = self._gone, []
            rest, counters = self._nowhere(gone)
            for missed in rest:
                self._settle_gone(missed, counters[missed.spot[0]])

    def nowhere(self, sent: Iterable[Sent]) -> list[Sent]:
        """Those of which the new server has the bytes in no folder that could be looked through. The others are noted where they stand now."""
        for one in sent:
            self.note(one)
        gone, self._gone = self._gone, []
        rest, _ = self._nowhere(gone)
        self._side.write_notes()
        return [self._sent(missed) for missed in rest]

    # -- numbers in another order -------------------------------------------------------------------------------------------------------

    def _sort_out_unlike(self) -> None:
        """A server may tell the right numbers in the wrong order: each message is then one of the others'."""
        unlike, self._unlike = self._unlike, []
        self._side.write_notes()
        by_folder: dict[tuple[bytes, int], list[tuple[Sent, Proof[Message]]]] = defaultdict(list)
        for one, proof in unlike:
            by_folder[one.spot[:2]].append((one, proof))
        for many in by_folder.values():
            told = {id(one.record): (one, proof) for one, proof in many}
            if len(many) > 1:
                matcher = Matcher(((one, one.record.digest) for one, _ in many), self._side.reader)
                for message, came in self._side.place.fingerprints([one.message() for one, _ in many]):
                    found = matcher.take(came)
                    if found is not None:
                        del told[id(found[0].record)]
                        self._verified_at(found[0], message, found[1])
            for one, proof in told.values():
                self._side.tell_failed(one, proof)

    # -- looking for it -----------------------------------------------------------------------------------------------------------------

    def _nowhere(self, gone: Sequence[Missed]) -> tuple[list[Missed], dict[bytes, Selected | None]]:
        by_folder: dict[bytes, list[Missed]] = defaultdict(list)
        for missed in gone:
            by_folder[missed.spot[0]].append(missed)
        counters = self._side.place.counters(sorted(by_folder))
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
        return self._elsewhere(left, taken), counters

    def _sent(self, missed: Missed) -> Sent:
        known = known_of(self._side.ledger, missed.record)
        assert known is not None, "it was given as sent"
        return Sent(missed.record, known)

    def _taken(self) -> _Taken:
        self._side.write_notes()
        taken: _Taken = defaultdict(set)
        for known in self._side.ledger:
            if known["state"] in SETTLED and known["uid"]:
                taken[key_name(known["folder"]), known["uidvalidity"]].add(known["uid"])
        return taken

    def _match_in(self, folder: bytes, wanted: Sequence[Missed], taken: _Taken) -> list[Missed]:
        """In a folder that was numbered anew, or whose server told no UIDs, messages are known by their bytes. Gives those that are not there."""
        free: list[tuple[int, int, int]] = []
        for listing in self._side.place.look([folder]):
            if listing.failure is not None:
                self._unseen.add(folder)
            free += [(item.uidvalidity, item.uid, item.size) for item in listing.items if item.uid not in taken[folder, item.uidvalidity]]
        matcher = Matcher(((missed, missed.record.digest) for missed in wanted), self._side.reader)
        came_back = 0
        for message, came in self._side.place.fingerprints(Message(folder, *numbers) for numbers in free):
            came_back += 1
            found = matcher.take(came)
            if found is not None:
                one = self._sent(found[0])
                if one.spot[2]:
                    self._side.row(one).changed["renumbered"] += 1
                self._verified_at(one, message, found[1])
                taken[folder, message.uidvalidity].add(message.uid)
        if came_back < len(free):
            self._unseen.add(folder)
        return matcher.rest()

    def _verified_at(self, one: Sent, message: Message, verdict: Verdict) -> None:
        claim = Claim(message, one.record.digest, one.record.size)
        proof = Proof(claim, Status.VERIFIED, Method.IMAP_FETCH, None, message, verdict.tier, verdict.reason)
        self._side.verified(one, proof, {"uidvalidity": message.uidvalidity, "uid": message.uid})

    def _elsewhere(self, wanted: Sequence[Missed], taken: Mapping[tuple[bytes, int], set[int]]) -> list[Missed]:
        """Looks in every folder for what users moved, as long as few messages have the right sizes. Gives what is not found."""
        if not wanted:
            return []
        sizes = {missed.size for missed in wanted}
        alike: list[Message] = []
        weight = 0
        for listing in self._side.place.look([folder.name for folder in self._side.place.folders()]):
            if listing.failure is not None:
                self.blind = f"a folder that may have it could not be looked through: {listing.failure.reason}"
            free = [item for item in listing.items if item.size in sizes and item.uid not in taken.get((item.folder, item.uidvalidity), ())]
            weight += sum(item.size for item in free)
            if len(alike) <= _ELSEWHERE and weight <= _ELSEWHERE_BYTES:
                alike += free
        if len(alike) > _ELSEWHERE or weight > _ELSEWHERE_BYTES:
            self._side.result.observer.note(f"{self._side.tally.part}: too much at the new server could be what was moved there; it was not searched")
            return list(wanted)
        if not alike:
            return list(wanted)
        matcher = Matcher(((missed, missed.record.digest) for missed in wanted), self._side.reader)
        unread = len(alike)
        for message, came in self._side.place.fingerprints(alike):
            unread -= 1
            found = matcher.take(came)
            if found is not None:
                self._moved(self._sent(found[0]), message)
        if unread:
            self.blind = self.blind or f"{unread} messages that may be it could not be fetched"
        return matcher.rest()

    def _moved(self, one: Sent, message: Message) -> None:
        """By its owner. If that came before it was proven, it is proven now."""
        self._side.tally.changed(self._side.row(one), one.record, "moved", message)
        place = {"folder": name_key(message.folder), "uidvalidity": message.uidvalidity, "uid": message.uid, "appended": name_key(one.target)}
        self._side.journal(one, place)

    # -- what is nowhere ----------------------------------------------------------------------------------------------------------------

    def _settle_gone(self, one: Missed, now: Selected | None) -> None:
        side = self._side
        row = side.tally.row(one.record.item.folder, one.target)
        uid = one.spot[2]
        put = Message(*one.spot) if uid else None
        if was_taken_back(one.spot, now):
            assert now is not None
            row.missing += 1
            reason = f"the new server lost it: it gave it this number, and now says that the next one is {now.uidnext}"
            failure = side.failure(one, "missing", reason, "run `push`, which appends it again, and ask its provider how it was lost")
            side.tell(one.record, failure, Status.MISSING, put, Exit.DAMAGE)
        elif one.proven and (one.spot[0] in self._unseen or self.blind):
            row.unproven += 1
            renumbered = "its folder was numbered anew (UIDVALIDITY), and not every message in it could be looked at"
            reason = renumbered if one.spot[0] in self._unseen else f"it is no longer where it was put, and {self.blind}"
            side.tell(one.record, side.failure(one, "unverified", reason, "run `verify` again"), Status.UNVERIFIED, put)
        elif one.proven:
            side.tally.changed(row, one.record, "gone")
        else:
            row.missing += 1
            reason = "the new server took it, but it was altered, moved out of sight or deleted there before it could be proven"
            side.tell(one.record, side.failure(one, "missing", reason, "look for it there; it is not appended again"), Status.MISSING, put)
