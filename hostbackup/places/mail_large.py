"""One very large message, in pieces (`BODY[]<offset.length>`, RFC 3501 §6.4.5): a cut line costs what was on its way, and not what had come.

The pieces must follow one another without a gap and end where RFC822.SIZE says. A server that does it any other way is asked for the whole instead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

from hostbackup.model import Message, Receiver, ResumableReceiver, ResumingSink, Sink
from hostbackup.protocols.imap.framer import Fetch, Tagged
from hostbackup.protocols.imap.session import ImapSession

LARGE = 32 << 20  # bytes by RFC822.SIZE from which a message is read in pieces
PIECE = 8 << 20  # bytes asked for at once
_AHEAD = 2  # pieces under way


@dataclass(slots=True, eq=False)
class LargeMessage:
    """A message on its way in, over as many lines as it takes. End it by `commit`, `give_up` or `leave`."""

    item: Message
    sink: Sink
    piece: int = PIECE
    cuts: int = 0  # lines that were lost since the last byte came
    came: int = 0  # bytes over all lines
    _receiver: Receiver | None = None
    _at: int = 0  # where the next byte belongs
    _asked: deque[tuple[bytes, int, int]] = field(default_factory=deque)  # tag, offset, length
    _taking: bool = False  # a piece's bytes are to be written

    @property
    def busy(self) -> bool:
        """Whether pieces are under way, or were when the line was lost."""
        return bool(self._asked)

    def read(self, session: ImapSession) -> bool:
        """Reads the rest, the mailbox being open. False where the server does not do pieces as it should: nothing is kept then.

        Raises LineCut or ProtocolBroken, and can be called again on another session; and what the sink raises.
        """
        if self._receiver is None:
            self._open()
        self._asked.clear()
        asked = self._at
        while self._asked or asked <= self.item.size:
            while asked <= self.item.size and len(self._asked) < _AHEAD:
                # A byte more than there should be left shows that nothing follows.
                length = min(self.piece, self.item.size - asked + 1)
                command = b"(UID BODY.PEEK[]<%d.%d>)" % (asked, length)
                self._asked.append((session.channel.start(b"UID FETCH", b"%d" % self.item.uid, command), asked, length))
                asked += length
            if not self._piece(session):
                self._drain(session)
                self.give_up()
                return False
        if self._at == self.item.size:
            return True
        self.give_up()
        return False

    def _open(self) -> None:
        if isinstance(self.sink, ResumingSink):
            resumed = self.sink.resume(cast(Any, self.item))
            self._receiver, self._at = resumed, resumed.received
        else:
            self._receiver, self._at = self.sink.open(self.item.size), 0

    def _piece(self, session: ImapSession) -> bool:
        """One piece, to its tagged response: whether it is just what it should be."""
        tag, offset, length = self._asked[0]
        expected = min(length, self.item.size - offset)
        good = 0
        if offset != self._at:
            return False
        self._taking = True
        while True:
            response = session.channel.next(lambda size: self if self._taking and size == expected else None)
            if isinstance(response, Fetch) and response.body is not None:
                fits = response.uid == self.item.uid and response.body.origin == offset and response.body.size == expected
                good += 1 if fits and not response.body.nil else 2
                self._taking = False
                if good > 1:  # at once: with the line cut before the command ends, what was written would be gone on with
                    self.give_up()
            elif isinstance(response, Tagged):
                self._taking = False
                self._asked.popleft()
                return response.tag == tag and response.ok and good == 1 and self._at == offset + expected

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        """What comes of a piece."""
        assert self._receiver is not None
        self._receiver.write(data)
        self._at += len(data)
        self.came += len(data)
        self.cuts = 0

    def _drain(self, session: ImapSession) -> None:
        """Reads what else was asked for, to no use."""
        while self._asked:
            if isinstance(session.channel.next(), Tagged):
                self._asked.popleft()

    def commit(self) -> tuple[str, int]:
        """Digest and size of the whole."""
        receiver, self._receiver = self._receiver, None
        assert receiver is not None
        return receiver.commit()

    def give_up(self) -> None:
        """Forgets what came. Harmless when repeated."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.abort()
        self._at = 0

    def leave(self) -> None:
        """Ends it for this run: what came is kept for the next one, where the sink can do that."""
        if isinstance(self._receiver, ResumableReceiver):
            receiver, self._receiver = self._receiver, None
            receiver.suspend()
        else:
            self.give_up()
