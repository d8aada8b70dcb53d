"""One mailbox from a snapshot to the new host: append what is not there, prove it, never append it again.

The journal (`state/`) holds for each source message what became of it at the target: `intent` (about to be appended), `done` (with its UID
there), `proven`, or `refused` (tried again next time). A message that moved on the old server inherits the record of where its bytes were
pushed to. Content identity is the bytes, as a multiset: two identical messages stay two. An append in doubt is searched for before it is
repeated.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hostbackup.jobs.backup_mail import GONE, message_key
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.mail_proof import SETTLED, NewSide, Sent
from hostbackup.jobs.mail_tally import MailTally
from hostbackup.jobs.proofs import Tally, settle_missed
from hostbackup.jobs.push_search import TargetSearch
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Folder, Message, Part, Status, Stored, Write, name_json
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_folders import FolderMap
from hostbackup.vault.layout import internaldate_epoch
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.vault import Vault

_GROUP = 400  # intents made durable at a time, before the first of them is appended
_ROUNDS = 3  # how often what a cut line left in doubt is looked for and, where it is not there, appended once more
Todo = Mapping[bytes, Sequence[Stored[Message]]]  # by target folder


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
    _search: TargetSearch = field(init=False)
    _todo: dict[bytes, list[Stored[Message]]] = field(default_factory=dict)
    _folders: dict[bytes, list[Folder]] = field(default_factory=dict)  # target name -> the old folders that lead there
    _appended: list[Stored[Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._search = TargetSearch(self.part, self.target, self.ledger, self.result, self.dry_run)

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Counter[str]:
        """Compares snapshot, journal and target; settles what is in doubt. Raises ConnectionFailed."""
        for folder in self.source.folders():
            if GONE not in folder.attributes:
                self._folders.setdefault(self.folder_map.target(folder), []).append(folder)
        left = self._left_behind()
        for name, folders in self._folders.items():
            candidates = [record for folder in folders for record in self._candidates(folder) if not self._inherits(name, record, left)]
            if self._search.look_at(name) is None:
                self.planned["folders"] += 1
            rest = self._search.recognise(name, candidates)
            self.planned["there"] += len(candidates) - len(rest)
            self._todo[name] = rest
            self.planned["write"] += len(rest)
            self.planned["write_bytes"] += sum(record.size for record in rest)
            if self.dry_run and rest:
                row = {"part": self.part.id, **name_json(name, "folder"), "action": "append", "messages": len(rest)}
                self.result.details.setdefault("plan", []).append(row)
        return self.planned

    def _candidates(self, folder: Folder) -> Iterator[Stored[Message]]:
        """Live messages of an old folder that the journal does not know as settled."""
        for record in self.source.records(folder.name):
            if record.vanished or not record.digest:
                continue
            known = self.ledger.get(message_key(record.item))
            if known is not None and known["state"] in SETTLED:
                self.planned["settled"] += 1
                if known["state"] == "done":
                    self._appended.append(record)  # an earlier run ended before it could prove it
            elif self.since is None or _on_or_after(record.item, self.since):
                yield record
            else:
                self.planned["older"] += 1

    def _left_behind(self) -> dict[str, list[Record]]:
        """By digest, the journal's records of messages that are no longer where they were on the old server."""
        left: dict[str, list[Record]] = defaultdict(list)
        if not len(self.ledger):
            return left
        live = {hash(_flat(message_key(record.item))) for record in self.source.walk()}
        for record in self.ledger:
            if record["state"] in SETTLED and not record.get("moved_on") and hash(_flat(record["key"])) not in live:
                left[record["digest"]].append(record)
        return left

    def _inherits(self, name: bytes, record: Stored[Message], left: dict[str, list[Record]]) -> bool:
        """Whether these bytes were pushed before under another name: moved to another old folder, or given a new UID in the same one."""
        heirs = left.get(record.digest)
        if not heirs:
            return False
        known = next((known for known in heirs if known["folder"] == name_key(name)), heirs[0])
        heirs.remove(known)
        if known["folder"] == name_key(name):
            self.planned["settled"] += 1
        else:
            self.planned["moved"] += 1
            row = {"part": self.part.id, **name_json(record.item.label), "action": "moved", "reason": "moved to another folder on the old server"}
            self.result.details.setdefault("left_alone", []).append(row)
        if known["state"] == "done":
            self._appended.append(record)
        if not self.dry_run:
            self.ledger.put({**known, "key": message_key(record.item)}, {**known, "moved_on": True})
        return True

    # -- apply --------------------------------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Creates folders, sets subscriptions, appends. Raises ConnectionFailed where the target ended; what is done stays in the journal."""
        for failure in self.target.prepare(self._wanted_folders()):
            self.result.fail(failure)
        todo: Todo = self._todo
        doubtful: list[tuple[Stored[Message], Failure]] = []
        try:
            for _ in range(_ROUNDS):
                doubtful = []
                self._append(todo, doubtful)
                if not doubtful:
                    break
                todo = self._still_to_do(doubtful)
        finally:
            self.ledger.sync()
            for record, failure in doubtful:
                known = self.ledger.get(message_key(record.item))
                if known is None or known["state"] == "intent":
                    self.result.fail(dataclasses.replace(failure, name=record.item.label))
        self._tell_losses()

    def _append(self, todo: Todo, doubtful: list[tuple[Stored[Message], Failure]]) -> None:
        in_flight: dict[int, Stored[Message]] = {}
        for written in self.target.write(self._writes(todo, in_flight)):
            record = in_flight.pop(id(written.asked))
            if written.failure is not None and written.failure.code in ("in-doubt", "cut-short"):
                doubtful.append((record, written.failure))
                continue
            self.result.observer.advance(entries=1, size=record.size)
            if written.failure is not None:
                self.result.fail(dataclasses.replace(written.failure, name=record.item.label))
                self._search.settle(record, "refused", written.asked.item.folder, reason=written.failure.reason)
                continue
            self._search.settle(record, "done", written.asked.item.folder, written.item.uidvalidity, written.item.uid, sent=written.item)
            self._appended.append(record)
            self.result.counts["written"] += 1
            self.result.counts["written_bytes"] += record.size

    def _still_to_do(self, doubtful: list[tuple[Stored[Message], Failure]]) -> Todo:
        """What of the messages in doubt the target does not have. Those that it has are settled."""
        by_folder: dict[bytes, list[Stored[Message]]] = defaultdict(list)
        for record, _ in doubtful:
            known = self.ledger.get(message_key(record.item))
            if known is not None:
                by_folder[key_name(known["folder"])].append(record)
        rest = {}
        for name, records in by_folder.items():
            rest[name] = self._search.recognise(name, records)
            found = len(records) - len(rest[name])
            self.result.counts["written"] += found
            self.result.observer.advance(entries=found)
        return rest

    def _wanted_folders(self) -> list[Folder]:
        wanted = []
        for name, folders in self._folders.items():
            special = next((use for folder in folders if (use := self.folder_map.row(folder).special_use)), "")
            subscribed = any(folder.subscribed for folder in folders)
            wanted.append(Folder(name, special_use=special, subscribed=subscribed))
        return wanted

    def _writes(self, todo: Todo, in_flight: dict[int, Stored[Message]]) -> Iterator[Write[Message]]:
        for name, records in todo.items():
            rows = iter(records)
            while group := list(itertools.islice(rows, _GROUP)):
                self._search.intend(name, group)
                for record in group:
                    item = Message(name, 0, 0, record.size, record.item.internaldate, record.item.flags)
                    write = Write(item, record.digest, record.size, functools.partial(self.vault.objects.read, record.digest))
                    in_flight[id(write)] = record
                    yield write

    def _tell_losses(self) -> None:
        """What the target did not keep of the messages it took: flags that it does not know, dates that it refused."""
        for (folder, what), count in sorted(self.target.losses.items()):
            row = {"part": self.part.id, **name_json(folder, "folder"), "lost": what, "messages": count}
            self.result.details.setdefault("not_kept", []).append(row)
        if self.target.losses:
            kinds = ", ".join(sorted({what for _, what in self.target.losses}))
            self.result.observer.warn(f"{self.part}: the new server does not keep {kinds}; the messages themselves are there")

    # -- prove --------------------------------------------------------------------------------------------------------------------------

    def prove(self) -> MailTally:
        """Fetches back what was appended and compares. What the server gave no UID for is searched by its bytes."""
        tally = MailTally("new", self.part.id)
        for name, folders in self._folders.items():
            for folder in folders:
                tally.row(folder.name, name).messages = sum(ref.entries for ref in self.source.refs(folder.name))
        sent: list[Sent] = []
        nameless: dict[bytes, list[Stored[Message]]] = defaultdict(list)
        for record in self._appended:
            known = self.ledger.get(message_key(record.item))
            if known is not None and known["uid"]:
                sent.append(Sent(record, known))
            elif known is not None:
                nameless[key_name(known["folder"])].append(record)
        archive = Archive(self.vault, self.source, self.part)
        NewSide(self.target, self.ledger, archive, self.vault.objects.read, self.result, tally, fresh=True).run(sent)
        for name, records in nameless.items():
            self._prove_by_search(tally, name, records)
        if self._search.found.entries:
            tally.counts["verified"] += self._search.found.entries
            tally.methods["imap-fetch"] += self._search.found.entries
            tally.bytes += self._search.found.bytes
        self.ledger.sync()
        return tally

    def _prove_by_search(self, tally: Tally[Message], name: bytes, records: list[Stored[Message]]) -> None:
        """The server said that it took them, so what is not found was altered, moved or deleted there: it is told, and not appended again."""
        for record in self._search.recognise(name, records):
            reason = "the new server took it, but holds no message with these bytes in that folder: it was altered, moved or deleted there"
            failure = Failure("new", self.part.id, record.item.label, "missing", reason, "look for it there; the vault has it")
            settle_missed(self.result, tally, failure, Status.MISSING)


def why_not_pushed(ledger: Ledger, record: Stored[Message]) -> str:
    """For a message that the journal does not know as settled."""
    known = ledger.get(message_key(record.item))
    if record.failed or known is None:
        return record.failed or "was not pushed"
    told = {
        "intent": "was about to be pushed when the push ended",
        "refused": f"was refused by the new server: {known.get('reason', 'no reason on record')}",
    }
    return told.get(known["state"], "was taken by the new server, and not found there afterwards")


def _on_or_after(message: Message, since: datetime.date) -> bool:
    epoch = internaldate_epoch(message.internaldate)
    return epoch is None or datetime.datetime.fromtimestamp(epoch, datetime.UTC).date() >= since


def _flat(key: Sequence[object]) -> tuple[object, ...]:
    """A journal key that can be hashed."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in key)
