"""How objects go up to a bucket: whole, or in parts of which several are on their way at once, within a budget of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain

from hostbackup import osal
from hostbackup.protocols import s3
from hostbackup.vault import pool
from hostbackup.vault.snapshots import timestamp
from hostbackup.vault.stores import Chunks, Outcome, Upload

PARTS_ABREAST = 6
_IN_FLIGHT = 64 << 20  # bytes of contents held for uploads at once
_LARGE_ABREAST = 2  # objects in parts at once: each holds a part that is being read beside those on their way
_SLACK = 1 << 20  # bytes by which an object whose size is about known may be longer and still go up whole


class Stopped(OSError):
    """The upload is no longer wanted."""


class Uploads:
    """Puts objects, one a call, from several threads. `check` is asked before anything is made to show; it raises where we may not write any more.

    What is larger than `whole` bytes goes up in parts of `part` bytes at least (5 MiB by the standard).
    """

    def __init__(self, bucket: s3.Bucket, check: Callable[[], None], *, whole: int, part: int) -> None:
        osal.give_back_large_buffers()
        self._bucket = bucket
        self._check = check
        self._whole = whole
        self._part = part
        self._budget = pool.Budget(_IN_FLIGHT)
        self._large = threading.Semaphore(_LARGE_ABREAST)
        self._senders: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def put(self, item: Upload, stop: threading.Event) -> Outcome:
        """Stores one object. Raises members of the error tree, OSError of the source, and Stopped soon after `stop` was set."""
        if item.size > self._whole:
            chunks = Chunks(item, s3.part_size(item.size, self._part))
            return self._in_parts(item, chunks, iter(chunks), stop)
        piece = max(item.size, 1) if item.digest else max(item.size + _SLACK, self._part)
        chunks = Chunks(item, piece)
        source = iter(chunks)
        with self._budget.hold(piece):
            first = next(source, b"")
            second = next(source, None)
            if second is None:
                self._check()
                until, settings = self._settings(item)
                etag = self._bucket.put(item.key, first, bytes.fromhex(chunks.digest), settings)
                return Outcome(item.key, chunks.size, digest=chunks.digest, until=until, etag=etag)
        return self._in_parts(item, chunks, chain((first, second), source), stop)

    def _settings(self, item: Upload) -> tuple[str, dict[str, object]]:
        target = self._bucket.target
        until = target.until() if item.lasting else None
        return timestamp(until) if until else "", target.settings(until=until, content_type=item.content_type, metadata=item.metadata)

    def _in_parts(self, item: Upload, chunks: Chunks, pieces: Iterator[bytes], stop: threading.Event) -> Outcome:
        with self._large:
            self._check()
            until, settings = self._settings(item)
            parts = self._bucket.parts(item.key, settings)
            try:
                self._send_all(parts, chunks, pieces, stop)
                self._check()
                etag, checksum = parts.finish()
            except BaseException:
                parts.abort()
                raise
        return Outcome(item.key, chunks.size, digest=chunks.digest, checksum=checksum, until=until, etag=etag)

    def _send_all(self, parts: s3.Parts, chunks: Chunks, pieces: Iterator[bytes], stop: threading.Event) -> None:
        on_their_way: set[Future[None]] = set()
        number = 0
        try:
            while not stop.is_set():
                self._budget.take(chunks.piece)  # before the part is read
                try:
                    data = next(pieces)
                    number += 1
                    sent = self._pool().submit(parts.put, number, data)
                except BaseException as error:
                    self._budget.give(chunks.piece)
                    if isinstance(error, StopIteration):
                        break
                    raise
                del data
                sent.add_done_callback(lambda _: self._budget.give(chunks.piece))
                on_their_way.add(sent)
                on_their_way = _still(on_their_way, wait_for_one=False)
            else:
                raise Stopped("stopped")
            while on_their_way:
                on_their_way = _still(on_their_way, wait_for_one=True)
        finally:
            for sent in on_their_way:
                sent.cancel()
            wait(on_their_way)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._senders is None:
                self._senders = ThreadPoolExecutor(PARTS_ABREAST, thread_name_prefix="part")
            return self._senders

    def close(self) -> None:
        with self._lock:
            if self._senders is not None:
                self._senders.shutdown(wait=False, cancel_futures=True)


def _still(sent: set[Future[None]], *, wait_for_one: bool) -> set[Future[None]]:
    """Those that are not done yet. Raises what went wrong with one."""
    done = wait(sent, timeout=None if wait_for_one else 0, return_when=FIRST_COMPLETED).done
    for one in done:
        one.result()
    return sent - done
