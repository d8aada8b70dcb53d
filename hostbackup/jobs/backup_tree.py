"""One tree (web or local) into the vault: plan, fetch, manifest.

The plan is made before anything moves, folder by folder against the last manifest, in flat memory. What an interrupted run had already brought
is found in the resume journal and not fetched again.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hostbackup.errors import ConnectionFailed
from hostbackup.jobs.arrivals import Arrivals
from hostbackup.jobs.keys import name_key
from hostbackup.jobs.ledger import Ledger
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import Scratch
from hostbackup.model import Claim, Entry, Failure, Kind, Listing, Method, Part, Read, Status, Stored, name_json
from hostbackup.places.base import Place
from hostbackup.places.exclude import Excludes
from hostbackup.vault.records import PartTotals
from hostbackup.vault.tree import TreeRoot, TreeWriter
from hostbackup.vault.vault import Vault

_FRESH_NS = 2_000_000_000  # SFTP v3 tells whole seconds: what is this young may change again without showing it
_FRESH_HELD = 50_000
_TOGETHER = 64  # entries that are noted together, and the seconds that none waits longer for it while others come
_UNNOTED = 1.0

Row = tuple[Stored[Entry], bool]  # a record, and whether its contents are to be fetched


@dataclass(slots=True)
class TreeBackup:
    """Brings one part in. Use: `plan()`, then, unless it is a dry run, `fetch()` and `finish()`."""

    part: Part
    place: Place[Entry]
    vault: Vault
    scratch: Scratch[Entry]
    result: Result
    now: str  # time stamp of the run
    previous: TreeRoot | None = None
    resume: Ledger | None = None
    volatile: Excludes = field(default_factory=lambda: Excludes(()))
    checksum: bool = False
    dry_run: bool = False
    side: str = "old"
    planned: Counter[str] = field(default_factory=Counter)
    _started_ns: int = 0
    _fresh_since_ns: int = 0
    _fresh_read: set[bytes] = field(default_factory=set)
    _came: list[tuple[bytes, Stored[Entry]]] = field(default_factory=list)  # read and not yet noted
    _noted: float = 0.0
    _silent_changes: dict[bytes, Entry] = field(default_factory=dict)  # by path: changed under an old size and time, not yet read

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Counter[str]:
        """Scans and compares. The counter tells new, changed, unchanged, vanished entries and the bytes to fetch."""
        self._started_ns = time.time_ns()
        seen: set[bytes] = set()
        unlisted: set[bytes] = set()
        for listing in self.place.scan():
            seen.add(listing.container)
            if listing.failure is not None:
                unlisted.add(listing.container)
                self.result.fail(listing.failure)
            self._plan_folder(listing)
            self.result.observer.advance(entries=len(listing.items))
        self._plan_unseen(seen, unlisted)
        if self.checksum:
            self._find_silent_changes()
        wanted, size = self.scratch.totals()
        self.planned["wanted"] = wanted + len(self._silent_changes)
        self.planned["wanted_bytes"] = size + sum(entry.size for entry in self._silent_changes.values())
        return self.planned

    def _plan_folder(self, listing: Listing[Entry]) -> None:
        folder = listing.container
        if self._as_it_was(listing):
            self.planned["unchanged"] += len(listing.items)
            self.scratch.keep(folder)
            return
        before = self.previous.records(folder) if self.previous else []
        live = {record.item.name: record for record in before if not record.vanished}
        gone = {record.item.name: record for record in before if record.vanished}
        rows: list[Row] = []
        for entry in listing.items:
            old = live.pop(entry.name, None)
            rows.append(self._compare(entry, old))
            if entry.name in gone and gone[entry.name].item.kind is entry.kind:
                del gone[entry.name]  # it is back
            if old is not None and old.item.kind is not entry.kind and old.digest:
                gone[entry.name] = dataclasses.replace(old, vanished=self.now)
        for name, old in live.items():
            if listing.failure is not None:
                rows.append((_stale(old, listing.failure.reason), False))
            else:
                gone[name] = dataclasses.replace(old, vanished=self.now)
                self._planned("vanished", old.item)
        rows += [(record, False) for record in gone.values()]
        rows.sort(key=lambda row: (row[0].item.name, bool(row[0].vanished)))
        untouched = not self.checksum and not any(wanted for _, wanted in rows) and [record for record, _ in rows] == before
        if self.previous is not None and untouched and self.previous.refs(folder):
            self.scratch.keep(folder)
        else:
            self.scratch.put(folder, rows)

    def _as_it_was(self, listing: Listing[Entry]) -> bool:
        """Whether a folder and all that is known of it stayed as they were, as most do."""
        if self.previous is None or self.checksum or listing.failure is not None:
            return False
        digests = self.previous.unchanged(listing.container, listing.items)
        return digests is not None and all(map(self.vault.objects.has, digests))

    def _compare(self, entry: Entry, old: Stored[Entry] | None) -> Row:
        if entry.kind is Kind.OTHER:
            self.result.counts["special"] += 1
        if entry.kind is not Kind.FILE:
            self._planned("unchanged" if old and old.item == entry else "changed" if old else "new", entry)
            return Stored(entry), False
        # A stale record describes the bytes it has: a file that shows the same size and time again needs no reading.
        if old and _same_file(old.item, entry) and not old.racy and self._held(old.digest):
            self._planned("unchanged", entry)
            return Stored(entry, old.digest, old.size), False
        self._planned("changed" if old else "new", entry)
        resumed = self._resumed(entry)
        return (resumed, False) if resumed else (Stored(entry), True)

    def _resumed(self, entry: Entry) -> Stored[Entry] | None:
        if self.resume is None or (record := self.resume.get(name_key(entry.path))) is None:
            return None
        known = record["size"] == entry.size and record["mtime_ns"] == entry.mtime_ns and not record["racy"]
        if not known or not self._held(record["digest"]):
            return None
        self.planned["resumed"] += 1
        return Stored(entry, record["digest"], record["size"])

    def _held(self, digest: str) -> bool:
        return bool(digest) and self.vault.objects.has(digest)

    def _planned(self, what: str, entry: Entry) -> None:
        self.planned[what] += 1
        if self.dry_run and what != "unchanged":
            row = {"part": self.part.id, "action": what, **name_json(entry.path), "kind": entry.kind.value}
            self.result.details.setdefault("plan", []).append(row)

    def _plan_unseen(self, seen: set[bytes], unlisted: set[bytes]) -> None:
        """Folders of the last manifest that this scan did not show: below an unlisted folder they stay as they were, else they vanished."""
        for folder in self.previous.folders() if self.previous else ():
            if folder in seen or self.previous is None:
                continue
            records = self.previous.records(folder)
            if any(ancestor in unlisted for ancestor in _ancestors(folder)):
                self.scratch.put(
                    folder, [(record if record.vanished else _stale(record, "its folder could not be listed"), False) for record in records]
                )
            elif all(record.vanished for record in records):
                self.scratch.keep(folder)
            else:
                for record in records:
                    if not record.vanished:
                        self._planned("vanished", record.item)
                rows = {(record.item.name, record.item.kind): record for record in records if record.vanished}
                rows |= {(r.item.name, r.item.kind): dataclasses.replace(r, vanished=self.now) for r in records if not r.vanished}
                self.scratch.put(folder, [(rows[key], False) for key in sorted(rows)])

    def _find_silent_changes(self) -> None:
        """Files whose size and mtime stayed but whose bytes did not: told by the strongest evidence the place gives."""
        compared: Counter[str] = Counter()
        for proof in self.place.prove(self._unchanged_claims()):
            entry = proof.claim.item
            if proof.status in (Status.DIFFERENT, Status.CHANGED):
                self._silent_changes[entry.path] = entry
                self.planned["changed"] += 1
                self.planned["unchanged"] -= 1
            elif proof.failure is not None and proof.status is not Status.MISSING:
                self.result.fail(proof.failure)
            if proof.method is not Method.NONE:
                compared[proof.method.value] += 1
            self.result.observer.advance(entries=1)
        self.result.details.setdefault("compared", {})[self.part.id] = dict(compared)

    def _unchanged_claims(self) -> Iterator[Claim[Entry]]:
        for folder in self.scratch.folders():
            for record in self.scratch.records(folder):
                if record.digest and not record.vanished and not record.stale:
                    yield Claim(record.item, record.digest, record.size)

    # -- fetch --------------------------------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Reads what the plan wants into the vault. A line that stays cut leaves the rest as failed entries; what came is kept."""
        sink = Arrivals(self.vault.objects, self.part.id, self.result.observer, self._settled)
        sink.drop_others(self.scratch.wanted())
        if not self.planned["wanted"]:
            return  # a place may make ready for a reading before it looks at what is wanted, which takes round trips
        wanted = itertools.chain(self.scratch.wanted(), list(self._silent_changes.values()))
        try:
            for read in self.place.read(self._fresh_last(wanted), sink):
                self._took(read)
                sink.done(read.asked)
        except ConnectionFailed as error:
            self._note()
            for entry in itertools.chain(self.scratch.wanted(), list(self._silent_changes.values())):
                failure = Failure(self.side, self.part.id, entry.path, error.code, error.reason, error.hint)
                self._failed(Read(entry, entry, failure=failure), failure)
        finally:
            self._note()

    def _note(self) -> None:
        """Notes what has come, for this run and for the next one should this end here: some at a time, which costs a fraction of one by one."""
        came, self._came = self._came, []
        self._noted = time.monotonic()
        self.scratch.results(came)
        if self.resume is not None:
            self.resume.append(
                {"key": name_key(path), "size": one.size, "mtime_ns": one.item.mtime_ns, "digest": one.digest, "racy": one.racy} for path, one in came
            )

    def _settled(self, entry: Entry) -> bool:
        """Whether what an earlier run had of it can belong to what is read now. With `checksum`, size and time prove nothing."""
        return not self.checksum and entry.mtime_ns < self._started_ns - _FRESH_NS

    def _fresh_last(self, wanted: Iterable[Entry]) -> Iterator[Entry]:
        """Read last, a fresh file has mostly aged enough to be trusted as unchanged next time."""
        fresh: list[Entry] = []
        for entry in wanted:
            if entry.mtime_ns >= self._started_ns - _FRESH_NS and len(fresh) < _FRESH_HELD:
                fresh.append(entry)
            else:
                yield entry
        fresh.sort(key=lambda entry: entry.mtime_ns)
        self._fresh_since_ns = time.time_ns()
        self._fresh_read = {entry.path for entry in fresh}
        yield from fresh

    def _took(self, read: Read[Entry]) -> None:
        path = read.asked.path
        self._silent_changes.pop(path, None)
        if read.failure is None:
            horizon = self._fresh_since_ns if path in self._fresh_read else self._started_ns
            racy = read.item.mtime_ns >= horizon - _FRESH_NS
            self._came.append((path, Stored(read.item, read.digest, read.size, racy=racy)))
            if len(self._came) >= _TOGETHER or time.monotonic() - self._noted >= _UNNOTED:
                self._note()
            self.result.counts["read"] += 1
            self.result.counts["read_bytes"] += read.size
            return
        self._failed(read, read.failure)

    def _failed(self, read: Read[Entry], failure: Failure) -> None:
        path = read.asked.path
        expected = failure.code in ("changing", "vanished") and self.volatile.covers(path, False)
        if not expected:
            self.result.fail(failure)
        old = self.previous.find(path) if self.previous else None
        if read.digest:  # the bytes are kept, though the file did not stand still
            stale = "" if expected else failure.reason
            self.scratch.result(path, Stored(read.item, read.digest, read.size, stale=stale, racy=True))
        elif failure.code == "vanished":
            if old is not None and old.digest:
                self.scratch.result(path, dataclasses.replace(old, vanished=old.vanished or self.now))
            else:
                self.scratch.drop(path)
        elif old is not None and old.digest and not old.vanished:
            self.scratch.result(path, _stale(old, failure.reason))
        else:
            self.scratch.result(path, Stored(read.asked, failed=failure.reason))

    # -- manifest -----------------------------------------------------------------------------------------------------------------------

    def finish(self, meta: dict[str, object]) -> PartTotals:
        """Writes the part's manifest; unchanged folders keep their segments, an unchanged tree its manifest."""
        if self.previous is not None and self.previous.meta == meta and self.scratch.all_kept():
            return self.previous.totals  # every folder that was there is noted, and one that was not there cannot be kept
        writer = TreeWriter(self.vault.manifests, self.part, meta)
        for folder in self.scratch.folders():
            if self.scratch.is_kept(folder) and self.previous is not None:
                writer.keep(self.previous.refs(folder))
            else:
                writer.add(folder, self.scratch.records(folder))
        return writer.finish()


def _same_file(old: Entry, new: Entry) -> bool:
    return old.kind is Kind.FILE and old.size == new.size and old.mtime_ns == new.mtime_ns


def _stale(old: Stored[Entry], reason: str) -> Stored[Entry]:
    return dataclasses.replace(old, stale=reason)


def _ancestors(folder: bytes) -> Iterator[bytes]:
    while folder:
        folder = folder.rpartition(b"/")[0]
        yield folder
