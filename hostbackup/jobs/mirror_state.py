"""What is known of one mirror: which contents the snapshot wants under each key, and what we last put there. A small database in `state/`.

The listing of a run is held beside it for as long as the run lasts, so that what is to be done is one question, and memory stays flat however many
files there are. Losing the database loses nothing but time: what stands in the mirror is then compared anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from hostbackup.errors import DiskFull, VaultError
from hostbackup.vault.state import StateFolder, state_name
from hostbackup.vault.stores import Listed, mark

ROWS = 1000  # that are looked at together
_VERSION = 1
_SCHEMA = f"""
CREATE TABLE about (target TEXT NOT NULL, rule TEXT NOT NULL);
CREATE TABLE parts (id INTEGER PRIMARY KEY, part TEXT NOT NULL UNIQUE, root TEXT NOT NULL);
CREATE TABLE want (
  key BLOB NOT NULL, odd BLOB NOT NULL, part INTEGER NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  mode INTEGER NOT NULL, PRIMARY KEY (key, odd)
) WITHOUT ROWID;
CREATE TABLE aside (
  part INTEGER NOT NULL, path BLOB NOT NULL, what TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (part, path, what)
) WITHOUT ROWID;
CREATE TABLE held (
  key BLOB NOT NULL PRIMARY KEY, digest BLOB NOT NULL, size INTEGER NOT NULL, mark TEXT NOT NULL, checksum TEXT NOT NULL, intent BLOB NOT NULL,
  intent_size INTEGER NOT NULL, seen TEXT NOT NULL, seen_for BLOB NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_TEMPORARY = """
PRAGMA temp_store = FILE;
PRAGMA cache_size = -8000;
CREATE TEMP TABLE there (key BLOB NOT NULL PRIMARY KEY, size INTEGER NOT NULL, mark TEXT NOT NULL, strong INTEGER NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE clash (key BLOB NOT NULL PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE redo (key BLOB NOT NULL PRIMARY KEY) WITHOUT ROWID;
"""
_JOINED = """
FROM want w LEFT JOIN held h ON h.key = w.key LEFT JOIN there t ON t.key = w.key LEFT JOIN redo r ON r.key = w.key
WHERE w.part = ? AND length(w.digest) AND w.key NOT IN (SELECT key FROM clash)
"""
_SAME = "t.key IS NOT NULL AND h.key IS NOT NULL AND r.key IS NULL AND h.digest = w.digest AND h.size = t.size AND h.mark = t.mark AND h.mark <> ''"
_COLUMNS = "w.key, w.odd, w.digest, w.size, w.mtime_ns, w.mode, h.digest, h.size, h.mark, h.intent, h.intent_size, h.seen, h.seen_for"
_THERE = "t.size, t.mark, t.strong, r.key IS NOT NULL"


class Want(NamedTuple):
    """A file of the snapshot. `odd`: its path in the tree where the key does not say it, else b"". `digest` "": nothing of it is in the vault."""

    key: str
    odd: bytes
    digest: str
    size: int
    mtime_ns: int
    mode: int


class Aside(NamedTuple):
    """What is not mirrored, or not as it should be: `what` is "link", "special", "failed", "stale" or "name"."""

    path: bytes
    what: str
    reason: str = ""


class Row(NamedTuple):
    """One key: what is wanted, what we last put there, what a run that was killed was about to put, and what the store lists. "" and None: nothing.

    `seen`: that this version, which is not ours, was compared with the contents `seen_for` and is not them. `strong`: marks of this store change
    with the contents. `redo`: it is ours, and damaged.
    """

    key: str
    odd: bytes
    want: str
    want_size: int
    mtime_ns: int
    mode: int
    have: str
    have_size: int
    have_mark: str
    intent: str
    intent_size: int
    seen: str
    seen_for: str
    there_size: int | None
    there_mark: str
    strong: bool
    redo: bool

    @property
    def untouched(self) -> bool:
        """Whether the store lists it just as we left it."""
        return bool(self.have and self.have_mark) and (self.have_size, self.have_mark) == (self.there_size, self.there_mark)


class Held(NamedTuple):
    """What we know to stand there, in which version. `checksum`: what the store computed over it when it went up, if that is not its SHA-256."""

    key: str
    digest: str
    size: int
    mark: str
    checksum: str = ""


class Found(NamedTuple):
    """What is known of one key: what we put there, and the mark that is listed now: None where nothing is."""

    digest: str
    mark: str
    checksum: str
    listed: str | None


class MirrorState:
    """Open until `close`, for one thread at a time. Raises VaultError or DiskFull where the database cannot be used."""

    def __init__(self, path: Path, target: str, rule: str) -> None:
        """`rule`: how keys come of paths; under another one all that is wanted is found out anew. What speaks of another target is begun anew."""
        self._path = path
        self.damaged: Path | None = None  # what stood here and could not be read
        with self._told():
            try:
                self._db = self._open(target)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.damaged = path.replace(path.with_suffix(".damaged"))
                self._db = self._open(target)
            self._db.executescript(_TEMPORARY)
            if self._db.execute("SELECT rule FROM about").fetchone() != (rule,):
                with self.change():
                    for table in ("parts", "want", "aside"):
                        self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
                    self._db.execute("UPDATE about SET rule = ?", (rule,))

    @staticmethod
    def where(state: StateFolder, name: str) -> Path:
        """The file of the mirror that the profile calls `name`."""
        return state.folder / f"{state_name(f'mirror-{name}')}.sqlite"

    def _open(self, target: str) -> sqlite3.Connection:
        # Nobody else is at work on it: the vault's own lock sees to that, also on file systems that know no locks of SQLite's kind.
        db = sqlite3.connect(f"{self._path.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)
        try:
            db.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = FULL;")
            if db.execute("PRAGMA user_version").fetchone()[0] == _VERSION and db.execute("SELECT target FROM about").fetchone() == (target,):
                return db
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                db.execute(f'DROP TABLE "{table}"')
            db.executescript(_SCHEMA)
            db.execute("INSERT INTO about VALUES (?, '')", (target,))
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                raise DiskFull("the disk is full", where=str(self._path), hint="free space there and run it again") from error
            hint = "is the disk sound? Without this file the mirror is compared anew"
            raise VaultError(f"what is known of the mirror cannot be kept: {error}", where=str(self._path), hint=hint) from error

    @contextmanager
    def change(self) -> Iterator[None]:
        """All that is changed in it is changed, durably, or nothing."""
        with self._told():
            self._db.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> MirrorState:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- what the snapshot wants --------------------------------------------------------------------------------------------------------

    def part(self, part: str) -> tuple[int, str]:
        """The number of a part here, and the manifest that `want` was last made from: "" for none."""
        with self._told():
            self._db.execute("INSERT INTO parts (part, root) VALUES (?, '') ON CONFLICT DO NOTHING", (part,))
            number, root = self._db.execute("SELECT id, root FROM parts WHERE part = ?", (part,)).fetchone()
        return number, root

    def set_root(self, part: int, root: str) -> None:
        self._db.execute("UPDATE parts SET root = ? WHERE id = ?", (root, part))

    def clear(self, part: int) -> None:
        self._db.execute("DELETE FROM want WHERE part = ?", (part,))
        self._db.execute("DELETE FROM aside WHERE part = ?", (part,))

    def want(self, part: int, rows: Iterable[Want | Aside], *, gone: bool = False) -> None:
        """Notes what a piece of a snapshot holds or, `gone`, forgets what an earlier one held. Within `change`."""
        wants: list[tuple[object, ...]] = []
        asides: list[tuple[object, ...]] = []
        for row in rows:
            if isinstance(row, Want):
                wants.append((row.key.encode(), row.odd, part, bytes.fromhex(row.digest), row.size, row.mtime_ns, row.mode))
            else:
                asides.append((part, *row))
        if gone:
            self._db.executemany("DELETE FROM want WHERE key = ? AND odd = ?", (row[:2] for row in wants))
            self._db.executemany("DELETE FROM aside WHERE part = ? AND path = ? AND what = ?", (row[:3] for row in asides))
        else:
            self._db.executemany("INSERT OR REPLACE INTO want VALUES (?, ?, ?, ?, ?, ?, ?)", wants)
            self._db.executemany("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?)", asides)

    def asides(self, part: int) -> Iterator[Aside]:
        last = b"", ""
        sql = "SELECT path, what, reason FROM aside WHERE part = ? AND (path, what) > (?, ?) ORDER BY path, what LIMIT ?"
        while rows := self._all(sql, (part, *last, ROWS)):
            yield from (Aside(*row) for row in rows)
            last = rows[-1][0], rows[-1][1]

    def mapped(self, part: int) -> Iterator[tuple[str, bytes]]:
        """The keys that do not say what the file is called, each with its path."""
        last = b""
        while rows := self._all("SELECT key, odd FROM want WHERE part = ? AND odd <> x'' AND key > ? ORDER BY key LIMIT ?", (part, last, ROWS)):
            yield from ((row[0].decode(), row[1]) for row in rows)
            last = rows[-1][0]

    def clashes(self, fold: Callable[[str], bytes] | None = None) -> Iterator[tuple[str, bytes, int]]:
        """Keys that several files would have, with their `odd` and part: none of these is given by `differing`. `fold`: equal results are one key."""
        with self._told():
            self._db.execute("DELETE FROM clash")
            self._db.execute("INSERT INTO clash SELECT key FROM want GROUP BY key HAVING count(*) > 1")
            if fold is not None:
                self._db.create_function("fold", 1, lambda key: fold(key.decode()), deterministic=True)
                twice = "SELECT fold(key) FROM want GROUP BY 1 HAVING count(*) > 1"
                self._db.execute(f"INSERT OR IGNORE INTO clash SELECT key FROM want WHERE fold(key) IN ({twice})")  # noqa: S608 - our own
        last = b"", b""
        sql = "SELECT key, odd, part FROM want WHERE key IN (SELECT key FROM clash) AND (key, odd) > (?, ?) ORDER BY key, odd LIMIT ?"
        while rows := self._all(sql, (*last, ROWS)):
            yield from ((row[0].decode(), row[1], row[2]) for row in rows)
            last = rows[-1][0], rows[-1][1]

    # -- what stands there --------------------------------------------------------------------------------------------------------------

    def note_listing(self, listing: Iterable[Listed]) -> None:
        """Takes in a listing, in addition to what was listed before."""
        source = iter(listing)
        while some := [*islice(source, ROWS)]:
            rows = [(listed.key.encode(), listed.size, mark(listed), bool(listed.etag)) for listed in some]
            with self._told():
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR REPLACE INTO there VALUES (?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")

    def same(self, part: int) -> int:
        """How many files are wanted, and stand there as we put them."""
        with self._told():
            return int(self._db.execute(f"SELECT count(*) {_JOINED} AND ({_SAME})", (part,)).fetchone()[0])

    def differing(self, part: int) -> Iterator[list[Row]]:
        """All others that are wanted, some at a time. What is noted of them meanwhile is seen."""
        sql = f"SELECT {_COLUMNS}, {_THERE} {_JOINED} AND NOT ifnull({_SAME}, 0) AND w.key > ? ORDER BY w.key LIMIT {ROWS}"
        last = b""
        while rows := self._all(sql, (part, last)):
            last = rows[-1][0]
            yield [_row(row) for row in rows]

    def alike(self, part: int) -> Iterator[list[Row]]:
        """Those that `same` counts."""
        sql = f"SELECT {_COLUMNS}, {_THERE} {_JOINED} AND ({_SAME}) AND w.key > ? ORDER BY w.key LIMIT {ROWS}"
        last = b""
        while rows := self._all(sql, (part, last)):
            last = rows[-1][0]
            yield [_row(row) for row in rows]

    def gone(self, prefix: str) -> Iterator[list[Row]]:
        """What we put below the prefix, or were about to, and the snapshot has no longer."""
        sql = f"""
            SELECT h.key, x'', x'', 0, 0, 0, h.digest, h.size, h.mark, h.intent, h.intent_size, h.seen, h.seen_for, t.size, t.mark, t.strong, 0
            FROM held h LEFT JOIN want w ON w.key = h.key LEFT JOIN there t ON t.key = h.key
            WHERE h.key >= ? AND h.key < ? AND h.key > ? AND w.key IS NULL ORDER BY h.key LIMIT {ROWS}
        """  # noqa: S608 - our own
        begin, end, last = prefix.encode(), prefix.encode()[:-1] + b"0", b""  # "0" comes after "/"
        while rows := self._all(sql, (begin, end, last)):
            last = rows[-1][0]
            yield [_row(row) for row in rows]

    def find(self, key: str) -> Found:
        joined = "(SELECT ? AS key) k LEFT JOIN held h ON h.key = k.key LEFT JOIN there t ON t.key = k.key"
        [(digest, noted, checksum, listed)] = self._all(f"SELECT h.digest, h.mark, h.checksum, t.mark FROM {joined}", (key.encode(),))  # noqa: S608
        return Found((digest or b"").hex(), noted or "", checksum or "", listed)

    # -- what we do ---------------------------------------------------------------------------------------------------------------------

    def intend(self, rows: Iterable[Row]) -> None:
        """Notes durably what is about to be put."""
        sql = """
            INSERT INTO held VALUES (?1, x'', 0, '', '', ?2, ?3, '', x'')
            ON CONFLICT (key) DO UPDATE SET intent = excluded.intent, intent_size = excluded.intent_size
        """
        values = [(row.key.encode(), bytes.fromhex(row.want), row.want_size) for row in rows]
        if values:
            with self.change():
                self._db.executemany(sql, values)

    def hold(self, rows: Iterable[Held]) -> None:
        """Notes durably what stands there now."""
        values = [(row.key.encode(), bytes.fromhex(row.digest), row.size, row.mark, row.checksum) for row in rows]
        if values:
            with self.change():
                self._db.executemany("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?, x'', 0, '', x'')", values)

    def see(self, rows: Iterable[Row]) -> None:
        """Notes of versions that are not ours that they are not what is wanted."""
        sql = """
            INSERT INTO held VALUES (?1, x'', 0, '', '', x'', 0, ?2, ?3)
            ON CONFLICT (key) DO UPDATE SET seen = excluded.seen, seen_for = excluded.seen_for
        """
        values = [(row.key.encode(), row.there_mark, bytes.fromhex(row.want)) for row in rows]
        if values:
            with self.change():
                self._db.executemany(sql, values)

    def forget(self, keys: Iterable[str]) -> None:
        """Notes that nothing of ours stands there."""
        values = [(key.encode(),) for key in keys]
        if values:
            with self.change():
                self._db.executemany("DELETE FROM held WHERE key = ?", values)

    def redo(self, keys: Iterable[str]) -> None:
        """What is ours, listed as we left it, and damaged all the same."""
        with self._told():
            self._db.executemany("INSERT OR IGNORE INTO redo VALUES (?)", ((key.encode(),) for key in keys))

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._told():
            return self._db.execute(sql, values).fetchall()


def _row(values: tuple[Any, ...]) -> Row:
    key, odd, want, want_size, mtime_ns, mode, have, have_size, noted, intent, intent_size, seen, seen_for, size, listed, strong, redo = values
    told = (have or b"").hex(), have_size or 0, noted or "", (intent or b"").hex(), intent_size or 0, seen or "", (seen_for or b"").hex()
    return Row(key.decode(), odd, want.hex(), want_size, mtime_ns, mode, *told, size, listed or "", bool(strong), bool(redo))
