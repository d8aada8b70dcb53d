"""A copy seen as contents by kind and digest, whatever they are packed in: brought there, looked up, read, given up.

A `Store` below it knows keys and bytes alone. What is in which pack stands in the index of the copy, and in a `Catalog` on this side.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import BinaryIO

from hostbackup.errors import Damaged, HostbackupError, VaultError
from hostbackup.model import Status
from hostbackup.vault.packs.bring import Bringer, Brought, Open
from hostbackup.vault.packs.catalog import Blob, Catalog, Dropped, Found
from hostbackup.vault.packs.fetch import PackReader
from hostbackup.vault.packs.index import PREFIX, Index, index_bytes, index_digest, index_name, portions
from hostbackup.vault.packs.look import LARGEST_FILE, Listing, Look
from hostbackup.vault.packs.pack import KINDS, Member, content_of, unpacked
from hostbackup.vault.packs.seal import END, Identities, Keys, Recipients
from hostbackup.vault.stores import Absent, Outcome, SourceDamaged, Store, Upload, Wanted, checked

_INDEX_EVERY = 64  # packs: what a run that is killed has to read again


class Archive:
    """Use: `refresh()` first. Methods that write are for one thread, those that read for many.

    `recipients`: what is written is encrypted to them. `identities`: what is encrypted can be read. Raises what the store raises, UsageError where
    something encrypted is to be read without a secret key, WrongKey where it is another one.
    """

    def __init__(
        self, store: Store, catalog: Catalog, *, sealed: bool = False, recipients: Recipients | None = None, identities: Identities | None = None
    ) -> None:
        self.store = store
        self.catalog = catalog
        self._keys = Keys(store.label, sealed=sealed, recipients=recipients, identities=identities)
        self._number = 0  # of the newest index file
        self._new = 0  # blobs since the last index
        self._bringer = Bringer(store, catalog, self._keys, self._noted)
        # Where contents lie that are read next, by kind: of the last time somebody told, and of the time before.
        self._expected: dict[str, deque[dict[str, list[Found]]]] = {kind: deque(maxlen=2) for kind in KINDS}
        self._readers = {kind: PackReader(self._load, whole_only=sealed) for kind in KINDS}

    def close(self) -> None:
        """Ends what runs beside, and closes the catalog. The store is its owner's to close."""
        for reader in self._readers.values():
            reader.close()
        self.catalog.close()

    @property
    def sealed(self) -> bool:
        """Whether what is written is encrypted."""
        return self._keys.sealed

    @property
    def readable(self) -> bool:
        """Whether its contents can be read here: they are in the clear, or a secret key is at hand."""
        return self._keys.readable

    def refresh(self) -> Listing:
        """Looks at all that stands in the copy."""
        listing = Look(self.store, self.catalog, self._keys).run()
        self._number = max(self._number, listing.newest)
        return listing

    # -- small files --------------------------------------------------------------------------------------------------------------------

    def read_file(self, name: str) -> bytes:
        """A whole small file, such as `snapshots/….json`. Raises Absent, or Damaged."""
        key = self.key_of(name)
        with self.store.get(key) as stream:
            data = stream.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise Damaged("this file cannot be so large", where=self._keys.where(key))
        opened = self._keys.opened(key, data)
        if key.endswith(END) and self.catalog.noted_file(key) is None:  # age vouches for its bytes: whoever has no key can rely on that later
            self.catalog.note_file(key, len(data), hashlib.sha256(data).hexdigest())
        return opened

    def file(self, name: str, data: bytes) -> Upload:
        """An upload of a small file, encrypted where the copy is."""
        stored = self._keys.closed(data)
        opened: Callable[[], BinaryIO] = partial(io.BytesIO, stored)
        key, digest = self.key_of(name), hashlib.sha256(stored).hexdigest()
        if self.sealed:
            self.catalog.note_file(key, len(stored), digest)
        return Upload(key, len(stored), digest, opened)

    def prove_files(self, names: Iterable[str]) -> Iterator[tuple[str, Status, str]]:
        """What can be said of small encrypted files by what was noted when they went up, and why; nothing of them is decrypted."""
        noted = {name: self.catalog.noted_file(self.key_of(name)) for name in names}
        wanted = [Wanted(self.key_of(name), known[1], known[0]) for name, known in noted.items() if known]
        for proven in self.store.prove(wanted) if wanted else ():
            yield self.name_of(proven.wanted.key), proven.status, proven.reason
        yield from ((name, Status.UNVERIFIED, "this vault has not noted its digest") for name, known in noted.items() if not known)

    def key_of(self, name: str) -> str:
        """The key of a small file."""
        return name + self._keys.end

    def name_of(self, key: str) -> str:
        """The inverse."""
        return key.removesuffix(self._keys.end)

    # -- writing ------------------------------------------------------------------------------------------------------------------------

    def bring(self, kind: str, contents: Iterable[tuple[str, int]], open_it: Open) -> Iterator[Brought]:
        """Brings contents (digests and sizes) there. One result for each. They may be relied on once `commit` has written the index."""
        return self._bringer.bring(kind, contents, open_it)

    def _noted(self) -> None:
        self._new += 1
        if self._new >= _INDEX_EVERY:
            self.commit()

    def commit(self, *, dropped: Sequence[Dropped] = ()) -> int:
        """Writes down in the copy what was brought since the last time, and which blobs are of no use any more. How many files that took.

        Raises VaultError where it cannot be written: then nothing that was brought may be relied on by others.
        """
        self._new = 0
        written = 0
        rest = list(dropped)
        for rows in portions(self.catalog.unlisted()):
            self._write_index(Index(rows, rest))
            rest = []
            written += 1
        if rest:
            self._write_index(Index([], rest))
            written += 1
        return written

    def _write_index(self, index: Index) -> None:
        stored = self._keys.closed(index_bytes(index))
        self._number += 1
        name = index_name(self._number, stored, self._keys.end)
        self.catalog.listed([], name)  # known even when nobody is told any more that it arrived: without a secret key it could not be read
        upload = Upload(PREFIX + name, len(stored), index_digest(name), partial(io.BytesIO, stored))
        for outcome in self.store.put([upload]):
            if not outcome.ok:
                raise VaultError(f"the index of the copy could not be written: {outcome.reason}", where=self.store.label, hint=outcome.hint)
        self.catalog.listed([blob.key for blob, _ in index.rows], name)

    def lies_elsewhere(self, blob: Blob, members: Iterable[Member]) -> bool:
        """Whether each of a blob's members is looked for in another one first. What was brought again may have come under the very key it had."""
        return not self.best_here(blob, members)

    def best_here(self, blob: Blob, members: Iterable[Member]) -> list[Member]:
        """Those of a blob's members that are looked for in it first."""
        asked = list(members)
        places = self.catalog.places(blob.kind, (member.digest for member in asked))
        return [member for member in asked if places[member.digest][0].blob.key == blob.key]

    def retire(self, blobs: Iterable[Blob], now: str) -> Iterator[Outcome]:
        """Gives blobs up, and deletes them with what earlier runs could not delete yet.

        This side forgets them first, then the index says so, then they go: killed in between, nobody relies on what is not there. Those that the
        store guards beyond `now`, a time stamp, are left where they are: one outcome for each of the others.
        """
        going = [Dropped(blob.key, blob.until) for blob in blobs]
        self.catalog.drop(going)
        self.commit(dropped=going)
        yield from self.store.delete(one.key for one in self.catalog.leftovers() if one.until <= now)

    def restate_index(self) -> Iterator[Outcome]:
        """Writes the whole index anew, in as few files as it takes, and deletes the old ones. Outcomes are those of the latter."""
        old = self.catalog.indexes()
        for number, rows in enumerate(portions((blob, self.catalog.members(blob.key)) for blob in self.catalog.blobs())):
            self._write_index(Index(rows, [] if number else self.catalog.leftovers()))
        yield from self.forget_indexes(old)

    def forget_indexes(self, names: Iterable[str]) -> Iterator[Outcome]:
        """Deletes index files of whose blobs others tell."""
        for outcome in self.store.delete(PREFIX + name for name in sorted(names)):
            if outcome.ok:
                self.catalog.forget_indexes([outcome.key.removeprefix(PREFIX)])
            yield outcome

    # -- reading ------------------------------------------------------------------------------------------------------------------------

    def expect(self, kind: str, digests: Sequence[str]) -> list[int]:
        """These contents will be read soon: those in packs come together. Their numbers in the order in which they are best read."""
        found = self.catalog.places(kind, digests)
        self._expected[kind].appendleft(found)
        places = {number: found[digest][0] for number, digest in enumerate(digests) if digest in found}
        order = sorted(places, key=lambda number: (places[number].blob.key, places[number].member.offset))
        self._readers[kind].expect(places[number] for number in order if is_pack(places[number].blob))
        return [*order, *(number for number in range(len(digests)) if number not in places)]

    def read(self, kind: str, digest: str) -> BinaryIO:
        """A content, in a stream that raises Damaged at its end where the bytes are not those of the digest. Raises Absent, or Damaged."""
        broken: HostbackupError | None = None
        known = next((places[digest] for places in list(self._expected[kind]) if digest in places), None)
        for found in known or self.catalog.find(kind, digest):
            try:
                return self._read(found)
            except (Damaged, SourceDamaged) as error:
                broken = broken or error
        raise broken or Absent("is not in this copy", where=f"{self.store.label}: {kind} {digest}")

    def _read(self, found: Found) -> BinaryIO:
        blob, member = found
        where = self._keys.where(blob.key)
        if is_pack(blob):
            return io.BytesIO(unpacked(member, self._readers[blob.kind].piece(found), f"{where}: {member.digest}"))
        return checked(self._keys.stream(blob.key, partial(self.store.get, blob.key)), member.digest, where, member.size)

    def contents(self, blob: Blob, members: Sequence[Member]) -> Iterator[tuple[Member, BinaryIO | Damaged]]:
        """Some members of a blob, which is read once for them. A stream raises Damaged at its end where the bytes are not those of the digest."""
        if not is_pack(blob):
            for member in members:
                try:
                    yield member, self._read(Found(blob, member))
                except Damaged as error:
                    yield member, error
            return
        if not members:
            return
        try:
            data = self.contents_of(blob)
        except Damaged as error:
            yield from ((member, error) for member in members)
            return
        for member in members:
            try:
                yield member, io.BytesIO(content_of(member, data, self._keys.where(blob.key)))
            except Damaged as error:
                yield member, error

    def contents_of(self, blob: Blob) -> bytes:
        """A whole pack, decrypted where it is encrypted."""
        return self._load(blob, 0, None)

    def _load(self, blob: Blob, offset: int, size: int | None) -> bytes:
        with self.store.get(blob.key, offset, size) as stream:
            data = stream.read()
        return self._keys.opened(blob.key, data) if size is None else data


def is_pack(blob: Blob) -> bool:
    """Whether many contents are in it."""
    return blob.key.startswith("packs/")
