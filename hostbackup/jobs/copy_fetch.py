"""Brings back from a copy what a vault has lost: `copy --repair`, the other way round."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostbackup.errors import Damaged, Exit
from hostbackup.jobs.copy_source import CopySource, foreseen
from hostbackup.jobs.references import Broken, is_needed, segment_digests, walk
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.vault import pool
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.records import Line
from hostbackup.vault.snapshots import PartState, Snapshot, parse_snapshot
from hostbackup.vault.stores import CHUNK
from hostbackup.vault.vault import Vault

_WORKERS = 8


@dataclass(slots=True)
class Fetched:
    """What came back."""

    objects: int = 0
    manifests: int = 0
    snapshots: int = 0  # that stood damaged here
    bytes: int = 0


class _HealingManifests(Manifests):
    """The vault's manifests, each taken from the copy where the vault has it no more, or not whole."""

    def __init__(self, vault: Vault, copy: Manifests) -> None:
        own = vault.manifests
        super().__init__(own.folder, own.incoming, own.damaged)
        self._copy = copy
        self.fetched = 0

    def lines(self, digest: str) -> list[Line]:
        try:
            return super().lines(digest)
        except Damaged as broken:
            try:
                with self._copy.read(digest) as stream:
                    data = stream.read()
            except Damaged:
                raise broken from None
            if hashlib.sha256(data).hexdigest() != digest:
                raise broken from None
            self.set_aside(digest, broken.reason)
            self.put_bytes(data)
            self.flush()
            self.fetched += 1
            return super().lines(digest)


def fetch_missing(vault: Vault, source: CopySource, result: Result, *, name: str) -> Fetched:
    """Puts back the objects and manifests that any snapshot of the vault needs, and that are missing in it or have another length.

    Snapshots that are damaged here come back whole too; the damaged files are kept in `damaged/`. The vault must be open for writing. What the
    copy has not got either is told in `result`, with an entry that needs it.
    """
    return _Fetch(vault, source, result, name).run()


@dataclass(frozen=True, slots=True)
class _Wanted:
    part: str
    label: bytes
    digest: str
    size: int


class _Fetch:
    def __init__(self, vault: Vault, source: CopySource, result: Result, name: str) -> None:
        self._vault = vault
        self._source = source
        self._result = result
        self._name = name
        self._manifests = _HealingManifests(vault, source.manifests)
        self._seen: set[str] = set()
        self._known: frozenset[str] = frozenset()  # segments that an earlier round looked at

    def run(self) -> Fetched:
        done = Fetched()
        self._vault.objects.look_anew()
        ids = self._vault.snapshots.list()
        for snapshot_id in reversed(ids):
            try:
                snapshot = self._vault.snapshots.get(snapshot_id)
            except Damaged as error:
                found = self._snapshot(snapshot_id, error)
                if found is None:
                    continue
                snapshot = found
                done.snapshots += 1
            states = [state for state in snapshot.parts.values() if state.root]
            wanted = (found for state in states for found in self._wanted(state, history=snapshot_id == ids[-1]))
            expected = foreseen(self._source.objects, wanted, lambda one: one.digest)
            for fetched in pool.each(self._fetch, expected, workers=_WORKERS):
                if isinstance(fetched, Failure):
                    self._result.fail(fetched, Exit.DAMAGE)
                else:
                    done.objects += 1
                    done.bytes += fetched
                    self._result.observer.advance(1, fetched)
            self._known |= segment_digests(self._manifests, states)
        self._vault.flush()
        done.manifests = self._manifests.fetched
        return done

    def _snapshot(self, snapshot_id: str, broken: Damaged) -> Snapshot | None:
        """The snapshot as the copy has it, put back in the vault; None, told, where the copy has it no better."""
        key = f"snapshots/{snapshot_id}.json"
        where = f"{self._source.store.label}/{key}"
        try:
            data = self._source.snapshots.bytes(snapshot_id)
            snapshot = parse_snapshot(data, where)
            if snapshot.id != snapshot_id:
                raise Damaged(f"this file says it is snapshot {snapshot.id}", where=where)
        except Damaged as error:
            reason = f"{broken.reason}, and copy {self._name} cannot give it: {error.reason}"
            self._result.fail(Failure("vault", "", f"snapshots/{snapshot_id}".encode(), "damaged", reason, "try another copy"), Exit.DAMAGE)
            return None
        self._vault.snapshots.put_back(snapshot_id, data, self._vault.root / "damaged", broken.reason)
        self._result.observer.note(f"snapshot {snapshot_id} was damaged and came back from copy {self._name}")
        return snapshot

    def _wanted(self, state: PartState, *, history: bool) -> Iterator[_Wanted]:
        for record in walk(self._manifests, state, self._known):
            if isinstance(record, Broken):
                reason = f"its manifest {record.digest} is whole neither in the vault nor in copy {self._name}: {record.error.reason}"
                self._result.fail(Failure("vault", state.part.id, record.label, "damaged", reason), Exit.DAMAGE)
            elif is_needed(record, history=history) and record.digest not in self._seen and not self._stands(record.digest, record.size):
                self._seen.add(record.digest)
                yield _Wanted(state.part.id, record.item.label, record.digest, record.size)

    def _stands(self, digest: str, size: int) -> bool:
        try:
            return Path(self._vault.objects.where(digest)).stat().st_size == size
        except OSError:
            return self._vault.objects.has(digest)

    def _fetch(self, wanted: _Wanted) -> int | Failure:
        """Bytes that came, or why they did not."""
        receiver = self._vault.objects.open(wanted.size)
        try:
            with self._source.objects.read(wanted.digest) as stream:
                while data := stream.read(CHUNK):
                    receiver.write(data)
            return receiver.commit()[1]
        except Damaged as error:
            receiver.abort()
            reason = f"the vault has lost its contents, and copy {self._name} cannot give them: {error.reason}"
            return Failure("vault", wanted.part, wanted.label, "damaged", reason, "try another copy, or run backup")
        except BaseException:
            receiver.abort()
            raise
