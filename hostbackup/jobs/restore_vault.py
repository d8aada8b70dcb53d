"""Rebuilds a vault from a copy of it: every object, manifest, snapshot and piece of evidence, byte by byte as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from hostbackup import osal
from hostbackup.errors import Damaged, Exit, HostbackupError, UsageError
from hostbackup.jobs.copy_source import CopySource, restored_catalog_path
from hostbackup.jobs.references import Broken, is_needed, walk
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.vault import pool
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.faults import told
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.packs.catalog import Blob
from hostbackup.vault.packs.pack import Member
from hostbackup.vault.snapshots import parse_snapshot
from hostbackup.vault.stores import CHUNK
from hostbackup.vault.vault import Vault
from hostbackup.vault.view import build_view

_WORKERS = 4


@dataclass(slots=True)
class Rebuilt:
    """What came. `existing`: contents that stood there from an earlier run."""

    objects: int = 0
    manifests: int = 0
    snapshots: int = 0
    evidence: int = 0
    bytes: int = 0
    existing: int = 0
    newest: str = ""


def rebuild(source: CopySource, to: Path, result: Result) -> Rebuilt:
    """Makes a vault at `to`, which is not there, empty, or what an earlier run of this began. What fails is told, and its snapshots stay away.

    Raises UsageError, VaultError, DiskFull, Locked, and what ends the store.
    """
    to = to.expanduser()
    if isinstance(source.store, FolderStore) and to.resolve().is_relative_to(source.store.root.resolve()):
        raise UsageError("this is inside the copy", where=str(to), hint="restore to another folder")
    if not source.snapshots.list():
        source.snapshots.get("latest")  # raises: there is none
    with Vault.open(to, "write", create=True, command="restore") as vault:
        strange = set(vault.snapshots.list()) - set(source.snapshots.list())
        if strange:
            raise UsageError(f"another vault stands here, with a snapshot {min(strange)}", where=str(to), hint="give a new folder")
        return _Rebuild(source, vault, result).run()


@dataclass(slots=True)
class _Brought:
    """What came of one blob."""

    came: int = 0
    bytes: int = 0
    existing: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)  # digests, and why they did not come


def _store(folder: ObjectFolder, member: Member, contents: BinaryIO) -> int:
    """Bytes that came. Raises Damaged where they are not those of the digest."""
    receiver = folder.open(member.size)
    try:
        with contents as stream:
            while data := stream.read(CHUNK):
                receiver.write(data)
        return receiver.commit()[1]
    except BaseException:
        receiver.abort()
        raise


class _Rebuild:
    def __init__(self, source: CopySource, vault: Vault, result: Result) -> None:
        self._source = source
        self._vault = vault
        self._result = result
        self._side = f"copy:{source.store.label}"
        self._done = Rebuilt()

    def run(self) -> Rebuilt:
        observer, done = self._result.observer, self._done
        for kind, folder in (("manifests", self._vault.manifests), ("objects", self._vault.objects)):
            observer.phase(f"bringing {kind}")
            for brought in pool.each(partial(self._blob, folder), self._blobs(kind), workers=_WORKERS):
                for digest, reason in brought.failed:
                    self._result.fail(Failure(self._side, "", f"{kind}/{digest}".encode(), "damaged", reason, "try another copy"), Exit.DAMAGE)
                done.existing += brought.existing
                done.bytes += brought.bytes
                setattr(done, kind, getattr(done, kind) + brought.came)
                observer.advance(brought.came, brought.bytes)
        self._vault.flush()
        self._evidence()
        self._snapshots()
        if self._source.format.sealed:  # whoever goes on from here may have no secret key at hand
            self._source.archive.catalog.save(restored_catalog_path(self._vault))
        return self._done

    def _blobs(self, kind: str) -> Iterator[Blob]:
        return (blob for blob in self._source.archive.catalog.blobs() if blob.kind == kind)

    def _blob(self, folder: ObjectFolder, blob: Blob) -> _Brought:
        """Brings the contents of one blob, which is read once. What also lies in a better place comes from there."""
        archive, done = self._source.archive, _Brought()
        lacking: list[Member] = []
        for member in archive.best_here(blob, archive.catalog.members(blob.key)):
            if folder.has(member.digest):
                done.existing += 1
            else:
                lacking.append(member)
        for member, contents in archive.contents(blob, lacking):
            try:
                done.bytes += self._content(folder, blob.kind, member, contents)
                done.came += 1
            except Damaged as error:
                done.failed.append((member.digest, error.reason))
        return done

    def _content(self, folder: ObjectFolder, kind: str, member: Member, contents: BinaryIO | Damaged) -> int:
        """Bytes that came; from another place in the copy where the best is damaged. Raises Damaged."""
        try:
            if isinstance(contents, Damaged):
                raise contents
            return _store(folder, member, contents)
        except Damaged as error:
            for found in self._source.archive.catalog.find(kind, member.digest)[1:]:
                for _, other in self._source.archive.contents(found.blob, [found.member]):
                    with contextlib.suppress(Damaged):
                        if not isinstance(other, Damaged):
                            return _store(folder, found.member, other)
            raise error

    def _evidence(self) -> None:
        for name in sorted(self._source.listing.evidence):
            self._done.evidence += self._small(f"evidence/{name}", self._vault.evidence.folder / name)
        for problem in self._vault.evidence.check_chain():
            self._result.fail(Failure(self._side, "", b"evidence", "damaged", problem, "another copy may have this file whole"), Exit.DAMAGE)

    def _snapshots(self) -> None:
        """Oldest first, each once all that it needs is here and durable; then `latest/`."""
        ids = self._source.snapshots.list()
        for snapshot_id in ids:
            if self._vault.snapshots.path(snapshot_id).exists():
                self._done.newest = snapshot_id
                continue
            name = f"snapshots/{snapshot_id}.json"
            try:
                snapshot = parse_snapshot(self._source.snapshots.bytes(snapshot_id), name)
            except Damaged as error:
                self._result.fail(Failure(self._side, "", name.encode(), "damaged", error.reason, "try another copy"), Exit.DAMAGE)
                continue
            lacking = sum(
                isinstance(record, Broken) or (is_needed(record, history=snapshot_id == ids[-1]) and not self._vault.objects.has(record.digest))
                for state in snapshot.parts.values()
                if state.root
                for record in walk(self._vault.manifests, state)
            )
            if lacking:
                reason = f"{lacking} of its entries did not come, so it was left out"
                self._result.fail(
                    Failure(self._side, "", name.encode(), "not-restored", reason, "restore what there is without --vault"), Exit.DAMAGE
                )
                continue
            if self._small(name, self._vault.snapshots.path(snapshot_id)):
                self._done.snapshots += 1
                self._done.newest = snapshot_id
        if self._done.newest:
            snapshot = self._vault.snapshots.get(self._done.newest)
            self._result.observer.phase("laying out latest/", sum(state.entries for state in snapshot.parts.values()))
            for failure in build_view(self._vault, snapshot, None, "link", self._result.observer):
                self._result.fail(failure)
        self._result.done += 1

    def _small(self, name: str, path: Path) -> bool:
        """Brings a small file, byte by byte as it is. Whether it stands there now; what stood there stays."""
        if path.exists():
            return True
        try:
            osal.write_durably(path, self._source.archive.read_file(name), mode=0o400)
        except HostbackupError as error:
            self._result.fail(Failure(self._side, "", name.encode(), error.code, error.reason, error.hint), error.exit)
            return False
        except OSError as error:
            raise told(error, path) from error
        return True
