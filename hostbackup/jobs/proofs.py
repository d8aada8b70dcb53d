"""Proofs added up: per part and side one line of evidence, with every exception named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Generic

from hostbackup.errors import Exit
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Item, Method, Proof, Status, name_json

Name = bytes  # a class with a field `bytes` cannot use that word for the type

_EXIT = {
    Status.DIFFERENT: Exit.DAMAGE,
    Status.CHANGED: Exit.INCOMPLETE,
    Status.MISSING: Exit.INCOMPLETE,
    Status.UNVERIFIED: Exit.INCOMPLETE,
    Status.FAILED: Exit.INCOMPLETE,
}


@dataclass(slots=True)
class Tally(Generic[Item]):
    """Counts by status and method, bytes verified, and the exceptions."""

    side: str
    part: str
    counts: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    exceptions: list[dict[str, str]] = field(default_factory=list)
    bytes: int = 0  # of what was verified

    def add(self, proof: Proof[Item]) -> None:
        self.counts[proof.status.value] += 1
        if proof.status is Status.VERIFIED:
            self.bytes += proof.claim.size
            if proof.claim.digest:  # folders and links have no bytes to prove
                self.methods[proof.method.value] += 1
        else:
            reason = proof.failure.reason if proof.failure else ""
            self.exception(proof.claim.item.label, proof.status, reason)

    def exception(self, name: Name, status: Status, reason: str) -> None:
        self.exceptions.append({**name_json(name), "status": status.value, "reason": reason})

    @property
    def method(self) -> str:
        """The weakest method that was used, since a chain is as strong as that."""
        order = [method.value for method in Method]
        return max(self.methods, key=order.index, default=Method.NONE.value)

    @property
    def clean(self) -> bool:
        return not self.exceptions

    def evidence(self, *, snapshot: str, manifest: str) -> dict[str, Any]:
        """The line for `evidence/` (docs/vault-format.md)."""
        return {
            "type": "proof",
            "snapshot": snapshot,
            "part": self.part,
            "manifest": manifest,
            "side": self.side,
            "method": self.method,
            "methods": dict(self.methods),
            "time": stamp(),
            "counts": dict(self.counts),
            "bytes": self.bytes,
            "exceptions": self.exceptions,
        }


def settle(result: Result, tally: Tally[Item], proof: Proof[Item]) -> None:
    """Adds a proof to the tally, and what it means for the exit code to the result."""
    tally.add(proof)
    result.observer.advance(entries=1, size=proof.claim.size)
    if proof.status is not Status.VERIFIED:
        failure = proof.failure or Failure(tally.side, tally.part, proof.claim.item.label, proof.status.value, proof.status.value)
        result.fail(failure, _EXIT[proof.status])


def settle_missed(result: Result, tally: Tally[Item], failure: Failure, status: Status) -> None:
    """The same for something that no proof could be asked for."""
    tally.counts[status.value] += 1
    tally.exception(failure.name, status, failure.reason)
    result.fail(failure, _EXIT[status])
