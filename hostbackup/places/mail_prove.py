"""Proof of mail, over IMAP and POP3: each message is fetched back and compared with what was stored, in tiers where a server rewrote it.

A digest made while the bytes come in settles most messages. Only where it is another one are the stored bytes read.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from hostbackup.errors import HostbackupError
from hostbackup.model import Claim, Failure, Message, Method, Proof, Status
from hostbackup.places.mail_compare import SOUND, Fingerprint, Fingerprinter, Tier, Verdict, compare, fingerprint
from hostbackup.places.mail_fetch import Got

Reader = Callable[[str], BinaryIO]  # opens what is stored under a digest
FailureFor = Callable[[bytes, str, str, str], Failure]  # label, code, reason, hint
_WHOLE = 1024 * 1024  # bytes: up to here a message is kept until it is known whether more than its digest is needed
_STATUS = {"vanished": Status.MISSING, "folder-missing": Status.MISSING, "uidvalidity": Status.CHANGED}


class Comparing:
    """A sink that takes contents for their digests. Of those that nobody `expects`, `fingerprint_of` tells more."""

    def __init__(self, reader: Reader | None = None) -> None:
        self._reader = reader
        self._expected: Counter[str] = Counter()
        self._prints: dict[str, tuple[Fingerprint, int]] = {}  # by digest: with how many messages of it are not asked for yet
        self._lock = threading.Lock()

    def open(self, size_hint: int = 0) -> _Coming:
        return _Coming(self)

    def expect(self, digest: str) -> None:
        with self._lock:
            self._expected[digest] += 1

    def expected(self, digest: str) -> bool:
        with self._lock:
            return self._expected[digest] > 0

    def settled(self, digest: str) -> None:
        """One message less is expected to have this digest."""
        with self._lock:
            self._expected[digest] -= 1
            if self._expected[digest] <= 0:
                del self._expected[digest]

    def keep(self, made: Fingerprint) -> None:
        with self._lock:
            _, count = self._prints.get(made.raw, (made, 0))
            self._prints[made.raw] = made, count + 1

    def fingerprint_of(self, digest: str) -> Fingerprint:
        """Of contents that came with this digest. To be asked for once for each of them. Raises what reading stored bytes raises."""
        with self._lock:
            made, count = self._prints.pop(digest, (None, 0))
            if made is not None and count > 1:
                self._prints[digest] = made, count - 1
        if made is None:  # it was expected, but for another message: so its bytes are among the stored ones
            if self._reader is None:
                raise KeyError(digest)
            with self._reader(digest) as stream:
                made = fingerprint(stream)
        return made


class _Coming:
    """One message as it comes in."""

    def __init__(self, sink: Comparing) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._size = 0
        self._kept: list[bytes] = []
        self._maker: Fingerprinter | None = None  # once it is too large to be kept

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._hash.update(data)
        self._size += len(data)
        if self._maker is None:
            self._kept.append(bytes(data))
            if self._size > _WHOLE:
                self._fold()
        else:
            self._maker.write(data)

    def _fold(self) -> Fingerprinter:
        if self._maker is None:
            self._maker = Fingerprinter()
            for piece in self._kept:
                self._maker.write(piece)
            self._kept.clear()
        return self._maker

    def commit(self) -> tuple[str, int]:
        digest = self._hash.hexdigest()
        if not self._sink.expected(digest):
            self._sink.keep(self._fold().finish())
        self._kept.clear()
        return digest, self._size

    def abort(self) -> None:
        self._kept.clear()


Fetch = Callable[[Iterator[Message], Comparing], Iterator[Got]]


class Prover:
    """Proves claims by what `fetch` brings of their messages. Without a `reader` only equal bytes count."""

    def __init__(self, fetch: Fetch, failure: FailureFor, reader: Reader | None = None, method: Method = Method.IMAP_FETCH) -> None:
        self._fetch = fetch
        self._method = method
        self._failure = failure
        self._reader = reader
        self._sink = Comparing(reader)
        self._at_hand: dict[tuple[bytes, int, int], deque[Claim[Message]]] = defaultdict(deque)
        self._nameless: deque[Claim[Message]] = deque()

    def run(self, claims: Iterable[Claim[Message]]) -> Iterator[Proof[Message]]:
        """One proof a claim, in any order. `found` has the flags and date of what is there. Raises ConnectionFailed."""
        for got in self._fetch(self._wanted(claims), self._sink):
            key = _key(got.item)
            waiting = self._at_hand[key]
            claim = waiting.popleft()
            if not waiting:
                del self._at_hand[key]
            self._sink.settled(claim.digest)
            yield self._proof(claim, got)
            while self._nameless:
                yield self._unproven(self._nameless.popleft())
        while self._nameless:
            yield self._unproven(self._nameless.popleft())

    def fingerprints(self, wanted: Iterable[Message]) -> Iterator[tuple[Message, Fingerprint]]:
        """What these messages are, as far as they can be fetched. Raises ConnectionFailed."""
        for got in self._fetch(iter(wanted), self._sink):
            if not got.code:
                yield _described(got.item, got), self._sink.fingerprint_of(got.digest)

    def _wanted(self, claims: Iterable[Claim[Message]]) -> Iterator[Message]:
        for claim in claims:
            if claim.item.uid < 1:
                self._nameless.append(claim)
                continue
            self._at_hand[_key(claim.item)].append(claim)
            self._sink.expect(claim.digest)
            yield claim.item

    def _proof(self, claim: Claim[Message], got: Got) -> Proof[Message]:
        label = claim.item.label
        if got.code:
            status = _STATUS.get(got.code, Status.FAILED)
            return Proof(claim, status, self._method, self._failure(label, got.code, got.reason, ""))
        found = None if got.flags is None else _described(claim.item, got)
        verdict = self._verdict(claim, got)
        if isinstance(verdict, str):
            return Proof(claim, Status.UNVERIFIED, Method.NONE, self._failure(label, "unverified", verdict, "run `verify`"), found)
        if verdict.tier in SOUND:
            return Proof(claim, Status.VERIFIED, self._method, None, found, verdict.tier.value, verdict.reason)
        if verdict.tier is Tier.BODY:
            failure = self._failure(label, "rewritten", verdict.reason, "compare it with the copy in the vault")
            return Proof(claim, Status.UNVERIFIED, Method.NONE, failure, found, verdict.tier.value, verdict.reason)
        failure = self._failure(label, "different", verdict.reason, "")
        return Proof(claim, Status.DIFFERENT, self._method, failure, found, verdict.tier.value, verdict.reason)

    def _verdict(self, claim: Claim[Message], got: Got) -> Verdict | str:
        """How far both agree, or why that cannot be told."""
        if (got.digest, got.size) == (claim.digest, claim.size):
            return Verdict(Tier.RAW)
        if self._reader is None:
            told = f"{got.size} bytes with another digest" if got.size == claim.size else f"{got.size} bytes instead of {claim.size}"
            return Verdict(Tier.DIFFERENT, f"the server gives {told}")
        try:
            came = self._sink.fingerprint_of(got.digest)
            with self._reader(claim.digest) as stream:
                stored = fingerprint(stream)
        except HostbackupError as error:
            return f"it is not as it was stored, and the stored bytes cannot be read: {error.reason}"
        except OSError as error:
            return f"it is not as it was stored, and the stored bytes cannot be read: {error.strerror or error}"
        return compare(stored, came) if stored.raw == claim.digest else "it is not as it was stored, and the vault's copy is damaged"

    def _unproven(self, claim: Claim[Message]) -> Proof[Message]:
        failure = self._failure(claim.item.label, "no-uid", "the server did not tell the UID of this message", "it is found by its bytes instead")
        return Proof(claim, Status.UNVERIFIED, Method.NONE, failure)


def _described(item: Message, got: Got) -> Message:
    return replace(item, size=got.size, flags=got.flags or (), internaldate=got.internaldate)


def _key(item: Message) -> tuple[bytes, int, int]:
    return item.folder, item.uidvalidity, item.uid
