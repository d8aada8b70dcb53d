"""Proof that contents are in a copy as they went there: blob by blob, each once, however many contents and entries rest on it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from hostbackup.errors import HostbackupError
from hostbackup.model import Method, Status
from hostbackup.vault.packs.archive import Archive, is_pack
from hostbackup.vault.packs.catalog import Blob, Found
from hostbackup.vault.packs.pack import is_whole
from hostbackup.vault.stores import Wanted

_TOGETHER = 4096  # contents looked up before their blobs are asked for


class ContentProof(NamedTuple):
    """What can be said of one content. `reason` is "" where it is VERIFIED."""

    digest: str
    status: Status
    method: Method
    reason: str = ""


class Prover:
    """Proves contents of one copy. A blob is asked for once in the prover's life.

    `read`: which share of the blobs is read back, from 0 to 1, chosen at random, but at least one unless it is 0; what is not, and has no checksum of
    the store's own, is UNVERIFIED. None: whatever has no such checksum is read.
    """

    def __init__(self, archive: Archive, *, read: float | None = None) -> None:
        self._archive = archive
        self._read = read
        self._blobs: dict[str, tuple[Status, Method, str]] = {}
        self._sampled = False  # whether any blob was read for the share
        self._whole: dict[str, frozenset[str]] = {}  # of packs that are not as they were: digests of members that are

    def prove(self, kind: str, digests: Iterable[str]) -> Iterator[ContentProof]:
        """One proof for each, in the order asked."""
        source = iter(digests)
        while some := list(islice(source, _TOGETHER)):
            places = self._archive.catalog.places(kind, some)
            new = {found.blob.key: found.blob for listed in places.values() for found in listed if found.blob.key not in self._blobs}
            for _ in self.blobs(new.values()):
                pass
            for digest in some:
                yield self._content(digest, places.get(digest, []))

    def blobs(self, blobs: Iterable[Blob]) -> Iterator[tuple[Blob, Status, str]]:
        """Each blob with what can be said of it, and why. One that several ask for is asked for once."""
        by_key = {blob.key: blob for blob in blobs}
        chosen = self._sample(list(by_key))
        wanted = [Wanted(blob.key, blob.sha256, blob.size, blob.checksum) for blob in by_key.values()]
        for sampled in (True, False):
            asked = [one for one in wanted if (one.key in chosen) is sampled]
            read = True if sampled else None if self._read is not None else False
            for proven in self._archive.store.prove(asked, read=read) if asked else ():
                self._blobs[proven.wanted.key] = proven.status, proven.method, proven.reason
                yield by_key[proven.wanted.key], proven.status, proven.reason

    def _sample(self, keys: list[str]) -> set[str]:
        """Those that are read back. Never none of all: a share of few packs would often be nothing."""
        if not self._read or not keys:
            return set()
        chosen = {key for key in keys if random.random() < self._read}  # noqa: S311 - a sample, no secret
        if not chosen and not self._sampled:
            chosen = {random.choice(keys)}  # noqa: S311
        self._sampled = self._sampled or bool(chosen)
        return chosen

    def _content(self, digest: str, places: list[Found]) -> ContentProof:
        worst: ContentProof | None = None
        for found in places:
            status, method, reason = self._blobs[found.blob.key]
            if status is Status.VERIFIED:
                return ContentProof(digest, status, method)
            if status is Status.DIFFERENT and is_pack(found.blob) and digest in self._members(found.blob):
                return ContentProof(digest, Status.VERIFIED, Method.BUCKET_REREAD)
            worst = worst or ContentProof(digest, status, method, f"{found.blob.key}: {reason}" if is_pack(found.blob) else reason)
        return worst or ContentProof(digest, Status.MISSING, Method.BUCKET_REREAD, "is not in this copy")

    def _members(self, blob: Blob) -> frozenset[str]:
        """Which members of a damaged pack are whole all the same."""
        if blob.key not in self._whole:
            self._whole[blob.key] = frozenset(self._look(blob))
        return self._whole[blob.key]

    def _look(self, blob: Blob) -> Iterator[str]:
        try:
            data = self._archive.contents_of(blob)
        except HostbackupError:  # cannot be had, or cannot be decrypted any more
            return
        yield from (member.digest for member in self._archive.catalog.members(blob.key) if is_whole(member, data))
