"""One mailbox from a snapshot to the new host: append what is not there, prove it, never append it again.

The journal (`state/`) holds for each source message what became of it at the target: `intent` (about to be appended), `done` (with its UID
there), `proven`, `refused` (tried again next time), or `moved` (its bytes already stand there from another old folder). Content identity is the
bytes, as a multiset: two identical messages stay two. An append in doubt is searched for before it is repeated.
"""

from __future__ import annotations

import datetime
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hostbackup.jobs.backup_mail import GONE, message_key
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.proofs import Tally, settle, settle_missed
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Folder, Message, Part, Status, Stored, Write, name_json
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_folders import FolderMap
from hostbackup.vault.layout import internaldate_epoch
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.vault import Vault

_GROUP = 100  # intents made durable at a time, before the first of them is appended
_SETTLED = ("done", "proven", "moved")


@dataclass(slots=True)
class MailPush:
    """Use: `plan()`, then, unless it is a dry run, `apply()` and `prove()`."""

    part: Part
    target: MailAccount
    source: MailRoot
    vault: Vault
    ledger: Ledger
    folder_map: FolderMap
    result: Result
    since: datetime.date | None = None
    dry_run: bool = False
    planned: Counter[str] = field(default_factory=Counter)
    _todo: dict[bytes, list[Stored[Message]]] = field(default_factory=dict)  # by target folder
    _folders: dict[bytes, list[Folder]] = field(default_factory=dict)  # target name -> the old folders that lead there
    _appended: list[Stored[Message]] = field(default_factory=list)

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Counter[str]:
        """Compares snapshot, journal and target; settles what is in doubt. Raises ConnectionFailed."""
        for folder in self.source.folders():
            if GONE not in folder.attributes:
                self._folders.setdefault(self.folder_map.target(folder), []).append(folder)
        left = self._left_behind()
        for name, folders in self._folders.items():
            candidates = [record for folder in folders for record in self._candidates(folder) if not self._inherits(name, record, left)]
            status = self.target.status(name)
            if status is None:
                self.planned["folders"] += 1
            elif candidates and status.exists:
                candidates = self._recognise(name, candidates)
            self._todo[name] = candidates
            self.planned["write"] += len(candidates)
            self.planned["write_bytes"] += sum(record.size for record in candidates)
            if self.dry_run and candidates:
                row = {"part": self.part.id, **name_json(name, "folder"), "action": "append", "messages": len(candidates)}
                self.result.details.setdefault("plan", []).append(row)
        return self.planned

    def _candidates(self, folder: Folder) -> Iterator[Stored[Message]]:
        """Live messages of an old folder that the journal does not know as settled."""
        for record in self.source.records(folder.name):
            if record.vanished or not record.digest:
                continue
            known = self.ledger.get(message_key(record.item))
            if known is not None and known["state"] in _SETTLED:
                self.planned["settled"] += 1
                if known["state"] == "done":
                    self._appended.append(record)  # an earlier run ended before it could prove it
            elif self.since is None or _on_or_after(record.item, self.since):
                yield record
            else:
                self.planned["older"] += 1

    def _left_behind(self) -> dict[str, list[Record]]:
        """By digest, the journal's records of messages that are no longer where they were on the old server."""
        live = {hash(_flat(message_key(record.item))) for record in self.source.walk()}
        left: dict[str, list[Record]] = defaultdict(list)
        for record in self.ledger:
            if record["state"] in _SETTLED and not record.get("moved_on") and hash(_flat(record["key"])) not in live:
                left[record["digest"]].append(record)
        return left

    def _inherits(self, name: bytes, record: Stored[Message], left: dict[str, list[Record]]) -> bool:
        """Whether these bytes were pushed before under another name: moved to another old folder, or given a new UID in the same one."""
        heirs = left.get(record.digest)
        if not heirs:
            return False
        same = [known for known in heirs if known["folder"] == name_key(name) and known["state"] != "moved"]
        known = same[0] if same else heirs[0]
        heirs.remove(known)
        if same:
            self.planned["settled"] += 1
        else:
            self.planned["moved"] += 1
            row = {"part": self.part.id, **name_json(record.item.label), "action": "moved", "reason": "moved to another folder on the old server"}
            self.result.details.setdefault("left_alone", []).append(row)
        if not self.dry_run:
            self.ledger.put({**known, "key": message_key(record.item), "state": known["state"] if same else "moved"}, {**known, "moved_on": True})
        return True

    def _recognise(self, name: bytes, candidates: Sequence[Stored[Message]]) -> list[Stored[Message]]:
        """What of the candidates already stands in the target folder, byte for byte, and is nobody else's. Returns the rest."""
        taken = {
            (record["uidvalidity"], record["uid"])
            for record in self.ledger
            if record["state"] in ("done", "proven") and not record.get("moved_on") and record["folder"] == name_key(name)
        }
        standing: dict[str, list[Message]] = defaultdict(list)
        for message, digest in self.target.find(name, 1, {record.size for record in candidates}):
            if (message.uidvalidity, message.uid) not in taken:
                standing[digest].append(message)
        rest: list[Stored[Message]] = []
        for record in candidates:
            if standing[record.digest]:
                message = standing[record.digest].pop(0)
                self.planned["there"] += 1
                if not self.dry_run:
                    self._settle(record, "proven", name, message.uidvalidity, message.uid)
            else:
                rest.append(record)
        return rest

    def _settle(self, record: Stored[Message], state: str, folder: bytes, uidvalidity: int, uid: int) -> None:
        facts = {"digest": record.digest, "folder": name_key(folder), "uidvalidity": uidvalidity, "uid": uid}
        self.ledger.put({"key": message_key(record.item), "state": state, **facts})

    # -- apply --------------------------------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Creates folders, sets subscriptions, appends. Raises ConnectionFailed where the target ended; what is done stays in the journal."""
        for failure in self.target.prepare(self._wanted_folders()):
            self.result.fail(failure)
        in_flight: dict[int, Stored[Message]] = {}
        try:
            for written in self.target.write(self._writes(in_flight)):
                record = in_flight.pop(id(written.asked))
                self.result.observer.advance(entries=1, size=record.size)
                if written.failure is not None:
                    self.result.fail(written.failure)
                    if written.failure.code != "in-doubt":
                        self._settle(record, "refused", written.asked.item.folder, 0, 0)
                    continue
                self._settle(record, "done", written.asked.item.folder, written.item.uidvalidity, written.item.uid)
                self._appended.append(record)
                self.result.counts["written"] += 1
                self.result.counts["written_bytes"] += record.size
        finally:
            self.ledger.sync()

    def _wanted_folders(self) -> list[Folder]:
        wanted = []
        for name, folders in self._folders.items():
            special = next((folder.special_use for folder in folders if folder.special_use), "")
            subscribed = any(folder.subscribed for folder in folders)
            wanted.append(Folder(name, special_use=special, subscribed=subscribed))
        return wanted

    def _writes(self, in_flight: dict[int, Stored[Message]]) -> Iterator[Write[Message]]:
        for name, records in self._todo.items():
            rows = iter(records)
            while group := list(itertools.islice(rows, _GROUP)):
                intents: list[Record] = [
                    {
                        "key": message_key(record.item),
                        "state": "intent",
                        "digest": record.digest,
                        "folder": name_key(name),
                        "uidvalidity": 0,
                        "uid": 0,
                    }
                    for record in group
                ]
                self.ledger.put(*intents)
                self.ledger.sync()
                for record in group:
                    item = Message(name, 0, 0, record.size, record.item.internaldate, record.item.flags)
                    write = Write(item, record.digest, record.size, functools.partial(self.vault.objects.read, record.digest))
                    in_flight[id(write)] = record
                    yield write

    # -- prove --------------------------------------------------------------------------------------------------------------------------

    def prove(self) -> Tally[Message]:
        """Fetches back what was appended and compares. What the server gave no UID for is searched by its bytes."""
        tally: Tally[Message] = Tally("new", self.part.id)
        by_place: dict[tuple[bytes, int, int], Stored[Message]] = {}
        nameless: dict[bytes, list[Stored[Message]]] = defaultdict(list)
        for record in self._appended:
            known = self.ledger.get(message_key(record.item))
            if known is not None and known["uid"]:
                by_place[(key_name(known["folder"]), known["uidvalidity"], known["uid"])] = record
            elif known is not None:
                nameless[key_name(known["folder"])].append(record)
        for proof in self.target.prove(_claims(by_place)):
            settle(self.result, tally, proof)
            item = proof.claim.item
            if proof.status is Status.VERIFIED:
                self._settle(by_place[(item.folder, item.uidvalidity, item.uid)], "proven", item.folder, item.uidvalidity, item.uid)
        for name, records in nameless.items():
            self._prove_by_search(tally, name, records)
        self.ledger.sync()
        return tally

    def _prove_by_search(self, tally: Tally[Message], name: bytes, records: list[Stored[Message]]) -> None:
        missing = self._recognise(name, records)
        for record in missing:
            reason = "appended, but its bytes were not found there afterwards"
            settle_missed(self.result, tally, Failure("new", self.part.id, record.item.label, "missing", reason, "run `push` again"), Status.MISSING)
            self._settle(record, "intent", name, 0, 0)
        tally.counts["verified"] += len(records) - len(missing)
        tally.methods["imap-fetch"] += len(records) - len(missing)


def pushed_claim(ledger: Ledger, record: Stored[Message]) -> tuple[Claim[Message], bool] | None:
    """Where the journal says a message stands at the target, and whether it was proven there; None where it was not pushed or only moved."""
    known = ledger.get(message_key(record.item))
    if known is None or known["state"] not in ("done", "proven") or not known["uid"]:
        return None
    item = Message(key_name(known["folder"]), known["uidvalidity"], known["uid"], record.size)
    return Claim(item, record.digest, record.size), known["state"] == "proven"


def _claims(by_place: dict[tuple[bytes, int, int], Stored[Message]]) -> Iterable[Claim[Message]]:
    for (folder, uidvalidity, uid), record in sorted(by_place.items(), key=lambda pair: pair[0]):
        yield Claim(Message(folder, uidvalidity, uid, record.size), record.digest, record.size)


def _on_or_after(message: Message, since: datetime.date) -> bool:
    epoch = internaldate_epoch(message.internaldate)
    return epoch is None or datetime.datetime.fromtimestamp(epoch, datetime.UTC).date() >= since


def _flat(key: Sequence[object]) -> tuple[object, ...]:
    """A journal key that can be hashed."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in key)
