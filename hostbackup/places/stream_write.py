"""Writing many small files as tar streams, where the server runs commands.

A batch is unpacked into a folder of its own below the root, its members named by numbers, and brought to the disk by one sync. The folder is made
over SFTP: a shell that sees another tree does not find it, and writes nothing. `Put` then looks at each file and renames it to its place as it does
with what it wrote itself. What did not surely arrive is written over SFTP.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hostbackup.errors import ConnectionFailed, LineCut
from hostbackup.model import Entry, Kind, Write
from hostbackup.places.sftp_expect import sendable
from hostbackup.places.sftp_put import Put
from hostbackup.places.sftp_tree import Lines, Tree
from hostbackup.places.stream import NO_FOLDER, NO_TAR, Ahead, Streams, take_files
from hostbackup.protocols.sftp.client import Connection, Steps, ask_one
from hostbackup.protocols.sftp.packets import Attrs, Status, Type, set_attrs
from hostbackup.protocols.tar import END, TarBroken, header, padding

if TYPE_CHECKING:
    from hostbackup.protocols.remote import Login

_SMALL = 1 << 20  # bytes of a file that goes in a stream: a batch is held in memory
_FILES = (128, 2048)  # entries in a batch: at first, at most
_BYTES = 16 << 20
_PIECE = 1 << 18


@dataclass(slots=True)
class _Batch:
    """Entries in their order, and the archive of those that go in the stream."""

    items: list[Write[Entry]]
    folder: bytes = b""  # in full
    staged: dict[bytes, bytes] = field(default_factory=dict)  # where files of these paths wait, in full
    archive: list[bytes] = field(default_factory=list)
    ahead: Ahead | None = None


class Stage:
    """One call of write. `put` is told where files wait to be placed, and which names are to be tidied up."""

    def __init__(self, lines: Lines, tree: Tree, prefix: bytes, streams: Streams, put: Put) -> None:
        self._lines = lines
        self._tree = tree
        self._prefix = prefix
        self._streams = streams
        self._put = put
        self._numbers = itertools.count()
        self._login: Login | None = None
        self._running: list[Ahead] = []
        self._ended = False

    def through(self, items: Iterable[Write[Entry]]) -> Iterator[Write[Entry]]:
        """The same items in the same order, files brought to the server before they are given where a stream pays.

        The first goes through as it is: with it, the root may have to be made.
        """
        source = iter(items)
        yield from itertools.islice(source, 1)
        if not self._possible():
            yield from source
            return
        room = _FILES[0]
        batch = self._send(self._gather(source, room))
        while batch.items:
            room = min(2 * room, _FILES[1])
            following = self._send(self._gather(source, room))
            self._arrive(batch)
            yield from batch.items
            batch = following

    def _possible(self) -> bool:
        if self._streams.why_not:
            return False
        try:
            self._login = self._lines.session()
            return self._login.has_shell()
        except LineCut:
            return False  # SFTP logs in anew, or tells why it cannot

    def _gather(self, source: Iterator[Write[Entry]], room: int) -> _Batch:
        batch = _Batch([])
        folder = self._tree.full(b"%s-s%x.part" % (self._prefix, next(self._numbers)))
        size = 0
        while len(batch.items) < room and size < _BYTES:
            item = next(source, None)
            if item is None:
                break
            batch.items.append(item)
            path = item.item.path
            if self._streams.why_not or item.item.kind is not Kind.FILE or item.size > _SMALL or path in batch.staged or path in self._put.staged:
                continue
            data = self._put.whole(item)
            if data is None:
                continue
            name = b"%x" % len(batch.staged)
            batch.staged[path] = folder + b"/" + name
            head = header(name, len(data), sendable(item.item.mtime_ns), item.item.mode)
            batch.archive.append(b"".join((head, data, padding(len(data)))))
            size += len(data)
        if len(batch.staged) >= max(self._streams.least, 1):
            batch.folder = folder
            batch.archive.append(END)
        return batch

    def _send(self, batch: _Batch) -> _Batch:
        """Starts the batch's command."""
        login = self._login
        if not batch.folder or self._streams.why_not or login is None or not login.alive:
            return batch
        self._put.orphans.update(batch.staged.values())
        self._put.folders.add(batch.folder)
        command = take_files(self._tree.root, batch.folder.rpartition(b"/")[2])
        try:
            if not self._lines.one(functools.partial(_make, batch.folder)):
                self._streams.broke("no folder can be made for it")
                return batch
            running = login.start(command, self._pieces(batch), timeout=self._lines.limits.stall)
        except ConnectionFailed as error:
            self._streams.broke(error.reason)
        else:
            batch.ahead = Ahead(running)
            self._running.append(batch.ahead)
        return batch

    def _pieces(self, batch: _Batch) -> Iterator[bytes]:
        """The archive, given up piece by piece; less of it once this call of write has ended."""
        for whole in _joined(batch.archive):
            if self._ended:
                return
            if self._lines.limits.rate is not None:
                self._lines.limits.rate.spend(len(whole))
            yield whole
        batch.archive.clear()

    def _arrive(self, batch: _Batch) -> None:
        """Waits for the batch's command. Only where it has done all it should may its files be placed."""
        ahead = batch.ahead
        if ahead is None:
            return
        try:
            for _ in ahead:
                pass
        except TarBroken as error:
            self._streams.broke(str(error))
        else:
            code = ahead.running.exit
            if code == 0:
                self._put.staged.update(batch.staged)
                self._streams.files += len(batch.staged)
            elif code == NO_FOLDER:
                self._streams.give_up("the server's shell does not see the folder that SFTP writes to")
            elif code == NO_TAR:
                self._streams.give_up("the server has no tar that can be used")
            else:
                told = ahead.running.stderr.decode("utf-8", "replace")[:200]
                self._streams.broke(f"it ended with {code}: {''.join(c if c.isprintable() else ' ' for c in told)}")
        finally:
            self._running.remove(ahead)
            ahead.close()

    def close(self) -> None:
        """Ends what is under way: each command finds the end of its input, and it writes no more once this returns, unless the line is gone."""
        self._ended = True
        while self._running:
            ahead = self._running.pop()
            with contextlib.closing(ahead), contextlib.suppress(TarBroken):
                for _ in ahead:
                    pass


def _make(folder: bytes, _: Connection) -> Steps[bool]:
    made = yield from ask_one(set_attrs(Type.MKDIR, folder, Attrs(permissions=0o700)))
    return isinstance(made, Status) and made.ok


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for part in parts:
        held += part
        if len(held) >= _PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
