"""The vault and its view, re-read: every object and manifest against its digest, every snapshot's contents against what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import Damaged, Exit, VaultError
from hostbackup.jobs.context import Job
from hostbackup.jobs.coverage import unlisted
from hostbackup.jobs.proofs import Tally, settle_missed
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Method, Status
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.view import build_view, needs_building, verify_view


@dataclass(slots=True)
class VaultCheck:
    """Use: `run()`. What is damaged is set aside, told, and fetched again by the next backup where the source still has it."""

    job: Job
    snapshot: Snapshot
    result: Result
    _good: set[bytes] = field(default_factory=set)  # digests of objects that were re-read and are right
    _bytes: int = 0

    def run(self) -> list[dict[str, Any]]:
        """The lines of evidence."""
        self._manifests()
        self._objects()
        lines = [self._part(state) for state in self.snapshot.parts.values()]
        self._older_snapshots()
        self._chain()
        if self.job.profile.view != "none":
            lines.append(self._view())
        return lines

    def _manifests(self) -> None:
        manifests = self.job.vault.manifests
        self.job.observer.phase("re-reading manifests")
        for digest, good, reason in manifests.prove(digest for digest, _ in manifests.list()):
            if not good:
                self._damage(digest, "manifest", reason)
                manifests.set_aside(digest, reason)

    def _objects(self) -> None:
        objects = self.job.vault.objects
        sizes = dict[str, int]()
        count, total = 0, 0
        for _digest, size in objects.list():
            count, total = count + 1, total + size
        self.job.observer.phase("re-reading the vault", count, total)

        def digests() -> Iterator[str]:
            for digest, size in objects.list():
                sizes[digest] = size
                yield digest

        for digest, good, reason in objects.prove(digests()):
            size = sizes.pop(digest, 0)
            if good:
                self._good.add(bytes.fromhex(digest))
                self._bytes += size
            else:
                self._damage(digest, "object", reason)
                objects.set_aside(digest, reason)
            self.job.observer.advance(entries=1, size=size)
        self.result.counts["objects"] = len(self._good)
        self.result.counts["object_bytes"] = self._bytes

    def _damage(self, digest: str, what: str, reason: str) -> None:
        hint = "set aside in damaged/; `backup` fetches it again if the old server still has it, `copy --repair` takes it from a copy"
        self.result.fail(Failure("vault", "", f"{what} {digest}".encode(), "damaged", reason, hint), Exit.DAMAGE)

    def _part(self, state: PartState) -> dict[str, Any]:
        """Which entries of the newest snapshot have their bytes, re-read."""
        tally: Tally[Any] = Tally("vault", state.part.id)
        try:
            for name, digest, size, failed in _contents(self.job, state):
                if digest and bytes.fromhex(digest) in self._good:
                    tally.counts["verified"] += 1
                    tally.methods[Method.VAULT_REREAD.value] += 1
                    tally.bytes += size
                elif digest:
                    self._lost(tally, state, name, Status.MISSING, f"its bytes ({digest[:12]}…) are not in the vault")
                else:
                    self._lost(tally, state, name, Status.FAILED, failed or "never came whole")
            for failure in unlisted(self.job.vault.snapshots, self.job.vault.manifests, self.snapshot, state):
                settle_missed(self.result, tally, failure, Status.FAILED)
        except Damaged as error:
            self._lost(tally, state, b"", Status.MISSING, str(error))
        self.result.counts["vault_verified"] += tally.counts["verified"]
        return tally.evidence(snapshot=self.snapshot.id, manifest=state.root)

    def _lost(self, tally: Tally[Any], state: PartState, name: bytes, status: Status, reason: str) -> None:
        tally.counts[status.value] += 1
        tally.exception(name, status, reason)
        code = Exit.DAMAGE if status is Status.MISSING else Exit.INCOMPLETE
        self.result.fail(Failure("vault", state.part.id, name, status.value, reason, "run `backup` again"), code)

    def _older_snapshots(self) -> None:
        """Every other snapshot must be readable and have all its objects too."""
        vault = self.job.vault
        checked: set[str] = {state.root for state in self.snapshot.parts.values()}
        for name in vault.snapshots.list():
            try:
                parts = vault.snapshots.get(name).parts.values()
                for state in parts:
                    if state.root and state.root not in checked:
                        checked.add(state.root)
                        self._older_part(name, state)
            except Damaged as error:
                self.result.fail(Failure("vault", "", name.encode(), "damaged", str(error), "`copy --repair` may bring it back"), Exit.DAMAGE)

    def _older_part(self, snapshot: str, state: PartState) -> None:
        for name, digest, _size, _failed in _contents(self.job, state):
            if digest and bytes.fromhex(digest) not in self._good:
                reason = f"snapshot {snapshot} needs its bytes ({digest[:12]}…), which are not in the vault"
                self.result.fail(Failure("vault", state.part.id, name, "missing", reason, "`copy --repair` takes it from a copy"), Exit.DAMAGE)

    def _chain(self) -> None:
        for problem in self.job.vault.evidence.check_chain():
            self.result.fail(Failure("vault", "", b"evidence", "damaged", problem, "the record of what was proven was altered"), Exit.DAMAGE)

    def _view(self) -> dict[str, Any]:
        tally: Tally[Any] = Tally("view", "")
        writable = self.job.vault.mode == "write"
        if writable and needs_building(self.job.vault):
            self._lay_out()
        self.job.observer.phase("re-reading latest/")
        for path, good, reason in verify_view(self.job.vault, self.job.observer):
            if good:
                tally.counts["verified"] += 1
                tally.methods[Method.VAULT_REREAD.value] += 1
                continue
            tally.counts["different"] += 1
            tally.exception(path, Status.DIFFERENT, reason)
            self.result.fail(Failure("view", "", path, "different", reason, "latest/ is laid out anew from the vault"), Exit.DAMAGE)
        self.result.counts["view_verified"] = tally.counts["verified"]
        if tally.exceptions and writable and self._lay_out():
            self.job.observer.note("latest/ was not as it should be and has been laid out anew; verify again to prove it")
        return tally.evidence(snapshot=self.snapshot.id, manifest="")

    def _lay_out(self) -> bool:
        """Makes `latest/` anew from the newest snapshot: for that no other machine is needed. Whether all of it could be put there."""
        try:
            failures = build_view(self.job.vault, self.snapshot, None, self.job.profile.view, self.job.observer)
        except VaultError as error:
            failures = [Failure("view", "", b"latest", error.code, f"it could not be laid out anew: {error.reason}", error.hint)]
        known = {(failure.part, failure.name) for failure in self.result.failures if failure.side == "vault"}
        for failure in failures:
            if (failure.part, failure.name) not in known:
                self.result.fail(failure)
        return not failures


def _contents(job: Job, state: PartState) -> Iterator[tuple[bytes, str, int, str]]:
    """(label, digest, size, why failed) of each live file or message."""
    if not state.root:
        return
    if state.part.kind == "mail":
        for message in MailRoot.open(job.vault.manifests, state.root).walk():
            yield message.item.label, message.digest, message.size, message.failed
        return
    for entry in TreeRoot.open(job.vault.manifests, state.root).walk():
        if entry.digest or entry.failed:
            yield entry.item.label, entry.digest, entry.size, entry.failed
