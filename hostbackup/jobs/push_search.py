"""What of a mailbox already stands at the target, byte for byte: so that nothing is appended twice, whatever an earlier run could still tell.

Messages are matched as a multiset. One at the target is nobody's twice: what the journal gave to one source message is no other's. An append
that was cut off is looked for in weaker tiers too, since a server that rewrites messages has it in its own form.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hostbackup.jobs.backup_mail import message_key
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.mail_sent import SETTLED, known_of, was_taken_back
from hostbackup.jobs.result import Result
from hostbackup.model import Counts, Failure, Message, Part, Stored
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_match import Matcher
from hostbackup.protocols.imap.session import Selected
from hostbackup.vault.vault import Vault

Spots = dict[str, list[tuple[int, int]]]  # by digest: UIDVALIDITY and UID of messages that are nobody's yet, the first ones last
PATIENCE = 14.0  # seconds: what came in one command appears all at once, when the server is done with all of it
_QUIET = 2.0  # seconds between looks, and part of the patience: where that is short, looks come as often as fits it
_OVER = 60.0  # seconds after which no server is still at work on what it was sent
_LOOKS = 15  # how often a folder in which mail keeps arriving is looked at again


@dataclass(slots=True)
class TargetSearch:
    """The journal of one mailbox's push, and the folders at the target as they were when first looked at."""

    part: Part
    target: MailAccount
    vault: Vault
    ledger: Ledger
    result: Result
    dry_run: bool = False
    pause: Callable[[float], None] = time.sleep
    patience: float = PATIENCE  # seconds after which an append that was cut off is believed to be lost, once nothing more arrives between two looks
    clock: Callable[[], float] = time.time
    found: Counts = field(default_factory=Counts)  # what stood there and was settled
    _seen: dict[bytes, Selected | None] = field(default_factory=dict)
    _taken: dict[bytes, set[tuple[int, int]]] | None = None
    _unnamed: set[bytes] = field(default_factory=set)  # folders with messages of earlier runs that the server told no number of
    _waited: float = 0.0  # seconds since the last cut, which are the same seconds for every folder

    # -- journal ------------------------------------------------------------------------------------------------------------------------

    def intend(self, name: bytes, records: Sequence[Stored[Message]]) -> None:
        """Makes durable that these are about to be appended, when, and from which UID on they would stand."""
        seen = self._seen.get(name)
        place = {"folder": name_key(name), "uidvalidity": seen.uidvalidity if seen else 0, "uid": 0, "since": seen.uidnext if seen else 0}
        facts = {"state": "intent", "time": int(self.clock()), **place}
        self.ledger.append({"key": message_key(record.item), "digest": record.digest, **facts} for record in records)
        self.ledger.sync()

    def done(self, outcomes: Sequence[tuple[Stored[Message], Message]]) -> list[Record]:
        """Notes where messages stand now, and with which flags and date they were sent. Durable with the ledger's next sync."""
        made: list[Record] = []
        for record, sent in outcomes:
            facts = {"digest": record.digest, "folder": name_key(sent.folder), "uidvalidity": sent.uidvalidity, "uid": sent.uid}
            date = {"date": sent.internaldate} if sent.internaldate != record.item.internaldate else {}
            made.append({"key": message_key(record.item), "state": "done", **facts, "flags": list(sent.flags), **date})
            if sent.uid and self._taken is not None:
                self._taken[sent.folder].add((sent.uidvalidity, sent.uid))
        self.ledger.put(*made)
        return made

    def refused(self, record: Stored[Message], folder: bytes, reason: str) -> None:
        facts = {"digest": record.digest, "folder": name_key(folder), "uidvalidity": 0, "uid": 0, "reason": reason}
        self.ledger.put({"key": message_key(record.item), "state": "refused", **facts})

    def take(self, record: Stored[Message], folder: bytes, spot: tuple[int, int]) -> None:
        """Settles a message that nobody had appended and that stands there all the same, its bytes just seen."""
        self.found.entries += 1
        self.found.bytes += record.size
        self._in(folder).add(spot)
        if not self.dry_run:
            facts = {"digest": record.digest, "folder": name_key(folder), "uidvalidity": spot[0], "uid": spot[1]}
            self.ledger.put({"key": message_key(record.item), "state": "proven", **facts})

    def _in(self, folder: bytes) -> set[tuple[int, int]]:
        """(UIDVALIDITY, UID) of what, in a folder of the target, belongs to some source message."""
        if self._taken is None:
            self._taken = defaultdict(set)
            for record in self.ledger:
                if record["state"] in SETTLED and record["uid"]:
                    self._taken[key_name(record["folder"])].add((record["uidvalidity"], record["uid"]))
                elif record["state"] in SETTLED:
                    self._unnamed.add(key_name(record["folder"]))
        return self._taken[folder]

    def _nameless(self, folder: bytes) -> Counter[str]:
        """How many messages of each digest stand in a folder under numbers that nobody knows, since the server told none."""
        here = name_key(folder)
        return Counter(one["digest"] for one in self.ledger if one["state"] in SETTLED and not one["uid"] and one["folder"] == here)

    # -- target -------------------------------------------------------------------------------------------------------------------------

    def look(self, folders: Sequence[bytes]) -> None:
        """Has the counters of these folders before this run changes anything. Raises ConnectionFailed."""
        self._seen |= self.target.counters(folders)

    def seen(self, folder: bytes) -> Selected | None:
        """As `look` found it; None where it is not there."""
        return self._seen.get(folder)

    def took_back(self, known: Record) -> bool:
        """Whether the server gave a message its number and, by the counters that `look` found, has not given it now."""
        folder = key_name(known["folder"])
        return was_taken_back((folder, known["uidvalidity"], known["uid"]), self._seen.get(folder))

    def standing(self, folder: bytes, sizes: set[int], troubles: list[Failure]) -> Spots:
        """What of these sizes stands in a folder and belongs to no source message yet, by its digest. Raises ConnectionFailed."""
        taken = self._in(folder)
        spots: Spots = defaultdict(list)
        nameless = self._nameless(folder) if folder in self._unnamed else Counter[str]()

        def maybe(message: Message) -> bool:
            return (message.uidvalidity, message.uid) not in taken and (message.size in sizes or not message.size)

        # What cannot be fetched is somebody else's trouble; a folder that cannot be looked through may hold anything.
        for message, digest in self.target.find(folder, 1, maybe, lambda failure: troubles.append(failure) if failure.name == folder else None):
            if nameless[digest] > 0:
                nameless[digest] -= 1
            else:
                spots[digest].append((message.uidvalidity, message.uid))
        for many in spots.values():
            many.reverse()
        return spots

    def search(self, folder: bytes, doubtful: Sequence[Stored[Message]], *, at_work: bool) -> tuple[list[Record], list[Stored[Message]]]:
        """Looks for messages whose append may have been cut off: what the journal says of those that stand there, and those that do not.

        `at_work`: the server may still be at work on what it was sent, so it is looked for until nothing more arrives. Where the folder cannot be
        looked through, what may be in it is told as failed, and given back in neither list. Raises ConnectionFailed.
        """
        found: list[Record] = []
        rest, last = list(doubtful), None
        for look in range(_LOOKS):
            now = self.target.status(folder) if rest else None
            if not rest or (look and self._waited >= self.patience and (now is None or (now.uidvalidity, now.uidnext) == last)):
                break
            if now is not None and (now.uidvalidity, now.uidnext) != last:
                more, left = self._match(folder, rest, self._since(folder, rest, now))
                found += more
                if left is None:
                    return found, []
                rest, last = left, (now.uidvalidity, now.uidnext)
            if not at_work or self.dry_run:
                break
            if rest:
                seconds = min(_QUIET, self.patience / 2)
                self.pause(seconds)
                self._waited += seconds
        return found, rest

    def cut(self) -> None:
        """The line was cut just now: what it left in doubt is to be waited for from now on."""
        self._waited = 0.0

    def perhaps_at_work(self, records: Sequence[Stored[Message]]) -> bool:
        """Whether an earlier run sent any of these so lately that the server may not be done with it."""
        times = [(known_of(self.ledger, record) or {}).get("time", 0) for record in records]
        now = self.clock()
        return any(not one or abs(now - one) < _OVER for one in times)

    def _since(self, folder: bytes, doubtful: Sequence[Stored[Message]], now: Selected) -> int:
        """The first UID that an append in doubt can have been given."""
        known = [known_of(self.ledger, record) for record in doubtful]
        seen = self._seen.get(folder)
        here = {"since": seen.uidnext, "uidvalidity": seen.uidvalidity} if seen else {}
        facts = [one if one is not None and one["state"] == "intent" else here for one in known]
        if all(one.get("since") and one.get("uidvalidity") == now.uidvalidity for one in facts):
            return int(min(one["since"] for one in facts))
        return 1

    def _match(self, folder: bytes, records: Sequence[Stored[Message]], since: int) -> tuple[list[Record], list[Stored[Message]] | None]:
        """Settles what stands there, and gives the rest; None for it where that cannot be told."""
        taken = self._in(folder)
        troubles: list[Failure] = []
        free = self.target.listed(folder, since, lambda message: (message.uidvalidity, message.uid) not in taken, troubles.append)
        nameless = self._nameless(folder)
        digests = {record.digest for record in records}
        # Who was taken for certain comes first: of twins, one that is found is the one that the server confirmed.
        certain = [(None, digest) for digest in digests for _ in range(nameless[digest])]
        matcher: Matcher[Stored[Message] | None] = Matcher([*((record, record.digest) for record in records), *certain], self.vault.objects.read)
        outcomes: list[tuple[Stored[Message], Message]] = []
        unread = {(message.uidvalidity, message.uid) for message in free}
        for message, came in self.target.fingerprints(free):
            unread.discard((message.uidvalidity, message.uid))
            match = matcher.take(came)
            if match is not None and match[0] is not None:
                outcomes.append((match[0], message))
                taken.add((message.uidvalidity, message.uid))
        made = [] if self.dry_run else self.done(outcomes)
        rest = [one for one in matcher.rest() if one is not None]
        if rest and (troubles or unread):
            reason = troubles[0].reason if troubles else f"{len(unread)} of its messages could not be fetched"
            self.hold_back(rest, reason)
            return made, None
        return made, rest

    def hold_back(self, records: Sequence[Stored[Message]], why: str) -> None:
        """Tells that these are not appended, since they may be there."""
        for record in records:
            reason = f"it may be there already, but the folder could not be looked through: {why}"
            self.result.fail(Failure("new", self.part.id, record.item.label, "in-doubt", reason, "run `push` again"))
