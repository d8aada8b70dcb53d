"""One web tree from a snapshot to the new host: plan, then write with a journal, and prove what is written while the rest is being written."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hostbackup.errors import ConnectionFailed, Damaged, Exit, PlaceMissing
from hostbackup.jobs.keys import name_key, stamp
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.jobs.proofs import Proving, Tally, settle, settle_missed
from hostbackup.jobs.push_plan import Action, Comparer, Step, dress, finished, journal_record
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import Scratch
from hostbackup.jobs.settled import Settled
from hostbackup.jobs.shrink import shrunk_failure
from hostbackup.model import Claim, Entry, Failure, Kind, Part, Proof, Status, Stored, Write, Written, name_json
from hostbackup.places.base import Place
from hostbackup.places.exclude import Excludes
from hostbackup.vault.layout import tree_top
from hostbackup.vault.tree import SegmentRef, TreeRoot
from hostbackup.vault.vault import Vault

Row = TypeVar("Row")

_GROUP = 1024  # intents made durable at a time, before the first of them is written
_DONE = 128  # writes told to the journal at a time: what is not told yet when a run dies is proven by the next one
_WRITES = (Action.CREATE, Action.UPDATE, Action.OVERWRITE)
_HOLDS = (*_WRITES, Action.EQUAL, Action.ADOPT, Action.ATTRIBUTES)  # what ends with the target as the snapshot is, if all goes well


@dataclass(slots=True)
class TreePush:
    """Use: `plan()`, then, unless it is a dry run, `apply()`. `witness` is the target over a login of its own, for proofs."""

    part: Part
    target: Place[Entry]
    witness: Place[Entry]
    source: TreeRoot
    vault: Vault
    open_ledger: Callable[[], Ledger]  # asked for it once, and only if there is anything to look up or to note
    settled: Settled
    there: Scratch[Entry]  # what the target holds, of folders not known to hold all: "wanted" means: to be kept before it is overwritten
    todo: Scratch[Entry]  # what is to be written
    bare: Scratch[Entry]  # what is to get its mode and time only
    result: Result
    adapted: Excludes = field(default_factory=Excludes)
    overwrite: Excludes = field(default_factory=Excludes)
    shrunk: bool = False
    gone_stays: bool = False  # as in Comparer
    dry_run: bool = False
    planned: Counter[str] = field(default_factory=Counter)
    cut: ConnectionFailed | None = None
    _made: set[bytes] = field(default_factory=set)  # folders that are made
    _filled: set[bytes] = field(default_factory=set)  # folders that something is written to, now or by a push that was killed
    _done: list[Record] = field(default_factory=list)  # for the journal
    _unsaved: set[bytes] = field(default_factory=set)  # what was to be overwritten and could not be kept: it stays
    _counts: dict[bytes, int] = field(default_factory=dict)  # entries of each of the snapshot's folders that the target lists
    _bare: dict[bytes, Stored[Entry]] = field(default_factory=dict)  # under way without contents: what the snapshot says of it
    _redressed: set[bytes] = field(default_factory=set)  # folders whose mode or time changed
    _unproven: dict[bytes, Record] = field(default_factory=dict)  # what was written and waits for its proof: its journal line
    _ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = self.open_ledger()
        return self._ledger

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Counter[str]:
        """Compares snapshot, journal and target. Raises ConnectionFailed; a folder that cannot be listed is told and nothing in it is touched."""
        unlisted, held = self._look()
        self.planned[Action.EQUAL.value] += sum(self._counts.values())
        if all(folder in held for folder in self.source.folders()):
            return self.planned
        comparer = Comparer(self.target, self.ledger, self.adapted, self.overwrite, self.shrunk, self.gone_stays)
        rows: list[tuple[Stored[Entry], bool]] = []
        current = b""
        blocked: set[bytes] = set()
        for step in comparer.steps(self._pairs(unlisted, held)):
            self._counts[step.source.item.parent] = self._counts.get(step.source.item.parent, 0) + 1
            if step.action not in _HOLDS:
                self.settled.doubt(step.source.item.parent)
            if _below(step.source.item.path, blocked):
                self.planned["blocked"] += 1
                continue
            self.planned[step.action.value] += 1
            self._tell(step, blocked)
            if step.action is Action.ADOPT and step.there is not None and not self.dry_run:
                if step.killed:
                    self._filled.add(step.source.item.path if step.there.kind is Kind.DIR else step.source.item.parent)
                self.ledger.put(journal_record(step.source, step.there, "done"))
            elif step.action is Action.OVERWRITE and step.there is not None:
                self.there.put(step.there.parent, [(Stored(step.there), True)])
            elif step.action is Action.ATTRIBUTES:
                self.bare.put(step.source.item.parent, [(step.source, False)])
                if step.source.item.kind is Kind.DIR:
                    self._redressed.add(step.source.item.path)
            if step.action not in _WRITES:
                continue
            if step.source.item.parent != current:
                self._queue(current, rows)
                current, rows = step.source.item.parent, []
            rows.append((step.source, False))
            self._filled.add(current)
            if step.source.item.kind is Kind.DIR:
                self._made.add(step.source.item.path)
            self.planned["write"] += 1
            self.planned["write_bytes"] += step.source.size
        self._queue(current, rows)
        return self.planned

    def _queue(self, folder: bytes, rows: list[tuple[Stored[Entry], bool]]) -> None:
        if rows:
            self.todo.put(folder, rows)

    def _look(self) -> tuple[set[bytes], set[bytes]]:
        """Lists the target. Gives the folders that could not be listed, and those that are known to hold all that the snapshot has for them."""
        unlisted: set[bytes] = set()
        held: set[bytes] = set()
        try:
            for listing in self.target.scan():
                self.settled.listed(listing.container, listing.items)
                count = None if listing.failure else self.settled.holds(listing.container, self.source.refs(listing.container))
                if count is not None:
                    held.add(listing.container)
                    self._counts[listing.container] = count
                # Of folders that hold all, those in them count: their times change with what is put into them.
                kept = listing.items if count is None else [entry for entry in listing.items if entry.kind is Kind.DIR]
                self.there.put(listing.container, [(Stored(entry), False) for entry in kept])
                if listing.failure is not None:
                    unlisted.add(listing.container)
                    self.result.fail(listing.failure)
                self.result.observer.advance(entries=len(listing.items))
        except PlaceMissing:
            self.result.observer.note(f"{self.part}: the target folder is not there yet and will be made")
            self.planned["make_root"] = 1
        return unlisted, held

    def _pairs(self, unlisted: set[bytes], held: set[bytes]) -> Iterator[tuple[Stored[Entry], Entry | None]]:
        for folder in self.source.folders():
            if folder in held:
                continue
            if folder in unlisted or _below(folder, unlisted):
                self.settled.doubt(folder)
                continue
            there = {record.item.name: record.item for record in self.there.records(folder)}
            for record in self.source.records(folder):
                if record.vanished or record.item.kind is Kind.OTHER:
                    continue
                if record.failed:
                    reason = f"it never came whole from the old server: {record.failed}"
                    self.result.fail(Failure("vault", self.part.id, record.item.path, "failed", reason, "run `backup` again, then `push`"))
                    self.settled.doubt(folder)
                    continue
                yield record, there.get(record.item.name)

    def _tell(self, step: Step, blocked: set[bytes]) -> None:
        path = step.source.item.path
        if step.action is Action.CONFLICT:
            if step.source.item.kind is Kind.DIR:
                blocked.add(path)
            hint = "compare the two by hand; `push --overwrite PATTERN` takes the old server's version and keeps the other in the vault"
            self.result.fail(Failure("new", self.part.id, path, "conflict", step.reason, hint))
        elif step.action is Action.BLOCKED:
            self.result.fail(shrunk_failure("new", self.part, path))
        elif step.action in (Action.THEIRS, Action.ADAPTED):
            row = {"part": self.part.id, **name_json(path), "action": step.action.value, "reason": step.reason}
            self.result.details.setdefault("left_alone", []).append(row)
            self.result.observer.note(f"left alone: {self.part}/{path.decode('utf-8', 'backslashreplace')}: {step.reason}")
        if self.dry_run and step.action in (*_WRITES, Action.ATTRIBUTES):
            row = {"part": self.part.id, **name_json(path), "action": step.action.value, "kind": step.source.item.kind.value}
            self.result.details.setdefault("plan", []).append(row)

    # -- apply --------------------------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Keeps in the vault what is to be overwritten on the target: bytes durably first, then the journal `saved` that finds them."""
        links: list[Entry] = []
        kept: list[tuple[Entry, str, int]] = []

        def files() -> Iterator[Entry]:
            for entry in self.there.wanted():
                if entry.kind is Kind.FILE:
                    yield entry
                else:
                    links.append(entry)

        for read in self.target.read(files(), self.vault.objects):
            if read.failure is not None:
                self.result.fail(read.failure)
                self._unsaved.add(read.asked.path)
            else:
                kept.append((read.asked, read.digest, read.size))
        self.vault.objects.flush()
        with self.vault.state.journal("saved") as journal:
            for entry, digest, size in [*kept, *((link, "", 0) for link in links)]:
                facts = {"time": stamp(), "part": self.part.id, "kind": entry.kind.value, "digest": digest, "size": size, "mtime_ns": entry.mtime_ns}
                journal.append([{"key": name_key(entry.path), "target": name_key(entry.target), **facts}])
                row = {**name_json(entry.path), "part": self.part.id, "digest": digest, **(name_json(entry.target, "target") if not digest else {})}
                self.result.details.setdefault("saved", []).append(row)
            journal.sync()

    def apply(self) -> Tally[Entry]:
        """Writes what the plan says, and proves what it wrote. Each entry is whole or not at all; each is in the journal before and after.

        A line that stays cut leaves the rest as failed entries (`cut` tells that it did); what was written is kept.
        """
        tally: Tally[Entry] = Tally("new", self.part.id)
        if self.planned[Action.OVERWRITE.value]:
            self._save()
        with Proving(self.witness) as proving:
            try:
                for written in self.target.write(self._writes()):
                    self._wrote(written, proving)
                    for proof in proving.proofs():
                        self._proven(proof, tally)
            except ConnectionFailed as error:
                self.cut = error
            finally:
                self._tell_done()
            if self.cut is not None:
                self._tell_left(self.cut)
            self._prove_rest(proving, tally)
        if self.cut is None:
            if self._ledger is not None:
                self._ledger.sync()
            self.settled.keep(self._held())
        return tally

    def _held(self) -> Iterator[tuple[bytes, list[SegmentRef], int]]:
        return ((folder, refs, self._counts.get(folder, 0)) for folder, refs in self.source.by_folder())

    def _tell_done(self) -> None:
        if self._done:
            self.ledger.append(self._done)
            self._done.clear()

    def _tell_left(self, error: ConnectionFailed) -> None:
        self.ledger.reread()
        for record, _there in self._todo():
            if pushed_claim(self.ledger, record) is None:
                self.result.fail(Failure("new", self.part.id, record.item.path, error.code, error.reason, error.hint))

    def _prove_rest(self, proving: Proving[Entry], tally: Tally[Entry]) -> None:
        try:
            for proof in proving.rest():
                self._proven(proof, tally)
        except (ConnectionFailed, PlaceMissing) as error:
            left = proving.claimed - sum(tally.counts.values())
            reason = f"{left} written entries could not be proven: {error.reason}"
            self._doubt(*self._unproven)
            settle_missed(self.result, tally, Failure("new", self.part.id, b"", error.code, reason, "run `verify --against new`"), Status.UNVERIFIED)
            tally.counts[Status.UNVERIFIED.value] = left

    def _proven(self, proof: Proof[Entry], tally: Tally[Entry]) -> None:
        settle(self.result, tally, proof)
        path = proof.claim.item.path
        if proof.status in (Status.VERIFIED, Status.CHANGED):
            self._unproven.pop(path, None)
        else:
            self._doubt(path)

    def _doubt(self, *paths: bytes) -> None:
        """The journal says of these no longer that they stand as they were written: the next push asks for proof, before it counts any as equal."""
        self._tell_done()
        records = [(path, self._unproven.pop(path)) for path in paths if path in self._unproven]
        self.ledger.append({**record, "state": "intent", "before": None} for _, record in records)
        for path, _ in records:
            self.settled.doubt(path.rpartition(b"/")[0])

    def _writes(self) -> Iterator[Write[Entry]]:
        if self.planned["make_root"]:
            yield Write(self._top())
        for group in _groups(self._todo(), _GROUP):
            self._intend((record, record.item) for record, _ in group)
            for record, there in group:
                opener = functools.partial(self.vault.objects.read, record.digest) if record.item.kind is Kind.FILE else None
                yield Write(record.item, record.digest, record.size, opener, there is not None, there)
        for rows in _groups(itertools.chain(self._undressed(), self._outdated()), _GROUP):
            self._intend((record, dressed) for record, dressed, _ in rows)
            for record, dressed, there in rows:
                self._bare[dressed.path] = record
                yield Write(dressed, record.digest, record.size, None, True, there)

    def _intend(self, rows: Iterable[tuple[Stored[Entry], Entry]]) -> None:
        """Notes durably what is about to be written: what the snapshot has, and how it is to stand on the target."""
        self.ledger.append(journal_record(source, item, "intent", self.ledger.get(name_key(item.path))) for source, item in rows)
        self.ledger.sync()

    def _top(self) -> Entry:
        """The target folder where it has to be made: as the source's own. One that stands there is left as it is."""
        top = tree_top(self.source.meta)
        mode = top.mode & 0o777 if top is not None else 0
        return Entry(b"", Kind.DIR, 0, top.mtime_ns if top is not None else 0, mode or 0o755)

    def _undressed(self) -> Iterator[tuple[Stored[Entry], Entry, Entry]]:
        """What is to get its mode and time only: the snapshot's record, how it is to stand on the target, and how it stands there."""
        for folder in self.bare.folders():
            there = {record.item.name: record.item for record in self.there.records(folder)}
            for record in self.bare.records(folder):
                found = there[record.item.name]
                dressed = dress(record.item, found, finished(self.ledger.get(name_key(record.item.path)))) or found
                if record.item.path in self._filled:
                    dressed = replace(dressed, mtime_ns=record.item.mtime_ns)
                yield record, dressed, found

    def _outdated(self) -> Iterator[tuple[Stored[Entry], Entry, Entry]]:
        """Folders whose time changed with what was put into them: each gets the old server's again, and keeps the mode it has."""
        for folder in sorted(self._filled - self._made - self._redressed - {b""}):
            source, name = self.source.find(folder), folder.rpartition(b"/")[2]
            for record in self.there.records(folder.rpartition(b"/")[0]):
                if source is not None and record.item.name == name and record.item.kind is Kind.DIR:
                    yield source, replace(record.item, mtime_ns=source.item.mtime_ns), record.item

    def _todo(self) -> Iterator[tuple[Stored[Entry], Entry | None]]:
        """What is to be written, each with what it replaces."""
        for folder in self.todo.folders():
            there = {record.item.name: record.item for record in self.there.records(folder)}
            for record in self.todo.records(folder):
                if record.item.path not in self._unsaved:
                    yield record, there.get(record.item.name)

    def _wrote(self, written: Written[Entry], proving: Proving[Entry]) -> None:
        asked, path = written.asked, written.asked.item.path
        self.result.observer.advance(entries=1, size=asked.size)
        source = self._bare.pop(path, None)
        if written.failure is not None:
            self.result.fail(written.failure, Exit.DAMAGE if written.failure.code == Damaged.code else Exit.INCOMPLETE)
            self.settled.doubt(written.asked.item.parent)
            return
        if not path:
            return
        self.settled.wrote(asked.expected, written.item)
        record = source or Stored(asked.item, asked.digest, asked.size)
        line = journal_record(record, written.item, "done")
        self._done.append(line)
        if len(self._done) >= _DONE:
            self._tell_done()
        if source is not None:  # nothing but mode and time
            self.result.counts["attributes_written"] += path not in self._filled or path in self._redressed
            return
        self.result.counts["written"] += 1
        self.result.counts["written_bytes"] += asked.size
        self._unproven[path] = line
        proving.claim(_claim(record, written.item.size, written.item.mtime_ns))


def pushed_claim(ledger: Ledger, record: Stored[Entry]) -> Claim[Entry] | None:
    """What the journal says stands on the target for this very version of the entry; None where it was not pushed."""
    written = ledger.get(name_key(record.item.path))
    if written is None or written["state"] != "done" or written["digest"] != record.digest or written["kind"] != record.item.kind.value:
        return None
    return _claim(record, written["size"], written["mtime_ns"])


def _claim(record: Stored[Entry], size: int, mtime_ns: int) -> Claim[Entry]:
    """That the target, which describes its entry by size and time so, has the contents of the record."""
    item = record.item
    return Claim(Entry(item.path, item.kind, size, mtime_ns, item.mode, item.target), record.digest, record.size)


def _below(path: bytes, folders: set[bytes]) -> bool:
    while path and folders:
        path = path.rpartition(b"/")[0]
        if path in folders:
            return True
    return False


def _groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while group := list(itertools.islice(rows, size)):
        yield group
