"""What is to become of one key of a mirror: a three-way comparison of the snapshot, what we last put there, and what stands there now.

Contents are told by what costs least: the version that the store lists; the MD5 that many stores list for an object that went up in one piece; what
the store says of the object, and what we told it of it; and only then the bytes.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from hostbackup.errors import ConnectionFailed, Damaged, DiskFull, HostbackupError, LineCut, Locked, PlaceMissing, ProtocolBroken
from hostbackup.jobs.mirror_state import Row
from hostbackup.vault.stores import CHUNK, Absent, Store

_MD5 = re.compile(r"[0-9a-f]{32}")
_WHOLE_STORE = (ConnectionFailed, PlaceMissing, DiskFull, Locked)
_ONE_OBJECT = (LineCut, ProtocolBroken)


class Action(enum.StrEnum):
    PUT = "put"
    UPDATE = "update"
    REPAIR = "repair"
    ADOPT = "adopt"  # stands there with the contents it should have
    THEIRS = "changed-in-mirror"
    CONFLICT = "conflict"
    DELETE = "delete"
    FORGET = "forget"  # gone from the snapshot and from the mirror
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Judged:
    row: Row
    action: Action
    reason: str = ""
    hint: str = ""
    looked: bool = False  # it took a look at the contents


class Judge:
    """`read` opens contents that the vault has. May be called from several threads."""

    def __init__(self, store: Store, read: Callable[[str], BinaryIO]) -> None:
        self._store = store
        self._read = read

    def __call__(self, row: Row) -> Judged:
        """Raises what ends the store."""
        if row.there_size is None:
            return Judged(row, Action.PUT if row.want else Action.FORGET)
        if row.redo:
            return Judged(row, Action.REPAIR)
        try:
            return self._compared(row)
        except Absent:
            return Judged(row, Action.PUT if row.want else Action.FORGET)  # went away since it was listed
        except HostbackupError as error:
            if isinstance(error, _WHOLE_STORE) and not isinstance(error, _ONE_OBJECT):
                raise
            return Judged(row, Action.FAILED, f"what stands there could not be looked at: {error.reason}", error.hint)

    def _compared(self, row: Row) -> Judged:
        looked = False
        if row.untouched and row.strong:
            found = row.have
        elif row.want and row.there_mark and (row.seen, row.seen_for) == (row.there_mark, row.want):
            found = ""
        else:
            found, looked = self._contents(row), True
        if found and found == row.want:
            return Judged(row, Action.ADOPT)
        if found and found in (row.have, row.intent):
            return Judged(row, Action.UPDATE if row.want else Action.DELETE)
        if row.want and row.have != row.want:
            return Judged(row, Action.CONFLICT, _why(row), looked=looked)
        return Judged(row, Action.THEIRS, "changed in the mirror since it was put there", looked=looked)

    def _contents(self, row: Row) -> str:
        """Which of the contents that we know of stand there; "" where they are others."""
        sizes = {row.want: row.want_size, row.have: row.have_size, row.intent: row.intent_size}
        known = [digest for digest, size in sizes.items() if digest and size == row.there_size]
        if not known:
            return ""
        if _MD5.fullmatch(row.there_mark):
            for digest in known:
                if self._md5(digest) == row.there_mark:
                    return digest
            if row.have and row.have_mark == self._md5(row.have):
                return ""  # this store lists MD5s
        told = self._store.describe(row.key)
        if told.size != row.there_size:
            return ""
        digest = told.sha256 or told.metadata.get("sha256", "") or self._read_there(row.key)
        return digest if digest in known else ""

    def _md5(self, digest: str) -> str:
        hasher = hashlib.md5(usedforsecurity=False)
        try:
            with self._read(digest) as stream:
                while data := stream.read(CHUNK):
                    hasher.update(data)
        except (Damaged, OSError):  # pruned, or lost: then it is told by other means
            return ""
        return hasher.hexdigest()

    def _read_there(self, key: str) -> str:
        hasher = hashlib.sha256()
        with self._store.get(key) as stream:
            while data := stream.read(CHUNK):
                hasher.update(data)
        return hasher.hexdigest()


def _why(row: Row) -> str:
    if row.have:
        return "changed on the old server, and in the mirror too"
    if row.intent:
        return "is not what an earlier run sent: somebody changed it in the mirror"
    return "was in the mirror before, and differs"
