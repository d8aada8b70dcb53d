"""A copy seen as contents by kind and digest, whatever they are packed in: brought there, looked up, read, proven, given up.

A `Store` below it knows keys and bytes alone. What is in which pack stands in the index of the copy, and in a `Catalog` on this side.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, cast

from hostbackup.errors import Damaged, HostbackupError, UsageError, VaultError
from hostbackup.vault import pool
from hostbackup.vault.hashing import is_digest
from hostbackup.vault.packs.catalog import Blob, Catalog, Dropped, Found
from hostbackup.vault.packs.fetch import PackReader
from hostbackup.vault.packs.index import PREFIX, Index, index_bytes, index_digest, index_name, index_number, parse_index, portions
from hostbackup.vault.packs.pack import KINDS, PACK_BYTES, SMALL, Member, PackBuilder, read_pack, unpacked
from hostbackup.vault.packs.seal import END, Identities, Recipients
from hostbackup.vault.stores import Absent, Outcome, SourceDamaged, Store, Upload, checked

_MOST = 16_384  # members of a pack: each costs a header
_BUILDERS = 2
_PACKS_AT_ONCE = 3  # with those being built, what the memory has to hold
_INDEX_EVERY = 64  # packs: what a run that is killed has to read again
_LARGEST_FILE = 256 << 20  # bytes; no pack, index, manifest, snapshot or evidence is larger
_WORKERS = 16

Open = Callable[[str], BinaryIO]  # a content by its digest


class Brought(NamedTuple):
    """What became of one content that was to be brought. `code` is "" where it is in the copy; else as in an `Outcome`."""

    digest: str
    size: int
    code: str = ""
    reason: str = ""
    hint: str = ""


@dataclass(slots=True)
class Listing:
    """What a copy holds beside contents: names of snapshots, and of evidence with their sizes as they are stored."""

    snapshots: list[str] = field(default_factory=list)
    evidence: dict[str, int] = field(default_factory=dict)
    damaged: list[Damaged] = field(default_factory=list)  # index files
    closed: int = 0  # index files and packs that only a secret key can open, and that this side knows nothing of


@dataclass(slots=True)
class _Pack:
    key: str
    data: bytes
    members: Sequence[Member]
    troubles: list[Brought]


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
        self.sealed = sealed
        self._recipients = recipients
        self._identities = identities
        self._end = END if sealed else ""
        self._number = 0  # of the newest index file
        self._new = 0  # blobs since the last index
        self._reader = PackReader(self._load, whole_only=sealed)

    def close(self) -> None:
        """Ends what runs beside, and closes the catalog. The store is its owner's to close."""
        self._reader.close()
        self.catalog.close()

    @property
    def readable(self) -> bool:
        """Whether its contents can be read here: they are in the clear, or a secret key is at hand."""
        return not self.sealed or self._identities is not None

    # -- small files --------------------------------------------------------------------------------------------------------------------

    def read_file(self, name: str) -> bytes:
        """A whole small file, such as `snapshots/….json`. Raises Absent, or Damaged."""
        return self._opened(self.key_of(name))

    def file(self, name: str, data: bytes) -> Upload:
        """An upload of a small file, encrypted where the copy is."""
        stored = self._closed(data)
        opened: Callable[[], BinaryIO] = partial(io.BytesIO, stored)
        return Upload(self.key_of(name), len(stored), hashlib.sha256(stored).hexdigest(), opened)

    def key_of(self, name: str) -> str:
        """The key of a small file."""
        return name + self._end

    def name_of(self, key: str) -> str:
        """The inverse."""
        return key.removesuffix(self._end) if self._end else key

    def _closed(self, data: bytes) -> bytes:
        return self._recipients.seal(data) if self.sealed and self._recipients else data

    def _opened(self, key: str) -> bytes:
        with self.store.get(key) as stream:
            data = stream.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise Damaged("this file cannot be so large", where=self._where(key))
        return self._unsealed(key, data)

    def _unsealed(self, key: str, data: bytes) -> bytes:
        return self._key(key).unseal(data, self._where(key)) if key.endswith(END) else data

    def _key(self, key: str) -> Identities:
        if self._identities is None:
            hint = "give the file with a secret key of its recipients: --identity FILE"
            raise UsageError("this copy is encrypted", where=self._where(key), hint=hint)
        return self._identities

    def _where(self, key: str) -> str:
        return f"{self.store.label}/{key}"

    # -- what is there ------------------------------------------------------------------------------------------------------------------

    def refresh(self) -> Listing:
        """Looks at all that stands in the copy: one listing, and the index files that are not known yet. Blobs that no index tells of are read."""
        listing = Listing()
        indexes: list[str] = []
        self.catalog.begin_listing()
        keys = iter(self.store.list())
        while some := list(islice(keys, 1000)):
            contents: list[tuple[str, int]] = []
            for key, size, *_ in some:
                folder, _, name = key.partition("/")
                if folder in ("packs", "large", *KINDS):
                    contents.append((key, size))
                elif folder == "index" and index_number(name):
                    indexes.append(name)
                elif folder == "snapshots":
                    listing.snapshots.append(self.name_of(name).removesuffix(".json"))
                elif folder == "evidence":
                    listing.evidence[self.name_of(name)] = size
            self.catalog.standing(contents)
        self._take_in_indexes(sorted(indexes, key=index_number), listing)
        self.catalog.settle()
        self._adopt(listing)
        return listing

    def _take_in_indexes(self, names: list[str], listing: Listing) -> None:
        self._number = max((index_number(name) for name in names), default=0)
        known = self.catalog.indexes()
        self.catalog.forget_indexes(known - set(names))
        unknown = [name for name in names if name not in known]
        if unknown and not self.readable:
            listing.closed += len(unknown)
            return
        for name, index in zip(unknown, pool.in_order(self._index, unknown, workers=_WORKERS), strict=True):
            if isinstance(index, Damaged):
                listing.damaged.append(index)
                continue
            self.catalog.take_in(name, index.rows, index.dropped)

    def _index(self, name: str) -> Index | Damaged:
        key = PREFIX + name
        try:
            with self.store.get(key) as stream:
                data = stream.read(_LARGEST_FILE)
            if hashlib.sha256(data).hexdigest() != index_digest(name):
                raise Damaged("this index is not what was written", where=self._where(key), hint="run `copy --repair`")
            return parse_index(self._unsealed(key, data), self._where(key))
        except Damaged as error:
            return error

    def _adopt(self, listing: Listing) -> None:
        """Blobs that the listing shows and no index tells of, since a run was killed before it wrote that, or the index was lost."""
        plain: list[tuple[Blob, list[Member]]] = []
        for key, size in self.catalog.unknown():
            digest = key[-64:]
            kind = key.partition("/")[0]
            if kind in KINDS and is_digest(digest) and key == f"{kind}/{digest[:2]}/{digest}":
                plain.append((Blob(key, size, digest, kind), [Member(digest, 0, size, size)]))
                if len(plain) >= 1000:
                    self.catalog.adopt(plain)
                    plain = []
            elif not self.readable:
                listing.closed += 1
            elif kind == "packs":
                self._adopt_pack(key, size)
            elif kind == "large":
                self._adopt_large(key, size)
        self.catalog.adopt(plain)

    def _adopt_pack(self, key: str, size: int) -> None:
        try:
            with self.store.get(key) as stream:
                stored = stream.read(_LARGEST_FILE)
            found = list(read_pack(self._unsealed(key, stored), self._where(key)))
        except Damaged:  # nobody relies on it: what was in it will be brought again
            return
        digest = hashlib.sha256(stored).hexdigest()
        if found and digest == _digest_in(key):
            blob = Blob(key, size, digest, found[0][0])
            self.catalog.add(blob, [member for kind, member in found if kind == blob.kind])

    def _adopt_large(self, key: str, size: int) -> None:
        inner, outer = hashlib.sha256(), hashlib.sha256()
        length = 0
        try:
            with self._key(key).unsealed(partial(_hashed, self.store, key, outer), self._where(key)) as stream:
                while data := stream.read(1 << 20):
                    inner.update(data)
                    length += len(data)
        except Damaged:
            return
        digest = inner.hexdigest()
        self.catalog.add(Blob(key, size, outer.hexdigest(), "objects"), [Member(digest, 0, size, length)])

    def has(self, kind: str, digest: str) -> bool:
        return self.catalog.has(kind, digest)

    # -- bringing -----------------------------------------------------------------------------------------------------------------------

    def bring(self, kind: str, contents: Iterable[tuple[str, int]], open_it: Open) -> Iterator[Brought]:
        """Brings contents (digests and sizes) there, small ones in packs in the order they come in, large ones after them. One result for each.

        They may be relied on once `commit` has written the index.
        """
        large: list[tuple[str, int]] = []
        yield from self._bring_packs(kind, _plans(contents, large), open_it)
        yield from self._bring_large(kind, large, open_it)

    def _bring_packs(self, kind: str, plans: Iterable[list[tuple[str, int]]], open_it: Open) -> Iterator[Brought]:
        on_the_way: dict[str, _Pack] = {}
        troubles: deque[Brought] = deque()

        def uploads() -> Iterator[Upload]:
            for pack in pool.in_order(partial(self._build, kind, open_it), plans, workers=_BUILDERS, ahead=_BUILDERS):
                troubles.extend(pack.troubles)
                if pack.members:
                    on_the_way[pack.key] = pack
                    yield Upload(pack.key, len(pack.data), _digest_in(pack.key), partial(io.BytesIO, pack.data))

        for outcome in self.store.put(uploads(), at_once=_PACKS_AT_ONCE):
            while troubles:
                yield troubles.popleft()
            pack = on_the_way.pop(outcome.key)
            if outcome.ok:
                self._note(Blob(pack.key, len(pack.data), _digest_in(pack.key), kind, outcome.checksum, outcome.until), pack.members)
            for member in pack.members:
                yield Brought(member.digest, member.size, outcome.code, outcome.reason, outcome.hint)
        yield from troubles

    def _build(self, kind: str, open_it: Open, plan: list[tuple[str, int]]) -> _Pack:
        builder = PackBuilder(kind)
        troubles: list[Brought] = []
        for digest, size in plan:
            try:
                with open_it(digest) as stream:
                    data = stream.read(size + 1)
                if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                    raise SourceDamaged("its bytes are not those its name stands for")
                builder.add(digest, data)
            except OSError as error:
                reason = f"cannot be read: {(error.strerror or str(error)).lower()}"
                troubles.append(Brought(digest, size, SourceDamaged.code, reason))
            except HostbackupError as error:
                troubles.append(Brought(digest, size, error.code, error.reason, error.hint))
        if not builder.members:
            return _Pack("", b"", (), troubles)
        members = builder.members
        data = self._closed(builder.finish())
        digest = hashlib.sha256(data).hexdigest()
        return _Pack(f"packs/{digest[:2]}/{digest}.tar{self._end}", data, members, troubles)

    def _bring_large(self, kind: str, contents: list[tuple[str, int]], open_it: Open) -> Iterator[Brought]:
        by_key: dict[str, tuple[str, int]] = {}

        def uploads() -> Iterator[Upload]:
            for digest, size in contents:
                upload = self._large(kind, digest, size, open_it)
                by_key[upload.key] = digest, size
                yield upload

        for outcome in self.store.put(uploads()):
            digest, size = by_key.pop(outcome.key)
            if outcome.ok:
                blob = Blob(outcome.key, outcome.size, outcome.digest, kind, outcome.checksum, outcome.until)
                self._note(blob, [Member(digest, 0, outcome.size, size)])
            yield Brought(digest, size, outcome.code, outcome.reason, outcome.hint)

    def _large(self, kind: str, digest: str, size: int, open_it: Open) -> Upload:
        if not self.sealed:
            return Upload(f"{kind}/{digest[:2]}/{digest}", size, digest, partial(open_it, digest))
        assert self._recipients is not None
        name = secrets.token_hex(32)
        source = partial(_checked_source, open_it, digest, size)
        return Upload(f"large/{name[:2]}/{name}{END}", Recipients.sealed_size(size), "", partial(self._recipients.sealed, source))

    def _note(self, blob: Blob, members: Sequence[Member]) -> None:
        self.catalog.add(blob, members)
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
        stored = self._closed(index_bytes(index))
        self._number += 1
        name = index_name(self._number, stored, self._end)
        upload = Upload(PREFIX + name, len(stored), index_digest(name), partial(io.BytesIO, stored))
        for outcome in self.store.put([upload]):
            if not outcome.ok:
                raise VaultError(f"the index of the copy could not be written: {outcome.reason}", where=self.store.label, hint=outcome.hint)
        self.catalog.listed([blob.key for blob, _ in index.rows], name)

    def retire(self, blobs: Iterable[Blob], now: str) -> Iterator[Outcome]:
        """Gives blobs up: first the index says so, then they are deleted, with what earlier runs could not delete yet.

        Those that the store guards beyond `now`, a time stamp, are left where they are: one outcome for each of the others.
        """
        going = [Dropped(blob.key, blob.until) for blob in blobs]
        if going:
            self.commit(dropped=going)
            self.catalog.drop(going)
        yield from self.store.delete(one.key for one in self.catalog.leftovers() if one.until <= now)

    def restate_index(self) -> Iterator[Outcome]:
        """Writes the whole index anew, in as few files as it takes, and deletes the old ones. Outcomes are those of the latter."""
        old = self.catalog.indexes()
        for number, rows in enumerate(portions((blob, self.catalog.members(blob.key)) for blob in self.catalog.blobs())):
            self._write_index(Index(rows, [] if number else self.catalog.leftovers()))
        for outcome in self.store.delete(PREFIX + name for name in sorted(old)):
            if outcome.ok:
                self.catalog.forget_indexes([outcome.key.removeprefix(PREFIX)])
            yield outcome

    # -- reading ------------------------------------------------------------------------------------------------------------------------

    def expect(self, kind: str, digests: Iterable[str]) -> None:
        """These contents will be read soon, about in this order: those in packs come together."""
        found = (self.catalog.find(kind, digest) for digest in digests)
        self._reader.expect(places[0] for places in found if places and is_pack(places[0].blob))

    def read(self, kind: str, digest: str) -> BinaryIO:
        """A content, in a stream that raises Damaged at its end where the bytes are not those of the digest. Raises Absent, or Damaged."""
        broken: HostbackupError | None = None
        for found in self.catalog.find(kind, digest):
            try:
                return self._read(found)
            except (Damaged, SourceDamaged) as error:
                broken = broken or error
        raise broken or Absent("is not in this copy", where=f"{self.store.label}: {kind} {digest}")

    def _read(self, found: Found) -> BinaryIO:
        blob, member = found
        where = self._where(blob.key)
        if is_pack(blob):
            return io.BytesIO(unpacked(member, self._reader.piece(found), f"{where}: {member.digest}"))
        if blob.key.endswith(END):
            return checked(self._key(blob.key).unsealed(partial(self.store.get, blob.key), where), member.digest, where, member.size)
        return checked(self.store.get(blob.key), member.digest, where, member.size)

    def contents_of(self, blob: Blob) -> bytes:
        """A whole pack, decrypted where it is encrypted."""
        return self._load(blob, 0, None)

    def _load(self, blob: Blob, offset: int, size: int | None) -> bytes:
        with self.store.get(blob.key, offset, size) as stream:
            data = stream.read()
        return self._unsealed(blob.key, data) if size is None else data


class _Hashed(io.RawIOBase):
    """A stored file, hashed as it is read."""

    def __init__(self, stream: BinaryIO, digest: hashlib._Hash) -> None:
        self._stream = stream
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _hashed(store: Store, key: str, digest: hashlib._Hash) -> BinaryIO:
    return cast(BinaryIO, _Hashed(store.get(key), digest))


def _plans(contents: Iterable[tuple[str, int]], large: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """What goes into each pack; what is too large for one is put into `large`."""
    plan: list[tuple[str, int]] = []
    total = 0
    for digest, size in contents:
        if size >= SMALL:
            large.append((digest, size))
            continue
        plan.append((digest, size))
        total += size
        if total >= PACK_BYTES or len(plan) >= _MOST:
            yield plan
            plan, total = [], 0
    if plan:
        yield plan


def _checked_source(open_it: Open, digest: str, size: int) -> BinaryIO:
    return checked(open_it(digest), digest, digest, size)


def _digest_in(key: str) -> str:
    """The SHA-256 that the name of a pack tells."""
    return key.rpartition("/")[2].partition(".")[0]


def is_pack(blob: Blob) -> bool:
    """Whether many contents are in it."""
    return blob.key.startswith("packs/")
