"""Replaces what lies damaged in a copy, from the vault or from what else is whole there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import BinaryIO

from hostbackup.errors import Exit
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Status
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.packs.archive import Archive
from hostbackup.vault.packs.catalog import Blob
from hostbackup.vault.packs.pack import Member
from hostbackup.vault.packs.prove import Prover
from hostbackup.vault.vault import Vault

_TOGETHER = 1000  # blobs asked for together


def replace_damaged(archive: Archive, vault: Vault, result: Result, *, name: str) -> int:
    """Proves every blob of the copy. What a damaged one holds is brought again, from the vault or as far as it is whole there; then that blob goes.

    How many contents were brought again. A blob that holds something which nobody has whole stays, and is told.
    """
    return _Repair(archive, vault, result, f"copy:{name}").run()


class _Repair:
    def __init__(self, archive: Archive, vault: Vault, result: Result, side: str) -> None:
        self._archive = archive
        self._vault = vault
        self._result = result
        self._side = side
        self._prover = Prover(archive)

    def run(self) -> int:
        self._result.observer.phase(f"{self._side}: proving what is there")
        catalog = self._archive.catalog
        damaged: list[Blob] = []
        blobs = catalog.blobs()
        while some := list(islice(blobs, _TOGETHER)):
            for blob, status, reason in self._prover.blobs(some):
                if status is Status.FAILED:
                    self._result.fail(Failure(self._side, "", blob.key.encode(), "failed", reason))
                elif status is not Status.VERIFIED:
                    self._result.observer.note(f"{self._side}: {blob.key} is damaged ({reason})")
                    damaged.append(blob)
        repaired = 0
        gone: list[Blob] = []
        for blob in damaged:
            members = catalog.members(blob.key)
            brought = self._bring_again(blob, members)
            repaired += len(brought)
            if len(brought) == len(members) and self._archive.lies_elsewhere(blob, members):
                gone.append(blob)
        for outcome in self._archive.retire(gone, stamp()):
            if not outcome.ok:
                self._result.observer.note(f"{self._side}: {outcome.key} is of no use any more and could not be deleted: {outcome.reason}")
        return repaired

    def _bring_again(self, blob: Blob, members: Sequence[Member]) -> set[str]:
        """Digests of what is in the copy again, whole."""
        folder: ObjectFolder = self._vault.manifests if blob.kind == "manifests" else self._vault.objects
        done: set[str] = set()
        wanted: list[tuple[str, int]] = []
        salvaged: set[str] = set()
        for proof, member in zip(self._prover.prove(blob.kind, [one.digest for one in members]), members, strict=True):
            if folder.has(member.digest):
                wanted.append((member.digest, member.size))
            elif proof.status is Status.VERIFIED and self._archive.readable:
                salvaged.add(member.digest)
                wanted.append((member.digest, member.size))
            else:
                hint = "neither the vault nor this copy has it whole: try another copy"
                self._result.fail(Failure(self._side, "", f"{blob.kind}/{member.digest}".encode(), "damaged", proof.reason, hint), Exit.DAMAGE)

        def opened(digest: str) -> BinaryIO:
            return self._archive.read(blob.kind, digest) if digest in salvaged else folder.read(digest)

        for brought in self._archive.bring(blob.kind, wanted, opened):
            if not brought.code:
                done.add(brought.digest)
            else:
                name = f"{blob.kind}/{brought.digest}".encode()
                code = Exit.DAMAGE if brought.code in ("damaged", "source-damaged") else Exit.INCOMPLETE
                self._result.fail(Failure(self._side, "", name, brought.code, brought.reason, brought.hint), code)
        return done
