"""The line to a mail account: opened when first needed, opened again when it was cut, given up after a bounded number of tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from hostbackup.errors import ConnectionFailed
from hostbackup.protocols.imap.session import ImapSession
from hostbackup.protocols.imap.throttle import wait_told
from hostbackup.protocols.imap.wire import plain

LONGEST_REST = 900.0  # seconds: a wait that a server asks for is kept up to here
BUDGET = 3  # cuts, and waits, in a row without any progress between them


class _Session(Protocol):
    def close(self) -> None: ...

    def drop(self) -> None: ...


Session = TypeVar("Session", bound=_Session)


class AnyLine(Generic[Session]):
    """One connection at a time, made by `factory`, which itself is patient with a server that is not there: what it raises is raised at once."""

    def __init__(
        self,
        factory: Callable[[], Session],
        pause: Callable[[float], None] = time.sleep,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._factory = factory
        self._pause = pause
        self._tell = tell
        self._session: Session | None = None
        self._cuts = 0
        self._wait = 0.0  # seconds that the server asked for when it ended the last session
        self._rests = 0
        self._given_up = False

    def session(self) -> Session:
        """The open session, or a new one. Raises ConnectionFailed."""
        if self._session is None:
            if self._given_up:
                raise ConnectionFailed("the work over this connection was given up")
            if self._cuts:
                self._pause(max(0.5 * 2**self._cuts, self._wait))
                self._wait = 0.0
            self._session = self._factory()
        return self._session

    def progress(self) -> None:
        """Something came through: the next cut is a new one."""
        self._cuts = 0
        self._rests = 0

    def rest(self, text: bytes) -> bool:
        """Waits where a refusal asks for that, up to a quarter of an hour and a few times: whether what was refused can be tried again."""
        told = wait_told(text)
        if told is None or self._rests >= BUDGET:
            return False
        self._rests += 1
        self._pause(self._bounded(told, text))
        return True

    def _bounded(self, told: float, text: bytes) -> float:
        seconds = min(told, LONGEST_REST)
        self._tell(f"the server asks to be left alone: {plain(text)}; going on in {seconds:.0f} s")
        return seconds

    def cut(self, error: ConnectionFailed) -> None:
        """Drops the session; raises `error` where the budget is spent."""
        self.drop()
        self._cuts += 1
        if self._cuts > BUDGET:
            raise error
        said = error.reason.encode("utf-8", "replace")
        told = wait_told(said)
        self._wait = 0.0 if told is None else self._bounded(told, said)

    def drop(self) -> None:
        """Closes without a word: the line's state is unknown."""
        session, self._session = self._session, None
        if session is not None:
            session.drop()

    def give_up(self) -> None:
        """Closes without a word and for good, from whichever thread."""
        self._given_up = True
        self.drop()

    def close(self) -> None:
        """Logs out. The line can be used again, on a new session."""
        if self._session is not None:
            self._session.close()
            self._session = None


Line = AnyLine[ImapSession]
