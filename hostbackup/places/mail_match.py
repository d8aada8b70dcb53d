"""Which of many stored messages the ones found on a server are, also where that server rewrote them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import BinaryIO, Generic, TypeVar

from hostbackup.errors import HostbackupError
from hostbackup.places.mail_compare import SOUND, Fingerprint, Tier, Verdict, compare, fingerprint

T = TypeVar("T")


class Matcher(Generic[T]):
    """Stored messages (anything, with their digests) that are looked for, as a multiset: each one found is at most one of them, and the reverse.

    Only tiers in which nothing of a message is lost count. While all that is found is equal byte for byte, no stored message is read; then each is
    read once, and one that cannot be read is known by equal bytes alone. Memory: some 300 bytes a message that is not found yet, plus what it is
    called by.
    """

    def __init__(self, wanted: Iterable[tuple[T, str]], reader: Callable[[str], BinaryIO]) -> None:
        self._reader = reader
        self._raw: dict[str, list[T]] = defaultdict(list)
        for one, digest in wanted:
            self._raw[digest].append(one)
        self._bodies: dict[str, list[str]] | None = None  # raw digests by the body's

    def take(self, found: Fingerprint) -> tuple[T, Verdict] | None:
        """The one that this is, which is then no longer looked for; None where it is none."""
        if self._raw.get(found.raw):
            return self._pop(found.raw), Verdict(Tier.RAW)
        best: tuple[Verdict, str] | None = None
        for digest in self._with_body(found.body):
            if not self._raw.get(digest):
                continue
            stored = self._stored(digest)
            if stored is None:
                continue
            verdict = compare(stored, found)
            if verdict.tier in SOUND and (best is None or SOUND.index(verdict.tier) < SOUND.index(best[0].tier)):
                best = verdict, digest
        return None if best is None else (self._pop(best[1]), best[0])

    def rest(self) -> list[T]:
        """Those that were not found."""
        return [one for many in self._raw.values() for one in many]

    def __bool__(self) -> bool:
        """Whether any is still looked for."""
        return bool(self._raw)

    def _pop(self, digest: str) -> T:
        many = self._raw[digest]
        one = many.pop(0)
        if not many:
            del self._raw[digest]
        return one

    def _stored(self, digest: str) -> Fingerprint | None:
        try:
            with self._reader(digest) as stream:
                made = fingerprint(stream)
        except (HostbackupError, OSError):
            return None
        return made if made.raw == digest else None

    def _with_body(self, body: str) -> list[str]:
        if self._bodies is None:
            self._bodies = defaultdict(list)
            for digest in self._raw:
                stored = self._stored(digest)
                if stored is not None:
                    self._bodies[stored.body].append(digest)
        return self._bodies.get(body, [])
