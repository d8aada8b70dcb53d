"""Messages by RETR: many in flight where the server allows it, each straight into a receiver.

A cut line is opened again and only the unfinished rest repeated. What was refused is asked for once more in a new session, which tells what is
gone from what cannot be read. A message that cuts the line each time is told as failed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from hostbackup.errors import ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.model import Message, Sink
from hostbackup.places.mail_line import AnyLine
from hostbackup.places.pop3_date import Listening
from hostbackup.places.pop3_numbers import INBOX, UIDVALIDITY
from hostbackup.protocols.pop3.session import Pop3Session

IN_FLIGHT = 256  # messages; their commands fit any TCP window, which RFC 2449 §6.6 asks for
BYTES_IN_FLIGHT = 8 * 1024 * 1024  # by LIST
_UNKNOWN_SIZE = 32 * 1024
_CUTS = 2
_ROOM = 64 * 1024 * 1024  # bytes that a message may have beyond four times what was told of it


@dataclass(frozen=True, slots=True)
class Drop:
    """The messages of one session: the session's number of each by ours. `told`: how many the server says there are."""

    session: Pop3Session
    numbers: dict[int, int]
    told: int


@dataclass(frozen=True, slots=True)
class Got:
    """What became of one message: digest, size in bytes and when it came, or a failure's code and reason."""

    item: Message
    digest: str = ""
    size: int = 0
    arrived: str = ""
    code: str = ""
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Asked:
    item: Message
    again: bool = False  # refused once already, in another session
    reason: str = ""

    @property
    def bytes(self) -> int:
        return self.item.size or _UNKNOWN_SIZE


class Retriever:
    """Brings messages over one line. `open_drop` gives the list of the session that is open, or opens one. `run` may be used once."""

    def __init__(self, line: AnyLine[Pop3Session], open_drop: Callable[[], Drop], source: Iterable[Message], sink: Sink) -> None:
        self._line = line
        self._open_drop = open_drop
        self._source = iter(source)
        self._sink = sink
        self._queue: deque[_Asked] = deque()  # before anything new from the source
        self._suspects: deque[_Asked] = deque()  # asked for alone, at the end
        self._refused: list[_Asked] = []
        self._flight: deque[_Asked] = deque()
        self._cuts: Counter[int] = Counter()  # by number
        self._careful = True  # what came counts as progress: it need not be fetched again after a cut

    def run(self) -> Iterator[Got]:
        """One outcome a message. Raises ConnectionFailed where the line is lost for good, and what the sink raises."""
        try:
            while True:
                try:
                    yield from self._work(self._open_drop())
                    if not self._refused:
                        return
                    self._line.close()
                    self._queue.extend(_Asked(asked.item, True, asked.reason) for asked in self._refused)
                    self._refused.clear()
                except (LineCut, ProtocolBroken) as error:
                    yield from self._recover(error)
        finally:
            if self._flight:
                self._line.drop()

    def once(self) -> Iterator[Got]:
        """The same in one session: what is refused is left out, and a cut line is raised as it is."""
        self._careful = False
        try:
            yield from self._work(self._open_drop())
        finally:
            if self._flight:
                self._line.drop()

    def _work(self, drop: Drop) -> Iterator[Got]:
        while True:
            yield from self._fill(drop)
            if not self._flight:
                return
            yield from self._take(drop.session)

    def _fill(self, drop: Drop) -> Iterator[Got]:
        """Keeps the line busy; tells of those that are not there."""
        most = IN_FLIGHT if drop.session.pipelining else 1
        size = sum(asked.bytes for asked in self._flight)
        while len(self._flight) < most and (size < BYTES_IN_FLIGHT or not self._flight):
            asked = self._next()
            if asked is None:
                return
            ours = (asked.item.folder, asked.item.uidvalidity) == (INBOX, UIDVALIDITY)
            found = drop.numbers.get(asked.item.uid) if ours else None
            if found is None:
                yield Got(asked.item, code="vanished", reason="the message is not on the server any more")
                continue
            drop.session.ask(found)
            self._flight.append(asked)
            size += asked.bytes

    def _next(self) -> _Asked | None:
        if self._queue:
            return self._queue.popleft()
        item = next(self._source, None)
        if item is not None:
            return _Asked(item)
        return self._suspects.popleft() if self._suspects and not self._flight else None

    def _take(self, session: Pop3Session) -> Iterator[Got]:
        asked = self._flight[0]
        item = asked.item
        writer = Listening(self._sink.open(item.size))
        try:
            reply = session.take(writer.write, 4 * item.size + _ROOM)
        except BaseException:
            writer.receiver.abort()
            raise
        self._flight.popleft()
        if not reply.ok or (writer.size == 0 and item.size > 0):
            writer.receiver.abort()
            asked.reason = f"the server does not hand it out: {reply.said}"
            if reply.ok:
                asked.reason = f"the server gives an empty message where it told of {item.size} bytes"
            if asked.again:
                yield Got(item, code="refused", reason=asked.reason)
            else:
                self._refused.append(asked)
            return
        digest, size = writer.receiver.commit()
        if self._careful:
            self._line.progress()
        yield Got(item, digest, size, writer.arrived)

    def _recover(self, error: ConnectionFailed) -> Iterator[Got]:
        """Queues what was in flight once more. The message that was coming in is the suspect, and comes last from now on."""
        flight, self._flight = self._flight, deque()
        if flight:
            suspect = flight.popleft()
            self._queue.extendleft(reversed(flight))
            self._cuts[suspect.item.uid] += 1
            if self._cuts[suspect.item.uid] < _CUTS:
                self._suspects.append(suspect)
            else:
                self._line.progress()
                reason = f"the line was cut each time it was asked for: {error.reason}"
                self._line.cut(error)
                yield Got(suspect.item, code="line-cut", reason=reason)
                return
        self._line.cut(error)


def with_arrival(got: Got) -> Message:
    """The message with the date that it told itself, where it told one."""
    return replace(got.item, internaldate=got.arrived) if got.arrived else got.item
