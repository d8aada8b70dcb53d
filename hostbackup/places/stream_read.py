"""Reading many small files as tar streams, where the server runs commands. SFTP reads the rest, and whatever a stream leaves in doubt.

Files go in batches, the next command started before the last one ends. What came of a batch counts only once it is known to have stood still: by
GNU tar's exit code (it compares each file's change time before and after), else by a second look over SFTP.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hostbackup.errors import LineCut, NameNotResolved, ProtocolBroken, Unreachable
from hostbackup.model import Entry, Kind, Read, Sink
from hostbackup.places.sftp_tree import BACK_OFF, Lines, Tree, proper
from hostbackup.places.stream import LARGEST, SILENT, Ahead, Greeting, Streams, greeting, new_token, send_files
from hostbackup.places.stream_pack import unpacked
from hostbackup.protocols.sftp.client import Steps, ask
from hostbackup.protocols.sftp.packets import Attrs, Type, on_path
from hostbackup.protocols.sftp.pump import works
from hostbackup.protocols.tar import FILE, FOLDER, HARD_LINK, Archive, Member, TarBroken

if TYPE_CHECKING:
    from hostbackup.protocols.remote import Login

_FILES = (256, 512, 4096)  # in a batch: at least, at first, at most
_BYTES = (1 << 20, 8 << 20, 128 << 20)
_LASTS = 2.0  # seconds that a batch should take: progress shows, and what it costs to begin one does not
_ASIDE = 1024  # files kept back for SFTP while streams go on
_SETTLED = 2  # seconds by which a file's time must lie before the batch's, to be told from one that is being written

_Read = Read[Entry]


@dataclass(slots=True)
class _Batch:
    """One command's files."""

    due: dict[bytes, Entry]  # by name in the archive; what came is taken out
    size: int
    token: bytes = b""
    login: Login | None = None  # that the command runs on
    ahead: Ahead | None = None
    said: Greeting = SILENT
    came: list[_Read] = field(default_factory=list)  # whole, but perhaps moving
    other: list[_Read] = field(default_factory=list)  # what is no file any more
    odd: list[Entry] = field(default_factory=list)  # not as the scan told
    torn: str = ""  # why the stream ended early
    lie: str = ""  # why nothing in it is believed

    @property
    def exit(self) -> int:
        """Of tar, whatever packed its output."""
        assert self.ahead is not None
        running = self.ahead.running
        if not self.said.packed:
            return running.exit
        _, found, told = running.stderr.rpartition(self.token + b" ")
        code = told.strip()
        return int(code) if found and code.isdigit() else -1


class StreamReader:
    """One call of read. `by_sftp` reads what it is given, over SFTP, lazily."""

    def __init__(self, lines: Lines, tree: Tree, sink: Sink, streams: Streams, by_sftp: Callable[[Iterator[Entry]], Iterator[_Read]]) -> None:
        self._lines = lines
        self._tree = tree
        self._sink = sink
        self._streams = streams
        self._by_sftp = by_sftp
        self._again: deque[Entry] = deque()
        self._aside: list[Entry] = []
        self._abreast = True  # whether a second command may run beside the first
        self._files, self._bytes = _FILES[1], _BYTES[1]
        self._open: list[_Batch] = []
        self._drained = False

    def read(self, wanted: Iterable[Entry]) -> Iterator[_Read]:
        """Exactly one outcome an entry."""
        source = iter(wanted)
        try:
            if self._possible():
                first = self._gather(source)
                if len(first.due) >= max(self._streams.least, 1):
                    yield from self._stream(first, source)
                else:
                    self._set_aside(first)
        finally:
            self._end_all()
        yield from self._by_sftp(itertools.chain(self._take_aside(), self._again, source))

    def _possible(self) -> bool:
        try:
            return not self._streams.why_not and self._lines.session().has_shell()
        except LineCut:
            return False  # SFTP logs in anew, or tells why it cannot

    # -- batches ----------------------------------------------------------------------------------------------------------------------

    def _gather(self, source: Iterator[Entry]) -> _Batch:
        """The next files for a stream; those that cannot go in one are put aside."""
        due: dict[bytes, Entry] = {}
        size = taken = 0
        while taken < self._files and size < self._bytes:
            entry = self._again.popleft() if self._again else next(source, None)
            if entry is None:
                self._drained = True
                break
            taken += 1
            name = b"./" + entry.path
            if entry.kind is not Kind.FILE or entry.size > LARGEST or name in due or not proper(entry.path):
                self._aside.append(entry)
            else:
                due[name] = entry
                size += entry.size
        return _Batch(due, size)

    def _set_aside(self, batch: _Batch) -> None:
        self._aside.extend(batch.due.values())

    def _take_aside(self) -> list[Entry]:
        taken, self._aside = self._aside, []
        return taken

    def _stream(self, batch: _Batch, source: Iterator[Entry]) -> Iterator[_Read]:
        while batch.due or self._again or not self._drained:
            following = None
            if batch.due:
                self._start(batch)
                if self._abreast:
                    following = self._gather(source)
                    self._start(following, beside=True)
                yield from self._finish(batch)
            if self._streams.why_not:
                if following is not None:
                    self._set_aside(following)
                return
            if len(self._aside) >= _ASIDE:
                yield from self._by_sftp(iter(self._take_aside()))
            batch = following or self._gather(source)

    def _start(self, batch: _Batch, *, beside: bool = False) -> None:
        """Starts the batch's command, unless it runs. One that cannot be started is told of only where it is the only one."""
        if not batch.due:
            return
        try:
            login = self._lines.session()
            if batch.ahead is not None:
                if batch.login is login:
                    return
                self._end(batch)  # its line is gone, as another batch found
            batch.token, batch.login = new_token(), login
            command = send_files(self._tree.root, batch.token, packed=self._streams.packing.on)
            running = login.start(command, [b"\0".join([*batch.due, b""])], timeout=self._lines.limits.stall)
        except (ProtocolBroken, LineCut, Unreachable, NameNotResolved) as error:
            self._abreast = self._abreast and not (beside and isinstance(error, ProtocolBroken))
            batch.torn = "" if beside else error.reason
        else:
            batch.ahead = Ahead(running, self._lines.limits.rate)
            self._open.append(batch)

    def _end(self, batch: _Batch) -> None:
        if batch in self._open:
            self._open.remove(batch)
        if batch.ahead is not None:
            batch.ahead.close()

    def _end_all(self) -> None:
        for batch in list(self._open):
            self._end(batch)

    # -- what comes -------------------------------------------------------------------------------------------------------------------

    def _finish(self, batch: _Batch) -> Iterator[_Read]:
        if batch.ahead is not None:
            began, count = time.monotonic(), len(batch.due)
            try:
                self._receive(batch, batch.ahead)
            except TarBroken as error:
                batch.torn = str(error)
            finally:
                self._end(batch)
            self._measure(batch, count, time.monotonic() - began, batch.ahead.waited)
        if batch.torn:
            self._log_in_again()
        yield from self._judge(batch)

    def _receive(self, batch: _Batch, ahead: Ahead) -> None:
        chunks = iter(ahead)
        batch.said, rest = greeting(chunks, batch.token)
        if batch.said.tar not in ("gnu", "bsd"):
            batch.lie = "the server has no tar that can be used"
            self._streams.give_up(batch.lie)
            return
        coming = itertools.chain([rest], chunks)
        archive = Archive(unpacked(coming) if batch.said.packed else self._streams.packing.taste(coming))
        for member in archive:
            name = member.name.rstrip(b"/") if member.kind == FOLDER else member.name
            entry = batch.due.get(name)
            if entry is None:
                batch.lie = "it held what was not asked for"
                return
            if member.kind not in (FILE, HARD_LINK):
                failure = self._tree.tell(entry.path, "changed-kind", "it became something else")
                batch.other.append(Read(entry, entry, failure=failure))
            elif member.kind == HARD_LINK or member.size != entry.size or member.mtime != entry.mtime_ns // 1_000_000_000:
                batch.odd.append(entry)
            else:
                batch.came.append(self._take(archive, member, entry))
            del batch.due[name]
            if member.size > LARGEST:
                raise TarBroken("a file has grown too large for it")
        for _ in chunks:
            pass  # until the exit code is there

    def _take(self, archive: Archive, member: Member, entry: Entry) -> _Read:
        receiver = self._sink.open(entry.size)
        try:
            for piece in archive.pieces():
                receiver.write(piece)
        except BaseException:
            receiver.abort()
            raise
        digest, size = receiver.commit()
        return Read(entry, Entry(entry.path, Kind.FILE, member.size, member.mtime * 1_000_000_000, member.mode), digest, size)

    def _measure(self, batch: _Batch, count: int, seconds: float, waited: float) -> None:
        """Sets how much the next batches hold, and whether they are packed."""
        factor = min(4.0, _LASTS / max(seconds, 0.001))
        self._files = int(min(max(count * factor, _FILES[0]), _FILES[2]))
        self._bytes = int(min(max(batch.size * factor, _BYTES[0]), _BYTES[2]))
        told = self._streams.packing.measured(packed=batch.said.packed, size=batch.size, seconds=seconds, waited=waited)
        if told:
            self._streams.note(told)

    # -- what it is worth -------------------------------------------------------------------------------------------------------------

    def _judge(self, batch: _Batch) -> Iterator[_Read]:
        self._aside.extend(batch.odd)
        batch.odd.clear()
        clean = not batch.torn and batch.ahead is not None and batch.exit == 0
        if clean and batch.due and not batch.lie:
            batch.lie = "it left out what it said it had"
        if batch.lie:
            self._streams.broke(batch.lie)
            self._aside.extend(read.asked for read in (*batch.came, *batch.other))
            self._aside.extend(batch.due.values())
            return
        yield from batch.other
        if clean and batch.said.tar == "gnu":
            self._streams.files += len(batch.came)
            yield from batch.came
            return
        if batch.torn:
            self._streams.broke(batch.torn)
            self._again.extend(batch.due.values())
        else:
            self._aside.extend(batch.due.values())  # SFTP tells what is wrong with them
            if not (batch.came or batch.other or clean):
                self._streams.broke("tar gave nothing")
        yield from self._look_again(batch)

    def _look_again(self, batch: _Batch) -> Iterator[_Read]:
        """Those that are still as their headers say, and were last written to well before the batch began."""
        settled = (batch.said.clock - _SETTLED) * 1_000_000_000

        def look(read: _Read) -> Steps[tuple[_Read, object]]:
            (there,) = yield from ask(on_path(Type.LSTAT, self._tree.full(read.asked.path)))
            return read, there

        for read, there in self._lines.carry_out(works(functools.partial(look, read) for read in batch.came)):
            item = read.item
            same = isinstance(there, Attrs) and (there.kind, there.size, there.mtime_ns, there.mode) == (
                item.kind,
                item.size,
                item.mtime_ns,
                item.mode,
            )
            if same and item.mtime_ns < settled:
                self._streams.files += 1
                yield read
            else:
                self._aside.append(read.asked)

    def _log_in_again(self) -> None:
        """Where the line is gone: a new one, within the budget for that. Raises what the last attempt met with."""
        for seconds in (*BACK_OFF, None):
            try:
                self._lines.session()
                return
            except (LineCut, Unreachable, NameNotResolved):
                if seconds is None:
                    raise
                self._lines.pause(seconds)
