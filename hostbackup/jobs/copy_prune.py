"""Frees in a copy what the vault's own pruning let go: snapshots, then packs that nothing needs, and the waste in those that are mostly waste."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from hostbackup.jobs.keys import stamp
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.packs.archive import Archive
from hostbackup.vault.packs.catalog import Blob
from hostbackup.vault.packs.look import Listing
from hostbackup.vault.packs.pack import Member
from hostbackup.vault.prune import PrunePlan
from hostbackup.vault.stores import Outcome
from hostbackup.vault.vault import Vault

_INDEXES = 50  # index files, from which on they are written anew as one


@dataclass(slots=True)
class Freed:
    """What went, or would go, from a copy. `guarded`: blobs that nothing needs and that the store lets nobody delete yet."""

    snapshots: int = 0
    dropped: int = 0  # blobs that nothing needs
    rewritten: int = 0  # packs that were more than half waste
    bytes: int = 0
    guarded: int = 0


class CopyPrune:
    """Use: `run(apply)`. `kept`: ids of the snapshots that stay. `retained`: for so long the store guards what is put there."""

    def __init__(
        self, archive: Archive, vault: Vault, plan: PrunePlan, kept: Iterable[str], result: Result, *, name: str, retained: datetime.timedelta
    ) -> None:
        self._archive = archive
        self._vault = vault
        self._plan = plan
        self._kept = set(kept)
        self._result = result
        self._side = f"copy:{name}"
        self._retained = retained
        self._freed = Freed()

    def run(self, listing: Listing, *, apply: bool) -> Freed:
        """`listing`: that of the archive, of a moment ago. Interrupted anywhere, what stays is whole, and the next run finds what is left over."""
        now = stamp()
        self._snapshots(listing, now, apply=apply)
        gone: list[Blob] = []
        for blob in self._archive.catalog.blobs():
            members = self._archive.catalog.members(blob.key)
            needed = self._needed(blob, members)
            waste = sum(member.length for member in members) - sum(member.length for member in needed)
            if blob.until > now:
                self._freed.guarded += not needed
            elif not needed:
                self._freed.dropped += 1
                self._freed.bytes += blob.size
                gone.append(blob)
            elif waste * 2 > blob.size and (not apply or self._rewrite(blob, needed)):
                self._freed.rewritten += 1
                self._freed.bytes += waste
                gone.append(blob)
        if apply:
            self._tell(self._archive.retire(gone, now))
            if len(self._archive.catalog.indexes()) > _INDEXES:
                self._tell(self._archive.restate_index())
        return self._freed

    def _snapshots(self, listing: Listing, now: str, *, apply: bool) -> None:
        """First, so that no snapshot is ever there without what it needs."""
        going = [name for name in listing.snapshots if name not in self._kept]
        if self._retained and going:
            files = {self._archive.name_of(one.key): one.modified for one in self._archive.store.list("snapshots/")}
            going = [name for name in going if self._ends(files.get(f"snapshots/{name}.json", 0.0)) <= now]
        self._freed.snapshots = len(going)
        if apply:
            self._tell(self._archive.store.delete(self._archive.key_of(f"snapshots/{name}.json") for name in going))

    def _ends(self, put: float) -> str:
        """When the store stops guarding what was put there at that time."""
        return (datetime.datetime.fromtimestamp(put, datetime.UTC) + self._retained).strftime("%Y%m%dT%H%M%SZ")

    def _needed(self, blob: Blob, members: Sequence[Member]) -> list[Member]:
        """The members that are needed and that lie nowhere better."""
        kept = (member for member in members if self._plan.keeps(blob.kind, member.digest))
        return [member for member in kept if not self._archive.lies_elsewhere(blob, [member])]

    def _rewrite(self, blob: Blob, needed: Sequence[Member]) -> bool:
        """Packs what is needed of it anew. Whether all of that is in another pack now."""
        folder: ObjectFolder = self._vault.manifests if blob.kind == "manifests" else self._vault.objects
        if not self._archive.readable and not all(folder.has(member.digest) for member in needed):
            return False

        def opened(digest: str) -> BinaryIO:
            return folder.read(digest) if folder.has(digest) else self._archive.read(blob.kind, digest)

        wanted = [(member.digest, member.size) for member in needed]
        brought = list(self._archive.bring(blob.kind, wanted, opened))
        return not any(one.code for one in brought) and self._archive.lies_elsewhere(blob, needed)

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if not outcome.ok:
                self._result.fail(Failure(self._side, "", outcome.key.encode(), outcome.code, outcome.reason, outcome.hint))
