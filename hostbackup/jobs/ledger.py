"""A journal that can be asked by key: what an interrupted run had fetched, what was pushed where.

The journal in the vault's `state/` is what counts; the index is a temporary SQLite file made from it, so that memory stays flat.
"""

from __future__ import annotations

import json
import marshal
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from hostbackup.errors import DiskFull, VaultError
from hostbackup.vault.faults import told
from hostbackup.vault.state import Journal

Record = dict[str, Any]
_SYNC_SECONDS = 10.0  # as often as objects are made durable: what a power cut leaves of both belongs together


class Ledger:
    """Last record by key wins. `put` is in the journal at once and durable after `sync`; a key is any JSON value that identifies the record.

    Raises DiskFull, or VaultError where the journal or the index fails otherwise.
    """

    def __init__(self, journal: Journal, scratch: Path, *, key: str = "key") -> None:
        self._journal = journal
        self._key = key
        self._synced = time.monotonic()
        try:
            self._file = tempfile.NamedTemporaryFile(dir=scratch, prefix="ledger-", suffix=".part")  # noqa: SIM115
        except OSError as error:
            raise told(error, scratch) from error
        self._db = sqlite3.connect(self._file.name, isolation_level=None, check_same_thread=False)
        try:
            with self._watched():
                self._db.executescript(
                    "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-4096;"
                    "CREATE TABLE record (key TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID; BEGIN"
                )
            self._empty = True
            self.reread()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """What SQLite answers, in our words."""
        try:
            yield
        except sqlite3.Error as error:
            where = str(Path(self._file.name).parent)
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFull("the disk is full", where=where, hint="make room and run again; what was brought so far is kept") from error
            raise VaultError(f"the index of a journal failed: {error}", where=where, hint="is the disk sound?") from error

    def reread(self) -> None:
        """Learns what was only appended."""
        self._index(self._journal)

    def _index(self, records: Iterable[Record]) -> None:
        # Nobody but this run reads a body: marshal is several times as fast as JSON, and the same for every value that JSON has.
        rows = ((json.dumps(record[self._key]), marshal.dumps(record)) for record in records)
        with self._watched():
            done = self._db.executemany("INSERT INTO record VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body", rows)
        self._empty = self._empty and done.rowcount <= 0

    def get(self, key: object) -> Record | None:
        if self._empty:
            return None
        with self._watched():
            row = self._db.execute("SELECT body FROM record WHERE key = ?", (json.dumps(key),)).fetchone()
        return None if row is None else dict(marshal.loads(row[0]))  # noqa: S302 - our own

    def put(self, *records: Record) -> None:
        self.append(records)
        self._index(records)

    def append(self, records: Iterable[Record]) -> None:
        """As `put`, for the next run alone: this ledger knows nothing of them until `reread`."""
        self._journal.append(records)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        self._journal.sync()
        self._synced = time.monotonic()

    def __iter__(self) -> Iterator[Record]:
        """The last record of every key. The ledger may be written to meanwhile."""
        last = ""
        while True:
            with self._watched():
                rows = self._db.execute("SELECT key, body FROM record WHERE key > ? ORDER BY key LIMIT 1000", (last,)).fetchall()
            if not rows:
                return
            for _key, body in rows:
                yield marshal.loads(body)  # noqa: S302 - our own
            last = rows[-1][0]

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM record").fetchone()[0])

    def close(self) -> None:
        self._journal.close()
        self._db.close()
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
