"""What a job notes while it plans, on disk: so that memory stays flat however many entries there are.

A scratch is a SQLite file of its own that lives as long as the object. Nothing in it is meant to outlast the run: no journal, no sync.
"""

from __future__ import annotations

import marshal
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from hostbackup.errors import DiskFull, VaultError
from hostbackup.model import Entry, Item, Kind, Message, Stored

Range = tuple[bytes, int, int]  # a mail folder's wire name, UIDVALIDITY, UID // RANGE
MessageKey = tuple[bytes, int, int]  # a mail folder's wire name, UIDVALIDITY, UID
RANGE = 4096  # UIDs a range

_CHUNK = 1000  # rows fetched at a time while others may write
_SIZE_MAX = 1 << 53  # what is summed up: a server may claim 2**64 - 1 bytes, SQLite counts to 2**63
_KINDS = {kind.value: kind for kind in Kind}
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -8000;
CREATE TABLE groups (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, kept INTEGER NOT NULL);
CREATE TABLE rows (
  home INTEGER NOT NULL, name BLOB NOT NULL, variant INTEGER NOT NULL, wanted INTEGER NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (home, name, variant)
) WITHOUT ROWID;
"""

Group = TypeVar("Group")  # what rows are kept together by
Key_contra = TypeVar("Key_contra", contravariant=True)  # what one row is found by


class Codec(Protocol, Generic[Item, Group, Key_contra]):
    """How items become rows. Group keys sort as the groups are to be listed, names as the rows in them."""

    def pack_group(self, group: Group, /) -> bytes: ...

    def unpack_group(self, packed: bytes, /) -> Group: ...

    def locate(self, key: Key_contra, /) -> tuple[Group, bytes]: ...

    def name(self, item: Item, /) -> bytes: ...

    def variant(self, record: Stored[Item], /) -> int:
        """0 for what is there; the others tell vanished ones of the same name apart."""
        ...

    def pack(self, item: Item, /) -> list[Any]: ...

    def unpack(self, group: Group, name: bytes, packed: list[Any], /) -> Item: ...


class Notes(Generic[Item, Group, Key_contra]):
    """Rows of stored items in groups. Any thread may call; iterators go on while rows are added and changed.

    Raises DiskFull, or VaultError where the file fails otherwise. `close` deletes the file.
    """

    def __init__(self, folder: Path, codec: Codec[Item, Group, Key_contra]) -> None:
        self._codec: Codec[Item, Group, Key_contra] = codec
        self._lock: AbstractContextManager[bool] = threading.RLock()
        self._kept: list[bytes] = []  # packed groups that are kept and not yet in the file
        fd, name = tempfile.mkstemp(dir=folder, prefix="scratch-", suffix=".part")
        os.close(fd)
        self._path: Path = Path(name)
        self._base: sqlite3.Connection | None = None
        try:
            self._base = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
            with self._watched() as base:
                base.executescript(_SCHEMA)
                base.execute("BEGIN")  # never ended: what does not fit the cache goes to the file anyway
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees the file. May be called twice."""
        with self._lock:
            if self._base is not None:
                self._base.close()
                self._base = None
            self._path.unlink(missing_ok=True)

    def put(self, group: Group, records: Iterable[tuple[Stored[Item], bool]]) -> None:
        """Notes records of one group and whether each is wanted. A group may be put in pieces; a record noted again replaces the first."""
        home = self._home(group)
        rows = (
            (home, self._codec.name(record.item), self._codec.variant(record), wanted, min(record.item.size, _SIZE_MAX), self._pack(record))
            for record, wanted in records
        )
        with self._watched() as base:
            base.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)", rows)

    def keep(self, group: Group) -> None:
        """Notes a group that stays as it was: nothing but its name."""
        with self._lock:
            self._kept.append(self._codec.pack_group(group))
            if len(self._kept) >= _CHUNK:
                self._write_kept()

    def result(self, key: Key_contra, record: Stored[Item]) -> None:
        """Replaces the record noted for what is there under `key`, which is no longer wanted then. KeyError where none is."""
        self.results([(key, record)])

    def results(self, records: Iterable[tuple[Key_contra, Stored[Item]]]) -> None:
        """As `result`, for many at once."""
        rows = []
        for key, record in records:
            group, name = self._codec.locate(key)
            rows.append((self._pack(record), self._codec.pack_group(group), name))
        sql = "UPDATE rows SET data = ?, wanted = 0 WHERE home = (SELECT id FROM groups WHERE key = ?) AND name = ? AND variant = 0"
        with self._watched() as base:
            changed = base.executemany(sql, rows)
        if changed.rowcount != len(rows):
            raise KeyError(*(name for _, _, name in rows[:1]))

    def drop(self, key: Key_contra) -> None:
        """Forgets what is there under `key`. KeyError where nothing is noted."""
        group, name = self._codec.locate(key)
        with self._watched() as base:
            gone = base.execute("DELETE FROM rows WHERE home = ? AND name = ? AND variant = 0", (self._found(group), name))
        if gone.rowcount != 1:
            raise KeyError(key)

    def wanted(self) -> Iterator[Item]:
        """The wanted items: groups in the order they were first put, names sorted in each."""
        last: tuple[int, bytes, int] = (0, b"", -1)
        home, group = 0, None
        while True:
            with self._watched() as base:
                rows = base.execute(
                    f"SELECT home, name, variant, data FROM rows WHERE (home, name, variant) > (?, ?, ?) AND wanted LIMIT {_CHUNK}",  # noqa: S608
                    last,
                ).fetchall()
            for row in rows:
                if row[0] != home or group is None:
                    home, group = row[0], self._group(row[0])
                yield self._unpack(group, row[1], row[3]).item
            if len(rows) < _CHUNK:
                return
            last = rows[-1][:3]

    def folders(self) -> Iterator[Group]:
        """All groups, put or kept, sorted."""
        last: bytes | None = None
        while True:
            with self._watched() as base:
                self._write_kept()
                sql = "SELECT key FROM groups WHERE ? IS NULL OR key > ? ORDER BY key LIMIT ?"
                rows = base.execute(sql, (last, last, _CHUNK)).fetchall()
            for (key,) in rows:
                yield self._codec.unpack_group(key)
            if len(rows) < _CHUNK:
                return
            last = rows[-1][0]

    def is_kept(self, group: Group) -> bool:
        """Whether the group was noted by `keep` alone."""
        with self._watched() as base:
            self._write_kept()
            row = base.execute("SELECT kept FROM groups WHERE key = ?", (self._codec.pack_group(group),)).fetchone()
        return bool(row and row[0])

    def all_kept(self) -> bool:
        """Whether no group was put."""
        with self._watched() as base:
            return base.execute("SELECT 1 FROM groups WHERE NOT kept LIMIT 1").fetchone() is None

    def records(self, group: Group) -> list[Stored[Item]]:
        """The group's records, sorted by name, vanished ones after what is there; none for a group never put."""
        with self._watched() as base:
            rows = base.execute("SELECT name, data FROM rows WHERE home = ? ORDER BY name, variant", (self._found(group),)).fetchall()
        records = [(name, self._unpack(group, name, data)) for name, data in rows]
        records.sort(key=lambda row: (row[0], bool(row[1].vanished)))
        return [record for _, record in records]

    def totals(self) -> tuple[int, int]:
        """How many items are wanted, and their bytes as the place told them."""
        with self._watched() as base:
            count, size = base.execute("SELECT count(*), total(size) FROM rows WHERE wanted").fetchone()
        return count, int(size)

    def _home(self, group: Group) -> int:
        key = self._codec.pack_group(group)
        sql = "INSERT INTO groups (key, kept) VALUES (?, 0) ON CONFLICT (key) DO UPDATE SET kept = 0 RETURNING id"
        with self._watched() as base:
            home: int = base.execute(sql, (key,)).fetchall()[0][0]
        return home

    def _write_kept(self) -> None:
        """Many at a time, which costs a fraction of one by one."""
        with self._watched() as base:
            kept, self._kept = self._kept, []
            base.executemany("INSERT INTO groups (key, kept) VALUES (?, 1) ON CONFLICT (key) DO NOTHING", ((key,) for key in kept))

    def _found(self, group: Group) -> int:
        with self._watched() as base:
            row = base.execute("SELECT id FROM groups WHERE key = ?", (self._codec.pack_group(group),)).fetchone()
        return row[0] if row else 0

    def _group(self, home: int) -> Group:
        with self._watched() as base:
            key: bytes = base.execute("SELECT key FROM groups WHERE id = ?", (home,)).fetchone()[0]
        return self._codec.unpack_group(key)

    def _pack(self, record: Stored[Item]) -> bytes:
        # Nobody but this run reads it: several times as fast as JSON, and the same for every value there is.
        return marshal.dumps((record.digest, record.size, record.stale, record.failed, record.vanished, record.racy, *self._codec.pack(record.item)))

    def _unpack(self, group: Group, name: bytes, data: bytes) -> Stored[Item]:
        digest, size, stale, failed, vanished, racy, *packed = marshal.loads(data)  # noqa: S302 - our own
        return Stored(self._codec.unpack(group, name, packed), digest, size, stale, failed, vanished, racy)

    @contextmanager
    def _watched(self) -> Iterator[sqlite3.Connection]:
        """The data base, for one thread at a time, with its errors in our words."""
        with self._lock:
            try:
                if self._base is None:
                    raise ValueError("the scratch file is closed")
                yield self._base
            except sqlite3.Error as error:
                where = str(self._path.parent)
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise DiskFull("the disk is full", where=where, hint="make room and run again; what was brought so far is kept") from error
                raise VaultError(f"the run's scratch file failed: {error}", where=where, hint="is the disk sound?") from error


class _Entries:
    def pack_group(self, group: bytes) -> bytes:
        return group.replace(b"/", b"\0")  # sorts by components

    def unpack_group(self, packed: bytes) -> bytes:
        return packed.replace(b"\0", b"/")

    def locate(self, key: bytes) -> tuple[bytes, bytes]:
        folder, _, name = key.rpartition(b"/")
        return folder, name

    def name(self, item: Entry) -> bytes:
        return item.name

    def variant(self, record: Stored[Entry]) -> int:
        return 1 + list(_KINDS).index(record.item.kind.value) if record.vanished else 0

    def pack(self, item: Entry) -> list[Any]:
        return [item.kind.value, item.size, item.mtime_ns, item.mode, item.target]

    def unpack(self, group: bytes, name: bytes, packed: list[Any]) -> Entry:
        kind, size, mtime_ns, mode, target = packed
        return Entry(group + b"/" + name if group else name, _KINDS[kind], size, mtime_ns, mode, target)


class _Messages:
    def pack_group(self, group: Range) -> bytes:
        folder, uidvalidity, number = group
        return folder + b"\0" + uidvalidity.to_bytes(8, "big") + number.to_bytes(8, "big")

    def unpack_group(self, packed: bytes) -> Range:
        return packed[:-17], int.from_bytes(packed[-16:-8], "big"), int.from_bytes(packed[-8:], "big")

    def locate(self, key: MessageKey) -> tuple[Range, bytes]:
        folder, uidvalidity, uid = key
        return (folder, uidvalidity, uid // RANGE), uid.to_bytes(8, "big")

    def name(self, item: Message) -> bytes:
        return item.uid.to_bytes(8, "big")

    def variant(self, record: Stored[Message]) -> int:
        return 0  # a UID is never given twice (RFC 9051 §2.3.1.1)

    def pack(self, item: Message) -> list[Any]:
        return [item.size, item.internaldate, item.flags, item.uidl]

    def unpack(self, group: Range, name: bytes, packed: list[Any]) -> Message:
        size, internaldate, flags, uidl = packed
        return Message(group[0], group[1], int.from_bytes(name, "big"), size, internaldate, tuple(flags), uidl)


class Scratch(Notes[Item, bytes, bytes]):
    """Notes of a tree: grouped by folder path, found by entry path."""

    def __init__(self: Scratch[Entry], folder: Path) -> None:
        super().__init__(folder, _Entries())


class MailScratch(Notes[Message, Range, MessageKey]):
    """Notes of a mailbox: grouped by range of UIDs, found by folder, UIDVALIDITY and UID."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _Messages())
