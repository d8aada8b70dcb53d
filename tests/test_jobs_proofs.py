"""Proofs that are taken while there still is something to write."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from hostbackup.errors import LineCut
from hostbackup.jobs.proofs import Proving
from hostbackup.model import Claim, Entry, Kind, Method, Proof, Status

DEADLINE = 30.0


class Witness:
    """A place that proves whatever it is asked, and tells the test what was asked."""

    def __init__(self, *, cut_after: int = -1) -> None:
        self.asked: list[list[Claim[Entry]]] = []
        self.begun = threading.Event()
        self.cut_after = cut_after
        self.go = threading.Event()
        self.go.set()

    def prove(self, claims: Iterable[Claim[Entry]]) -> Iterator[Proof[Entry]]:
        batch = list(claims)
        self.asked.append(batch)
        self.begun.set()
        for claim in batch:
            assert self.go.wait(DEADLINE)
            if not self.cut_after:
                raise LineCut("on purpose")
            self.cut_after -= 1
            yield Proof(claim, Status.VERIFIED, Method.SFTP_SECOND_READ)


def proving(witness: Witness) -> Proving[Entry]:
    return Proving(witness)  # type: ignore[arg-type]


def claims(count: int) -> list[Claim[Entry]]:
    return [Claim(Entry(b"f%d" % number, Kind.FILE, 1), "0" * 64, 1) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 127, 128, 1000, 10_000])
def test_every_claim_is_proven_once(count: int) -> None:
    witness, proofs = Witness(), list[Proof[Entry]]()
    with proving(witness) as under_way:
        for claim in claims(count):
            under_way.claim(claim)
            proofs.extend(under_way.proofs())
        proofs.extend(under_way.rest())
    assert [proof.claim for proof in proofs] == claims(count)
    assert under_way.claimed == count


def test_proving_begins_before_the_last_claim_is_made() -> None:
    witness = Witness()
    with proving(witness) as under_way:
        for claim in claims(200):
            under_way.claim(claim)
        assert witness.begun.wait(DEADLINE)
        assert len(list(under_way.rest())) == 200


def test_a_line_that_is_cut_is_told_after_the_proofs_that_came_and_hangs_nobody() -> None:
    witness = Witness(cut_after=150)
    proofs: list[Proof[Entry]] = []
    with proving(witness) as under_way:
        for claim in claims(20_000):
            under_way.claim(claim)
        with pytest.raises(LineCut):
            proofs.extend(under_way.rest())
    assert witness.cut_after == 0
    assert len(proofs) <= 150


def test_what_was_proven_before_a_cut_is_given() -> None:
    witness, proofs = Witness(cut_after=150), list[Proof[Entry]]()
    with proving(witness) as under_way:
        for claim in claims(300):
            under_way.claim(claim)
        with pytest.raises(LineCut):
            for proof in under_way.rest():
                proofs.append(proof)
    assert len(proofs) == 150


def test_leaving_early_asks_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostbackup.jobs.proofs._LEAVE", 0.05)
    witness = Witness()
    witness.go.clear()
    with pytest.raises(KeyboardInterrupt), proving(witness) as under_way:
        for claim in claims(1000):
            under_way.claim(claim)
        assert witness.begun.wait(DEADLINE)
        raise KeyboardInterrupt
    witness.go.set()
    with pytest.raises(StopIteration):
        next(under_way.rest())
    assert len(witness.asked) == 1
