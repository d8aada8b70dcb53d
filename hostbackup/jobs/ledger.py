"""A journal that can be asked by key: what an interrupted run had fetched, what was pushed where.

The journal in the vault's `state/` is what counts; the index is a temporary SQLite file made from it, so that memory stays flat.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from hostbackup.vault.state import Journal

Record = dict[str, Any]


class Ledger:
    """Last record by key wins. `put` is in the journal at once and durable after `sync`; a key is any JSON value that identifies the record."""

    def __init__(self, journal: Journal, scratch: Path, *, key: str = "key") -> None:
        self._journal = journal
        self._key = key
        self._file = tempfile.NamedTemporaryFile(dir=scratch, prefix="ledger-", suffix=".part")  # noqa: SIM115
        self._db = sqlite3.connect(self._file.name, isolation_level=None, check_same_thread=False)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-4096;"
            "CREATE TABLE record (key TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID; BEGIN"
        )
        for record in journal:
            self._index(record)

    def _index(self, record: Record) -> None:
        self._db.execute(
            "INSERT INTO record VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
            (json.dumps(record[self._key]), json.dumps(record)),
        )

    def get(self, key: object) -> Record | None:
        row = self._db.execute("SELECT body FROM record WHERE key = ?", (json.dumps(key),)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put(self, *records: Record) -> None:
        self._journal.append(records)
        for record in records:
            self._index(record)

    def sync(self) -> None:
        self._journal.sync()

    def __iter__(self) -> Iterator[Record]:
        """The last record of every key. The ledger may be written to meanwhile."""
        last = ""
        while True:
            rows = self._db.execute("SELECT key, body FROM record WHERE key > ? ORDER BY key LIMIT 1000", (last,)).fetchall()
            if not rows:
                return
            for _key, body in rows:
                yield json.loads(body)
            last = rows[-1][0]

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM record").fetchone()[0])

    def compact(self) -> None:
        """Rewrites the journal with one line a key, whole or not at all."""
        self._journal.replace(self)

    def close(self) -> None:
        self._journal.close()
        self._db.close()
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
