"""An object store in memory, and wrappers that make any store fail in a chosen way."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import BinaryIO

from hostbackup.errors import HostbackupError, PlaceMissing
from hostbackup.vault.hold import ObjectHold
from hostbackup.vault.stores import (
    LOCKS,
    Absent,
    Chunks,
    Described,
    Hold,
    Listed,
    Outcome,
    Proven,
    SourceDamaged,
    Store,
    Upload,
    Wanted,
    failed,
    prove_by_reading,
    ranged,
    unread,
    valid_key,
)


class MemoryStore:
    """A Store whose objects are a dictionary, free to be tampered with."""

    def __init__(self, label: str = "memory") -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []  # every key that was stored, in order
        self.times: dict[str, float] = {}  # when each was put
        self.now = 1_800_000_000.0  # seconds since the epoch, by the clock of this store
        self.gone = False
        self._label = label
        self._held: ObjectHold | None = None
        self._lock = threading.Lock()

    def again(self) -> MemoryStore:
        """The same store, as another run has it."""
        other = MemoryStore(self._label)
        other.objects, other.times, other.puts, other.now = self.objects, self.times, self.puts, self.now
        return other

    @property
    def label(self) -> str:
        return self._label

    def _look(self) -> None:
        if self.gone:
            raise PlaceMissing("is gone", where=self._label)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        self._look()
        with self._lock:
            found = sorted((key, len(data), _etag(data)) for key, data in self.objects.items() if key.startswith(prefix))
        for key, size, etag in found:
            yield Listed(key, size, etag, modified=self.times.get(key, self.now))

    def hold(self, stale: Collection[str] = ()) -> Hold:
        self._held = ObjectHold(self, stale)
        return self._held

    def _check_hold(self) -> None:
        if self._held is not None:
            self._held.check()

    def locks(self) -> Iterator[Listed]:
        return self.list(LOCKS)

    def write_lock(self, key: str, data: bytes) -> None:
        self._look()
        self.objects[key] = data
        self.times[key] = self.now

    def read_lock(self, key: str) -> bytes:
        return self.objects[key]

    def remove_lock(self, key: str) -> None:
        self._look()
        self.objects.pop(key, None)

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        self._look()
        for item in items:
            self._check_hold()
            try:
                if not valid_key(item.key):
                    raise HostbackupError("not a key", where=item.key)
                chunks = Chunks(item)
                data = b"".join(chunks)
            except (SourceDamaged, HostbackupError) as error:
                yield failed(item.key, error, item.size)
                continue
            with self._lock:
                self.objects[item.key] = data
                self.times[item.key] = self.now
                self.puts.append(item.key)
            yield Outcome(item.key, chunks.size, digest=chunks.digest, etag=_etag(data))

    def get(self, key: str, start: int = 0, size: int | None = None) -> BinaryIO:
        self._look()
        try:
            return ranged(io.BytesIO(self.objects[key]), start, size, key)
        except KeyError as error:
            raise Absent("is not there", where=key) from error

    def describe(self, key: str) -> Described:
        self._look()
        try:
            return Described(len(self.objects[key]))
        except KeyError as error:
            raise Absent("is not there", where=key) from error

    def prove(self, items: Iterable[Wanted], *, read: bool | None = False) -> Iterator[Proven]:
        self._look()
        for wanted in items:
            there = self.objects.get(wanted.key)
            yield prove_by_reading(wanted, self.get) if read is not None or there is None else unread(wanted, len(there))

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        for key in keys:
            self._check_hold()
            self.objects.pop(key, None)
            yield Outcome(key)

    def tidy(self) -> None:
        """There is nothing to clear away."""

    def close(self) -> None:
        """There is nothing to end."""


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Killed(BaseException):
    """The process died here."""


class Wrapped:
    """A store with some verbs replaced: `before_put` is asked for each upload, and may raise or return an outcome instead of storing it."""

    def __init__(self, inner: Store, before_put: Callable[[Upload], Outcome | None]) -> None:
        self.inner = inner
        self._before_put = before_put

    @property
    def label(self) -> str:
        return self.inner.label

    def hold(self, stale: Collection[str] = ()) -> Hold:
        return self.inner.hold(stale)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        return self.inner.list(prefix)

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        for item in items:
            outcome = self._before_put(item)
            if outcome is not None:
                yield outcome
            else:
                yield from self.inner.put([item])

    def get(self, key: str, start: int = 0, size: int | None = None) -> BinaryIO:
        return self.inner.get(key, start, size)

    def describe(self, key: str) -> Described:
        return self.inner.describe(key)

    def prove(self, items: Iterable[Wanted], *, read: bool | None = False) -> Iterator[Proven]:
        return self.inner.prove(items, read=read)

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        return self.inner.delete(keys)

    def tidy(self) -> None:
        self.inner.tidy()

    def close(self) -> None:
        self.inner.close()


def dies_after(store: Store, puts: int) -> Wrapped:
    """`store`, in a process that dies when it is about to put one object more than `puts`."""
    left = [puts]

    def before(_item: Upload) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1

    return Wrapped(store, before)


class Dying(Wrapped):
    """A store in a process that dies at its put or delete number `step` (from 0): before it is done, or, with `done`, after it."""

    def __init__(self, inner: Store, step: int, *, done: bool = False) -> None:
        super().__init__(inner, lambda _item: None)
        self._left = step
        self._done = done

    @property
    def lived(self) -> bool:
        """Whether there were fewer steps than that."""
        return self._left >= 0

    def _at_the_last(self) -> bool:
        self._left -= 1
        if self._left < 0 and not self._done:
            raise Killed
        return self._left < 0

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        for item in items:
            last = self._at_the_last()
            outcomes = list(self.inner.put([item]))
            if last:
                raise Killed
            yield from outcomes

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        for key in keys:
            last = self._at_the_last()
            outcomes = list(self.inner.delete([key]))
            if last:
                raise Killed
            yield from outcomes
