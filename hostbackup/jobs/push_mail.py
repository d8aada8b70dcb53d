"""One mailbox from a snapshot to the new host: append what is not there, prove it, never append it again.

The journal (`state/`) holds for each source message what became of it at the target: `intent` (about to be appended), `done` (with its UID
there), `proven`, or `refused` (tried again next time). A message that moved on the old server inherits the record of where its bytes were
pushed to. Content identity is the bytes, as a multiset: two identical messages stay two. An append in doubt is searched for before it is
repeated. Where the server takes more connections, what is appended is proven while more is on its way, and folders go over several at once.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hostbackup.jobs.backup_mail import GONE, message_key
from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.mail_proof import NewSide
from hostbackup.jobs.mail_sent import SETTLED, Sent, known_of
from hostbackup.jobs.mail_tally import MailTally
from hostbackup.jobs.push_abreast import Abreast
from hostbackup.jobs.push_append import Appending, OfFolder
from hostbackup.jobs.push_room import Room
from hostbackup.jobs.push_search import PATIENCE, TargetSearch
from hostbackup.jobs.push_witness import Witnessed
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import RANGE, MailScratch, Range
from hostbackup.model import Failure, Folder, Message, Part, Stored, name_json
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_folders import FolderMap
from hostbackup.vault.layout import internaldate_day
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.vault import Vault

_ABREAST = 2  # connections to append over, where the server has that many to spare beside the one that proves
_WORTH = 200  # messages outside the largest folder, below which another connection would not pay for its login


@dataclass(slots=True)
class MailPush:
    """Use: `plan()`, then, unless it is a dry run, `apply()` and `prove()`. `todo` keeps what is to be done, so that memory stays flat."""

    part: Part
    target: MailAccount
    source: MailRoot
    vault: Vault
    ledger: Ledger
    folder_map: FolderMap
    result: Result
    todo: MailScratch
    since: datetime.date | None = None
    dry_run: bool = False
    pause: Callable[[float], None] = time.sleep
    patience: float = PATIENCE  # seconds, for what a cut line left in doubt
    planned: Counter[str] = field(default_factory=Counter)
    _search: TargetSearch = field(init=False)
    _room: Room = field(init=False)
    _tally: MailTally = field(init=False)
    _archive: Archive = field(init=False)
    _witness: Witnessed | None = None
    _folders: dict[bytes, list[Folder]] = field(default_factory=dict)  # target name -> the old folders that lead there
    _lost: list[Sent] = field(default_factory=list)  # by the server itself, of the folder that is being planned
    _large: dict[bytes, list[Stored[Message]]] = field(default_factory=dict)  # by target name: larger than the server takes, but perhaps there
    _there: set[tuple[bytes, int, int]] = field(default_factory=set)  # of those: found there, in a dry run too
    _other: int = 0  # messages that an earlier run was to push with other bytes
    _doubtful: dict[bytes, list[Stored[Message]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._search = TargetSearch(self.part, self.target, self.vault, self.ledger, self.result, self.dry_run, self.pause, self.patience)
        self._room = Room(self.part, self.target, self.result)
        self._tally = MailTally("new", self.part.id)
        self._archive = Archive(self.vault, self.source, self.part)

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Counter[str]:
        """Compares snapshot, journal and target; settles what is in doubt. Raises ConnectionFailed."""
        for folder in self.source.folders():
            if GONE not in folder.attributes:
                self._folders.setdefault(self.folder_map.target(folder), []).append(folder)
        self._search.look(list(self._folders))
        self._room.ask({name: self._search.seen(name) is not None for name in self._folders})
        left = self._left_behind()
        for name, folders in self._folders.items():
            self._plan_folder(name, folders, left)
        self._room.tell(dry_run=self.dry_run)
        if self._other:
            told = f"of {self._other:,} messages the old server gave other bytes than before; these are pushed too, and what stands there stays"
            self.result.observer.warn(f"{self.part}: {told}")
        return self.planned

    def _plan_folder(self, name: bytes, folders: Sequence[Folder], left: dict[str, list[Record]]) -> None:
        before = self.planned["write"]
        sizes: set[int] = set()
        seen = self._search.seen(name)
        self.planned["folders"] += seen is None
        for folder in folders:
            for records in self._by_range(folder):
                self._want(name, self._candidates(name, records, left), sizes)
        if self._lost:
            self._want(name, self._nowhere(), sizes)
        if sizes and seen is not None and seen.exists:
            self._recognise(name, folders, sizes)
        if self._doubtful[name]:
            self._settle_doubt(name)
        self._leave_out_too_big(name)
        if self.dry_run and self.planned["write"] > before:
            row = {"part": self.part.id, **name_json(name, "folder"), "action": "append", "messages": self.planned["write"] - before}
            self.result.details.setdefault("plan", []).append(row)

    def _want(self, name: bytes, records: Iterable[Stored[Message]], sizes: set[int]) -> None:
        """Has them appended, or only proven, unless they turn out to be there. Adds their sizes."""
        for group, some in itertools.groupby(records, key=_range_of):
            wanted = list(some)
            for record in wanted:
                if self._state(record) != "done":
                    self.planned["write"] += 1
                    self.planned["write_bytes"] += record.size
                    self._room.count(name, record)
            self.todo.put(group, [(record, True) for record in wanted])
            sizes.update(record.size for record in wanted)

    def _leave_out_too_big(self, name: bytes) -> None:
        """What the server has said that it does not take, and does not have either, is told and not sent."""
        for record in self._large.pop(name, []):
            failure = self._room.too_big(name, record)
            if failure is not None and self._state(record) not in SETTLED and id_of(record) not in self._there:
                self.result.fail(failure)
                self._is_there(name, record)

    def _nowhere(self) -> Iterator[Stored[Message]]:
        """Of those that the server lost, what it has in no other folder, to be appended again."""
        lost, self._lost = self._lost, []
        side = self._new_side(self.target)
        nowhere = lost if self.dry_run else side.missing.nowhere(lost)
        if side.missing.blind:
            self._search.hold_back([one.record for one in nowhere], side.missing.blind)
            return
        for one in nowhere:
            self.planned["again"] += 1
            if not self.dry_run:
                self.ledger.put({**one.known, "state": "lost", "uid": 0})
            yield one.record
        if nowhere:
            told = f"the new server lost {len(nowhere):,} messages that it had taken: it gave them numbers that it says now are still to be given"
            self.result.observer.warn(f"{self.part}: {told}; they are appended again")

    def _by_range(self, folder: Folder) -> Iterator[list[Stored[Message]]]:
        for ref in self.source.refs(folder.name):
            if ref.live:
                yield list(self.source.segment(folder.name, ref))

    def _candidates(self, name: bytes, records: Iterable[Stored[Message]], left: dict[str, list[Record]]) -> Iterator[Stored[Message]]:
        """Live messages that are to be appended, searched for, or only proven."""
        for record in records:
            if record.vanished:
                continue
            known = known_of(self.ledger, record)
            if not record.digest:
                if known is None or known["state"] not in SETTLED:
                    reason = f"it never came whole from the old server: {record.failed or 'no reason on record'}"
                    self.result.fail(Failure("vault", self.part.id, record.item.label, "failed", reason, "run `backup` again, then `push`"))
                continue
            if known is not None and known["state"] in SETTLED and self._search.took_back(known):
                self._lost.append(Sent(record, known))
            elif known is not None and known["state"] in SETTLED:
                self.planned["settled"] += 1
                if known["state"] == "done":
                    yield record  # an earlier run ended before it could prove it
            elif self.since is not None and not _on_or_after(record.item, self.since):
                self.planned["older"] += 1
            elif left and (heir := self._inherits(name, record, left)) is not None:
                if heir == "done":
                    yield record
            else:
                self._other += known is None and self.ledger.get(message_key(record.item)) is not None
                if known is not None and known["state"] == "intent":
                    self._doubtful[name].append(record)
                if self._room.too_big(name, record) is not None:
                    self._large.setdefault(name, []).append(record)
                yield record

    def _is_there(self, name: bytes, record: Stored[Message], *, wanted: bool = False) -> None:
        """A planned message need not be appended. `wanted`: it is still to be proven."""
        self.planned["write"] -= 1
        self.planned["write_bytes"] -= record.size
        self._room.gives_back(name, record)
        if name in self._large:
            self._there.add(id_of(record))
        if not wanted:
            self.todo.drop((record.item.folder, record.item.uidvalidity, record.item.uid))

    def _recognise(self, name: bytes, folders: Sequence[Folder], sizes: set[int]) -> None:
        """Settles what no run has appended and stands there all the same."""
        troubles: list[Failure] = []
        spots = self._search.standing(name, sizes, troubles)
        doubtful = {id_of(record) for record in self._doubtful[name]}
        for record in self._planned_in(folders):
            if id_of(record) in doubtful or self._state(record) == "done":
                continue
            if spots.get(record.digest):
                self._search.take(record, name, spots[record.digest].pop())
                self.planned["there"] += 1
                self._is_there(name, record)
            elif troubles:
                self._search.hold_back([record], troubles[0].reason)
                self._is_there(name, record)

    def _settle_doubt(self, name: bytes) -> None:
        records = self._doubtful[name]
        there, rest = list[Record](), list[Stored[Message]]()
        for folder, some in self._where_sent(name, records).items():
            found_there, not_there = self._search.search(folder, some, at_work=self._search.perhaps_at_work(some))
            there += found_there
            rest += not_there
        found, missing = {str(one["key"]) for one in there}, {id_of(record) for record in rest}
        self.planned["there"] += len(records) - len(rest) if self.dry_run else len(there)
        for record in records:
            if str(message_key(record.item)) in found:
                self._is_there(name, record, wanted=True)
            elif id_of(record) not in missing:
                self._is_there(name, record)

    def _where_sent(self, name: bytes, records: Iterable[Stored[Message]]) -> dict[bytes, list[Stored[Message]]]:
        """By the folder that the journal says they were sent to: the profile may have named another one since."""
        sent: dict[bytes, list[Stored[Message]]] = defaultdict(list)
        for record in records:
            known = known_of(self.ledger, record)
            sent[name if known is None else key_name(known["folder"])].append(record)
        return sent

    def _state(self, record: Stored[Message]) -> str:
        known = known_of(self.ledger, record)
        return "" if known is None else str(known["state"])

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

    def _inherits(self, name: bytes, record: Stored[Message], left: dict[str, list[Record]]) -> str | None:
        """The journal's state of these bytes where they were pushed before under another name: moved to another old folder, or given a new UID
        in the same one."""
        heirs = left.get(record.digest)
        if not heirs:
            return None
        known = next((known for known in heirs if known["folder"] == name_key(name)), heirs[0])
        heirs.remove(known)
        if known["folder"] == name_key(name):
            self.planned["settled"] += 1
        else:
            self.planned["moved"] += 1
            row = {"part": self.part.id, **name_json(record.item.label), "action": "moved", "reason": "moved to another folder on the old server"}
            self.result.details.setdefault("left_alone", []).append(row)
        if not self.dry_run:
            self.ledger.put({**known, "key": message_key(record.item)}, {**known, "moved_on": True})
        return str(known["state"])

    # -- apply --------------------------------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Appends, and proves. Raises ConnectionFailed where the target ended; what is done stays in the journal."""
        for name, folders in self._folders.items():
            for folder in folders:
                self._tally.row(folder.name, name).messages = sum(ref.entries for ref in self.source.refs(folder.name))
        witness, accounts = self.target.another(), [self.target]
        try:
            if witness is not None:
                self._witness = Witnessed(self.target, witness)
                accounts += self._more_accounts()
            appending = Appending(Abreast(accounts), self.vault, self.ledger, self._search, self._archive, self.result)
            if self._witness is None:
                for _ in appending.run(self._by_folder()):
                    pass
                self._new_side(self.target).run(self._unproven())
            else:
                beside = self._new_side(self._witness)
                beside.run(self._appended(appending))
                if self._witness.lost:
                    beside.forget_unanswered()
                    self._new_side(self.target).run(self._unproven(beside.told))
        finally:
            if self._witness is not None:
                self._witness.close()
            for account in accounts[1:]:
                account.close()
                self.target.losses.update(account.losses)
            self.ledger.sync()
            self._tell_losses()

    def _more_accounts(self) -> Iterator[MailAccount]:
        """More connections to append over, where there is enough for them to do."""
        if self._room.messages.total() - max(self._room.messages.values(), default=0) >= _WORTH:
            for _ in range(_ABREAST - 1):
                if (account := self.target.another()) is not None:
                    yield account

    def _new_side(self, place: MailAccount | Witnessed) -> NewSide:
        return NewSide(place, self.ledger, self._archive, self.vault.objects.read, self.result, self._tally, fresh=True)

    def _unproven(self, told: Collection[tuple[bytes, int, int]] = ()) -> Iterator[Sent]:
        """What was appended, in this run or before, and is neither proven nor `told` as an exception."""
        for record in self._planned():
            known = known_of(self.ledger, record)
            if known is not None and known["state"] == "done" and id_of(record) not in told:
                yield Sent(record, known)

    def prove(self) -> MailTally:
        """What `apply` found of all that was appended, now or before, and of what stood there already."""
        if self._search.found.entries:
            self._tally.counts["verified"] += self._search.found.entries
            self._tally.methods["imap-fetch"] += self._search.found.entries
            self._tally.bytes += self._search.found.bytes
        return self._tally

    def _appended(self, appending: Appending) -> Iterator[Sent]:
        """Appends, and gives each message that stands at the target and is to be proven, as soon as it does, while there is a witness."""
        if len(self.ledger):
            yield from self._unproven()
        for sent in appending.run(self._by_folder()):
            if self._witness is not None and not self._witness.lost:
                yield sent

    def _by_folder(self) -> Iterator[OfFolder]:
        """What is planned, the folder with the most of it first: where several connections share the work, none is left with the last large one."""
        for name in sorted(self._folders, key=lambda name: self._room.messages[name], reverse=True):
            yield name, self._planned_in(self._folders[name])

    def _planned(self) -> Iterator[Stored[Message]]:
        for folders in self._folders.values():
            yield from self._planned_in(folders)

    def _planned_in(self, folders: Sequence[Folder]) -> Iterator[Stored[Message]]:
        wanted = {folder.name for folder in folders}
        for group in list(self.todo.folders()):
            if group[0] in wanted:
                yield from self.todo.records(group)

    def _tell_losses(self) -> None:
        """What the target did not keep of the messages it took: flags that it does not know, dates that it refused."""
        for (folder, what), count in sorted(self.target.losses.items()):
            lost, _, instead = what.partition("/") if what.startswith("INTERNALDATE") else (what, "", "")
            row = {"part": self.part.id, **name_json(folder, "folder"), "lost": lost, **({"instead": instead} if instead else {}), "messages": count}
            self.result.details.setdefault("not_kept", []).append(row)
        if self.target.losses:
            kinds = ", ".join(sorted({what.partition("/")[0] for _, what in self.target.losses}))
            self.result.observer.warn(f"{self.part}: the new server does not keep {kinds}; the messages themselves are there")


def why_not_pushed(ledger: Ledger, record: Stored[Message]) -> str:
    """For a message that the journal does not know as settled."""
    known = known_of(ledger, record)
    if record.digest and known is None and ledger.get(message_key(record.item)) is not None:
        return "was not pushed: only other bytes were, which the old server gave before"
    if record.failed or known is None:
        return record.failed or "was not pushed"
    told = {
        "intent": "was about to be pushed when the push ended",
        "refused": f"was refused by the new server: {known.get('reason', 'no reason on record')}",
    }
    return told.get(known["state"], "was taken by the new server, and not found there afterwards")


def id_of(record: Stored[Message]) -> tuple[bytes, int, int]:
    return record.item.folder, record.item.uidvalidity, record.item.uid


def _range_of(record: Stored[Message]) -> Range:
    return record.item.folder, record.item.uidvalidity, record.item.uid // RANGE


def _on_or_after(message: Message, since: datetime.date) -> bool:
    day = internaldate_day(message.internaldate)
    return day is None or day >= since


def _flat(key: Sequence[object]) -> tuple[object, ...]:
    """A journal key that can be hashed."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in key)
