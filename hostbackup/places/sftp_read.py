"""Reading files over SFTP: hundreds at a time, each proven to have stood still."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Entry, Failure, Kind, Read, Receiver, ResumableReceiver, ResumingSink, Sink
from hostbackup.places.sftp_large import WINDOW, Reading, Stream
from hostbackup.places.sftp_tree import Tree, entry, proper, same
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Flag, Status, Type, on_handle, on_path, open_file, read
from hostbackup.protocols.sftp.pump import Work

REREADS = 3  # of a file that does not stand still
RESUMED = 8 << 20  # bytes from which a file that was cut off is gone on with
SAMPLES = 16  # ranges of what came earlier that are read again before it is gone on with
_SAMPLE = 32 << 10  # bytes of each

_TORN = "it was written to while it was read; what is kept may be torn"


@dataclass(slots=True)
class Got:
    """What one pass over a file gave: attributes before and after (LSTAT or FSTAT), and how much was taken."""

    before: Attrs
    after: Attrs
    received: int

    @property
    def still(self) -> bool:
        return same(self.before, self.after) and self.received == self.after.size

    @property
    def short(self) -> bool:
        """Whether the file has more than was taken."""
        return self.received < (self.after.size or 0)


Outcome = Got | Status | str  # a Status: the server refused; "changed-kind": it is no regular file any more


class FileRead:
    """The reading of one file. Begun anew after a cut line, it goes more carefully; `begun` counts how often that was."""

    def __init__(self, tree: Tree, asked: Entry, sink: Sink, *, rereads: int = REREADS) -> None:
        self._tree = tree
        self._asked = asked
        self._sink = sink
        self._rereads = rereads
        self.begun = 0

    @property
    def work(self) -> Work[Read[Entry]]:
        return Work(self.begin, min(self._asked.size, WINDOW) + 1)

    def begin(self, connection: Connection) -> Steps[Read[Entry]]:
        self.begun += 1
        asked = self._asked
        if asked.kind is not Kind.FILE:
            return self._nothing("unsupported", "only files have contents")
        if not proper(asked.path):
            return self._nothing("unsafe-name", "its name could lead out of the folder")
        return self._steps(connection)

    def _nothing(self, code: str, reason: str) -> Steps[Read[Entry]]:
        return Read(self._asked, self._asked, failure=self._tree.tell(self._asked.path, code, reason))
        yield  # a generator that asks nothing

    def _steps(self, connection: Connection) -> Steps[Read[Entry]]:
        path = self._tree.full(self._asked.path)
        if self.begun == 1 and self._asked.size < connection.limits.read:
            done = yield from self._small(path)
            if done is not None:
                return done
        for rereads_left in range(self._rereads, -1, -1):
            opened = yield from open_whole(path, self._tree.reading, careful=self.begun > 1)
            if not isinstance(opened, Opened):
                return self._not(opened)
            receiver, start = self._receiver(opened.before)
            try:
                if start and not (yield from self._agrees(opened, receiver, start)):
                    receiver.abort()
                    receiver, start = self._receiver(opened.before)
                got = yield from opened.read(connection, self._tree.reading, receiver.write, start)
                keep = isinstance(got, Got) and (got.still or not rereads_left)
            except BaseException as error:
                # What ends the run or the line says nothing against the bytes that came.
                _give_up(receiver, later=not isinstance(error, Exception))
                raise
            if isinstance(got, Got) and keep:
                return self._kept(got, receiver)
            _give_up(receiver, later=isinstance(got, Status))
            if not isinstance(got, Got):
                return self._not(got)
        raise AssertionError("the last reading has an outcome")

    def _small(self, path: bytes) -> Steps[Read[Entry] | None]:
        """One quick reading; None where it was not good enough. A READ may give less than there is: a file taken short is read as a whole."""
        receiver = self._sink.open(self._asked.size)
        try:
            got = yield from _read_small(path, self._asked.size, receiver)
        except BaseException:
            receiver.abort()
            raise
        if isinstance(got, Got) and (got.still or (not self._rereads and not got.short)):
            return self._kept(got, receiver)
        receiver.abort()
        if isinstance(got, Got):
            self._rereads = max(0, self._rereads - 1)
            return None
        return self._not(got)

    def _receiver(self, before: Attrs) -> tuple[Receiver, int]:
        """Where the bytes go, and how many of them are there already. What had come earlier counts only while size and mtime are as they were then.

        Both can stay while the contents are replaced, so what is gone on with is compared in samples too (`_agrees`).
        """
        asked = self._asked
        if asked.size >= RESUMED and isinstance(self._sink, ResumingSink) and (before.size, before.mtime_ns) == (asked.size, asked.mtime_ns):
            resumed = self._sink.resume(asked)
            return resumed, resumed.received
        return self._sink.open(before.size or 0), 0

    def _agrees(self, opened: Opened, receiver: Receiver, start: int) -> Steps[bool]:
        """Whether samples of the first `start` bytes, the first and the last among them, are what is there already: one round trip."""
        if not isinstance(receiver, ResumableReceiver):
            return False
        length = min(_SAMPLE, start, self._tree.reading.chunk)
        offsets = sorted({(start - length) * number // (SAMPLES - 1) for number in range(SAMPLES)})
        values = yield from ask(*(read(opened.handle, offset, length) for offset in offsets))
        for offset, value in zip(offsets, values, strict=True):
            if not isinstance(value, memoryview) or not value or receiver.sample(offset, length)[: len(value)] != value:
                return False
        return True

    def _not(self, got: Status | str) -> Read[Entry]:
        return Read(self._asked, self._asked, failure=self._why(got))

    def _kept(self, got: Got, receiver: Receiver) -> Read[Entry]:
        digest, size = receiver.commit()
        hint = "run again when it rests"
        torn = None if got.still else self._tree.tell(self._asked.path, "changing", _TORN, hint)
        return Read(self._asked, entry(self._asked.path, got.after), digest, size, torn)

    def _why(self, got: Status | str) -> Failure:
        if isinstance(got, Status):
            return self._tree.refused(self._asked.path, got)
        return self._tree.tell(self._asked.path, got, "it became something else")


def _read_small(path: bytes, size: int, receiver: Receiver) -> Steps[Outcome]:
    """A file whose scan promised that one READ holds it: two round trips in all. LSTAT is the look before, and catches a link that OPEN followed."""
    before, handle = yield from ask(on_path(Type.LSTAT, path), open_file(path, Flag.READ))
    refused = _refusal(before, handle)
    if refused is not None:
        if isinstance(handle, bytes):
            yield from ask(on_handle(Type.CLOSE, handle))
        return refused
    # One byte more than expected shows growth at once. Requests on one file are answered as if in order (draft, section 6).
    data, after = yield from ask(read(handle, 0, size + 1), on_handle(Type.FSTAT, handle), also=on_handle(Type.CLOSE, handle))
    if isinstance(data, Status):
        if data.code != Code.EOF:
            return data
        data = memoryview(b"")
    if not isinstance(data, memoryview) or len(data) > size + 1:
        raise ProtocolBroken("the server answered READ with something else than was asked for")
    if not isinstance(after, Attrs):
        return after if isinstance(after, Status) else Status(Code.FAILURE, b"no attributes")
    if data:
        receiver.write(data)
    return Got(before, after, len(data))


def _refusal(before: object, handle: object) -> Status | str | None:
    """Why there is nothing to read, or None."""
    if isinstance(before, Attrs) and before.kind is not Kind.FILE:
        return "changed-kind"
    for value in (before, handle):
        if isinstance(value, Status):
            return value if not value.ok else Status(Code.FAILURE, b"an answer of the wrong kind")
    if not isinstance(before, Attrs) or not isinstance(handle, bytes):
        return Status(Code.FAILURE, b"an answer of the wrong kind")
    return None


@dataclass(slots=True)
class Opened:
    """An open file. The look before is LSTAT's: should it differ from what was opened, that was another file, and the pass counts as unsteady."""

    handle: bytes
    before: Attrs
    size: int

    def read(self, connection: Connection, reading: Reading, write: Callable[[memoryview], object], start: int = 0) -> Steps[Got | Status]:
        """The bytes from `start` on, in order; closes the file. `received` of the result counts from the file's beginning."""
        received = yield from Stream(self.handle, start, self.size, reading, write).run(connection.limits.read)
        after, _ = yield from ask(on_handle(Type.FSTAT, self.handle), on_handle(Type.CLOSE, self.handle))
        if isinstance(received, Status):
            return received
        if not isinstance(after, Attrs):
            return after if isinstance(after, Status) else Status(Code.FAILURE, b"no attributes")
        return Got(self.before, after, received)


def open_whole(path: bytes, reading: Reading, *, careful: bool) -> Steps[Opened | Status | str]:
    """Opens a file of any size. `careful`: look before opening, since to open a fifo would block the server for good."""
    if careful:
        (before,) = yield from ask(on_path(Type.LSTAT, path))
        if isinstance(before, Attrs) and before.kind is not Kind.FILE:
            return "changed-kind"
        (handle,) = yield from ask(open_file(path, Flag.READ))
    else:
        before, handle = yield from ask(on_path(Type.LSTAT, path), open_file(path, Flag.READ))
    refused = _refusal(before, handle)
    if refused is not None:
        if isinstance(handle, bytes):
            yield from ask(on_handle(Type.CLOSE, handle))
        return refused
    asked_at = time.monotonic()
    (opened,) = yield from ask(on_handle(Type.FSTAT, handle))
    reading.answered(time.monotonic() - asked_at)
    size = opened.size if isinstance(opened, Attrs) and opened.size is not None else before.size or 0
    return Opened(handle, before, size)


def read_whole(connection: Connection, tree: Tree, path: bytes, write: Callable[[memoryview], object], *, careful: bool) -> Steps[Outcome]:
    """A file of any size, from its beginning, once."""
    opened = yield from open_whole(path, tree.reading, careful=careful)
    if not isinstance(opened, Opened):
        return opened
    return (yield from opened.read(connection, tree.reading, write))


def _give_up(receiver: Receiver, *, later: bool) -> None:
    """Ends a receiver without an outcome. `later`: what came may be of use yet."""
    if later and isinstance(receiver, ResumableReceiver):
        receiver.suspend()
    else:
        receiver.abort()
