"""What lies where in one copy: a small database beside the vault, or in a temporary folder, so that memory stays flat however much there is.

It is made from the copy's index and its listing. Losing it costs time; with an encrypted copy and no secret key at hand, it costs uploads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hostbackup.errors import DiskFull, VaultError
from hostbackup.vault.faults import told
from hostbackup.vault.packs.pack import KINDS, Member

_VERSION = 2
_BATCH = 4096
_GONE, _OTHER_SIZE, _WHOLE = 0, 1, 2  # `there`
_NEVER_SEEN = f"there = {_GONE} AND listed = ''"  # it was about to go up, and never arrived
_TOGETHER = 500  # digests in one statement
_SCHEMA = f"""
CREATE TABLE about (target TEXT NOT NULL);
CREATE TABLE indexes (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE blobs (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, sha256 TEXT NOT NULL, kind INTEGER NOT NULL, checksum TEXT NOT NULL,
  until TEXT NOT NULL, listed TEXT NOT NULL, there INTEGER NOT NULL
);
CREATE TABLE members (
  kind INTEGER NOT NULL, digest BLOB NOT NULL, blob INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, size INTEGER NOT NULL,
  packing TEXT NOT NULL, PRIMARY KEY (kind, digest, blob)
) WITHOUT ROWID;
CREATE INDEX contents ON members (blob);
CREATE TABLE dropped (key TEXT PRIMARY KEY, until TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (key TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_ANOTHER_TARGET = """
DELETE FROM about;
DELETE FROM indexes;
DELETE FROM dropped;
UPDATE blobs SET listed = '', checksum = '', until = '';
"""
_TEMPORARY = """
PRAGMA temp_store = FILE;
PRAGMA cache_size = -8000;
CREATE TEMP TABLE standing (key TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE wanted (kind INTEGER NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (kind, digest)) WITHOUT ROWID;
"""


class Blob(NamedTuple):
    """One file of a copy that holds contents: a pack, or a large content on its own.

    `sha256` is of the bytes as they are stored, `checksum` what the store computed over an object that went up in parts; `until`: the time stamp
    before which the store lets nobody delete it.
    """

    key: str
    size: int
    sha256: str
    kind: str  # of KINDS
    checksum: str = ""
    until: str = ""


class Dropped(NamedTuple):
    """The key of a blob that is of no use any more, and the time stamp before which nobody can delete it."""

    key: str
    until: str = ""


class Found(NamedTuple):
    """A content, and the blob that it lies in."""

    blob: Blob
    member: Member


class Catalog:
    """Open until `close`. Its methods may be called from several threads. `there` below: the last listing showed the blob.

    One that stands in another size than it should is not relied on, but what it holds is still told: members of a cut pack may be whole.
    Raises VaultError or DiskFull where the database cannot be used.
    """

    def __init__(self, path: Path | None, target: str, *, alone: bool = True) -> None:
        """`path`: None for one that lives as long as this object. One that is damaged is begun anew.

        `target`: the copy it is of. Of one that was of another, what the names of blobs vouch for is kept: a disk may be mounted elsewhere.
        `alone`: nobody else is at work on it, so that what is learnt is kept; else a copy of it is used, and nothing is changed.
        """
        self._path = path
        self._lock = threading.RLock()
        self._kept = path is not None and alone
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        with self._told():
            try:
                self._db = self._open(target)
            except (sqlite3.DatabaseError, UnicodeError) as error:  # the latter: of damaged names in it
                if path is None or isinstance(error, sqlite3.OperationalError):
                    raise
                self._forget_files()
                self._db = self._open(target)

    def _open(self, target: str) -> sqlite3.Connection:
        # The vault's own lock keeps others away, also on file systems that know no locks of SQLite's kind.
        file = self._path if self._kept else self._set_aside()
        db = sqlite3.connect(f"{file.absolute().as_uri()}?nolock=1" if file else "", uri=True, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA synchronous = NORMAL" if self._kept else "PRAGMA synchronous = OFF")
            db.execute("PRAGMA journal_mode = PERSIST")
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    db.execute(f'DROP TABLE "{table}"')
                db.executescript(_SCHEMA)
            elif db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
            if db.execute("SELECT target FROM about").fetchone() != (target,):
                db.executescript(_ANOTHER_TARGET)
                db.execute("INSERT INTO about VALUES (?)", (target,))
            db.executescript(_TEMPORARY)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self) -> Path | None:
        """A copy of the files of a database that somebody else may be at work on; None where there is none."""
        if self._path is None or not self._path.exists():
            return None
        self._aside = self._aside or tempfile.TemporaryDirectory(prefix="hostbackup-catalog-")
        file = Path(self._aside.name, self._path.name)
        for end in ("", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self._path}{end}", f"{file}{end}")
        return file

    def _forget_files(self) -> None:
        """So that it is begun anew: what is in it is only what a copy's listing and index say too."""
        if self._path is None:
            return
        for end in ("", "-journal") if self._kept else ():
            Path(f"{self._path}{end}").unlink(missing_ok=True)
        if not self._kept:
            self._path = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, UnicodeError) as error:
            where = str(self._path or "a temporary file")
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise DiskFull("the disk is full", where=where, hint="free space there and run it again") from error
            hint = "move this file away to have it made anew"
            raise VaultError(f"what is known of a copy cannot be kept: {error}", where=where, hint=hint) from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """All that is changed in it is changed, or nothing."""
        with self._told():
            self._db.execute("BEGIN")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def save(self, path: Path) -> None:
        """Writes all that is known into a file of its own, which shows whole or not at all."""
        part = path.with_name(f".{path.name}.tmp")
        try:
            part.unlink(missing_ok=True)
            with self._told():
                self._db.execute("VACUUM INTO ?", (os.fspath(part),))
            part.replace(path)
        except OSError as error:
            raise told(error, path) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._aside is not None:
                self._aside.cleanup()

    # -- what the index says ------------------------------------------------------------------------------------------------------------

    def indexes(self) -> set[str]:
        """Names of the index files that were taken in."""
        with self._told():
            return {name for (name,) in self._db.execute("SELECT name FROM indexes")}

    def take_in(self, name: str, rows: Iterable[tuple[Blob, Sequence[Member]]], dropped: Iterable[Dropped] = ()) -> None:
        """Takes in one index file. Blobs stand in the listing from its next `settle` on."""
        with self._change() as db:
            for gone in dropped:
                self._drop(db, gone.key)
                db.execute("INSERT OR REPLACE INTO dropped VALUES (?, ?)", gone)
            for blob, members in rows:
                self._put(db, blob, members, name, there=_GONE)
            db.execute("INSERT OR REPLACE INTO indexes VALUES (?)", (name,))

    def forget_indexes(self, names: Iterable[str]) -> None:
        """These are not there any more: what only they list has to be listed again."""
        with self._change() as db:
            for name in names:
                db.execute("DELETE FROM indexes WHERE name = ?", (name,))
                db.execute("UPDATE blobs SET listed = '' WHERE listed = ?", (name,))

    def expect(self, blob: Blob, members: Sequence[Member]) -> None:
        """A blob that is about to go up: known by the next listing that shows it, should nobody be told any more that it arrived."""
        with self._change() as db:
            if db.execute("SELECT 1 FROM blobs WHERE key = ? AND sha256 = ?", (blob.key, blob.sha256)).fetchone() is None:
                self._put(db, blob, members, "", there=_GONE)

    def unexpect(self, key: str) -> None:
        """It did not arrive."""
        with self._change() as db:
            if db.execute(f"SELECT 1 FROM blobs WHERE key = ? AND {_NEVER_SEEN}", (key,)).fetchone() is not None:  # noqa: S608
                self._drop(db, key)

    def add(self, blob: Blob, members: Sequence[Member]) -> None:
        """A blob that stands in the copy now, and in no index yet."""
        with self._change() as db:
            self._put(db, blob, members, "", there=_WHOLE)

    def drop(self, gone: Iterable[Dropped]) -> None:
        """These blobs are of no use any more, and the index says so."""
        with self._change() as db:
            for one in gone:
                self._drop(db, one.key)
                db.execute("INSERT OR REPLACE INTO dropped VALUES (?, ?)", one)

    def leftovers(self) -> list[Dropped]:
        """Blobs that are of no use any more and that the listing still shows."""
        with self._told():
            rows = self._db.execute("SELECT key, until FROM dropped WHERE key IN (SELECT key FROM standing) ORDER BY key").fetchall()
        return [Dropped(*row) for row in rows]

    @staticmethod
    def _put(db: sqlite3.Connection, blob: Blob, members: Sequence[Member], listed: str, *, there: int) -> None:
        Catalog._drop(db, blob.key)
        db.execute("DELETE FROM dropped WHERE key = ?", (blob.key,))
        kind = KINDS.index(blob.kind)
        row = (blob.key, blob.size, blob.sha256, kind, blob.checksum, blob.until, listed, there)
        number = db.execute("INSERT INTO blobs VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
        db.executemany(
            "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((kind, bytes.fromhex(one.digest), number, one.offset, one.length, one.size, one.packing) for one in members),
        )

    @staticmethod
    def _drop(db: sqlite3.Connection, key: str) -> None:
        db.execute("DELETE FROM members WHERE blob = (SELECT id FROM blobs WHERE key = ?)", (key,))
        db.execute("DELETE FROM blobs WHERE key = ?", (key,))

    def unlisted(self) -> Iterator[tuple[Blob, list[Member]]]:
        """Blobs that are there and in no index."""
        for blob, number in self._blobs("there AND listed = ''"):
            yield blob, self._members(number)

    def blobs(self) -> Iterator[Blob]:
        """All that are there, keys ascending."""
        yield from (blob for blob, _ in self._blobs("there"))

    def _blobs(self, where: str) -> Iterator[tuple[Blob, int]]:
        key = ""
        while True:
            with self._told():
                query = f"SELECT {_BLOB}, id FROM blobs WHERE {where} AND key > ? ORDER BY key LIMIT ?"  # noqa: S608
                found = self._db.execute(query, (key, _BATCH)).fetchall()
            for row in found:
                yield _blob(row), row[-1]
            if len(found) < _BATCH:
                return
            key = found[-1][0]

    def _members(self, number: int) -> list[Member]:
        with self._told():
            rows = self._db.execute(f"SELECT {_MEMBER} FROM members WHERE blob = ? ORDER BY offset", (number,)).fetchall()  # noqa: S608
        return [_member(row) for row in rows]

    def members(self, key: str) -> list[Member]:
        """The members of a blob, in their order."""
        with self._told():
            row = self._db.execute("SELECT id FROM blobs WHERE key = ?", (key,)).fetchone()
        return self._members(row[0]) if row else []

    def members_in_all(self) -> int:
        """How many rows an index of everything has."""
        with self._told():
            found: tuple[int] = self._db.execute("SELECT count(*) FROM members").fetchone()
        return found[0]

    def listed(self, keys: Iterable[str], name: str) -> None:
        """These stand in the index file `name` now, which stands in the copy."""
        with self._change() as db:
            db.executemany("UPDATE blobs SET listed = ? WHERE key = ?", ((name, key) for key in keys))
            db.execute("INSERT OR REPLACE INTO indexes VALUES (?)", (name,))

    def note_file(self, key: str, size: int, sha256: str) -> None:
        """A small encrypted file is about to go up: nobody but who has the secret key can say later whether it is whole, without this."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (key, size, sha256))

    def noted_file(self, key: str) -> tuple[int, str] | None:
        """Its size and SHA-256 as it is stored; None where that is not known."""
        with self._told():
            found: tuple[int, str] | None = self._db.execute("SELECT size, sha256 FROM files WHERE key = ?", (key,)).fetchone()
        return found

    # -- what the listing says ----------------------------------------------------------------------------------------------------------

    def begin_listing(self) -> None:
        with self._change() as db:
            db.execute("DELETE FROM standing")

    def standing(self, rows: Iterable[tuple[str, int]]) -> None:
        """Keys and sizes that the store lists."""
        with self._change() as db:
            db.executemany("INSERT OR REPLACE INTO standing VALUES (?, ?)", rows)

    def settle(self) -> None:
        """From now on those blobs are there that the listing shows."""
        with self._change() as db:
            db.execute(_SETTLE)
            db.execute(f"DELETE FROM members WHERE blob IN (SELECT id FROM blobs WHERE {_NEVER_SEEN})")  # noqa: S608
            db.execute(f"DELETE FROM blobs WHERE {_NEVER_SEEN}")  # noqa: S608

    def unknown(self) -> Iterator[tuple[str, int]]:
        """Keys and sizes that the listing shows and no index tells of, keys ascending."""
        key = ""
        while True:
            with self._told():
                found = self._db.execute(_UNKNOWN, (key, _BATCH)).fetchall()
            yield from found
            if len(found) < _BATCH:
                return
            key = found[-1][0]

    def adopt(self, rows: Iterable[tuple[Blob, Sequence[Member]]]) -> None:
        """Blobs that the listing shows and whose names tell what they hold: no index has to."""
        with self._change() as db:
            for blob, members in rows:
                self._put(db, blob, members, "its own name", there=_WHOLE)

    # -- contents -----------------------------------------------------------------------------------------------------------------------

    def find(self, kind: str, digest: str) -> list[Found]:
        """Where a content lies, the best place first: the newest of those that stand in their size. Nothing where it is not there."""
        return self.places(kind, [digest]).get(digest, [])

    def places(self, kind: str, digests: Iterable[str]) -> dict[str, list[Found]]:
        """The same of many; those that are not there are left out."""
        found: dict[str, list[Found]] = {}
        for some in _some(digests):
            with self._told():
                rows = self._db.execute(f"{_FIND} ({','.join('?' * len(some))}) {_BEST_FIRST}", (KINDS.index(kind), *some)).fetchall()
            for row in rows:
                place = Found(_blob(row), _member(row[6:]))
                found.setdefault(place.member.digest, []).append(place)
        return found

    def there(self, kind: str, digests: Iterable[str]) -> set[str]:
        """Those of the contents that are there."""
        found: set[str] = set()
        for some in _some(digests):
            with self._told():
                rows = self._db.execute(f"{_THERE} ({','.join('?' * len(some))})", (KINDS.index(kind), *some))
                found.update(digest.hex() for (digest,) in rows)
        return found

    def want(self, kind: str, contents: Iterable[tuple[str, int]]) -> tuple[int, int, int]:
        """Notes which of these, digests and sizes, are not there. How many are, how many are not, and the bytes of those."""
        number = KINDS.index(kind)
        with self._change() as db:
            db.execute("DELETE FROM wanted WHERE kind = ?", (number,))
            db.executemany("INSERT OR REPLACE INTO wanted VALUES (?, ?, ?)", ((number, bytes.fromhex(digest), size) for digest, size in contents))
            there = db.execute(_DROP_THERE).rowcount
            found: tuple[int, int] = db.execute("SELECT count(*), total(size) FROM wanted WHERE kind = ?", (number,)).fetchone()
        return there, found[0], int(found[1])

    def claim(self, kind: str, digests: Iterable[str]) -> Iterator[tuple[str, int]]:
        """Those of the contents that are wanted, in the same order, with their sizes. They are wanted no more after this."""
        number = KINDS.index(kind)
        for some in _some(dict.fromkeys(digests)):
            marks = ",".join("?" * len(some))
            with self._change() as db:
                rows = db.execute(f"DELETE FROM wanted WHERE kind = ? AND digest IN ({marks}) RETURNING digest, size", (number, *some))  # noqa: S608
                sizes = dict(rows.fetchall())
            yield from ((digest.hex(), sizes[digest]) for digest in some if digest in sizes)

    def claim_rest(self, kind: str) -> Iterator[tuple[str, int]]:
        """Everything else that is wanted of a kind, digests ascending."""
        number = KINDS.index(kind)
        while True:
            with self._told():
                rows = self._db.execute("SELECT digest, size FROM wanted WHERE kind = ? ORDER BY digest LIMIT ?", (number, _BATCH)).fetchall()
                if not rows:
                    return
                self._db.execute("DELETE FROM wanted WHERE kind = ? AND digest <= ?", (number, rows[-1][0]))
            for digest, size in rows:
                yield digest.hex(), size


_BLOB = "blobs.key, blobs.size, blobs.sha256, blobs.kind, blobs.checksum, blobs.until"
_MEMBER = "members.digest, members.offset, members.length, members.size, members.packing"
_FIND = f"SELECT {_BLOB}, {_MEMBER} FROM members JOIN blobs ON blobs.id = members.blob AND blobs.there WHERE members.kind = ? AND digest IN"  # noqa: S608
_BEST_FIRST = "ORDER BY blobs.there DESC, blobs.id DESC"
_THERE = f"""
SELECT DISTINCT digest FROM members JOIN blobs ON blobs.id = members.blob AND blobs.there = {_WHOLE} WHERE members.kind = ? AND digest IN
"""  # noqa: S608
_UNKNOWN = """
SELECT key, size FROM standing
WHERE key > ? AND key NOT IN (SELECT key FROM blobs) AND key NOT IN (SELECT key FROM dropped) ORDER BY key LIMIT ?
"""
_DROP_THERE = f"""
DELETE FROM wanted WHERE EXISTS (
  SELECT 1 FROM members JOIN blobs ON blobs.id = members.blob AND blobs.there = {_WHOLE}
  WHERE members.kind = wanted.kind AND members.digest = wanted.digest AND members.size = wanted.size
)
"""  # noqa: S608
_SETTLE = f"""
UPDATE blobs SET there = coalesce(
  (SELECT CASE WHEN standing.size = blobs.size THEN {_WHOLE} ELSE {_OTHER_SIZE} END FROM standing WHERE standing.key = blobs.key), {_GONE}
)
"""  # noqa: S608


def _some(digests: Iterable[str]) -> Iterator[list[bytes]]:
    """The digests in lists, each for one statement."""
    source = iter(digests)
    while some := [bytes.fromhex(digest) for digest in islice(source, _TOGETHER)]:
        yield some


def _blob(row: Sequence[Any]) -> Blob:
    return Blob(row[0], row[1], row[2], KINDS[row[3]], row[4], row[5])


def _member(row: Sequence[Any]) -> Member:
    return Member(row[0].hex(), *row[1:5])
