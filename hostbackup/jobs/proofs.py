"""Proofs added up: per part and side one line of evidence, with every exception named. They may be taken while there still is something to write."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from hostbackup.errors import Exit
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.result import Result
from hostbackup.model import Claim, Failure, Item, Method, Proof, Status, name_json
from hostbackup.places.base import Place

_AHEAD = 4096  # claims that wait to be proven; then whoever makes them waits
_BATCH = 128  # claims worth a question, as long as more may come
_LOOK = 0.1  # seconds between looks at what has come, at the end
_LEAVE = 2.0  # seconds to let a question end that nobody wants the answer of any more
Name = bytes  # a class with a field `bytes` cannot use that word for the type

EXIT_OF = {
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
    exceptions: list[dict[str, Any]] = field(default_factory=list)
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
        result.fail(failure, EXIT_OF[proof.status])


def settle_missed(result: Result, tally: Tally[Item], failure: Failure, status: Status) -> None:
    """The same for something that no proof could be asked for."""
    tally.counts[status.value] += 1
    tally.exception(failure.name, status, failure.reason)
    result.fail(failure, EXIT_OF[status])


class Proving(Generic[Item]):
    """Proves claims on a thread of its own while others are still being made. `place` belongs to that thread until the end.

    Used as a context manager by one thread, which makes the claims and gets the proofs. Left early, it drops what is not proven yet.
    """

    def __init__(self, place: Place[Item]) -> None:
        self._place: Place[Item] = place
        self._claims: deque[Claim[Item]] = deque()
        self._proofs: deque[Proof[Item]] = deque()
        self._changed = threading.Condition()
        self._ended = False  # no more claims will come
        self._stopped = False
        self._finished = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="proving", daemon=True)
        self.claimed = 0

    def __enter__(self) -> Proving[Item]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(_LEAVE)

    def claim(self, claim: Claim[Item]) -> None:
        """Has this proven too. Waits while very many are waiting."""
        self.claimed += 1
        with self._changed:
            self._changed.wait_for(lambda: len(self._claims) < _AHEAD or self._finished)
            if self._finished:  # by an error, which `rest` tells
                return
            self._claims.append(claim)
            if len(self._claims) >= _BATCH:
                self._changed.notify_all()

    @property
    def failed(self) -> bool:
        """Whether the place has failed: what `rest` will tell."""
        return self._error is not None

    def proofs(self) -> Iterator[Proof[Item]]:
        """Those that have come and were not given yet."""
        while self._proofs:
            yield self._proofs.popleft()

    def rest(self) -> Iterator[Proof[Item]]:
        """All that are still due, as they come. Raises ConnectionFailed, and what else the place raised, after those that came before."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        finished = False
        while not finished:
            with self._changed:
                finished = self._changed.wait_for(lambda: self._finished, timeout=_LOOK)
            yield from self.proofs()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while batch := self._next():
                for proof in self._place.prove(batch):
                    if self._stopped:
                        return
                    self._proofs.append(proof)
        except BaseException as error:
            with self._changed:
                self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _next(self) -> list[Claim[Item]]:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ended or len(self._claims) >= _BATCH)
            batch = [] if self._stopped else list(self._claims)
            self._claims.clear()
            self._changed.notify_all()
            return batch
