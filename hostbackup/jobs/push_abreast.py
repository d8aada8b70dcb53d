"""Mail is appended over several connections at once, each folder over one of them: a server works on a connection with one process.

All of a folder goes over one connection, in order, so that its messages keep the order that they had, and the folder's counters tell what came of
each command. Only what comes after a connection was lost is handed to another one.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from hostbackup.errors import ConnectionFailed
from hostbackup.model import Message, Write, Written
from hostbackup.places.mail import MailAccount

Stream = Iterator[Write[Message]]  # of one folder
_LOT = 100  # messages handed over at a time
_LOOK = 0.05  # seconds between looks at what has come, where nobody says that much has
_LEAVE = 2.0  # seconds to let a connection come to its end after the work was given up


class Abreast:
    """`accounts`: the first is the one that the work cannot do without. Each is used by a thread of its own; everything else by the caller's."""

    def __init__(self, accounts: Sequence[MailAccount]) -> None:
        self._accounts = list(accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def write(self, streams: Iterable[Stream]) -> Iterator[Written[Message]]:
        """As `MailAccount.write`, of several streams. They are read in the thread that asks for outcomes. Raises ConnectionFailed where the first
        connection was lost for good, after the outcomes of what was under way on the others."""
        if len(self._accounts) == 1:
            yield from self._accounts[0].write(itertools.chain.from_iterable(streams))
            return
        changed = threading.Condition()
        hands = [_Hand(account, changed) for account in self._accounts]
        waiting = iter(streams)
        try:
            while not all(hand.told for hand in hands):
                for hand in hands:
                    hand.feed(waiting)
                with changed:
                    changed.wait_for(lambda: any(hand.wants_word for hand in hands), _LOOK)
                for hand in hands:
                    yield from hand.taken()
                if hands[0].error is not None:
                    waiting = iter(())
                    for hand in hands[1:]:
                        hand.end()
                for hand in hands:
                    if hand.error is not None and not isinstance(hand.error, ConnectionFailed):
                        raise hand.error
        finally:
            for hand in hands:
                hand.leave()
        if hands[0].error is not None:
            raise hands[0].error
        left = [hand.left() for hand in hands if hand.error is not None]
        self._accounts = [hand.account for hand in hands if hand.error is None]
        yield from self._accounts[0].write(itertools.chain(*left, *waiting))


class _Hand:
    """One connection at work, in a thread of its own."""

    def __init__(self, account: MailAccount, changed: threading.Condition) -> None:
        self.account = account
        self.outcomes: deque[Written[Message]] = deque()
        self.finished = False
        self.told = False  # all outcomes there are have been taken
        self.error: BaseException | None = None
        self._changed = changed
        self._lots: deque[list[Write[Message]]] = deque()
        self._unanswered: dict[int, Write[Message]] = {}  # handed over, in order
        self._stream: Stream | None = None
        self._ended = False  # there is no more to hand over
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="appending", daemon=True)
        self._thread.start()

    # -- in the caller's thread ---------------------------------------------------------------------------------------------------------

    @property
    def wants_word(self) -> bool:
        """Whether the caller has something to do for it."""
        if self.finished:
            return not self.told
        return len(self.outcomes) >= _LOT or not (self._lots or self._ended)

    def feed(self, waiting: Iterator[Stream]) -> None:
        """Hands over a lot where none is left, of its folder or else of the next one that is `waiting`."""
        while not (self._lots or self._ended or self.finished):
            if self._stream is None:
                self._stream = next(waiting, None)
            lot = [] if self._stream is None else list(itertools.islice(self._stream, _LOT))
            self._unanswered.update((id(write), write) for write in lot)
            with self._changed:
                if lot:
                    self._lots.append(lot)
                elif self._stream is None:
                    self._ended = True
                self._changed.notify_all()
            if not lot:
                self._stream = None

    def taken(self) -> Iterator[Written[Message]]:
        """The outcomes that have come."""
        finished = self.finished
        while self.outcomes:
            written = self.outcomes.popleft()
            del self._unanswered[id(written.asked)]
            yield written
        self.told = finished

    def end(self) -> None:
        """Nothing more is to be handed over."""
        self._stream = None

    def left(self) -> Stream:
        """Once it has failed: what was not sent. What was has an outcome, if only that it is in doubt."""
        yield from self._unanswered.values()
        yield from self._stream or ()

    def leave(self) -> None:
        """Ends it, whatever it does."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if not self.finished:
            self.account.give_up()
        self._thread.join(_LEAVE)

    # -- in its own ---------------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            for written in self.account.write(self._items()):
                self.outcomes.append(written)
                if len(self.outcomes) == _LOT:
                    with self._changed:
                        self._changed.notify_all()
        except BaseException as error:
            self.error = None if self._stopped else error
        finally:
            with self._changed:
                self.finished = True
                self._changed.notify_all()

    def _items(self) -> Stream:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lots or self._ended or self._stopped)
                if self._stopped:
                    raise ConnectionFailed("the work was given up")
                if not self._lots:
                    return
                lot = self._lots.popleft()
                self._changed.notify_all()
            yield from lot
