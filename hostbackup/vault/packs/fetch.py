"""Reading contents out of packs: those that will be needed soon come together, so that a store is asked once for thousands of them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from hostbackup.vault.packs.catalog import Blob, Found

_AT_ONCE = 4  # stretches of packs that are on their way, or held, at a time
_CHEAP = 1 << 20  # bytes that cost less than further requests
_WORTH = 4  # members come together where one byte in so many between the first and the last is wanted; else each by itself

Load = Callable[[Blob, int, int | None], bytes]  # blob, offset and size (None: to the end) to bytes


class _Stretch(NamedTuple):
    """A piece of a pack in which many members are wanted."""

    blob: Blob
    begin: int
    size: int | None  # None: to the end of the pack

    def holds(self, found: Found) -> bool:
        end = found.member.offset + found.member.length
        return found.blob.key == self.blob.key and self.begin <= found.member.offset and (self.size is None or end <= self.begin + self.size)


class PackReader:
    """The pieces of members. `load` fetches bytes of a blob. Its methods may be called from several threads, `expect` from one."""

    def __init__(self, load: Load, *, whole_only: bool) -> None:
        """`whole_only`: no part of a pack can be had alone, as it is encrypted."""
        self._load = load
        self._whole_only = whole_only
        self._changed = threading.Condition()  # guards what follows
        self._expected: deque[dict[str, _Stretch]] = deque(maxlen=2)  # the last one first, by pack: what came before it may be at work yet
        self._left: Counter[_Stretch] = Counter()  # expected reads
        self._waiting: deque[_Stretch] = deque()
        self._held: dict[_Stretch, Future[bytes]] = {}
        self._readers: Counter[_Stretch] = Counter()  # threads that are at work on a held stretch
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pack")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def expect(self, wanted: Iterable[Found]) -> None:
        """These will be read soon, about in this order. What was expected before the last time, and is not among them, is given up."""
        by_pack: dict[str, list[Found]] = {}
        for found in wanted:
            by_pack.setdefault(found.blob.key, []).append(found)
        stretches = {key: stretch for key, founds in by_pack.items() if (stretch := self._stretch(founds)) is not None}
        with self._changed:
            self._expected.appendleft(stretches)
            recent = {stretch for expected in self._expected for stretch in expected.values()}
            self._left = Counter({stretch: left for stretch, left in self._left.items() if stretch in recent})
            self._left.update({stretch: len(by_pack[key]) for key, stretch in stretches.items()})
            self._waiting.extend(stretch for stretch in stretches.values() if stretch not in self._held and stretch not in self._waiting)
            self._waiting = deque(stretch for stretch in self._waiting if stretch in recent)
            for held in [one for one in self._held if one not in recent and not self._readers[one]]:
                del self._held[held]
            self._begin()
            self._changed.notify_all()

    def _stretch(self, founds: list[Found]) -> _Stretch | None:
        """What of a pack comes together; None where each member is better fetched by itself."""
        blob = founds[0].blob
        if self._whole_only:
            return _Stretch(blob, 0, None)
        begin = min(found.member.offset for found in founds)
        end = max(found.member.offset + found.member.length for found in founds)
        worth = len(founds) > 1 and end - begin <= max(_CHEAP, _WORTH * sum(found.member.length for found in founds))
        return _Stretch(blob, begin, end - begin) if worth else None

    def piece(self, found: Found) -> bytes:
        """The member's bytes as they stand in the pack; fewer where the pack is cut short. Raises what `load` raises."""
        blob, member = found
        known = (expected.get(blob.key) for expected in list(self._expected))
        stretch = next((one for one in known if one is not None and one.holds(found)), None)
        if stretch is None:
            if not self._whole_only:
                return self._load(blob, member.offset, member.length)
            stretch = _Stretch(blob, 0, None)
        begin = member.offset - stretch.begin
        held = self._held.get(stretch)
        if held is not None and held.done() and held.exception() is None:  # mostly so: nobody has to wait for anybody
            with self._changed:
                self._note_read(stretch)
            return held.result()[begin : begin + member.length]
        held = self._take(stretch)
        try:
            return held.result()[begin : begin + member.length]
        finally:
            self._give(stretch, held)

    def _begin(self) -> None:
        """Has expected stretches fetched, as many as may be held. The lock is held, here and below."""
        while self._waiting and (len(self._held) < _AT_ONCE or self._drop_one(lambda one: self._left[one] <= 0)):
            self._fetch(self._waiting.popleft())

    def _fetch(self, stretch: _Stretch) -> None:
        self._held[stretch] = self._pool.submit(self._load, *stretch)

    def _take(self, stretch: _Stretch) -> Future[bytes]:
        """The bytes on their way, with one reader more. Waits while as many are being read as may be held."""
        with self._changed:
            self._changed.wait_for(lambda: stretch in self._held or len(self._held) < _AT_ONCE or self._drop_one())
            if stretch not in self._held:
                self._waiting = deque(one for one in self._waiting if one != stretch)
                self._fetch(stretch)
            self._readers[stretch] += 1
            return self._held[stretch]

    def _drop_one(self, may_go: Callable[[_Stretch], bool] = lambda _: True) -> bool:
        """Drops a held stretch that nobody is reading: the one that is wanted last. Whether there was one."""
        spare = next((one for one in reversed(self._held) if not self._readers[one] and may_go(one)), None)
        if spare is not None:
            del self._held[spare]
        return spare is not None

    def _note_read(self, stretch: _Stretch) -> None:
        if stretch in self._left:
            self._left[stretch] -= 1
            if self._left[stretch] <= 0:
                self._begin()

    def _give(self, stretch: _Stretch, held: Future[bytes]) -> None:
        with self._changed:
            self._readers[stretch] -= 1
            self._note_read(stretch)
            if held.done() and held.exception() is not None:
                self._held.pop(stretch, None)
            self._begin()
            self._changed.notify_all()
