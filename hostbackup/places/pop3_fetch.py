"""Messages by RETR: many in flight where the server allows it, each straight into a receiver.

A cut line is opened again and only the unfinished rest repeated. What was refused, or came shorter than the server had told, is asked for again in
a new session: that tells what is gone from what cannot be read, and a message that is short from a list that is wrong. A message that cuts the line
each time is told as failed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from hostbackup.errors import ConnectionFailed, LineCut, ProtocolBroken
from hostbackup.model import Message, Sink
from hostbackup.places.mail_fetch import Got
from hostbackup.places.mail_line import AnyLine
from hostbackup.places.pop3_date import Listening
from hostbackup.places.pop3_numbers import INBOX, UIDVALIDITY
from hostbackup.protocols.pop3.session import Pop3Session

IN_FLIGHT = 512  # messages; their commands fit any TCP window, which RFC 2449 §6.6 asks for
BYTES_IN_FLIGHT = 8 * 1024 * 1024  # by LIST
MAX_EXTRA = 64 * 1024 * 1024  # bytes that a message may have beyond four times what was told of it
_UNKNOWN_SIZE = 32 * 1024
_CUTS = 2
_SHORT = 3  # times that a message may come shorter than told, and otherwise each time
_LATER = 4096  # messages gathered before they are asked for in a new session


@dataclass(frozen=True, slots=True)
class Drop:
    """The messages of one session: the session's number of each by ours. `told`: how many the server says there are; `uidls`: those it names."""

    session: Pop3Session
    numbers: dict[int, int]
    told: int
    uidls: frozenset[str] = frozenset()

    def may_hold(self, message: Message) -> bool:
        """Whether one that has no number here may be there all the same: listed with another size, or among those that cannot be told apart."""
        return message.uidl in self.uidls or len(self.numbers) < self.told


@dataclass(slots=True, eq=False)
class _Asked:
    item: Message
    reason: str = ""  # why an earlier session refused it
    came: list[Got] = field(default_factory=list)  # shorter than told, in earlier sessions

    @property
    def bytes(self) -> int:
        return self.item.size or _UNKNOWN_SIZE


def as_told(got: Got) -> bool:
    """Whether all came that LIST told of. More than that is no matter: servers count lines' ends in their own ways."""
    return got.size >= got.item.size


class Retriever:
    """Brings messages over one line. `open_drop` gives the list of the session that is open, or opens one. `run` may be used once.

    `whole` tells whether what came is all there is. What is not is asked for again, and taken once the same bytes have come in two sessions.
    """

    def __init__(
        self,
        line: AnyLine[Pop3Session],
        open_drop: Callable[[], Drop],
        source: Iterable[Message],
        sink: Sink,
        whole: Callable[[Got], bool] = as_told,
    ) -> None:
        self._line = line
        self._open_drop = open_drop
        self._source = iter(source)
        self._sink = sink
        self._whole = whole
        self._queue: deque[_Asked] = deque()  # before anything new from the source
        self._suspects: deque[_Asked] = deque()  # asked for alone, at the end
        self._later: list[_Asked] = []  # to be asked for in a new session
        self._flight: deque[_Asked] = deque()
        self._flying = 0  # bytes of those
        self._cuts: Counter[int] = Counter()  # by number
        self._careful = True  # what came counts as progress: it need not be fetched again after a cut

    def run(self) -> Iterator[Got]:
        """One outcome a message. Raises ConnectionFailed where the line is lost for good, and what the sink raises."""
        try:
            while True:
                try:
                    yield from self._work(self._open_drop())
                    if not self._later:
                        return
                    self._line.close()
                    self._queue.extend(self._later)
                    self._later.clear()
                except (LineCut, ProtocolBroken) as error:
                    yield from self._recover(error)
        finally:
            if self._flight:
                self._line.drop()

    def once(self) -> Iterator[Got]:
        """The same in one session: what is refused is left out, what comes is taken as it is, and a cut line is raised."""
        self._careful = False
        try:
            yield from self._work(self._open_drop())
        finally:
            if self._flight:
                self._line.drop()

    def _work(self, drop: Drop) -> Iterator[Got]:
        most = IN_FLIGHT if drop.session.pipelining else 1
        while True:
            # Many at a time: one by one, each would be a packet of its own.
            if len(self._flight) <= most // 2 and (self._flying <= BYTES_IN_FLIGHT // 2 or len(self._flight) == 1):
                yield from self._fill(drop, most)
            if not self._flight:
                return
            yield from self._take(drop.session)

    def _fill(self, drop: Drop, most: int) -> Iterator[Got]:
        """Keeps the line busy; tells of those that are not there."""
        while len(self._flight) < most and (self._flying < BYTES_IN_FLIGHT or not self._flight):
            asked = self._next()
            if asked is None:
                return
            ours = (asked.item.folder, asked.item.uidvalidity) == (INBOX, UIDVALIDITY)
            found = drop.numbers.get(asked.item.uid) if ours else None
            if found is None:
                yield _absent(asked)
                continue
            drop.session.ask(found)
            self._flight.append(asked)
            self._flying += asked.bytes

    def _next(self) -> _Asked | None:
        if self._queue:
            return self._queue.popleft()
        if len(self._later) >= _LATER:
            return None
        item = next(self._source, None)
        if item is not None:
            return _Asked(item)
        return self._suspects.popleft() if self._suspects and not self._flight else None

    def _take(self, session: Pop3Session) -> Iterator[Got]:
        asked = self._flight[0]
        item = asked.item
        writer = Listening(self._sink.open(item.size))
        try:
            reply = session.take(writer.write, 4 * item.size + MAX_EXTRA)
        except BaseException:
            writer.receiver.abort()
            raise
        self._flight.popleft()
        self._flying -= asked.bytes
        if reply.ok and (writer.size or not item.size):
            digest, size = writer.receiver.commit()
            if self._careful:
                self._line.progress()
            yield from self._came(asked, Got(item, digest, size, internaldate=writer.arrived))
            return
        writer.receiver.abort()
        told = f"the server does not hand it out: {reply.said}"
        if reply.ok:
            told = f"the server gives an empty message where it told of {item.size} bytes"
        if asked.reason:
            yield Got(item, code="refused", reason=told)
        else:
            asked.reason = told
            self._later.append(asked)

    def _came(self, asked: _Asked, got: Got) -> Iterator[Got]:
        """A message that ended as it should."""
        if not self._careful or self._whole(got) or any(got.digest == before.digest for before in asked.came):
            yield got
            return
        asked.came.append(got)
        if len(asked.came) < _SHORT:
            self._later.append(asked)
        else:
            sizes = ", ".join(f"{one.size:,}" for one in asked.came)
            reason = f"it came {_SHORT} times, otherwise each time ({sizes} bytes) and always shorter than the {got.item.size:,} bytes that were told"
            yield Got(got.item, code="short", reason=reason)

    def _recover(self, error: ConnectionFailed) -> Iterator[Got]:
        """Queues what was in flight once more. The message that was coming in is the suspect, and comes last from now on."""
        flight, self._flight, self._flying = self._flight, deque(), 0
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


def _absent(asked: _Asked) -> Got:
    """A message that this session does not hold."""
    if not asked.came:
        return Got(asked.item, code="vanished", reason="the message is not on the server any more")
    came = asked.came[-1].size
    reason = f"{came:,} bytes came of the {asked.item.size:,} that were told, and when it was asked for again it was gone, or listed otherwise"
    return Got(asked.item, code="short", reason=reason)


def with_arrival(got: Got) -> Message:
    """The message with the date that it told itself, where it told one."""
    return replace(got.item, internaldate=got.internaldate) if got.internaldate else got.item
