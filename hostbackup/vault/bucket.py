"""An S3-compatible bucket as an object store."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from typing import BinaryIO

from hostbackup.errors import DiskFull, HostbackupError, LineCut, Locked, LoginRefused, PlaceMissing, Unreachable, UsageError
from hostbackup.model import Method, Status
from hostbackup.protocols import s3
from hostbackup.vault import pool
from hostbackup.vault.bucket_put import PARTS_ABREAST, Uploads
from hostbackup.vault.hold import ObjectHold
from hostbackup.vault.stores import LOCKS, Absent, Described, Listed, Outcome, Proven, Upload, Wanted, failed, prove_by_reading, unread, valid_key

_WORKERS = 16
_ENOUGH = 64  # requests failed one after the other, each after its retries, before the store counts as gone
_WHOLE_STORE = (PlaceMissing, LoginRefused, Unreachable, DiskFull, UsageError, Locked)


class BucketStore:
    """A Store over one bucket and prefix. Objects go up whole, or in parts where they are larger than `whole` bytes."""

    def __init__(
        self,
        target: s3.S3Target,
        *,
        workers: int = _WORKERS,
        facts: s3.Facts | None = None,
        patience: s3.Patience | None = None,
        timeout: float = 60.0,
        whole: int = s3.WHOLE,
        part: int = s3.PART,
    ) -> None:
        """Whether the bucket can be reached is seen at first use. `facts`: what earlier runs found out, not to be asked again.

        `timeout`: seconds without a byte after which a line counts as cut.
        """
        self._bucket = s3.connect(target, connections=workers + PARTS_ABREAST, facts=facts, patience=patience, timeout=timeout)
        self._workers = workers
        self._uploads = Uploads(self._bucket, self._check_hold, whole=whole, part=part)
        self._offers_sha256: bool | None = None
        self._held: ObjectHold | None = None

    @property
    def label(self) -> str:
        return self._bucket.target.url

    @property
    def target(self) -> s3.S3Target:
        return self._bucket.target

    @property
    def facts(self) -> s3.Facts:
        """What is known of this store by now, to be kept for later runs."""
        return self._bucket.facts

    def list(self, prefix: str = "") -> Iterator[Listed]:
        for found in self._bucket.list(prefix):
            yield Listed(*found)

    def probe(self) -> tuple[tuple[str, str], ...]:
        """Finds out, with small objects, how the store behaves; see `facts`. Keys of those that could not be taken away again, with the reasons."""
        probe = s3.Probe(self._bucket)
        probe.run()
        return tuple(probe.left)

    # ------------------------------------------------------------ the writer's lock

    def hold(self, stale: Collection[str] = ()) -> ObjectHold:
        self._held = ObjectHold(self, stale)
        return self._held

    def _check_hold(self) -> None:
        if self._held is not None:
            self._held.check()

    def locks(self) -> Iterator[Listed]:
        return self.list(LOCKS)

    def write_lock(self, key: str, data: bytes) -> None:
        self._bucket.put_small(key, data)

    def read_lock(self, key: str) -> bytes:
        with self.get(key) as stream:
            return stream.read()

    def remove_lock(self, key: str) -> None:
        self._bucket.delete(key)

    # ------------------------------------------------------------ objects

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        stop = threading.Event()

        def leave(error: BaseException) -> None:
            stop.set()
            self._leave(error)

        workers = min(at_once or self._workers, self._workers)
        try:
            cut = 0
            for outcome in pool.each(lambda item: self._put(item, stop), items, workers=workers, ahead=at_once, leave=leave):
                cut = self._count(cut, outcome.code == LineCut.code, outcome.reason)
                yield outcome
        finally:
            stop.set()

    def _leave(self, error: BaseException) -> None:
        """Whoever interrupts a run does not want to wait for a store that is busy."""
        if isinstance(error, KeyboardInterrupt):
            self._bucket.hurry()

    def _put(self, item: Upload, stop: threading.Event) -> Outcome:
        if not valid_key(item.key):
            return Outcome(item.key, item.size, "name", "no store can hold an object of this name")
        try:
            return self._uploads.put(item, stop)
        except _WHOLE_STORE:
            raise
        except (HostbackupError, OSError) as error:
            return failed(item.key, error, item.size)

    def get(self, key: str, start: int = 0, size: int | None = None) -> BinaryIO:
        try:
            return self._bucket.get(key, start, size)[1]
        except s3.ObjectAbsent as error:
            raise Absent(error.reason, where=error.where) from error

    def describe(self, key: str) -> Described:
        try:
            told = self._bucket.head(key)
            return Described(told.size, told.sha256, told.metadata)
        except s3.ObjectAbsent as error:
            raise Absent(error.reason, where=error.where) from error

    def prove(self, items: Iterable[Wanted], *, read: bool | None = False) -> Iterator[Proven]:
        for _ in self._bucket.list(limit=1):  # a bucket that is not there, or refuses us, is one error and not one an object
            pass
        cut = 0
        for proven in pool.each(lambda wanted: self._prove(wanted, read=read), items, workers=self._workers, leave=self._leave):
            cut = self._count(cut, proven.status is Status.FAILED, proven.reason)
            yield proven

    def _count(self, cut: int, again: bool, reason: str) -> int:
        if not again:
            return 0
        if cut + 1 >= _ENOUGH:
            raise LineCut(f"{_ENOUGH} requests in a row failed, the last one so: {reason}", where=self.label, hint="run it again later")
        return cut + 1

    def _prove(self, wanted: Wanted, *, read: bool | None) -> Proven:
        try:
            silent = self._offers_sha256 is False or self.facts.sha256 is False
            if read or (read is False and silent and not wanted.checksum):
                return prove_by_reading(wanted, self.get)
            return self._prove_by_asking(wanted, may_read=read is False)
        except (Unreachable, s3.CredentialsExpired):
            raise
        except s3.ObjectAbsent as error:
            return Proven(wanted, Status.MISSING, Method.BUCKET_REREAD, error.reason)
        except (HostbackupError, OSError) as error:
            reason = error.reason if isinstance(error, HostbackupError) else error.strerror or str(error)
            return Proven(wanted, Status.FAILED, Method.NONE, reason)

    def _prove_by_asking(self, wanted: Wanted, *, may_read: bool) -> Proven:
        told = self._bucket.head(wanted.key)
        if told.size != wanted.size:
            return Proven(wanted, Status.DIFFERENT, Method.BUCKET_REREAD, f"{told.size} bytes are stored instead of {wanted.size}")
        if wanted.checksum and told.composite == wanted.checksum:
            return Proven(wanted, Status.VERIFIED, Method.BUCKET_SHA256)
        if not told.sha256:
            if not told.composite:
                self._offers_sha256 = False  # asking each object in vain would double the requests
            return prove_by_reading(wanted, self.get) if may_read else unread(wanted, told.size)
        self._offers_sha256 = True
        if told.sha256 != wanted.digest:
            return Proven(wanted, Status.DIFFERENT, Method.BUCKET_SHA256, "the stored bytes are others than were put there")
        return Proven(wanted, Status.VERIFIED, Method.BUCKET_SHA256)

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        return pool.each(self._delete, keys, workers=self._workers, leave=self._leave)

    def _delete(self, key: str) -> Outcome:
        try:
            self._check_hold()
            self._bucket.delete(key)
        except (PlaceMissing, Unreachable, Locked, s3.CredentialsExpired):
            raise
        except HostbackupError as error:
            return failed(key, error)
        return Outcome(key)

    def tidy(self) -> None:
        self._bucket.abort_stale()

    def close(self) -> None:
        self._uploads.close()
        self._bucket.close()
