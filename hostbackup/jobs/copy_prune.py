"""Frees in a copy what the vault's own pruning let go: snapshots, then packs that nothing needs, and the waste in those that are mostly waste."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hostbackup.errors import Damaged, Exit
from hostbackup.jobs.copy_source import CopyManifests
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.references import Broken, open_root, walk
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.packs.archive import Archive, is_pack
from hostbackup.vault.packs.catalog import Blob
from hostbackup.vault.packs.index import MEMBERS
from hostbackup.vault.packs.look import Listing
from hostbackup.vault.packs.pack import KINDS, Member, footprint
from hostbackup.vault.prune import PrunePlan
from hostbackup.vault.snapshots import parse_snapshot
from hostbackup.vault.stores import Outcome
from hostbackup.vault.vault import Vault

_INDEXES = 50  # index files, from which on they are written anew as few
_TOGETHER = 64 << 20  # bytes of contents that are packed anew before the packs they come from go


@dataclass(slots=True)
class Freed:
    """What went, or would go, from a copy. `guarded`: blobs that nothing needs and that the store lets nobody delete yet."""

    snapshots: int = 0
    dropped: int = 0  # blobs that nothing needs
    rewritten: int = 0  # packs that were more than half waste
    bytes: int = 0
    guarded: int = 0


class CopyPrune:
    """Use: `run(apply)`. `kept`: ids of the snapshots that stay; `pruned`: of those that this vault ever let go. Others are left where they are.

    `retained`: for so long the store guards what is put there.
    """

    def __init__(
        self,
        archive: Archive,
        vault: Vault,
        plan: PrunePlan,
        result: Result,
        *,
        kept: Collection[str],
        pruned: Collection[str],
        name: str,
        retained: datetime.timedelta,
    ) -> None:
        self._archive = archive
        self._vault = vault
        self._plan = plan
        self._kept = kept
        self._pruned = pruned
        self._result = result
        self._side = f"copy:{name}"
        self._retained = retained
        self._freed = Freed()
        self._staying: dict[str, set[bytes]] = {kind: set() for kind in KINDS}  # digests that only snapshots of the copy need

    def run(self, listing: Listing, *, apply: bool) -> Freed:
        """`listing`: that of the archive, of a moment ago. Interrupted anywhere, what stays is whole, and the next run finds what is left over."""
        now = stamp()
        if not self._mark_staying(self._snapshots(listing, now, apply=apply)):
            return self._freed
        gone: list[Blob] = []
        mostly_waste: list[tuple[Blob, list[Member]]] = []
        for blob in self._archive.catalog.blobs():
            needed, waste = self._weigh(blob)
            if needed and not (is_pack(blob) and waste * 2 > blob.size):
                continue
            if self._guarded(blob) > now:
                self._freed.guarded += not needed
            elif not needed:
                self._freed.dropped += 1
                self._freed.bytes += blob.size
                gone.append(blob)
            else:
                self._freed.rewritten += 1
                self._freed.bytes += waste
                if not apply:
                    continue
                mostly_waste.append((blob, needed))
                if sum(member.size for _, members in mostly_waste for member in members) >= _TOGETHER:
                    gone += self._rewrite(mostly_waste)
                    mostly_waste = []
        if apply:
            gone += self._rewrite(mostly_waste)
            # What was packed anew may have come under the very key of a pack that was to go.
            self._tell(self._archive.retire([blob for blob in gone if not self._weigh(blob)[0]], now))
            files = len(self._archive.catalog.indexes())
            if files > _INDEXES and files > 2 * self._archive.catalog.members_in_all() // MEMBERS:
                self._tell(self._archive.restate_index())
        return self._freed

    # -- snapshots ----------------------------------------------------------------------------------------------------------------------

    def _snapshots(self, listing: Listing, now: str, *, apply: bool) -> list[str]:
        """Deletes those that were let go; they go first, so that none is ever there without what it needs. Those that stay and the vault has not."""
        foreign = [name for name in listing.snapshots if name not in self._kept]
        for name in foreign:
            if name not in self._pruned:
                reason = "the vault has lost this snapshot, and no prune let it go: it stays, with all that it needs"
                self._result.observer.warn(f"{self._side}: {name}: {reason}")
        going = [name for name in foreign if name in self._pruned]
        if self._retained and going:
            files = {self._archive.name_of(one.key): one.modified for one in self._archive.store.list("snapshots/")}
            going = [name for name in going if self._ends(files.get(f"snapshots/{name}.json", 0.0)) <= now]
        gone = set(going)
        if apply:
            keys = {self._archive.key_of(f"snapshots/{name}.json"): name for name in going}
            gone = {keys[outcome.key] for outcome in self._tell(self._archive.store.delete(keys)) if outcome.ok}
        self._freed.snapshots = len(gone)
        return [name for name in foreign if name not in gone]

    def _guarded(self, blob: Blob) -> str:
        """When the store stops guarding a blob; "" where it does not. A killed run, or a lost index, has not told of it: then the listing does."""
        if blob.until or not self._retained:
            return blob.until
        return next((self._ends(one.modified) for one in self._archive.store.list(blob.key)), "")

    def _ends(self, put: float) -> str:
        """When the store stops guarding what was put there at that time."""
        return (datetime.datetime.fromtimestamp(put, datetime.UTC) + self._retained).strftime("%Y%m%dT%H%M%SZ")

    def _mark_staying(self, names: Sequence[str]) -> bool:
        """Finds out what snapshots need that the copy still shows and the vault has no more. False where nobody can know: then nothing may go."""
        if not names:
            return True
        if not self._archive.readable:
            reason = f"snapshot {names[0]} cannot go yet, and without a secret key nobody knows what it needs: nothing else is freed"
            self._result.observer.warn(f"{self._side}: {reason}")
            return False
        with tempfile.TemporaryDirectory(prefix="hostbackup-copy-") as cache:
            manifests = CopyManifests(self._archive, Path(cache))
            for name in names:
                key = f"snapshots/{name}.json"
                try:
                    self._mark(manifests, key)
                except Damaged as error:
                    reason = f"it cannot go yet, and what it needs cannot be read ({error.reason}): nothing else is freed"
                    self._result.fail(Failure(self._side, "", key.encode(), "damaged", reason, "run `copy --repair`"), Exit.DAMAGE)
                    return False
        return True

    def _mark(self, manifests: CopyManifests, key: str) -> None:
        for state in parse_snapshot(self._archive.read_file(key), key).parts.values():
            if not state.root:
                continue
            self._staying["manifests"].update(map(bytes.fromhex, open_root(manifests, state).manifests()))
            for record in walk(manifests, state):
                if isinstance(record, Broken):
                    raise record.error
                if record.digest:
                    self._staying["objects"].add(bytes.fromhex(record.digest))

    # -- contents -----------------------------------------------------------------------------------------------------------------------

    def _keeps(self, kind: str, digest: str) -> bool:
        return self._plan.keeps(kind, digest) or bytes.fromhex(digest) in self._staying[kind]

    def _weigh(self, blob: Blob) -> tuple[list[Member], int]:
        """The members that are needed and that no better place has, and how many bytes the others take."""
        members = self._archive.catalog.members(blob.key)
        needed = self._archive.best_here(blob, (member for member in members if self._keeps(blob.kind, member.digest)))
        return needed, sum(map(footprint, members)) - sum(map(footprint, needed))

    def _rewrite(self, packs: Sequence[tuple[Blob, list[Member]]]) -> list[Blob]:
        """Packs what is needed of them anew. Those of which all that is needed is in the copy twice now."""
        done: list[Blob] = []
        for kind in KINDS:
            folder: ObjectFolder = self._vault.manifests if kind == "manifests" else self._vault.objects
            ours = [(blob, needed) for blob, needed in packs if blob.kind == kind]
            wanted = [(member.digest, member.size) for _, needed in ours for member in needed]
            if not self._archive.readable:
                wanted = [(digest, size) for digest, size in wanted if folder.has(digest)]

            def opened(digest: str, folder: ObjectFolder = folder, kind: str = kind) -> BinaryIO:
                return folder.read(digest) if folder.has(digest) else self._archive.read(kind, digest)

            brought = {one.digest for one in self._archive.bring(kind, wanted, opened) if not one.code}
            done += [blob for blob, needed in ours if all(member.digest in brought for member in needed)]
        return done

    def _tell(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        told = list(outcomes)
        for outcome in told:
            if not outcome.ok:
                self._result.fail(Failure(self._side, "", outcome.key.encode(), outcome.code, outcome.reason, outcome.hint))
        return told
