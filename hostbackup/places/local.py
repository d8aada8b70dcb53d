"""A folder on this machine, as a place: what was dumped or exported by hand, and another disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hostbackup.model import Claim, Entry, Failure, Kind, Listing, Method, Part, Proof, Read, Sink, Status, Write, Written
from hostbackup.places.exclude import Excludes
from hostbackup.places.local_fs import AnyDirEntry, Folders, SourceFailed, describe, failure, opened, pump, same

REREADS = 3  # of a file that does not stand still


class LocalTree:
    """The tree below `root` as a Place. `root` itself may be a symlink; none below it is followed.

    `side` and `part` are what failures are told with; `exclude` are gitignore patterns (UsageError where one is no pattern).
    """

    def __init__(self, root: Path, *, side: str, part: Part, exclude: Sequence[str] = ()) -> None:
        self.root = root
        self.side = side
        self.part = part
        self.root_entry = Entry(b"", Kind.DIR)  # as the last scan saw it
        self._excludes = Excludes(exclude)

    def scan(self) -> Iterator[Listing[Entry]]:
        """One Listing a folder, the root's (b"") first, a folder before what is in it, names sorted. Raises PlaceMissing."""
        with Folders(self.root) as folders:
            self.root_entry = folders.root_entry()
            waiting = [b""]
            while waiting:
                listing = self._list(folders, waiting.pop())
                waiting.extend(entry.path for entry in reversed(listing.items) if entry.kind is Kind.DIR)
                yield listing

    def _list(self, folders: Folders, folder: bytes) -> Listing[Entry]:
        entries: list[Entry] = []
        trouble: Failure | None = None
        try:
            with folders.names(folder) as found:
                for seen in found:
                    path = folder + b"/" + os.fsencode(seen.name) if folder else os.fsencode(seen.name)
                    if self._excludes and self._excludes.matches(path, seen.is_dir(follow_symlinks=False)):
                        continue
                    try:
                        entries.append(_describe(folders, path, seen))
                    except FileNotFoundError:
                        continue  # gone while the folder was being listed: as if it had never been there
                    except OSError as error:
                        trouble = trouble or self._failure(error, folder)
                        entries.extend(_barely(path, seen))
        except OSError as error:
            trouble = self._failure(error, folder)
        entries.sort(key=lambda entry: entry.path)
        return Listing(folder, entries, trouble)

    def read(self, wanted: Iterable[Entry], sink: Sink) -> Iterator[Read[Entry]]:
        """Contents of files. A file written to meanwhile is read again; one that never stands still is kept, with a failure "changing".

        Further failures: "vanished", "permission", "changed-kind", "io". Raises PlaceMissing.
        """
        with Folders(self.root) as folders:
            folders.root_entry()
            for entry in wanted:
                yield self._read_one(folders, entry, sink)

    def _read_one(self, folders: Folders, entry: Entry, sink: Sink) -> Read[Entry]:
        try:
            with opened(folders, entry.path) as fd:
                for tries_left in range(REREADS, -1, -1):
                    outcome = self._try(fd, entry, sink, last=not tries_left)
                    if outcome is not None:
                        return outcome
                    os.lseek(fd, 0, os.SEEK_SET)
        except SourceFailed as failed:
            return Read(entry, entry, failure=self._failure(failed.cause, entry.path))
        raise AssertionError("the last try has an outcome")

    def _try(self, fd: int, entry: Entry, sink: Sink, *, last: bool) -> Read[Entry] | None:
        """One reading from the start; None where the file did not stand still and may be tried again."""
        before = os.fstat(fd)
        receiver = sink.open(before.st_size)
        try:
            received = pump(fd, before.st_size, receiver.write)
            after = os.fstat(fd)
            still = same(before, after) and received == after.st_size
            if not still and not last:
                receiver.abort()
                return None
        except BaseException:
            receiver.abort()
            raise
        digest, size = receiver.commit()
        trouble = (
            None
            if still
            else self._tell(entry, "changing", "it was written to while it was read; what is kept may be torn", "run again when it rests")
        )
        return Read(entry, describe(entry.path, after), digest, size, trouble)

    def write(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        """Brings entries there: each under a temporary name first, synced, then renamed. Folders get their modes and times last.

        The root is made only if the first item is the root. Failures: "exists", "parent", "permission", "disk-full", "name-refused", …
        Raises PlaceMissing.
        """
        from hostbackup.places.local_write import LocalWriter

        with Folders(self.root) as folders:
            yield from LocalWriter(folders, self.root, side=self.side, part=self.part).write(items)

    def prove(self, claims: Iterable[Claim[Entry]]) -> Iterator[Proof[Entry]]:
        """Reads each file once more. Links are compared by target; of a folder, that it is one. Raises PlaceMissing."""
        with Folders(self.root) as folders:
            folders.root_entry()
            for claim in claims:
                yield self._prove_one(folders, claim)

    def _prove_one(self, folders: Folders, claim: Claim[Entry]) -> Proof[Entry]:
        said = claim.item
        try:
            now = folders.entry(said.path)
            if now.kind is not said.kind or now.target != said.target:
                return self._moved_on(claim)
            if said.kind is not Kind.FILE:
                return Proof(claim, Status.VERIFIED, Method.LOCAL_SECOND_READ)
            with opened(folders, said.path) as fd:
                return self._compare(fd, claim)
        except SourceFailed as failed:
            return self._unproven(claim, failed.cause)
        except OSError as error:
            return self._unproven(claim, error)

    def _compare(self, fd: int, claim: Claim[Entry]) -> Proof[Entry]:
        said = claim.item
        before = os.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (said.size, said.mtime_ns):
            return self._moved_on(claim)
        seen = hashlib.sha256()
        received = pump(fd, before.st_size, seen.update)
        if not same(before, os.fstat(fd)):
            return self._moved_on(claim)
        if (seen.hexdigest(), received) == (claim.digest, claim.size):
            return Proof(claim, Status.VERIFIED, Method.LOCAL_SECOND_READ)
        trouble = self._tell(
            said, "different", "its bytes are not those on record, though size and time agree", "look at both before trusting either"
        )
        return Proof(claim, Status.DIFFERENT, Method.LOCAL_SECOND_READ, trouble)

    def close(self) -> None:
        """Nothing is held between calls."""

    def _moved_on(self, claim: Claim[Entry]) -> Proof[Entry]:
        trouble = self._tell(claim.item, "changed-since", "it was changed since it was described")
        return Proof(claim, Status.CHANGED, Method.LOCAL_SECOND_READ, trouble)

    def _unproven(self, claim: Claim[Entry], error: OSError) -> Proof[Entry]:
        if isinstance(error, FileNotFoundError):
            return Proof(claim, Status.MISSING, Method.LOCAL_SECOND_READ, self._tell(claim.item, "missing", "it is not there"))
        trouble = self._failure(error, claim.item.path)
        return Proof(claim, Status.CHANGED if trouble.code == "changed-kind" else Status.FAILED, Method.NONE, trouble)

    def _failure(self, error: OSError, name: bytes) -> Failure:
        return failure(error, self.side, self.part, name)

    def _tell(self, entry: Entry, code: str, reason: str, hint: str = "") -> Failure:
        return Failure(self.side, self.part.id, entry.label, code, reason, hint)


def _describe(folders: Folders, path: bytes, seen: AnyDirEntry) -> Entry:
    if seen.is_symlink():
        return folders.entry(path)
    return describe(path, seen.stat(follow_symlinks=False))


def _barely(path: bytes, seen: AnyDirEntry) -> Iterator[Entry]:
    """What a folder that may be listed but not entered tells of an entry, so that it can be named among what failed."""
    with suppress(OSError):
        if seen.is_dir(follow_symlinks=False):
            yield Entry(path, Kind.DIR)
        elif seen.is_file(follow_symlinks=False):
            yield Entry(path, Kind.FILE)
