"""Folders of a target that hold what the snapshot holds, and held it when the last push ended: known again without a look at each entry.

A note for each folder says which segments the snapshot had for it and how the target listed it. It counts only as long as the push's journal is,
byte for byte, what it was then: what a later push writes, even one that is killed, and what is done to the journal by hand, undoes all notes.
It is a cache: without it a push is slower and does the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from hostbackup.errors import VaultError
from hostbackup.model import Entry, Kind
from hostbackup.vault.state import StateFolder
from hostbackup.vault.tree import SegmentRef

_ROUND = (1 << 128) - 1
_TAIL = 4096  # bytes of the journal's end that are looked at, beside its length


def mark(entry: Entry) -> int:
    """What stands for one entry as the target lists it."""
    told = (entry.path, entry.kind.value, entry.size, entry.mtime_ns, entry.mode, entry.target)
    return int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=16).digest())


def _key(folder: bytes) -> str:
    return folder.decode("latin-1")


class Settled:
    """The notes for one part and target, under the name of its journal. Marks of a folder's entries are summed up, so that they come in any order."""

    def __init__(self, state: StateFolder, journal: str) -> None:
        self._state = state
        self._name = f"settled-{journal}"
        self._journal = state.journal(journal).path
        self._known = self._read()
        self._sums: dict[bytes, int] = {}
        self._doubted: set[bytes] = set()

    def _read(self) -> dict[str, Any]:
        try:
            noted = self._state.read(self._name)
        except VaultError:
            return {}
        if not noted or noted.get("journal") != self._print():
            return {}
        folders = noted.get("folders")
        return folders if isinstance(folders, dict) else {}

    def _print(self) -> str:
        try:
            with self._journal.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL))
                return f"{size} {hashlib.sha256(file.read()).hexdigest()}"
        except FileNotFoundError:
            return ""

    def listed(self, folder: bytes, items: Iterable[Entry]) -> None:
        """The target lists a folder so."""
        self._sums[folder] = sum(map(mark, items)) & _ROUND

    def holds(self, folder: bytes, segments: Iterable[SegmentRef]) -> int | None:
        """How many entries of the snapshot the folder, listed by now, is known to hold: all of them. None where that is not known."""
        noted = self._known.get(_key(folder))
        if not isinstance(noted, list) or len(noted) != 2 or noted[1] != self._note(folder, segments):
            return None
        return int(noted[0])

    def _note(self, folder: bytes, segments: Iterable[SegmentRef]) -> str:
        told = b" ".join([b"%032x" % self._sums.get(folder, 0), *(segment.digest.encode() for segment in segments)])
        return hashlib.blake2b(told, digest_size=16).hexdigest()

    def doubt(self, folder: bytes) -> None:
        """Something in the folder is not as in the snapshot."""
        self._doubted.add(folder)

    def wrote(self, before: Entry | None, now: Entry) -> None:
        """The target describes an entry so, after a write."""
        folder = now.parent
        if before is None and now.kind is Kind.DIR:
            self._sums.setdefault(now.path, 0)
        self._sums[folder] = (self._sums.get(folder, 0) + mark(now) - (mark(before) if before is not None else 0)) & _ROUND

    def keep(self, folders: Iterator[tuple[bytes, list[SegmentRef], int]]) -> None:
        """Notes what holds from now on: folders of the snapshot, each with how many entries. The journal must be whole on disk."""
        notes = {
            _key(folder): [count, self._note(folder, segments)]
            for folder, segments, count in folders
            if folder in self._sums and folder not in self._doubted
        }
        if notes != self._known:
            self._state.write(self._name, {"journal": self._print(), "folders": notes})
