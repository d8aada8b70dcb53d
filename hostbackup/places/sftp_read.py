"""Reading files over SFTP: hundreds at a time, each proven to have stood still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Entry, Failure, Kind, Read, Receiver, Sink
from hostbackup.places.sftp_tree import Tree, entry, proper, same
from hostbackup.protocols.sftp.client import Connection, Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Code, Flag, Status, Type, on_handle, on_path, open_file, read
from hostbackup.protocols.sftp.pump import Work

REREADS = 3  # of a file that does not stand still
WINDOW = 4 << 20  # bytes of one file under way

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


Outcome = Got | Status | str  # a Status: the server refused; "changed-kind": it is no regular file any more


class FileRead:
    """The reading of one file. Begun anew after a cut line, it goes more carefully."""

    def __init__(self, tree: Tree, asked: Entry, sink: Sink, *, rereads: int = REREADS) -> None:
        self._tree = tree
        self._asked = asked
        self._sink = sink
        self._rereads = rereads
        self._begun = 0

    @property
    def work(self) -> Work[Read[Entry]]:
        return Work(self.begin, min(self._asked.size, WINDOW) + 1)

    def begin(self, connection: Connection) -> Steps[Read[Entry]]:
        self._begun += 1
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
        quick = self._begun == 1 and self._asked.size < connection.limits.read
        for rereads_left in range(self._rereads, -1, -1):
            receiver = self._sink.open(self._asked.size)
            try:
                path = self._tree.full(self._asked.path)
                if quick:
                    got = yield from _read_small(path, self._asked.size, receiver)
                    quick = False
                else:
                    got = yield from read_whole(connection, path, receiver.write, careful=self._begun > 1)
                keep = isinstance(got, Got) and (got.still or not rereads_left)
            except BaseException:
                receiver.abort()
                raise
            if isinstance(got, Got) and keep:
                return self._kept(got, receiver)
            receiver.abort()
            if not isinstance(got, Got):
                return Read(self._asked, self._asked, failure=self._why(got))
        raise AssertionError("the last reading has an outcome")

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
    data, after, _ = yield from ask(read(handle, 0, size + 1), on_handle(Type.FSTAT, handle), on_handle(Type.CLOSE, handle))
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


def read_whole(connection: Connection, path: bytes, write: Callable[[memoryview], object], *, careful: bool) -> Steps[Outcome]:
    """A file of any size, in order, by a window of READs. `careful`: look before opening, since to open a fifo would block the server for good."""
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
    (opened,) = yield from ask(on_handle(Type.FSTAT, handle))
    size = opened.size if isinstance(opened, Attrs) and opened.size is not None else before.size or 0
    received = yield from _stream(handle, size, connection.limits.read, write)
    after, _ = yield from ask(on_handle(Type.FSTAT, handle), on_handle(Type.CLOSE, handle))
    if isinstance(received, Status):
        return received
    if not isinstance(after, Attrs):
        return after if isinstance(after, Status) else Status(Code.FAILURE, b"no attributes")
    # The look before is LSTAT's: should it differ from what was opened, that was another file, and the pass counts as unsteady.
    return Got(before, after, received)


def _stream(handle: bytes, size: int, chunk: int, write: Callable[[memoryview], object]) -> Steps[int | Status]:
    """Bytes 0 to `size` in order; fewer where the file ends earlier. Every reply is awaited, so that the handle can be closed after it."""
    asked = written = due = 0
    early: dict[int, memoryview] = {}  # replies ahead of their turn
    refused: Status | None = None
    end = size
    while True:
        requests = []
        while refused is None and asked < end and asked - written < WINDOW:
            length = min(chunk, end - asked)
            requests.append(read(handle, asked, length, (asked, length)))
            asked += length
            due += 1
        if not due:
            return written if refused is None else refused
        (offset, length), value = yield requests
        due -= 1
        while isinstance(value, memoryview) and 0 < len(value) < length:  # a short read: the rest is asked for
            early[offset] = value
            offset, length = offset + len(value), length - len(value)
            chunk = max(512, min(chunk, len(value)))
            if refused is not None:
                break
            due += 1
            written = _in_order(early, written, write)
            (offset, length), value = yield [read(handle, offset, length, (offset, length))]
            due -= 1
        if isinstance(value, memoryview):
            if len(value) > length:
                raise ProtocolBroken("the server sent more than a READ asked for")
            if value:
                early[offset] = value
            else:
                end = min(end, offset)
        elif isinstance(value, Status) and value.code == Code.EOF:
            end = min(end, offset)
        else:
            refused = value if isinstance(value, Status) else Status(Code.FAILURE, b"an answer of the wrong kind")
        written = _in_order(early, written, write)


def _in_order(early: dict[int, memoryview], written: int, write: Callable[[memoryview], object]) -> int:
    while (data := early.pop(written, None)) is not None:
        write(data)
        written += len(data)
    return written
