"""Finding out what stands in a copy: by its listing, by its index, and by reading what no index tells of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, cast

from hostbackup.errors import Damaged
from hostbackup.vault import pool
from hostbackup.vault.evidence import is_evidence_name
from hostbackup.vault.hashing import is_digest
from hostbackup.vault.packs.bring import digest_in
from hostbackup.vault.packs.catalog import Blob, Catalog
from hostbackup.vault.packs.index import PREFIX, index_digest, index_number, parse_index
from hostbackup.vault.packs.pack import KINDS, Member, is_whole, read_pack
from hostbackup.vault.packs.seal import Keys
from hostbackup.vault.snapshots import is_snapshot_id
from hostbackup.vault.stores import Listed, PassedOn, Store

LARGEST_FILE = 256 << 20  # bytes; no pack, index, manifest, snapshot or evidence is larger
_FETCHED = 4  # index files that are on their way, or held, at a time


@dataclass(slots=True)
class Listing:
    """What a copy holds beside contents: names of snapshots, and of evidence with their sizes as they are stored."""

    snapshots: list[str] = field(default_factory=list)
    evidence: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, Damaged] = field(default_factory=dict)  # index files, by name
    closed: int = 0  # index files and packs that only a secret key can open, and that this side knows nothing of
    newest: int = 0  # the highest number of an index file


class Look:
    """One look at a copy. What it finds goes into the catalog."""

    def __init__(self, store: Store, catalog: Catalog, keys: Keys) -> None:
        self._store = store
        self._catalog = catalog
        self._keys = keys
        self._listing = Listing()

    def run(self) -> Listing:
        """One listing, and the index files that are not known yet. Blobs that no index tells of are read."""
        indexes: list[str] = []
        self._catalog.begin_listing()
        listed = iter(self._store.list())
        while some := list(islice(listed, 1000)):
            self._catalog.standing([(one.key, one.size) for one in some if self._sort(one, indexes)])
        indexes.sort(key=lambda name: (index_number(name), name))
        self._listing.newest = max(map(index_number, indexes), default=0)
        self._take_in(indexes)
        self._catalog.settle()
        self._adopt()
        return self._listing

    def _sort(self, listed: Listed, indexes: list[str]) -> bool:
        """Notes what it is; whether it holds contents. What has no name that we give is nothing: systems leave files of their own on a disk."""
        folder, _, name = listed.key.partition("/")
        if folder == "index" and index_number(name):
            indexes.append(name)
        elif folder == "snapshots" and is_snapshot_id(snapshot_id := name.removesuffix(self._keys.end).removesuffix(".json")):
            self._listing.snapshots.append(snapshot_id)
        elif folder == "evidence" and is_evidence_name(plain := name.removesuffix(self._keys.end)):
            self._listing.evidence[plain] = listed.size
        return folder in ("packs", "large", *KINDS)

    # -- the index ----------------------------------------------------------------------------------------------------------------------

    def _take_in(self, names: list[str]) -> None:
        """Later files win over earlier ones: so where one in the middle was not known yet, all after it are taken in again."""
        known = self._catalog.indexes()
        self._catalog.forget_indexes(known - set(names))
        first = next((number for number, name in enumerate(names) if name not in known), len(names))
        if not self._keys.readable:
            self._listing.closed += sum(name not in known for name in names)
            return
        # Fetched many at a time, and taken in one by one: a file is small, and what it says is not.
        for name, data in zip(names[first:], pool.in_order(self._fetch, names[first:], workers=_FETCHED, ahead=_FETCHED), strict=True):
            try:
                if isinstance(data, Damaged):
                    raise data
                if hashlib.sha256(data).hexdigest() != index_digest(name):
                    raise Damaged("this index is not what was written", where=self._keys.where(PREFIX + name), hint="run `copy --repair`")
                index = parse_index(self._keys.opened(PREFIX + name, data), self._keys.where(PREFIX + name))
            except Damaged as error:
                self._listing.damaged[name] = error
                continue
            self._catalog.take_in(name, index.rows, index.dropped)

    def _fetch(self, name: str) -> bytes | Damaged:
        try:
            with self._store.get(PREFIX + name) as stream:
                return stream.read(LARGEST_FILE)
        except Damaged as error:
            return error

    # -- what no index tells of ---------------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Blobs that the listing shows and no index tells of, since a run was killed before it wrote that, or the index was lost."""
        plain: list[tuple[Blob, list[Member]]] = []
        for key, size in self._catalog.unknown():
            digest = key[-64:]
            kind = key.partition("/")[0]
            if kind in KINDS and is_digest(digest) and key == f"{kind}/{digest[:2]}/{digest}":
                plain.append((Blob(key, size, digest, kind), [Member(digest, 0, size, size)]))
                if len(plain) >= 1000:
                    self._catalog.adopt(plain)
                    plain = []
            elif not self._keys.readable:
                self._listing.closed += 1
            elif kind == "packs":
                self._adopt_pack(key, size)
            elif kind == "large":
                self._adopt_large(key, size)
        self._catalog.adopt(plain)

    def _adopt_pack(self, key: str, size: int) -> None:
        """Of a pack that is damaged, the members that are whole all the same."""
        try:
            with self._store.get(key) as stream:
                stored = stream.read(LARGEST_FILE)
            data = self._keys.opened(key, stored)
        except Damaged:  # nobody relies on it: what was in it will be brought again
            return
        digest = hashlib.sha256(stored).hexdigest()
        found = list(read_pack(data))
        if digest != digest_in(key):
            found = [(kind, member) for kind, member in found if is_whole(member, data)]
        if found:
            blob = Blob(key, size, digest, found[0][0])
            self._catalog.add(blob, [member for kind, member in found if kind == blob.kind])

    def _adopt_large(self, key: str, size: int) -> None:
        inner, outer = hashlib.sha256(), hashlib.sha256()
        length = 0
        try:
            with self._keys.stream(key, partial(_hashed, self._store, key, outer)) as stream:
                while data := stream.read(1 << 20):
                    inner.update(data)
                    length += len(data)
        except Damaged:
            return
        self._catalog.add(Blob(key, size, outer.hexdigest(), "objects"), [Member(inner.hexdigest(), 0, size, length)])


class _Hashed(PassedOn):
    """A stored file, hashed as it is read."""

    def __init__(self, stream: BinaryIO, digest: hashlib._Hash) -> None:
        super().__init__(stream)
        self._digest = digest

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)


def _hashed(store: Store, key: str, digest: hashlib._Hash) -> BinaryIO:
    return cast(BinaryIO, _Hashed(store.get(key), digest))
