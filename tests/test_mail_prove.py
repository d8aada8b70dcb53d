"""Proof of mail against a server that rewrites what it is given: tier, status, and what is read for it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO

import pytest

from hostbackup.model import Claim, Message, Part, Proof, Status
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_compare import Fingerprint, Tier, fingerprint
from hostbackup.places.mail_match import Matcher
from tests.support.imap_script import FakeBox, FakeImap

LETTERS = [b"From: a@example.test\r\nSubject: %d\r\n\r\nText %d\r\nlast\r\n" % (number, number) for number in range(5)]
LARGE = b"Subject: large\r\n\r\n" + b"0123456789" * 150_000 + b"\r\n"


class Store:
    """Stored bytes by digest, and which of them were read."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = {hashlib.sha256(body).hexdigest(): body for body in bodies}
        self.read: list[str] = []

    def __call__(self, digest: str) -> BinaryIO:
        self.read.append(digest)
        return io.BytesIO(self.bodies[digest])


def prove(server: FakeImap, store: Callable[[str], BinaryIO] | None, *bodies: bytes) -> dict[int, Proof[Message]]:
    place = MailAccount(server.factory, side="new", part=Part("mail", "user"), pause=lambda _: None, reader=store)
    claims = [Claim(Message(b"INBOX", 7, uid, len(body)), hashlib.sha256(body).hexdigest(), len(body)) for uid, body in enumerate(bodies, 1)]
    try:
        return {proof.claim.item.uid: proof for proof in place.prove(claims)}
    finally:
        place.close()


def serving(change: Callable[[bytes], bytes], *bodies: bytes) -> FakeImap:
    return FakeImap({b"INBOX": FakeBox({uid: change(body) for uid, body in enumerate(bodies, 1)})})


@pytest.mark.parametrize(
    ("change", "status", "tier", "altered"),
    [
        (lambda body: body, Status.VERIFIED, "raw", ""),
        (lambda body: body.replace(b"\r\n", b"\n"), Status.VERIFIED, "line-endings", "line endings"),
        (lambda body: b"X-Scanned: yes\r\n" + body, Status.VERIFIED, "added-headers", "X-Scanned"),
        (lambda body: body.replace(b"Subject: ", b"Subject:  "), Status.UNVERIFIED, "body", "rewrote headers"),
        (lambda body: body[:-3] + body[-2:], Status.DIFFERENT, "different", "bytes instead of"),
    ],
)
def test_each_kind_of_rewriting_has_its_tier(change: Callable[[bytes], bytes], status: Status, tier: str, altered: str) -> None:
    bodies = [*LETTERS, LARGE]
    store = Store(*bodies)
    with serving(change, *bodies).running() as server:
        proofs = prove(server, store, *bodies)
    assert len(proofs) == 6
    for proof in proofs.values():
        assert (proof.status, proof.tier) == (status, tier)
        assert altered in proof.altered
        assert (proof.failure is None) == (status is Status.VERIFIED)
        assert proof.found is not None
        assert (proof.found.flags, proof.found.internaldate) == (("\\Seen",), " 1-Jul-2026 02:44:25 +0900")
    assert store.read == [] if tier == "raw" else len(store.read) == 6


def test_messages_that_changed_places_are_different_though_their_bytes_are_expected_elsewhere() -> None:
    one, two = LETTERS[:2]
    with FakeImap({b"INBOX": FakeBox({1: two, 2: one, 3: one})}).running() as server:
        proofs = prove(server, Store(one, two), one, two, one)
    assert [proofs[uid].status for uid in (1, 2, 3)] == [Status.DIFFERENT, Status.DIFFERENT, Status.VERIFIED]


def test_without_stored_bytes_nothing_but_equal_bytes_counts() -> None:
    with serving(lambda body: b"X: 1\r\n" + body, *LETTERS[:1]).running() as server:
        assert prove(server, None, *LETTERS[:1])[1].status is Status.DIFFERENT


def test_a_damaged_stored_copy_accuses_no_server() -> None:
    store = Store(LETTERS[0])
    store.bodies[next(iter(store.bodies))] = b"rot"
    with serving(lambda body: b"X: 1\r\n" + body, LETTERS[0]).running() as server:
        proof = prove(server, store, LETTERS[0])[1]
    assert proof.status is Status.UNVERIFIED
    assert proof.failure is not None
    assert "the vault's copy is damaged" in proof.failure.reason


def test_stored_bytes_that_cannot_be_read_leave_it_unverified() -> None:
    def broken(digest: str) -> BinaryIO:
        raise OSError(5, "Input/output error")

    with serving(lambda body: b"X: 1\r\n" + body, LETTERS[0]).running() as server:
        proof = prove(server, broken, LETTERS[0])[1]
    assert proof.status is Status.UNVERIFIED
    assert proof.failure is not None
    assert "Input/output error" in proof.failure.reason


# -- many against many ------------------------------------------------------------------------------------------------------------------------


def of(body: bytes) -> Fingerprint:
    return fingerprint(io.BytesIO(body))


def test_equal_copies_are_matched_one_by_one_and_nothing_is_read() -> None:
    one, two = LETTERS[:2]
    store = Store(one, two)
    matcher = Matcher([(name, hashlib.sha256(body).hexdigest()) for name, body in (("a", one), ("b", one), ("c", two))], store)
    taken = [matcher.take(of(body)) for body in (one, one)]
    assert {found[0] for found in taken if found} == {"a", "b"}
    assert matcher.rest() == ["c"]
    assert store.read == []
    assert matcher.take(of(one)) is None
    assert matcher.rest() == ["c"]


def test_rewritten_copies_are_matched_by_the_strongest_tier_as_a_multiset() -> None:
    one, two = LETTERS[:2]
    store = Store(one, two)
    matcher = Matcher([(name, hashlib.sha256(body).hexdigest()) for name, body in (("a", one), ("b", one), ("c", two))], store)
    added, bare = b"X: 1\r\n" + one, one.replace(b"\r\n", b"\n")
    tiers = [(found[0], found[1].tier) for found in map(matcher.take, map(of, (added, bare, added))) if found]
    assert tiers == [("b", Tier.ADDED_HEADERS), ("a", Tier.LINE_ENDINGS)]
    assert matcher.take(of(two.replace(b"Subject", b"Object"))) is None, "with its headers rewritten nobody can tell"
    found = matcher.take(of(two))
    assert found is not None
    assert found[0] == "c"
    assert not matcher


def test_a_stored_copy_that_cannot_be_read_is_known_by_equal_bytes_alone() -> None:
    one, two, three = LETTERS[:3]
    digests = [hashlib.sha256(body).hexdigest() for body in (one, two, three)]
    store = Store(one, two, three)
    store.bodies[digests[1]] = b"rot"
    matcher = Matcher(list(zip("abc", digests, strict=True)), store)
    taken = [matcher.take(of(body)) for body in (b"X: 1\r\n" + two, two, b"X: 1\r\n" + three)]
    assert [found and found[0] for found in taken] == [None, "b", "c"]


def test_many_messages_with_one_body_are_told_apart_without_reading_all_for_each() -> None:
    notices = [b"From: a@example.test\r\nMessage-ID: <%d@a>\r\n\r\nYou have mail.\r\n" % number for number in range(200)]
    store = Store(*notices)
    matcher = Matcher([(number, hashlib.sha256(body).hexdigest()) for number, body in enumerate(notices)], store)
    for number in reversed(range(200)):
        found = matcher.take(of(b"Received: here\r\n" + notices[number]))
        assert found is not None
        assert (found[0], found[1].tier) == (number, Tier.ADDED_HEADERS)
    assert len(store.read) == 400, "each once to know it, and once to compare it"


@pytest.mark.parametrize("turned", [False, True])
def test_a_copy_that_was_received_and_the_one_that_was_sent_are_not_taken_for_each_other(turned: bool) -> None:
    sent = b"Message-ID: <1@example.test>\r\nSubject: s\r\n\r\nbody\r\n"
    received = b"Received: from somewhere\r\n" + sent
    matcher = Matcher([(body, hashlib.sha256(body).hexdigest()) for body in (sent, received)], Store(sent, received))
    for body in (received, sent) if turned else (sent, received):
        match = matcher.take(of(b"X-New: yes\r\n" + body))
        assert match is not None
        assert match[0] == body
    assert matcher.rest() == []
