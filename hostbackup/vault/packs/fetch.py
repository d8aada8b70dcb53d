"""Reading contents out of packs: those that will be needed soon come together, so that a store is asked once for thousands of them."""

from __future__ import annotations

import threading
from collections import deque
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
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}  # expected reads by pack
        self._waiting: deque[Blob] = deque()
        self._held: dict[str, Future[bytes]] = {}
        self._last: tuple[str, bytes] = "", b""  # the pack that came whole though nobody had expected it
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pack")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def expect(self, wanted: Iterable[Found]) -> None:
        """These will be read soon, about in this order. What was expected before and is not among them is given up."""
        sizes: dict[str, int] = {}
        blobs: dict[str, Blob] = {}
        left: dict[str, int] = {}
        for blob, member in wanted:
            blobs[blob.key] = blob
            sizes[blob.key] = sizes.get(blob.key, 0) + member.length
            left[blob.key] = left.get(blob.key, 0) + 1
        whole = [key for key in blobs if self._whole_only or sizes[key] * _WORTH >= blobs[key].size]
        with self._lock:
            self._left = {key: left[key] for key in whole}
            self._held = {key: held for key, held in self._held.items() if key in self._left}
            self._waiting = deque(blobs[key] for key in whole if key not in self._held)
            self._begin()

    def _begin(self) -> None:
        """Has packs fetched, as many as may be held. The lock is held."""
        while self._waiting and len(self._held) < _AT_ONCE:
            blob = self._waiting.popleft()
            self._held[blob.key] = self._pool.submit(self._load, blob, 0, None)

    def piece(self, found: Found) -> bytes:
        """The member's bytes as they stand in the pack; fewer where the pack is cut short. Raises what `load` raises."""
        blob, member = found
        with self._lock:
            expected = blob.key in self._left
            if expected and blob.key not in self._held:
                self._waiting = deque(one for one in self._waiting if one.key != blob.key)
                self._held[blob.key] = self._pool.submit(self._load, blob, 0, None)
            held = self._held.get(blob.key)
        if held is None:
            if not self._whole_only:
                return self._load(blob, member.offset, member.length)
            return self._whole(blob)[member.offset : member.offset + member.length]
        try:
            return held.result()[member.offset : member.offset + member.length]
        finally:
            with self._lock:
                if blob.key in self._left:
                    self._left[blob.key] -= 1
                    if self._left[blob.key] <= 0:
                        del self._left[blob.key]
                        self._held.pop(blob.key, None)
                        self._begin()

    def _whole(self, blob: Blob) -> bytes:
        key, data = self._last
        if key != blob.key:
            data = self._load(blob, 0, None)
            self._last = blob.key, data
        return data
