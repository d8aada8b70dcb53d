"""What of a mailbox already stands at the target, byte for byte: so that nothing is appended twice, whatever an earlier run could still tell.

Messages are matched as a multiset. One at the target is nobody's twice: what the journal gave to one source message is no other's.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hostbackup.jobs.backup_mail import message_key
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.mail_proof import SETTLED
from hostbackup.jobs.result import Result
from hostbackup.model import Counts, Failure, Message, Part, Stored
from hostbackup.places.mail import MailAccount
from hostbackup.protocols.imap.session import Selected

_QUIET = 2.0  # seconds in which nothing more arrives before an append that was cut off is believed to be lost
_LOOKS = 15  # how often a folder in which mail keeps arriving is looked at again


@dataclass(slots=True)
class TargetSearch:
    """The journal of one mailbox's push, and the folders at the target as they were when first looked at."""

    part: Part
    target: MailAccount
    ledger: Ledger
    result: Result
    dry_run: bool = False
    pause: Callable[[float], None] = time.sleep
    _seen: dict[bytes, Selected | None] = field(default_factory=dict)
    found: Counts = field(default_factory=Counts)  # what stood there and was settled
    _taken: dict[bytes, set[tuple[int, int]]] | None = None

    # -- journal ------------------------------------------------------------------------------------------------------------------------

    def intend(self, name: bytes, records: Sequence[Stored[Message]]) -> None:
        """Makes durable that these are about to be appended, and from which UID on they would stand."""
        seen = self._seen.get(name)
        place = {"folder": name_key(name), "uidvalidity": seen.uidvalidity if seen else 0, "uid": 0, "since": seen.uidnext if seen else 0}
        intents: list[Record] = [{"key": message_key(record.item), "state": "intent", "digest": record.digest, **place} for record in records]
        self.ledger.put(*intents)
        self.ledger.sync()

    def settle(
        self,
        record: Stored[Message],
        state: str,
        folder: bytes,
        uidvalidity: int = 0,
        uid: int = 0,
        *,
        reason: str = "",
        sent: Message | None = None,
    ) -> None:
        """Notes what became of a message, and with which flags and date it was sent. Durable with the ledger's next sync."""
        facts = {"digest": record.digest, "folder": name_key(folder), "uidvalidity": uidvalidity, "uid": uid}
        told: Record = {"reason": reason} if reason else {}
        if sent is not None:
            told["flags"] = list(sent.flags)
            if sent.internaldate != record.item.internaldate:
                told["date"] = sent.internaldate
        self.ledger.put({"key": message_key(record.item), "state": state, **facts, **told})
        if uid and self._taken is not None:
            self._taken[folder].add((uidvalidity, uid))

    def _in(self, folder: bytes) -> set[tuple[int, int]]:
        """(UIDVALIDITY, UID) of what, in a folder of the target, belongs to some source message."""
        if self._taken is None:
            self._taken = defaultdict(set)
            for record in self.ledger:
                if record["state"] in SETTLED and record["uid"]:
                    self._taken[key_name(record["folder"])].add((record["uidvalidity"], record["uid"]))
        return self._taken[folder]

    # -- target -------------------------------------------------------------------------------------------------------------------------

    def look_at(self, folder: bytes) -> Selected | None:
        """The folder's counters before this run changed anything; None where it is not there. Raises ConnectionFailed."""
        if folder not in self._seen:
            self._seen[folder] = self.target.status(folder)
        return self._seen[folder]

    def recognise(self, folder: bytes, candidates: Sequence[Stored[Message]]) -> list[Stored[Message]]:
        """What of the candidates does not stand in the target folder: to be appended. What stands there, and is nobody else's, is settled.

        Where the folder could not be looked through, what may be in it is told as failed and is not given either. Raises ConnectionFailed.
        """
        fresh, doubtful = list[Stored[Message]](), list[Stored[Message]]()
        for record in candidates:
            known = self.ledger.get(message_key(record.item))
            (doubtful if known is not None and known["state"] == "intent" else fresh).append(record)
        left = {id(record) for record in (*self._standing(folder, fresh), *self._surely(folder, doubtful))}
        return [record for record in candidates if id(record) in left]

    def _standing(self, folder: bytes, fresh: list[Stored[Message]]) -> list[Stored[Message]]:
        """Looks for messages that no run has appended. Only those of their sizes are fetched: it is their first time here."""
        now = self.target.status(folder) if fresh else None
        if now is None or not now.exists:
            return fresh
        troubles: list[Failure] = []
        rest = self._match(folder, fresh, 1, {record.size for record in fresh}, troubles)
        whole = next((failure for failure in troubles if failure.name == folder), None)
        return rest if whole is None else self._hold_back(rest, whole)

    def _surely(self, folder: bytes, doubtful: list[Stored[Message]]) -> list[Stored[Message]]:
        """Looks for messages whose append may have been cut off, until nothing more arrives: the server may still be at work on what it was sent."""
        rest, last = doubtful, None
        for look in range(_LOOKS):
            now = self.target.status(folder) if rest else None
            if not rest or (look and (now is None or (last is not None and (now.uidvalidity, now.uidnext) == last))):
                break
            if now is not None:
                troubles: list[Failure] = []
                rest = self._match(folder, rest, self._since(rest, now), None, troubles)
                if troubles:
                    return self._hold_back(rest, troubles[0])
                last = now.uidvalidity, now.uidnext
            if rest and not self.dry_run:
                self.pause(_QUIET)
        return rest

    def _since(self, doubtful: Sequence[Stored[Message]], now: Selected) -> int:
        """The first UID that an append in doubt can have been given."""
        known = [self.ledger.get(message_key(record.item)) or {} for record in doubtful]
        if all(one.get("since") and one.get("uidvalidity") == now.uidvalidity for one in known):
            return int(min(one["since"] for one in known))
        return 1

    def _match(
        self, folder: bytes, records: Sequence[Stored[Message]], since: int, sizes: set[int] | None, troubles: list[Failure]
    ) -> list[Stored[Message]]:
        """Settles what stands there; gives the rest."""
        taken = self._in(folder)
        wanted: dict[str, deque[Stored[Message]]] = defaultdict(deque)
        for record in records:
            wanted[record.digest].append(record)
        found = set[int]()

        def maybe(message: Message) -> bool:
            return (message.uidvalidity, message.uid) not in taken and (sizes is None or message.size in sizes)

        for message, digest in self.target.find(folder, since, maybe, troubles.append):
            if wanted[digest]:
                record = wanted[digest].popleft()
                found.add(id(record))
                taken.add((message.uidvalidity, message.uid))
                self.found.entries += 1
                self.found.bytes += record.size
                if not self.dry_run:
                    self.settle(record, "proven", folder, message.uidvalidity, message.uid)
        return [record for record in records if id(record) not in found]

    def _hold_back(self, records: Sequence[Stored[Message]], trouble: Failure) -> list[Stored[Message]]:
        for record in records:
            reason = f"it may be there already, but the folder could not be looked through: {trouble.reason}"
            self.result.fail(Failure("new", self.part.id, record.item.label, "in-doubt", reason, "run `push` again"))
        return []
