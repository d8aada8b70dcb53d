"""Which of many stored messages the ones found on a server are, also where that server rewrote them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Generic, TypeVar

from hostbackup.errors import HostbackupError
from hostbackup.places.mail_compare import Fingerprint, Tier, Verdict, compare, fingerprint

T = TypeVar("T")
_TELLING = (b"message-id:", b"date:", b"received:", b"subject:")  # fields that few messages share, the best first


class Matcher(Generic[T]):
    """Stored messages (anything, with their digests) that are looked for, as a multiset: each one found is at most one of them, and the reverse.

    Only tiers in which nothing of a message is lost count. While all that is found is equal byte for byte, no stored message is read; then each is
    read once, and once more where it is nearly found. One that cannot be read is known by equal bytes alone. Memory: some 600 bytes a message that
    is not found yet, plus what it is called by.
    """

    def __init__(self, wanted: Iterable[tuple[T, str]], reader: Callable[[str], BinaryIO]) -> None:
        self._reader = reader
        self._raw: dict[str, list[T]] = defaultdict(list)
        for one, digest in wanted:
            self._raw[digest].append(one)
        self._indexed = False
        self._lines: dict[str, list[str]] = defaultdict(list)  # digests by that of the text with plain line endings
        self._marks: dict[bytes, list[str]] = defaultdict(list)  # digests by body and one header field, which stays where headers are added

    def take(self, found: Fingerprint) -> tuple[T, Verdict] | None:
        """The one that this is, which is then no longer looked for; None where it is none."""
        if self._raw.get(found.raw):
            return self._pop(found.raw), Verdict(Tier.RAW)
        self._index()
        for digest in self._still(self._lines.get(found.lines)):
            return self._pop(digest), Verdict(Tier.LINE_ENDINGS, "the server changed line endings")
        nearest: tuple[int, str, Verdict] | None = None  # of two that differ in headers alone, the one that needs fewer to have been added
        for mark in _marks(found):
            for digest in self._still(self._marks.get(mark)):
                stored = self._stored(digest)
                verdict = compare(stored, found) if stored is not None else None
                if stored is None or verdict is None or verdict.tier is not Tier.ADDED_HEADERS:
                    continue
                if nearest is None or stored.size > nearest[0]:
                    nearest = stored.size, digest, verdict
        return None if nearest is None else (self._pop(nearest[1]), nearest[2])

    def rest(self) -> list[T]:
        """Those that were not found."""
        return [one for many in self._raw.values() for one in many]

    def __bool__(self) -> bool:
        """Whether any is still looked for."""
        return bool(self._raw)

    def _pop(self, digest: str) -> T:
        many = self._raw[digest]
        one = many.pop()
        if not many:
            del self._raw[digest]
        return one

    def _still(self, digests: list[str] | None) -> Iterator[str]:
        """Those that are still looked for. The others are dropped."""
        if digests is not None:
            digests[:] = [digest for digest in digests if digest in self._raw]
            yield from tuple(digests)

    def _index(self) -> None:
        if not self._indexed:
            self._indexed = True
            for digest in self._raw:
                stored = self._stored(digest)
                if stored is not None:
                    self._lines[stored.lines].append(digest)
                    self._marks[_mark(stored.body, _telling(stored.fields()))].append(digest)

    def _stored(self, digest: str) -> Fingerprint | None:
        try:
            with self._reader(digest) as stream:
                made = fingerprint(stream)
        except (HostbackupError, OSError):
            return None
        return made if made.raw == digest else None


def _telling(fields: list[bytes]) -> bytes:
    """The field that tells most of which message it is."""
    for name in _TELLING:
        for field in fields:
            if field[: len(name)].lower() == name:
                return field
    return fields[-1] if fields else b""


def _mark(body: str, field: bytes) -> bytes:
    return hashlib.blake2b(body.encode("ascii") + field, digest_size=16).digest()


def _marks(found: Fingerprint) -> list[bytes]:
    """All that a stored message may have been marked by if this is it with more headers."""
    return [_mark(found.body, field) for field in dict.fromkeys([*found.fields(), b""])]
