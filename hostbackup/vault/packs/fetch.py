"""Reading contents out of packs: those that will be needed soon come together, so that a store is asked once for thousands of them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from hostbackup.vault.packs.catalog import Blob, Found

_AT_ONCE = 4  # packs that are on their way, or held, at a time
_WORTH = 4  # a pack comes whole where one part in so many of it is wanted; else each member by itself

Load = Callable[[Blob, int, int | None], bytes]  # blob, offset and size (None: to the end) to bytes


class PackReader:
    """The pieces of members. `load` fetches bytes of a blob. Its methods may be called from several threads, `expect` from one."""

    def __init__(self, load: Load, *, whole_only: bool) -> None:
        """`whole_only`: no part of a pack can be had alone, as it is encrypted."""
        self._load = load
        self._whole_only = whole_only
        self._changed = threading.Condition()  # guards what follows
        self._left: dict[str, int] = {}  # expected reads by pack
        self._waiting: deque[Blob] = deque()
        self._held: dict[str, Future[bytes]] = {}
        self._readers: Counter[str] = Counter()  # threads that are at work on a held pack
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pack")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def expect(self, wanted: Iterable[Found]) -> None:
        """These will be read soon, about in this order. What was expected before and is not among them is given up."""
        sizes: Counter[str] = Counter()
        left: Counter[str] = Counter()
        blobs: dict[str, Blob] = {}
        for blob, member in wanted:
            blobs[blob.key] = blob
            sizes[blob.key] += member.length
            left[blob.key] += 1
        whole = [key for key in blobs if self._whole_only or sizes[key] * _WORTH >= blobs[key].size]
        with self._changed:
            self._left = {key: left[key] for key in whole}
            self._waiting = deque(blobs[key] for key in whole if key not in self._held)
            for key in [key for key in self._held if key not in self._left and not self._readers[key]]:
                del self._held[key]
            self._begin()
            self._changed.notify_all()

    def piece(self, found: Found) -> bytes:
        """The member's bytes as they stand in the pack; fewer where the pack is cut short. Raises what `load` raises."""
        blob, member = found
        if not self._whole_only and blob.key not in self._left:
            return self._load(blob, member.offset, member.length)
        held = self._take(blob)
        try:
            return held.result()[member.offset : member.offset + member.length]
        finally:
            self._give(blob, held)

    def _begin(self) -> None:
        """Has expected packs fetched, as many as may be held. The lock is held, here and below."""
        while self._waiting and len(self._held) < _AT_ONCE:
            self._fetch(self._waiting.popleft())

    def _fetch(self, blob: Blob) -> None:
        self._held[blob.key] = self._pool.submit(self._load, blob, 0, None)

    def _take(self, blob: Blob) -> Future[bytes]:
        """The pack on its way, with one reader more. Waits while as many packs are being read as may be held."""
        with self._changed:
            self._changed.wait_for(lambda: blob.key in self._held or len(self._held) < _AT_ONCE or self._spare() is not None)
            if blob.key not in self._held:
                if len(self._held) >= _AT_ONCE and (spare := self._spare()) is not None:
                    del self._held[spare]
                self._waiting = deque(one for one in self._waiting if one.key != blob.key)
                self._fetch(blob)
            self._readers[blob.key] += 1
            return self._held[blob.key]

    def _spare(self) -> str | None:
        """A held pack that nobody is reading: the one that is wanted last."""
        return next((key for key in reversed(self._held) if not self._readers[key]), None)

    def _give(self, blob: Blob, held: Future[bytes]) -> None:
        with self._changed:
            self._readers[blob.key] -= 1
            expected = blob.key in self._left
            if expected:
                self._left[blob.key] -= 1
                if self._left[blob.key] <= 0:
                    del self._left[blob.key]
            done = expected and blob.key not in self._left
            if (done and not self._readers[blob.key]) or (held.done() and held.exception() is not None):
                self._held.pop(blob.key, None)
            self._begin()
            self._changed.notify_all()
