"""Places to hold to the contract, with hands to change what they show behind their backs."""

from __future__ import annotations

import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hostbackup.errors import Damaged, DiskFull
from hostbackup.model import Claim, Entry, Kind, Listing, Method, Proof, Read, Status, Write, Written
from hostbackup.places.base import Place
from tests.support.memory import NOON, MemoryTree, digest_of
from tests.support.sink import HashSink, Receiving

ODD_NAMES = (
    "日本語のファイル.txt".encode(),
    "日本語.txt".encode("cp932"),
    b"caf\xe9",
    b"\xff\xfe\x80",
    b"new\nline",
    b"return\r",
    b"tab\there",
    b" before",
    b"after ",
    b"-rf",
    b"quote'\"`$(id)",
    b"*?[x]",
    b"back\\slash",
    b".hidden",
    b"%41",
    b"#hash",
    b"~",
    b"e\xcc\x81 and \xc3\xa9",
    b"long" * 60,
)
BIG = bytes(range(256)) * 20_000  # 5 MB
Told = TypeVar("Told")
State = dict[bytes, tuple[object, ...]]


class TreeWorld(ABC):
    """A place and the tree it shows. Times are whole seconds, so that SFTP v3 can tell them."""

    place: Place[Entry]
    method: Method  # how it proves files

    @abstractmethod
    def another(self, *, exclude: Sequence[str] = (), missing: bool = False) -> Place[Entry]:
        """A further place over the same tree, or over one that is not there."""

    @abstractmethod
    def file(self, path: bytes, data: bytes = b"", *, mtime_ns: int = NOON, mode: int = 0o644) -> Entry: ...

    @abstractmethod
    def folder(self, path: bytes, *, mtime_ns: int = NOON, mode: int = 0o755) -> None:
        """Made with its parents; called after what is in it, it sets the time."""

    @abstractmethod
    def link(self, path: bytes, target: bytes) -> None: ...

    @abstractmethod
    def remove(self, path: bytes) -> None: ...

    @abstractmethod
    def contents(self, path: bytes) -> bytes | None:
        """A file's bytes, None where no file is."""

    @abstractmethod
    def state(self) -> State:
        """All that can be seen of the tree, to be compared."""

    def tamper(self, entry: Entry) -> None:
        """Other bytes of the same size, under the same time."""
        data = self.contents(entry.path)
        assert data
        self.file(entry.path, data[:-1] + bytes([data[-1] ^ 1]), mtime_ns=entry.mtime_ns, mode=entry.mode)


def listings(place: Place[Entry]) -> dict[bytes, Listing[Entry]]:
    found: dict[bytes, Listing[Entry]] = {}
    for listing in place.scan():
        assert listing.container not in found, "a folder is listed once"
        found[listing.container] = listing
    return found


def scanned(place: Place[Entry]) -> dict[bytes, Entry]:
    found: dict[bytes, Entry] = {}
    for listing in listings(place).values():
        assert listing.failure is None
        for entry in listing.items:
            assert entry.path not in found, "an entry is listed once"
            found[entry.path] = entry
    return found


def upload(path: bytes, data: bytes = b"", *, mode: int = 0o640, mtime_ns: int = NOON, replace: bool = False) -> Write[Entry]:
    entry = Entry(path, Kind.FILE, len(data), mtime_ns, mode)
    return Write(entry, digest_of(data), len(data), lambda: io.BytesIO(data), replace)


def link_to(path: bytes, target: bytes, *, replace: bool = False) -> Write[Entry]:
    return Write(Entry(path, Kind.LINK, 0, NOON, 0o777, target), replace=replace)


def folder_at(path: bytes, *, mode: int = 0o750, mtime_ns: int = NOON) -> Write[Entry]:
    return Write(Entry(path, Kind.DIR, 0, mtime_ns, mode))


def write(place: Place[Entry], *items: Write[Entry]) -> dict[bytes, Written[Entry]]:
    outcomes = list(place.write(iter(items)))
    assert sorted(id(outcome.asked) for outcome in outcomes) == sorted(id(item) for item in items), "one outcome an item"
    return {outcome.asked.item.path: outcome for outcome in outcomes}


def written(place: Place[Entry], *items: Write[Entry]) -> dict[bytes, Entry]:
    """As `write`, where all must succeed."""
    outcomes = write(place, *items)
    assert [outcome.failure for outcome in outcomes.values() if outcome.failure] == []
    return {path: outcome.item for path, outcome in outcomes.items()}


def read(place: Place[Entry], entries: Iterable[Entry], sink: HashSink) -> dict[bytes, Read[Entry]]:
    asked = list(entries)
    outcomes = list(place.read(iter(asked), sink))
    assert sorted(outcome.asked.path for outcome in outcomes) == sorted(entry.path for entry in asked), "one outcome an entry"
    assert sink.open_now == 0, "every receiver was ended"
    return {outcome.asked.path: outcome for outcome in outcomes}


def prove(place: Place[Entry], *claims: Claim[Entry]) -> dict[bytes, Proof[Entry]]:
    proofs = list(place.prove(iter(claims)))
    assert sorted(id(proof.claim) for proof in proofs) == sorted(id(claim) for claim in claims), "one proof a claim"
    for proof in proofs:
        assert (proof.failure is None) == (proof.status is Status.VERIFIED)
    return {proof.claim.item.path: proof for proof in proofs}


def claim(entry: Entry, data: bytes) -> Claim[Entry]:
    return Claim(entry, digest_of(data), len(data))


def close(outcomes: Iterator[Told]) -> None:
    """Ends a verb early."""
    assert isinstance(outcomes, Generator), "what a verb gives can be closed"
    outcomes.close()


class Meter(Generic[Told]):
    """An input that knows how much of it was taken."""

    def __init__(self, items: Iterable[Told]) -> None:
        self._items = iter(items)
        self.taken = 0

    def __iter__(self) -> Iterator[Told]:
        return self

    def __next__(self) -> Told:
        item = next(self._items)
        self.taken += 1
        return item


class FullSink(HashSink):
    """A disk that is full after three contents."""

    def open(self, size_hint: int = 0) -> Receiving:
        with self._lock:
            self.open_now += 1
        return _LittleRoom(self, size_hint)


class _LittleRoom(Receiving):
    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        if self._sink.commits >= 3:
            raise DiskFull("the disk is full", where="test")
        return super().write(data)


class Breaking(io.BytesIO):
    """Contents that turn out damaged half way."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise Damaged("the object is damaged", where="vault")
        return super().read(3)


def breaking(path: bytes) -> Write[Entry]:
    return Write(Entry(path, Kind.FILE, 6, NOON, 0o644), digest_of(b"abcdef"), 6, lambda: Breaking(b"abcdef"))


class MemoryTreeWorld(TreeWorld):
    def __init__(self) -> None:
        self.tree = MemoryTree()
        self.method = Method.LOCAL_SECOND_READ
        self.place: Place[Entry] = self.tree

    def another(self, *, exclude: Sequence[str] = (), missing: bool = False) -> Place[Entry]:
        tree = MemoryTree(exclude=exclude, absent=missing)
        if not missing:
            tree.nodes = self.tree.nodes
        return tree

    def file(self, path: bytes, data: bytes = b"", *, mtime_ns: int = NOON, mode: int = 0o644) -> Entry:
        return self.tree.file(path, data, mtime_ns=mtime_ns, mode=mode)

    def folder(self, path: bytes, *, mtime_ns: int = NOON, mode: int = 0o755) -> None:
        self.tree.folder(path, mtime_ns=mtime_ns, mode=mode)

    def link(self, path: bytes, target: bytes) -> None:
        self.tree.link(path, target)

    def remove(self, path: bytes) -> None:
        self.tree.remove(path)

    def contents(self, path: bytes) -> bytes | None:
        node = self.tree.nodes.get(path)
        return node.data if node is not None and node.kind is Kind.FILE else None

    def state(self) -> State:
        return {path: (node.kind, node.data, node.mtime_ns, node.mode, node.target) for path, node in self.tree.nodes.items()}


class DiskWorld(TreeWorld):
    """A tree in a folder of this machine, whatever place shows it. `make` gets the folder and the excludes."""

    def __init__(self, root: Path, make: Callable[[Path, Sequence[str]], Place[Entry]], method: Method = Method.LOCAL_SECOND_READ) -> None:
        self._root = root
        self.method = method
        self._make = make
        root.mkdir()
        self.place = make(root, ())

    def another(self, *, exclude: Sequence[str] = (), missing: bool = False) -> Place[Entry]:
        return self._make(self._root / "not there" if missing else self._root, exclude)

    def file(self, path: bytes, data: bytes = b"", *, mtime_ns: int = NOON, mode: int = 0o644) -> Entry:
        where = self._at(path)
        where.write_bytes(data)
        where.chmod(mode)
        os.utime(where, ns=(mtime_ns, mtime_ns))
        return Entry(path, Kind.FILE, len(data), mtime_ns, mode)

    def folder(self, path: bytes, *, mtime_ns: int = NOON, mode: int = 0o755) -> None:
        where = self._at(path)
        where.mkdir(exist_ok=True)
        where.chmod(mode)
        os.utime(where, ns=(mtime_ns, mtime_ns))

    def link(self, path: bytes, target: bytes) -> None:
        self._at(path).symlink_to(os.fsdecode(target))

    def remove(self, path: bytes) -> None:
        where = self._at(path)
        if where.is_dir() and not where.is_symlink():
            shutil.rmtree(where)
        else:
            where.unlink()

    def contents(self, path: bytes) -> bytes | None:
        where = self._at(path)
        return where.read_bytes() if where.is_file() and not where.is_symlink() else None

    def state(self) -> State:
        found: State = {}
        for where in (self._root, *self._root.rglob("*")):
            path = os.fsencode(where.relative_to(self._root)) if where != self._root else b""
            known = where.lstat()
            target = os.fsencode(where.readlink()) if where.is_symlink() else b""
            found[path] = (known.st_mode, known.st_mtime_ns, known.st_ctime_ns, known.st_size, target, self.contents(path))
        return found

    def _at(self, path: bytes) -> Path:
        where = self._root / os.fsdecode(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        return where
