"""Proves a mirror: that the bytes of the snapshot's web trees stand there, where we put them.

As on the new server: what was never put there in this version is unverified, what somebody changed there since is their own, and what is listed just
as we left it but has other bytes is damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hostbackup.errors import Damaged
from hostbackup.jobs.mirror_names import Keys
from hostbackup.jobs.mirror_state import MirrorState
from hostbackup.jobs.proofs import Tally, settle, settle_missed
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Entry, Failure, Kind, Proof, Status, Stored
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.stores import Proven, Store, Wanted
from hostbackup.vault.tree import TreeRoot

_GROUP = 4096  # files that are asked for together
_COPY = "run `copy`"


@dataclass(slots=True)
class MirrorProof:
    """Use: `lines()`, once. Raises what ends the store as a whole."""

    store: Store
    state: MirrorState
    keys: Keys
    manifests: Manifests
    result: Result
    name: str

    @property
    def _side(self) -> str:
        return f"copy:{self.name}"

    def lines(self, snapshot: Snapshot) -> Iterator[dict[str, Any]]:
        """Evidence, one line a web tree."""
        for part in snapshot.parts.values():
            if part.part.kind == "web" and part.root:
                line = self._tree(part).evidence(snapshot=snapshot.id, manifest=part.root)
                yield line | {"mode": "mirror"}

    def _tree(self, part: PartState) -> Tally[Entry]:
        self.result.observer.phase(f"{part.part}: proving in {self._side}", part.entries, part.bytes)
        tally: Tally[Entry] = Tally(self._side, part.part.id)
        prefix = self.keys.prefix(part.part)
        self.state.note_listing(self.store.list(prefix))
        try:
            wanted = self._wanted(TreeRoot.open(self.manifests, part.root), prefix, tally)
            while group := {one.key: (one, record) for one, record in islice(wanted, _GROUP)}:
                for proven in self.store.prove(one for one, _ in group.values()):
                    settle(self.result, tally, self._proof(group[proven.wanted.key][1], proven, tally.part))
        except Damaged as error:
            failure = Failure("vault", part.part.id, b"", error.code, f"its manifest: {error.reason}", "run `copy --repair`")
            settle_missed(self.result, tally, failure, Status.DIFFERENT)
        return tally

    def _wanted(self, root: TreeRoot, prefix: str, tally: Tally[Entry]) -> Iterator[tuple[Wanted, Stored[Entry]]]:
        """What we put there in just this version. All other files are unverified."""
        for record in root.walk():
            if record.item.kind is not Kind.FILE:
                continue
            key = self.keys.key(prefix, record.item.path)
            found = self.state.find(key)
            if record.digest and found.digest == record.digest:
                yield Wanted(key, record.digest, record.size, found.checksum), record
            else:
                reason = record.failed or "this version was not put into the mirror"
                failure = Failure(self._side, tally.part, record.item.path, "unverified", reason, _COPY)
                settle_missed(self.result, tally, failure, Status.UNVERIFIED)

    def _proof(self, record: Stored[Entry], proven: Proven, part: str) -> Proof[Entry]:
        claim = Claim(record.item, record.digest, record.size)
        if proven.status is Status.VERIFIED:
            return Proof(claim, proven.status, proven.method)
        status, reason, hint = proven.status, proven.reason, _COPY
        if status is Status.DIFFERENT:
            found = self.state.find(proven.wanted.key)
            hint = "run `copy --repair`"
            if found.listed is not None and (not found.mark or found.mark != found.listed):
                status, reason, hint = Status.CHANGED, "was changed in the mirror after it was put there", ""
        return Proof(claim, status, proven.method, Failure(self._side, part, record.item.path, status.value, reason, hint))
