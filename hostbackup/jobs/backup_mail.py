"""One mailbox into the vault: plan by UID, fetch what is new, manifest.

A message's identity is (folder, UIDVALIDITY, UID), which the server never gives twice; its contents never change. So only new UIDs are fetched,
flags are followed, and what is gone stays in the manifest as vanished. Of a folder whose server tells only what changed, the ranges that nothing
happened to stay as they are and are not even read.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hostbackup.errors import ConnectionFailed
from hostbackup.jobs.arrivals import MailArrivals
from hostbackup.jobs.identity import Identity
from hostbackup.jobs.keys import Key, name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.pop3 import remember
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import RANGE, MailScratch, MessageKey, Range
from hostbackup.model import Changes, Claim, Failure, Folder, Listing, Message, Method, Part, Read, Status, Stored, name_json
from hostbackup.places.base import MailSource
from hostbackup.protocols.imap import sets
from hostbackup.protocols.imap.names import display
from hostbackup.vault.layout import folder_names, mail_meta, mail_prefix
from hostbackup.vault.mailbox import MailRoot, MailWriter, RangeRef
from hostbackup.vault.records import PartTotals
from hostbackup.vault.vault import Vault
from hostbackup.vault.view_prints import Prints

if TYPE_CHECKING:
    from hostbackup.places.pop3_check import Again

GONE = "\\NonExistent"  # RFC 9051 §7.3.1: how the manifest marks a folder that the server no longer has


_TOGETHER = 256  # messages that are noted in one go …
_UNNOTED = 0.5  # … or after so many seconds: what a kill may cost


def _key(message: Message) -> MessageKey:
    return message.folder, message.uidvalidity, message.uid


def message_key(message: Message) -> list[Key | int]:
    """How journals call a message."""
    key: list[Key | int] = [name_key(message.folder), message.uidvalidity, message.uid]
    # A number of ours means nothing before a manifest holds it: a run that was cut off gave it to whom this UIDL names.
    return [*key, message.uidl, message.size] if message.uidl else key


def _resume_line(read: Read[Message]) -> Record:
    """One line of the journal that a run which is cut off leaves to the next."""
    record: Record = {"key": message_key(read.asked), "digest": read.digest, "size": read.size}
    return record if read.item.internaldate == read.asked.internaldate else {**record, "internaldate": read.item.internaldate}


@dataclass
class MailBackup:
    """Brings one mailbox in. Use: `plan()`, then, unless it is a dry run, `fetch()` and `finish()`."""

    part: Part
    place: MailSource
    vault: Vault
    scratch: MailScratch
    result: Result
    now: str  # time stamp of the run
    identity: Identity
    previous: MailRoot | None = None
    resume: Ledger | None = None
    dry_run: bool = False
    checksum: bool = False  # everything is listed, whatever the server says has changed, and fetched for comparison
    prints: Prints | None = None
    doubted: set[MessageKey] = field(default_factory=set)  # messages that the server has other bytes of: they are fetched again
    planned: Counter[str] = field(default_factory=Counter)
    _folders: dict[bytes, Folder] = field(default_factory=dict)
    _unlisted: set[bytes] = field(default_factory=set)
    _arrived: Counter[bytes] = field(default_factory=Counter)  # messages by folder that have UIDs given since the last run
    _shorter: Counter[bytes] = field(default_factory=Counter)  # messages by folder that are shorter than the server says
    _seen: set[Range] = field(default_factory=set)
    _came: list[Read[Message]] = field(default_factory=list)  # not noted yet
    _noted: float = 0.0
    _lost: dict[MessageKey, Stored[Message]] = field(default_factory=dict)  # brought before, but their bytes are not, or no longer, to be had here

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Counter[str]:
        """Scans and compares. Raises WrongMachine where every known UIDVALIDITY changed, before anything is fetched."""
        remember(self.place, self.previous, self._look_again)
        if self.checksum and self.place.protocol == "imap":
            self._find_silent_changes()
        known = self._known()
        if self.prints:
            self.prints.look_ahead(self.part, [self._maildirs[name] for name in known])
        for listing in self.place.scan(known):
            if listing.failure is not None and listing.container not in self._unlisted:
                self._unlisted.add(listing.container)
                self.result.fail(listing.failure)
            if listing.folder is not None:
                self._folders[listing.container] = listing.folder
                self._count_arrivals(listing.items, listing.folder)
                if listing.changes is None:
                    self._plan_range(listing, listing.folder)
                else:
                    self._plan_changes(listing.items, listing.folder, listing.changes)
            self.result.observer.advance(entries=len(listing.items))
        seen = {name.decode("latin-1"): folder.uidvalidity for name, folder in self._folders.items() if folder.uidvalidity}
        if self.place.protocol == "imap":  # POP3 has nothing of the kind
            self.identity.see_mailbox("old.imap", self.part.name, seen)
        elif not getattr(self.place, "unchecked", 0):
            self.doubted.clear()
        self._plan_unseen()
        self.planned["wanted"], self.planned["wanted_bytes"] = self.scratch.totals()
        return self.planned

    def _look_again(self) -> Again:
        """What of the known messages is to be looked at again, where their names prove little."""
        from hostbackup.places.pop3_check import Again

        return Again(self.vault.objects.read, self.checksum, lambda message: _key(message) in self.doubted, self.result.observer)

    def _find_silent_changes(self) -> None:
        """Messages whose bytes are others under the same UID, which no server may do: all that the last manifest has are fetched and compared."""
        compared: Counter[str] = Counter()
        for proof in self.place.prove(self._unchanged_claims()):
            if proof.status is Status.DIFFERENT or (proof.tier and proof.status is not Status.VERIFIED):
                self.doubted.add(_key(proof.claim.item))
            elif proof.failure is not None and proof.status not in (Status.MISSING, Status.CHANGED):  # those will not be in the listing
                self.result.fail(proof.failure)
            if proof.method is not Method.NONE:
                compared[proof.method.value] += 1
            self.result.observer.advance(entries=1)
        self.result.details.setdefault("compared", {})[self.part.id] = dict(compared)

    def _unchanged_claims(self) -> Iterator[Claim[Message]]:
        for record in self.previous.walk() if self.previous else ():
            if record.digest and not record.stale and self.vault.objects.has(record.digest):
                yield Claim(record.item, record.digest, record.size)

    def _plan_range(self, listing: Listing[Message], folder: Folder) -> None:
        if not listing.items:
            return
        group = (folder.name, folder.uidvalidity, listing.items[0].uid // RANGE)
        self._seen.add(group)
        before = self.previous.range_records(*group) if self.previous else []
        old = {record.item.uid: record for record in before}
        rows = [self._compare(message, old.pop(message.uid, None)) for message in listing.items]
        rows += [(self._gone(record, listing.failure), False) for record in old.values()]
        rows.sort(key=lambda row: row[0].item.uid)
        if before and not any(wanted for _, wanted in rows) and [record for record, _ in rows] == before:
            self.scratch.keep(group)
        else:
            self.scratch.put(group, rows)

    def _count_arrivals(self, items: Sequence[Message], folder: Folder) -> None:
        before = self.previous.folder(folder.name) if self.previous else None
        if before is not None and before.uidvalidity == folder.uidvalidity and items and items[-1].uid >= before.uidnext:
            self._arrived[folder.name] += sum(item.uid >= before.uidnext for item in items)

    def _unseen(self, folder: Folder) -> int:
        """How many UIDs were given since the last run that no message was seen under: mail that came and went meanwhile, for all that is known."""
        before = self.previous.folder(folder.name) if self.previous else None
        if before is None or before.uidvalidity != folder.uidvalidity or not before.uidnext or folder.name in self._unlisted:
            return 0
        return max(0, folder.uidnext - before.uidnext - self._arrived[folder.name])

    def _known(self) -> dict[bytes, Folder]:
        """The folders of the last manifest that have each message the server said it held: of those a difference will do."""
        known = {}
        doubted = {folder for folder, _, _ in self.doubted}
        for folder in self.previous.folders() if self.previous and not self.checksum else ():
            refs = self.previous.refs(folder.name) if self.previous else []
            live = sum(ref.entries + ref.failed for ref in refs if ref.uidvalidity == folder.uidvalidity)
            others = any(ref.live for ref in refs if ref.uidvalidity != folder.uidvalidity)
            if folder.name not in doubted and folder.highestmodseq and live == folder.exists and not others and GONE not in folder.attributes:
                known[folder.name] = folder
        return known

    @functools.cached_property
    def _maildirs(self) -> dict[bytes, bytes]:
        """Where the folders of the last manifest stand in latest/."""
        return folder_names(self.previous.folders(), mail_prefix(self.previous.meta)) if self.previous else {}

    def _plan_changes(self, arrived: Sequence[Message], folder: Folder, changes: Changes) -> None:
        """As `_plan_range` for a whole folder of which only the difference was listed."""
        new: dict[int, list[Message]] = defaultdict(list)
        for message in arrived:
            new[message.uid // RANGE].append(message)
        marked = {uid // RANGE for uid in changes.flags}
        strangers = set(changes.flags)
        refs = {ref.range: ref for ref in self.previous.refs(folder.name) if ref.uidvalidity == folder.uidvalidity} if self.previous else {}
        for number in sorted({*refs, *new}):
            group = (folder.name, folder.uidvalidity, number)
            self._seen.add(group)
            ref = refs.get(number)
            gone = sets.within(changes.gone, number * RANGE, number * RANGE + RANGE - 1)
            if ref and number not in new and number not in marked and not gone and self._is_whole(folder.name, ref):
                self.planned["unchanged"] += ref.entries
                self.scratch.keep(group)
                continue
            before = list(self.previous.segment(folder.name, ref)) if self.previous and ref else []
            strangers.difference_update(record.item.uid for record in before if not record.vanished)
            rows = [self._follow(record, changes, gone) for record in before]
            rows += [self._compare(message, None) for message in new[number]]
            if before and not any(wanted for _, wanted in rows) and [record for record, _ in rows] == before:
                self.scratch.keep(group)
            else:
                self.scratch.put(group, rows)
        if strangers:  # the counts can agree by chance: one of these for one that went
            self._folders[folder.name] = dataclasses.replace(folder, highestmodseq=0)  # so that the next run lists everything
            told = "the server tells of messages below its last UIDNEXT that it did not tell of before"
            self.result.fail(Failure("old", self.part.id, folder.name, "changing", told, "run again: all of it will be listed"))

    def _is_whole(self, folder: bytes, ref: RangeRef) -> bool:
        """Whether there is nothing to be brought again for the range: all came, and stands in the vault."""
        if ref.failed or ref.stale or self.previous is None:
            return False
        known = self.previous.folder(folder)
        if known and self.prints and self.prints.of_objects and self.prints.is_intact(self.part, self.previous, known, self._maildirs[folder]):
            return True
        return all(map(self.vault.objects.has, self.previous.digests(folder, ref)))

    def _follow(self, record: Stored[Message], changes: Changes, gone: list[tuple[int, int]]) -> tuple[Stored[Message], bool]:
        uid = record.item.uid
        if record.vanished:
            return record, False
        if any(low <= uid <= high for low, high in gone):
            return self._gone(record, None), False
        return self._compare(dataclasses.replace(record.item, flags=changes.flags.get(uid, record.item.flags)), record)

    def _compare(self, message: Message, old: Stored[Message] | None) -> tuple[Stored[Message], bool]:
        key = _key(message)
        again = key in self.doubted and self.place.protocol == "imap"  # over POP3 the place itself looks at them, and numbers others anew
        if old and old.digest and not again and self.vault.objects.has(old.digest):
            self._planned("unchanged", message) if old.item.flags == message.flags else self._planned("changed", message)
            return Stored(dataclasses.replace(old.item, flags=message.flags), old.digest, old.size), False
        if old and old.digest:
            self._lost[key] = old
        self._planned("changed" if old and again else "new", message)
        record = self.resume.get(message_key(message)) if self.resume else None
        if record and not (again and old and record["digest"] == old.digest) and self.vault.objects.has(record["digest"]):
            self.planned["resumed"] += 1
            self.doubted.discard(key)
            date = record.get("internaldate", message.internaldate)
            return Stored(dataclasses.replace(message, internaldate=date), record["digest"], record["size"]), False
        return Stored(message), True

    def _gone(self, record: Stored[Message], failure: Failure | None) -> Stored[Message]:
        if record.vanished:
            return record
        if failure is not None:
            return dataclasses.replace(record, stale=failure.reason)
        self._planned("vanished", record.item)
        return dataclasses.replace(record, vanished=self.now, stale="")

    def _planned(self, what: str, message: Message) -> None:
        self.planned[what] += 1
        if self.dry_run and what in ("new", "vanished"):
            row = {"part": self.part.id, "action": what, **name_json(message.label), "kind": "message"}
            self.result.details.setdefault("plan", []).append(row)

    def _plan_unseen(self) -> None:
        """Ranges of the last manifest that the scan did not show: of an unlisted folder they stay, else their messages vanished."""
        for folder in self.previous.folders() if self.previous else ():
            listed = folder.name not in self._unlisted
            failure = None if listed else Failure("old", self.part.id, folder.name, "unlisted", "its folder could not be listed")
            for uidvalidity, number, ref in self.previous.ranges(folder.name) if self.previous else ():
                group = (folder.name, uidvalidity, number)
                if group in self._seen:
                    continue
                if ref.live:
                    records = self.previous.segment(folder.name, ref) if self.previous else ()
                    self.scratch.put(group, [(self._gone(record, failure), False) for record in records])
                else:
                    self.scratch.keep(group)

    # -- fetch --------------------------------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Reads new messages into the vault. A line that stays cut leaves the rest as failed entries; what came is kept."""
        if not self.planned["wanted"]:
            return
        try:
            sink = MailArrivals(self.vault.objects, self.part.id, checksum=self.checksum)
            for read in self.place.read(self.scratch.wanted(), sink):
                if read.failure is not None:
                    self._failed(read.asked, read.failure)
                    self.result.observer.advance(1, read.asked.size)
                    continue
                self._came.append(read)
                if len(self._came) >= _TOGETHER or time.monotonic() - self._noted >= _UNNOTED:
                    self._note()
        except ConnectionFailed as error:
            self._note()
            for message in self.scratch.wanted():
                self._failed(message, Failure("old", self.part.id, message.label, error.code, error.reason, error.hint))
        finally:
            self._note()

    def _note(self) -> None:
        """Notes what has come, for this run and for the next one should this end here: some at a time, which costs a fraction of one by one."""
        came, self._came = self._came, []
        self._noted = time.monotonic()
        if not came:
            return
        self.scratch.results((_key(read.asked), Stored(read.item, read.digest, read.size)) for read in came)
        self.doubted.difference_update(_key(read.asked) for read in came)
        if self.resume is not None:
            self.resume.append(_resume_line(read) for read in came)
        for read in came:
            self._shorter[read.asked.folder] += read.size < read.asked.size
        self.result.counts["read"] += len(came)
        self.result.counts["read_bytes"] += sum(read.size for read in came)
        self.result.observer.advance(len(came), sum(read.asked.size for read in came))

    def _failed(self, message: Message, failure: Failure) -> None:
        key = _key(message)
        lost = self._lost.get(key)
        if failure.code == "vanished":  # deleted between the listing and the fetch: mail comes and goes
            self.result.observer.note(f"{self.part}: {message.label.decode('utf-8', 'backslashreplace')} was deleted before it could be fetched")
            if lost is None:
                self.scratch.drop(key)
            else:
                self.scratch.result(key, dataclasses.replace(lost, vanished=self.now))
            return
        self.result.fail(failure)
        # A copy may still hold the bytes that were lost here, so their digest is kept.
        self.scratch.result(key, Stored(message, lost.digest, lost.size, stale=failure.reason) if lost else Stored(message, failed=failure.reason))

    # -- manifest -----------------------------------------------------------------------------------------------------------------------

    def finish(self) -> PartTotals:
        """Writes the mailbox's manifest; unchanged ranges keep their segments."""
        meta = mail_meta(self.part.name, self.place.namespace_prefix, self.place.separator)
        if self.place.protocol != "imap":
            meta["protocol"] = self.place.protocol
        writer = MailWriter(self.vault.manifests, self.part, meta)
        self.result.details.get("folders", {}).pop(self.part.id, None)
        ranges = {name: list(groups) for name, groups in itertools.groupby(self.scratch.folders(), key=lambda group: group[0])}
        before = {folder.name: folder for folder in self.previous.folders()} if self.previous else {}
        for name in sorted({*self._folders, *before}):
            folder = self._folders.get(name) or self._absent(before[name])
            writer.folder(folder)
            groups = sorted(ranges.get(name, ()), key=lambda group: (group[1] == folder.uidvalidity, group))
            returned = self._returned(folder, groups)
            for group in groups:
                if self.scratch.is_kept(group) and self.previous is not None:
                    writer.keep(next(ref for uidvalidity, number, ref in self.previous.ranges(name) if (name, uidvalidity, number) == group))
                else:
                    writer.add(self._without(returned, self.scratch.records(group), folder))
            self._tell(folder, writer.stored(folder))
        return writer.finish()

    def _tell(self, folder: Folder, stored: int) -> None:
        """The folder's counters, as they were told, beside what is stored: evidence that nothing was missed, or of what may have been."""
        if GONE in folder.attributes:
            return
        row: dict[str, Any] = {**name_json(folder.name), "exists": folder.exists, "stored": stored}
        if self.place.protocol == "imap":  # the numbers of a POP3 mailbox are our own, and prove nothing
            row.update(uidvalidity=folder.uidvalidity, uidnext=folder.uidnext)
        elif shorter := self._shorter[folder.name]:
            row["shorter"] = shorter
        if folder.highestmodseq:
            row["highestmodseq"] = folder.highestmodseq
        if unseen := self._unseen(folder):
            row["unseen"] = unseen
            self.result.counts["unseen"] += unseen
            what = "message" if unseen == 1 else "messages"
            text = f"{unseen} {what} may have come and gone since the last run without having been seen: UIDs were given that nothing is under"
            self.result.observer.note(f"{self.part}: folder {display(folder.name)!r}: {text}")
        self.result.details.setdefault("folders", {}).setdefault(self.part.id, []).append(row)

    def _absent(self, folder: Folder) -> Folder:
        if folder.name in self._unlisted or GONE in folder.attributes:
            return folder
        return dataclasses.replace(folder, attributes=tuple(sorted((*folder.attributes, GONE))), subscribed=False)

    def _returned(self, folder: Folder, groups: list[Range]) -> Counter[str]:
        """After a new UIDVALIDITY: the contents that are there again under new UIDs, as a multiset."""
        returned: Counter[str] = Counter()
        if any(group[1] != folder.uidvalidity and not self.scratch.is_kept(group) for group in groups):
            for group in groups:
                if group[1] == folder.uidvalidity:
                    returned.update(record.digest for record in self.scratch.records(group) if record.digest and not record.vanished)
        return returned

    def _without(self, returned: Counter[str], records: list[Stored[Message]], folder: Folder) -> list[Stored[Message]]:
        """Leaves out what vanished just now with its UIDVALIDITY and stands in the folder again, byte for byte."""
        kept = []
        for record in records:
            if record.item.uidvalidity != folder.uidvalidity and record.vanished == self.now and returned[record.digest] > 0:
                returned[record.digest] -= 1
                self.result.counts["vanished"] -= 1
                self.result.counts["renumbered"] += 1
            else:
                kept.append(record)
        return kept
