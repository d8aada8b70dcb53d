"""The vault as a sink for the files of one tree: large ones are gone on with where an earlier run or line ended, and tell of themselves meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hostbackup.model import Entry, Message, Observer, Receiver, ResumableReceiver
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.partial import Origin

_STEP = 1 << 20  # bytes between two words about one file


class Arrivals:
    """Use: `drop_others` once it is known what is wanted, then give it to `Place.read` as the sink; `done` after each entry's outcome.

    `settled` tells whether an entry's size and time vouch for its contents: only then can bytes of two readings belong together.
    """

    def __init__(self, objects: ObjectFolder, part: str, observer: Observer, settled: Callable[[Entry], bool]) -> None:
        self._objects = objects
        self._part = part
        self._observer = observer
        self._settled = settled
        self._told: dict[bytes, int] = {}  # bytes by path that the observer has heard of; entries not done yet

    def open(self, size_hint: int = 0) -> Receiver:
        return self._objects.open(size_hint)

    def resume(self, entry: Entry, /) -> ResumableReceiver:
        origin = self._origin(entry)
        if self._settled(entry):
            receiver = self._objects.resume(origin)
        else:
            self._objects.partials.drop(origin.name)
            receiver = self._objects.large(entry.size)
        return _Telling(receiver, lambda received: self._tell(entry, received))

    def _tell(self, entry: Entry, received: int) -> None:
        """Never less than before, and never more than the entry's size: a reading that has to be repeated shows as a pause."""
        told = self._told.get(entry.path, 0)
        more = min(received, entry.size) - told
        if more > 0:
            self._told[entry.path] = told + more
            self._observer.advance(size=more)

    def done(self, entry: Entry) -> None:
        """The entry has its outcome."""
        self._observer.advance(entries=1, size=entry.size - self._told.pop(entry.path, 0))

    def drop_others(self, wanted: Iterable[Entry]) -> None:
        """Forgets what is kept of files that are not wanted any more, or not as they are now."""
        kept = {origin.name: origin for origin in self._objects.partials.of_part(self._part)}
        if kept:
            for entry in wanted:
                origin = self._origin(entry)
                if kept.get(origin.name) == origin:
                    del kept[origin.name]
            for name in kept:
                self._objects.partials.drop(name)

    def _origin(self, entry: Entry) -> Origin:
        return Origin(self._part, entry.path, entry.size, entry.mtime_ns)


class MailArrivals:
    """The vault as a sink for the messages of one mailbox: very large ones are gone on with where an earlier line or run ended.

    What is under a UID never changes (RFC 9051 §2.3.1.1), so its bytes of two readings belong together; with `checksum` nobody relies on that.
    """

    def __init__(self, objects: ObjectFolder, part: str, *, checksum: bool) -> None:
        self._objects = objects
        self._part = part
        self._checksum = checksum

    def open(self, size_hint: int = 0) -> Receiver:
        return self._objects.open(size_hint)

    def resume(self, message: Message, /) -> ResumableReceiver:
        origin = Origin(self._part, message.label, message.size, message.uidvalidity)
        if self._checksum:
            self._objects.partials.drop(origin.name)
        return self._objects.resume(origin)


class _Telling:
    """A receiver that tells how far it has come."""

    def __init__(self, receiver: ResumableReceiver, tell: Callable[[int], None]) -> None:
        self._receiver = receiver
        self._tell = tell
        self._next = 0
        self._look()

    @property
    def received(self) -> int:
        return self._receiver.received

    def _look(self) -> None:
        received = self._receiver.received
        if received >= self._next:
            self._next = received + _STEP
            self._tell(received)

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        self._receiver.write(data)
        self._look()
        return None

    def commit(self) -> tuple[str, int]:
        return self._receiver.commit()

    def abort(self) -> None:
        self._receiver.abort()

    def sample(self, offset: int, length: int, /) -> bytes:
        return self._receiver.sample(offset, length)

    def suspend(self) -> None:
        self._receiver.suspend()
