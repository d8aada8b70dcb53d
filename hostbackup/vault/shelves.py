"""Which objects stand, and as which inodes: from one listing a shard, which costs a fraction of a look at each."""

from __future__ import annotations

import os
import threading
from collections import Counter

_HELD = 200_000  # objects in memory, about 50 MB; a vault with more is asked object by object


class Shelves:
    """What is known of the files `PREFIX/ab/abcd…`. It holds until `forget` is told that a shard was changed.

    May be used from several threads: a listing that a change may have overtaken is answered from, and not kept.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix  # with its final separator
        self._known: dict[str, dict[str, int]] = {}
        self._many = False
        self._lock = threading.Lock()  # what is known, and the changes
        self._changes: Counter[str] = Counter()  # of each shard

    def inode(self, digest: str) -> int | None:
        """Of the object itself, whatever kind of file it is; None where there is none. Raises OSError where that cannot be told."""
        shard = digest[:2]
        known = self._known.get(shard)
        if known is None and not self._many:
            known = self._list(shard)
        if known is not None and not self._many:
            return known.get(digest)
        try:
            return os.stat(f"{self._prefix}{shard}{os.sep}{digest}", follow_symlinks=False).st_ino  # noqa: PTH116 - str paths: this runs once an entry
        except FileNotFoundError:
            return None

    def _list(self, shard: str) -> dict[str, int]:
        with self._lock:
            changes = self._changes[shard]
        try:
            with os.scandir(self._prefix + shard) as found:
                known = {entry.name: entry.inode() for entry in found}
        except FileNotFoundError:
            known = {}
        with self._lock:
            if self._changes[shard] == changes:
                self._known[shard] = known
            if len(known) * 256 > _HELD:  # digests spread evenly: one shard tells of all
                self._many = True
                self._known.clear()
        return known

    def forget_all(self) -> None:
        """Somebody else may have changed any shard."""
        with self._lock:
            self._changes.update(f"{number:02x}" for number in range(256))
            self._known.clear()

    def forget(self, shard: str) -> None:
        """A name came to this shard, or left it."""
        with self._lock:
            self._changes[shard] += 1
            self._known.pop(shard, None)
