"""Sinks that hold every receiver to its promise: ended exactly once, silent afterwards."""

from __future__ import annotations

import hashlib
import threading


class Receiving:
    """A receiver that knows whether it was ended."""

    def __init__(self, sink: HashSink, size_hint: int) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._kept = bytearray()
        self.size_hint = size_hint
        self.size = 0
        self.ended = ""

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        assert not self.ended, f"written to after {self.ended}"
        self._hash.update(data)
        self.size += len(data)
        if self._sink.keeps:
            self._kept += data
        return None

    def commit(self) -> tuple[str, int]:
        self._end("commit")
        digest = self._hash.hexdigest()
        self._sink.took(digest, self.size, bytes(self._kept))
        return digest, self.size

    def abort(self) -> None:
        self._end("abort")

    def _end(self, how: str) -> None:
        assert not self.ended, f"{how} after {self.ended}"
        self.ended = how
        self._sink.ended(how)


class HashSink:
    """Keeps digests and sizes."""

    keeps = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sizes: dict[str, int] = {}  # by digest
        self.contents: dict[str, bytes] = {}
        self.commits = 0
        self.aborts = 0
        self.open_now = 0
        self.open_most = 0
        self.bytes = 0

    def open(self, size_hint: int = 0) -> Receiving:
        with self._lock:
            self.open_now += 1
            self.open_most = max(self.open_most, self.open_now)
        return Receiving(self, size_hint)

    def took(self, digest: str, size: int, data: bytes) -> None:
        with self._lock:
            self.sizes[digest] = size
            self.bytes += size
            if self.keeps:
                self.contents[digest] = data

    def ended(self, how: str) -> None:
        with self._lock:
            self.open_now -= 1
            if how == "commit":
                self.commits += 1
            else:
                self.aborts += 1


class MemorySink(HashSink):
    """Keeps the bytes too, by digest."""

    keeps = True


class NullSink(HashSink):
    """Counts, and forgets what came."""

    def took(self, digest: str, size: int, data: bytes) -> None:
        with self._lock:
            self.bytes += size
