"""Proves a snapshot from the copy alone: its manifests read there, every object it names proven there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hostbackup.jobs.copy_source import CopySource, object_key
from hostbackup.jobs.proofs import Tally, settle, settle_missed
from hostbackup.jobs.references import AnyStored, Broken, is_needed, walk
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Method, Proof, Status
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.stores import Wanted


def verify_copy(source: CopySource, result: Result, *, name: str, snapshot: str = "latest", read: bool = False) -> list[dict[str, Any]]:
    """The lines of evidence, one a part. `read`: objects are read back also where the store offers checksums.

    Where the copy lacks the snapshot, that is told and its newest one proven instead. Raises VaultError where the copy has none, and what ends
    the store as a whole.
    """
    side = f"copy:{name}"
    wanted = snapshot
    if snapshot != "latest" and snapshot not in source.snapshots.list():
        found = source.snapshots.get("latest")
        reason = f"snapshot {snapshot} has not been copied; the newest there is {found.id}"
        result.fail(Failure(side, "", f"snapshots/{snapshot}".encode(), "not-copied", reason, "run `copy`"))
        wanted = found.id
    chosen = source.snapshots.get(wanted)
    prover = CopyProver(source, read=read, history=chosen.id == source.snapshots.list()[-1])
    return [_part(prover, chosen, state, side, result) for state in chosen.parts.values() if state.root]


def _part(prover: CopyProver, snapshot: Snapshot, state: PartState, side: str, result: Result) -> dict[str, Any]:
    result.observer.phase(f"{state.part}: proving in {side}", state.entries, state.bytes)
    tally: Tally[Any] = Tally(side, state.part.id)
    for proof in prover.prove(state, side):
        if isinstance(proof, Broken):
            failure = Failure(side, state.part.id, proof.label, "damaged", f"its manifest: {proof.error.reason}", "run `copy --repair`")
            settle_missed(result, tally, failure, Status.DIFFERENT)
        else:
            settle(result, tally, proof)
    return tally.evidence(snapshot=snapshot.id, manifest=state.root)


class CopyProver:
    """Proves parts of one copy. An object that several entries or parts share is proven once.

    `history`: vanished entries are looked at too; only those that are not whole are told, so that counts are those of what is there now.
    """

    def __init__(self, source: CopySource, *, read: bool = False, history: bool = False) -> None:
        self._source = source
        self._read = read
        self._history = history
        self._good: dict[Method, set[bytes]] = {}  # digests, by how they were proven
        self._bad: dict[bytes, tuple[Status, Method, str]] = {}

    def prove(self, state: PartState, side: str) -> Iterator[Proof[Any] | Broken]:
        """One proof for every entry of the part that has contents now; what a broken manifest lists cannot be proven."""
        for proven in self._source.store.prove(self._unproven(state), read=self._read):
            digest = bytes.fromhex(proven.wanted.digest)
            if proven.status is Status.VERIFIED:
                self._good.setdefault(proven.method, set()).add(digest)
            else:
                self._bad[digest] = proven.status, proven.method, proven.reason
        for record in walk(self._source.manifests, state):
            if isinstance(record, Broken):
                yield record
            elif is_needed(record, history=self._history):
                proof = self._proof(record, state, side)
                if not record.vanished or proof.status is not Status.VERIFIED:
                    yield proof

    def _unproven(self, state: PartState) -> Iterator[Wanted]:
        asked: set[bytes] = set()
        for record in walk(self._source.manifests, state):
            if isinstance(record, Broken) or not is_needed(record, history=self._history):
                continue
            digest = bytes.fromhex(record.digest)
            if digest not in asked and digest not in self._bad and not any(digest in good for good in self._good.values()):
                asked.add(digest)
                yield Wanted(object_key("objects", record.digest), record.digest, record.size)

    def _proof(self, record: AnyStored, state: PartState, side: str) -> Proof[Any]:
        claim: Claim[Any] = Claim(record.item, record.digest, record.size)
        digest = bytes.fromhex(record.digest)
        for method, good in self._good.items():
            if digest in good:
                return Proof(claim, Status.VERIFIED, method)
        status, method, reason = self._bad.get(digest, (Status.UNVERIFIED, Method.NONE, "it was not proven"))
        failure = Failure(side, state.part.id, record.item.label, status.value, reason, "run `copy --repair`")
        return Proof(claim, status, method, failure)
