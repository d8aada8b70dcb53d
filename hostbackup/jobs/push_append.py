"""Messages of a mailbox are appended, and the journal told of each: that it is about to be, then what became of it.

An intent is durable before the first byte of its message is sent, so that whatever ends the run, the next one knows what to look for. What a cut
line left in doubt is looked for, and appended once more where it is not there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hostbackup.errors import Exit
from hostbackup.jobs.backup_mail import message_key
from hostbackup.jobs.ledger import Ledger
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.mail_sent import SETTLED, Sent, known_of
from hostbackup.jobs.mail_tally import described
from hostbackup.jobs.push_abreast import Abreast
from hostbackup.jobs.push_search import TargetSearch
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Message, Stored, Write, Written
from hostbackup.vault.vault import Vault

_DESCRIBED = 1000  # refused messages of a mailbox that are told with subject and file
_GROUP = 400  # intents made durable at a time, before the first of them is appended
_SETTLED_AT_ONCE = 100  # outcomes that go to the journal in one write
_ROUNDS = 3  # how often what a cut line left in doubt is looked for and, where it is not there, appended once more
_CUT = ("in-doubt", "cut-short", "in-part")
Row = tuple[bytes, Stored[Message]]  # a folder of the target, and a message of the snapshot that goes there
OfFolder = tuple[bytes, Iterable[Stored[Message]]]


@dataclass(slots=True)
class Appending:
    """Use: `run()`, once."""

    abreast: Abreast
    vault: Vault
    ledger: Ledger
    search: TargetSearch
    archive: Archive
    result: Result
    _in_flight: dict[int, Stored[Message]] = field(default_factory=dict)  # by the Write that asks for it
    _taken: list[tuple[Stored[Message], Message]] = field(default_factory=list)  # that the journal does not know of yet
    _doubtful: list[tuple[Row, Failure]] = field(default_factory=list)

    def run(self, folders: Iterable[OfFolder]) -> Iterator[Sent]:
        """Appends what is not settled; gives what then stands there. Raises ConnectionFailed where the target ended."""
        try:
            yield from self._append(folders)
            for _ in range(_ROUNDS - 1):
                if self._doubtful:
                    yield from self._once_more()
        finally:
            for (_, record), failure in self._doubtful:
                if self._state(record) not in SETTLED:
                    self.result.fail(dataclasses.replace(failure, name=record.item.label))

    def _append(self, folders: Iterable[OfFolder]) -> Iterator[Sent]:
        try:
            for written in self.abreast.write(self._writes(name, records) for name, records in folders):
                self._take(written)
                if len(self._taken) >= _SETTLED_AT_ONCE:
                    yield from self._settled()
        finally:
            rest = self._settled()
        yield from rest

    def _take(self, written: Written[Message]) -> None:
        record, folder = self._in_flight.pop(id(written.asked)), written.asked.item.folder
        if written.failure is not None and written.failure.code in _CUT:
            self._doubtful.append(((folder, record), written.failure))
            return
        self.result.observer.advance(entries=1, size=record.size)
        if written.failure is not None:
            failure = dataclasses.replace(written.failure, name=record.item.label)
            if len(self.result.failures) < _DESCRIBED:
                failure = described(failure, self.archive.subject(record), self.archive.path(record))
            self.result.fail(failure, Exit.DAMAGE if failure.code == "damaged" else Exit.INCOMPLETE)
            self.search.refused(record, folder, written.failure.reason)
        else:
            self._taken.append((record, written.item))
            self.result.counts["written"] += 1
            self.result.counts["written_bytes"] += record.size

    def _settled(self) -> list[Sent]:
        """Tells the journal of what was taken."""
        known = self.search.done(self._taken)
        made = [Sent(record, one) for (record, _), one in zip(self._taken, known, strict=True)]
        self._taken.clear()
        return made

    def _writes(self, name: bytes, records: Iterable[Stored[Message]]) -> Iterator[Write[Message]]:
        fresh = (record for record in records if self._state(record) not in SETTLED)
        while some := list(itertools.islice(fresh, _GROUP)):
            self.search.intend(name, some)
            for record in some:
                item = Message(name, 0, 0, record.size, record.item.internaldate, record.item.flags)
                write = Write(item, record.digest, record.size, functools.partial(self.vault.objects.read, record.digest))
                self._in_flight[id(write)] = record
                yield write

    def _once_more(self) -> Iterator[Sent]:
        """Looks for what a cut line left in doubt, and appends what is not there."""
        again, self._doubtful = self._doubtful, []
        by_folder: dict[bytes, list[Stored[Message]]] = defaultdict(list)
        at_work = set()
        for (name, record), failure in again:
            by_folder[name].append(record)
            if failure.code == "in-doubt":
                at_work.add(name)
        rest: dict[bytes, Sequence[Stored[Message]]] = {}
        self.search.cut()
        for name, records in by_folder.items():
            found, rest[name] = self.search.search(name, records, at_work=name in at_work)
            known = {str(one["key"]): one for one in found}
            for record in records:
                one = known.get(str(message_key(record.item)))
                if one is not None:
                    self.result.counts["written"] += 1
                    self.result.observer.advance(entries=1, size=record.size)
                    yield Sent(record, one)
        yield from self._append(rest.items())

    def _state(self, record: Stored[Message]) -> str:
        known = known_of(self.ledger, record)
        return "" if known is None else str(known["state"])
