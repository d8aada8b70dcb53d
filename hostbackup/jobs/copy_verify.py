"""Proves snapshots from the copy alone: their manifests read there, every object they name proven there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hostbackup.errors import Damaged, Exit
from hostbackup.jobs.copy_source import CopySource
from hostbackup.jobs.proofs import Tally, settle, settle_missed
from hostbackup.jobs.references import AnyStored, Broken, Segment, is_needed, open_root, records, segments, warmed
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Method, Proof, Status
from hostbackup.vault.packs.prove import Prover
from hostbackup.vault.snapshots import PartState, Snapshot


def verify_copy(source: CopySource, result: Result, *, name: str, snapshot: str = "latest", read: float | None = None) -> list[dict[str, Any]]:
    """The lines of evidence, one a part. `read`: which share is read back also where the store offers checksums, see `Prover`.

    All other snapshots in the copy are proven too, each object once; what is wrong with them is told, with the snapshot and the entry.
    Where the copy lacks the snapshot, that is told and its newest one proven instead. Raises VaultError where the copy has none, and what ends
    the store as a whole.
    """
    side = f"copy:{name}"
    for error in source.listing.damaged.values():
        reason = f"{error.reason}; what it listed was found by reading the packs"
        result.fail(
            Failure(side, "", error.where.removeprefix(f"{source.store.label}/").encode(), "damaged", reason, "run `copy --repair`"), Exit.DAMAGE
        )
    if source.listing.closed and not source.archive.readable:
        reason = f"{source.listing.closed} files in it are encrypted, and this vault does not know what is in them"
        result.fail(Failure(side, "", b"", "unverified", reason, "give the secret key: --identity FILE"))
        return []
    wanted = snapshot
    if snapshot != "latest" and snapshot not in source.snapshots.list():
        found = source.snapshots.get("latest")
        reason = f"snapshot {snapshot} has not been copied; the newest there is {found.id}"
        result.fail(Failure(side, "", f"snapshots/{snapshot}".encode(), "not-copied", reason, "run `copy`"))
        wanted = found.id
    chosen = source.snapshots.get(wanted)
    if not source.archive.readable and chosen.id in _closed_snapshots(source, side, result):
        return []
    prover = CopyProver(source, read=read, history=chosen.id == source.snapshots.list()[-1])
    lines = [_part(prover, chosen, state, side, result) for state in chosen.parts.values() if state.root]
    for other in reversed(source.snapshots.list()):
        if other != chosen.id:
            _older(prover, source, other, side, result)
    return lines


def _closed_snapshots(source: CopySource, side: str, result: Result) -> set[str]:
    """Encrypted snapshots that nobody can read here, and that are not known to be as they went there; each is told."""
    bad: set[str] = set()
    for name, status, reason in source.archive.prove_files(f"snapshots/{one}.json" for one in source.snapshots.list()):
        if status is not Status.VERIFIED:
            bad.add(name.removeprefix("snapshots/").removesuffix(".json"))
            unknown = status in (Status.UNVERIFIED, Status.FAILED)
            hint = "run `copy --repair`, or give the secret key: --identity FILE" if unknown else "run `copy --repair`"
            code = Exit.INCOMPLETE if unknown else Exit.DAMAGE
            result.fail(Failure(side, "", name.encode(), "unverified" if unknown else "damaged", reason, hint), code)
    return bad


def _older(prover: CopyProver, source: CopySource, snapshot_id: str, side: str, result: Result) -> None:
    """Tells what is wrong with a snapshot, as far as no other had it too."""
    try:
        snapshot = source.snapshots.get(snapshot_id)
    except Damaged as error:
        name = f"snapshots/{snapshot_id}".encode()
        result.fail(Failure(side, "", name, "damaged", error.reason, "run `copy --repair`"), Exit.DAMAGE)
        return
    result.observer.phase(f"snapshot {snapshot_id}: proving in {side}")
    for state in snapshot.parts.values():
        unread = 0
        for proof in prover.prove(state, side) if state.root else ():
            if isinstance(proof, Broken):
                reason = f"snapshot {snapshot_id} needs its manifest: {proof.error.reason}"
                result.fail(Failure(side, state.part.id, proof.label, "damaged", reason, "run `copy --repair`"), Exit.DAMAGE)
            elif proof.status is Status.UNVERIFIED:
                unread += 1
            elif proof.failure is not None:
                reason = f"snapshot {snapshot_id} needs it: {proof.failure.reason}"
                code = Exit.INCOMPLETE if proof.status is Status.FAILED else Exit.DAMAGE
                result.fail(replace(proof.failure, reason=reason), code)
        _tell_unread(result, side, state, unread, f"of snapshot {snapshot_id}")


def _tell_unread(result: Result, side: str, state: PartState, unread: int, of: str) -> None:
    """What was neither read nor vouched for, in one line: it may be all there is."""
    if unread:
        reason = f"{unread} entries {of} were not read back, and the store offers no checksum of them"
        result.fail(Failure(side, state.part.id, b"", "unverified", reason, "run `verify --against copy --read-data`"))


def _part(prover: CopyProver, snapshot: Snapshot, state: PartState, side: str, result: Result) -> dict[str, Any]:
    result.observer.phase(f"{state.part}: proving in {side}", state.entries, state.bytes)
    tally: Tally[Any] = Tally(side, state.part.id)
    unread = 0
    for proof in prover.prove(state, side):
        if isinstance(proof, Broken):
            failure = Failure(side, state.part.id, proof.label, "damaged", f"its manifest: {proof.error.reason}", "run `copy --repair`")
            settle_missed(result, tally, failure, Status.DIFFERENT)
        elif proof.status is Status.UNVERIFIED:
            unread += 1
            tally.add(proof)
        else:
            settle(result, tally, proof)
            if proof.status is Status.MISSING:
                result.codes.add(Exit.DAMAGE)  # a copy shows a snapshot only once it has all of it: this was lost since
    _tell_unread(result, side, state, unread, "of it")
    return tally.evidence(snapshot=snapshot.id, manifest=state.root)


class CopyProver:
    """Proves parts of one copy. An object that several entries or parts share is proven once, and so is a segment that several snapshots share.

    `history`: vanished entries are looked at too; only those that are not whole are told, so that counts are those of what is there now.
    """

    def __init__(self, source: CopySource, *, read: float | None = None, history: bool = False) -> None:
        self._source = source
        self._prover = Prover(source.archive, read=read)
        self._history = history
        self._good: dict[Method, set[bytes]] = {}  # digests, by how they were proven
        self._bad: dict[bytes, tuple[Status, Method, str]] = {}
        self._seen: set[bytes] = set()  # segments, by a digest of those of their manifests

    def prove(self, state: PartState, side: str) -> Iterator[Proof[Any] | Broken]:
        """One proof for every entry of the part that has contents now; what a broken manifest lists cannot be proven.

        Segments that were met before, in another snapshot, are left out.
        """
        for proven in self._prover.prove("objects", self._unproven(state)):
            digest = bytes.fromhex(proven.digest)
            if proven.status is Status.VERIFIED:
                self._good.setdefault(proven.method, set()).add(digest)
            else:
                self._bad[digest] = proven.status, proven.method, proven.reason
        if not self._source.archive.readable:
            yield from self._manifests(state)
        for record in self._walk(state, last=True):
            if isinstance(record, Broken):
                yield record
            elif is_needed(record, history=self._history):
                proof = self._proof(record, state, side)
                if not record.vanished or proof.status is not Status.VERIFIED:
                    yield proof

    def _manifests(self, state: PartState) -> Iterator[Broken]:
        """Those of its manifests that are not in the copy as they went there. Who reads them there sees it by that; here the vault's are read."""
        try:
            digests = list(open_root(self._source.manifests, state).manifests())
        except Damaged:  # told by the walk
            return
        for proof in self._prover.prove("manifests", digests):
            if proof.status in (Status.DIFFERENT, Status.MISSING):
                yield Broken(b"", proof.digest, Damaged(proof.reason, where=self._source.store.label))

    def _walk(self, state: PartState, *, last: bool = False) -> Iterator[AnyStored | Broken]:
        """The records of all segments that are new here. `last`: they are not after this."""
        met: set[bytes] = set()
        try:
            root = open_root(self._source.manifests, state)
            for segment in warmed(self._source.manifests, (one for one in segments(root) if _key(one) not in self._seen)):
                met.add(_key(segment))
                try:
                    yield from list(records(root, segment))
                except Damaged as error:
                    yield Broken(segment.container, segment.digests[0], error)
        except Damaged as error:
            yield Broken(b"", state.root, error)
        if last:
            self._seen |= met

    def _unproven(self, state: PartState) -> Iterator[str]:
        asked: set[bytes] = set()
        for record in self._walk(state):
            if isinstance(record, Broken) or not is_needed(record, history=self._history):
                continue
            digest = bytes.fromhex(record.digest)
            if digest not in asked and digest not in self._bad and not any(digest in good for good in self._good.values()):
                asked.add(digest)
                yield record.digest

    def _proof(self, record: AnyStored, state: PartState, side: str) -> Proof[Any]:
        claim: Claim[Any] = Claim(record.item, record.digest, record.size)
        digest = bytes.fromhex(record.digest)
        for method, good in self._good.items():
            if digest in good:
                return Proof(claim, Status.VERIFIED, method)
        status, method, reason = self._bad.get(digest, (Status.UNVERIFIED, Method.NONE, "it was not proven"))
        failure = Failure(side, state.part.id, record.item.label, status.value, reason, "run `copy --repair`")
        return Proof(claim, status, method, failure)


def _key(segment: Segment) -> bytes:
    """Stands for a segment where many are remembered."""
    return hashlib.sha256("".join(segment.digests).encode() + segment.container).digest()
