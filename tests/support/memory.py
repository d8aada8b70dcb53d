"""Places in memory: what the verbs promise, in the plainest words, for tests of jobs and as a reference in the contract suite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hostbackup.errors import HostbackupError, PlaceMissing
from hostbackup.model import Changes, Claim, Entry, Failure, Folder, Kind, Listing, Message, Method, Part, Proof, Read, Sink, Status, Write, Written
from hostbackup.places.exclude import Excludes

NOON = 1_780_000_000_000_000_000  # an mtime in nanoseconds, whole seconds as SFTP v3 keeps them
DATE = " 1-Jul-2026 02:44:25 +0900"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(slots=True)
class Node:
    """What stands at a path."""

    kind: Kind
    data: bytes = b""
    mtime_ns: int = NOON
    mode: int = 0o644
    target: bytes = b""
    locked: bool = False  # this user may not open it

    def entry(self, path: bytes) -> Entry:
        return Entry(path, self.kind, len(self.data), self.mtime_ns, self.mode, self.target)


class MemoryTree:
    """A tree as a dict of paths. The root, b"", is there unless `absent`."""

    def __init__(self, *, side: str = "old", part: Part | None = None, exclude: Sequence[str] = (), absent: bool = False) -> None:
        self.side = side
        self.part = part or Part("web", "memory")
        self.nodes: dict[bytes, Node] = {} if absent else {b"": Node(Kind.DIR, mode=0o755)}
        self.root_entry = Entry(b"", Kind.DIR)
        self.closed = 0
        self._excludes = Excludes(exclude)

    # -- seeding ------------------------------------------------------------------------------------------------------------------------

    def folder(self, path: bytes, *, mtime_ns: int = NOON, mode: int = 0o755) -> None:
        if path.rpartition(b"/")[0] not in self.nodes:
            self.folder(path.rpartition(b"/")[0])
        self.nodes[path] = Node(Kind.DIR, b"", mtime_ns, mode)

    def file(self, path: bytes, data: bytes = b"", *, mtime_ns: int = NOON, mode: int = 0o644, locked: bool = False) -> Entry:
        if path.rpartition(b"/")[0] not in self.nodes:
            self.folder(path.rpartition(b"/")[0])
        self.nodes[path] = Node(Kind.FILE, data, mtime_ns, mode, locked=locked)
        return self.nodes[path].entry(path)

    def link(self, path: bytes, target: bytes) -> None:
        if path.rpartition(b"/")[0] not in self.nodes:
            self.folder(path.rpartition(b"/")[0])
        self.nodes[path] = Node(Kind.LINK, b"", NOON, 0o777, target)

    def remove(self, path: bytes) -> None:
        for each in [each for each in self.nodes if each == path or each.startswith(path + b"/")]:
            del self.nodes[each]

    # -- the verbs ----------------------------------------------------------------------------------------------------------------------

    def scan(self) -> Iterator[Listing[Entry]]:
        self._look_for_root()
        self.root_entry = self.nodes[b""].entry(b"")
        waiting = [b""]
        while waiting:
            folder = waiting.pop()
            node = self.nodes.get(folder)
            if node is None or node.locked:
                code = "vanished" if node is None else "permission"
                yield Listing(folder, [], Failure(self.side, self.part.id, folder, code, "it cannot be listed"))
                continue
            inside = sorted(path for path in self.nodes if path and path.rpartition(b"/")[0] == folder)
            entries = [self.nodes[path].entry(path) for path in inside]
            entries = [entry for entry in entries if not self._excludes.matches(entry.path, entry.kind is Kind.DIR)]
            waiting.extend(entry.path for entry in reversed(entries) if entry.kind is Kind.DIR)
            yield Listing(folder, entries)

    def read(self, wanted: Iterable[Entry], sink: Sink) -> Iterator[Read[Entry]]:
        self._look_for_root()
        for entry in wanted:
            node = self.nodes.get(entry.path)
            trouble = self._unreadable(entry, node)
            if node is None or trouble is not None:
                yield Read(entry, entry, failure=trouble)
                continue
            digest, size = _receive(node.data, sink)
            yield Read(entry, node.entry(entry.path), digest, size)

    def write(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        for item in items:
            if item.item.path:
                self._look_for_root()
            try:
                yield Written(item, self._write(item))
            except _Unfit as unfit:
                yield Written(item, item.item, self._tell(item.item, unfit.code, unfit.reason))

    def _write(self, item: Write[Entry]) -> Entry:
        entry = item.item
        there = self.nodes.get(entry.path)
        if any(part in (b"", b".", b"..") for part in entry.path.split(b"/")) and entry.path:
            raise _Unfit("name-refused", "its name leads elsewhere")
        if entry.path and getattr(self.nodes.get(entry.parent), "kind", None) is not Kind.DIR:
            raise _Unfit("parent", "its folder is not there")
        data = b""
        if entry.kind is Kind.FILE:
            data = _contents(item)
        if there is not None and entry.kind is not Kind.DIR:
            if (there.kind, there.data, there.target) == (entry.kind, data, entry.target):
                if not item.replace:
                    return there.entry(entry.path)
            elif there.kind is Kind.DIR or not item.replace:
                raise _Unfit("exists", "something else is there")
        if there is not None and entry.kind is Kind.DIR and there.kind is not Kind.DIR:
            raise _Unfit("exists", "something that is no folder is there")
        self.nodes[entry.path] = Node(entry.kind, data, entry.mtime_ns, entry.mode, entry.target)
        return self.nodes[entry.path].entry(entry.path)

    def prove(self, claims: Iterable[Claim[Entry]]) -> Iterator[Proof[Entry]]:
        self._look_for_root()
        for claim in claims:
            entry = claim.item
            node = self.nodes.get(entry.path)
            if node is None:
                status = Status.MISSING
            elif node.locked:
                status = Status.FAILED
            elif _facts(node.entry(entry.path)) != _facts(entry):
                status = Status.CHANGED
            elif node.kind is Kind.FILE and (digest_of(node.data), len(node.data)) != (claim.digest, claim.size):
                status = Status.DIFFERENT
            else:
                status = Status.VERIFIED
            trouble = None if status is Status.VERIFIED else self._tell(entry, status.value, "not as claimed")
            yield Proof(claim, status, Method.NONE if status is Status.FAILED else Method.LOCAL_SECOND_READ, trouble)

    def close(self) -> None:
        self.closed += 1

    def _look_for_root(self) -> None:
        if b"" not in self.nodes:
            raise PlaceMissing("there is no such folder", where="memory")

    def _unreadable(self, entry: Entry, node: Node | None) -> Failure | None:
        if node is None:
            return self._tell(entry, "vanished", "it is not there any more")
        if node.kind is not Kind.FILE:
            return self._tell(entry, "changed-kind", "it became something else")
        return self._tell(entry, "permission", "this user may not read it") if node.locked else None

    def _tell(self, entry: Entry, code: str, reason: str) -> Failure:
        return Failure(self.side, self.part.id, entry.label, code, reason)


def _facts(entry: Entry) -> tuple[object, ...]:
    """What must agree before bytes are compared."""
    return (entry.kind, entry.target) if entry.kind is not Kind.FILE else (entry.kind, entry.size, entry.mtime_ns)


class _Unfit(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def _contents(item: Write[Entry] | Write[Message]) -> bytes:
    assert item.open is not None, "a file or message comes with its contents"
    try:
        with item.open() as stream:
            data = stream.read()
    except HostbackupError as error:
        raise _Unfit(error.code, error.reason) from error
    if item.digest and digest_of(data) != item.digest:
        raise _Unfit("damaged", "the bytes to be written are not those on record")
    return data


def _receive(data: bytes, sink: Sink) -> tuple[str, int]:
    receiver = sink.open(len(data))
    try:
        for at in range(0, len(data), 1 << 16):
            receiver.write(data[at : at + (1 << 16)])
    except BaseException:
        receiver.abort()
        raise
    return receiver.commit()


@dataclass(slots=True)
class Letter:
    """A message as a server holds it."""

    data: bytes
    internaldate: str = DATE
    flags: tuple[str, ...] = ()
    modseq: int = 1


@dataclass(slots=True)
class Box:
    """A mail folder as a server holds it."""

    folder: Folder
    letters: dict[int, Letter] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)  # UID to the modseq it went with

    def described(self) -> Folder:
        return replace(self.folder, exists=len(self.letters))

    def stamp(self) -> int:
        """Something happens: the modseq it happens with."""
        self.folder = replace(self.folder, highestmodseq=self.folder.highestmodseq + 1)
        return self.folder.highestmodseq

    def flag(self, uid: int, flags: tuple[str, ...]) -> None:
        self.letters[uid].flags = tuple(sorted(flags))
        self.letters[uid].modseq = self.stamp()

    def expunge(self, uid: int) -> None:
        del self.letters[uid]
        self.gone[uid] = self.stamp()

    def differs(self, old: Folder) -> Changes | None:
        """What changed since it was described as `old`; None where that is not one of its own descriptions."""
        now = self.described()
        seen = {uid: letter for uid, letter in self.letters.items() if uid < old.uidnext}
        gone = sorted(uid for uid, modseq in self.gone.items() if modseq > old.highestmodseq and uid < old.uidnext)
        same = now.uidvalidity == old.uidvalidity and old.uidnext <= now.uidnext and 0 < old.highestmodseq <= now.highestmodseq
        if not same or old.exists != len(seen) + len(gone):
            return None
        flags = {uid: letter.flags for uid, letter in seen.items() if letter.modseq > old.highestmodseq}
        return Changes(flags, tuple((uid, uid) for uid in gone))


class MemoryMail:
    """A mail account as a dict of folders. A folder that is written to is made."""

    chunk = 1000  # messages a listing

    def __init__(self, *, side: str = "old", part: Part | None = None, separator: bytes = b"/") -> None:
        self.side = side
        self.part = part or Part("mail", "memory@example.test")
        self.separator = separator
        self.boxes: dict[bytes, Box] = {}
        self.closed = 0
        self._uidvalidity = 100

    # -- seeding ------------------------------------------------------------------------------------------------------------------------

    def box(self, name: bytes, *, special_use: str = "", subscribed: bool = True) -> Box:
        """The folder, made where it is not there."""
        if name not in self.boxes:
            self._uidvalidity += 1
            folder = Folder(name, self.separator, (), special_use, subscribed, self._uidvalidity, 1, highestmodseq=1)
            self.boxes[name] = Box(folder)
        return self.boxes[name]

    def deliver(self, name: bytes, data: bytes, *, internaldate: str = DATE, flags: tuple[str, ...] = ()) -> Message:
        box = self.box(name)
        uid = box.folder.uidnext
        box.letters[uid] = Letter(data, internaldate, tuple(sorted(flags)), box.stamp())
        box.folder = replace(box.folder, uidnext=uid + 1)
        return self._message(box, uid)

    def prepare(self, folders: Iterable[Folder]) -> list[Failure]:
        for folder in folders:
            self.box(folder.name, special_use=folder.special_use, subscribed=folder.subscribed)
        return []

    # -- the verbs ----------------------------------------------------------------------------------------------------------------------

    def scan(self, since: Mapping[bytes, Folder] | None = None) -> Iterator[Listing[Message]]:
        for name in sorted(self.boxes):
            box = self.boxes[name]
            uids = sorted(box.letters)
            old = (since or {}).get(name)
            changes = box.differs(old) if old else None
            if old and changes is not None:
                arrived = [self._message(box, uid) for uid in uids if uid >= old.uidnext]
                yield Listing(name, arrived, folder=box.described(), changes=changes)
                continue
            for at in range(0, len(uids) or 1, self.chunk):
                items = [self._message(box, uid) for uid in uids[at : at + self.chunk]]
                yield Listing(name, items, folder=box.described(), last=at + self.chunk >= len(uids))

    def read(self, wanted: Iterable[Message], sink: Sink) -> Iterator[Read[Message]]:
        for message in wanted:
            letter = self._letter(message)
            if letter is None:
                box = self.boxes.get(message.folder)
                renumbered = box is not None and box.folder.uidvalidity != message.uidvalidity
                code = "folder-missing" if box is None else "uidvalidity" if renumbered else "vanished"
                yield Read(message, message, failure=self._tell(message, code, "it is not there any more"))
                continue
            digest, size = _receive(letter.data, sink)
            yield Read(message, message, digest, size)

    def write(self, items: Iterable[Write[Message]]) -> Iterator[Written[Message]]:
        for item in items:
            try:
                data = _contents(item)
            except _Unfit as unfit:
                yield Written(item, item.item, self._tell(item.item, unfit.code, unfit.reason))
                continue
            asked = item.item
            yield Written(item, self.deliver(asked.folder, data, internaldate=asked.internaldate, flags=asked.flags))

    def prove(self, claims: Iterable[Claim[Message]]) -> Iterator[Proof[Message]]:
        for claim in claims:
            letter = self._letter(claim.item)
            if letter is None:
                status = Status.MISSING
            else:
                same = (digest_of(letter.data), len(letter.data)) == (claim.digest, claim.size)
                status = Status.VERIFIED if same else Status.DIFFERENT
            trouble = None if status is Status.VERIFIED else self._tell(claim.item, status.value, "not as claimed")
            yield Proof(claim, status, Method.IMAP_FETCH, trouble)

    def close(self) -> None:
        self.closed += 1

    def _message(self, box: Box, uid: int) -> Message:
        letter = box.letters[uid]
        return Message(box.folder.name, box.folder.uidvalidity, uid, len(letter.data), letter.internaldate, letter.flags)

    def _letter(self, message: Message) -> Letter | None:
        box = self.boxes.get(message.folder)
        if box is None or box.folder.uidvalidity != message.uidvalidity:
            return None
        return box.letters.get(message.uid)

    def _tell(self, message: Message, code: str, reason: str) -> Failure:
        return Failure(self.side, self.part.id, message.label, code, reason)
