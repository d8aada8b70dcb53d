"""The line to a mail account: opened when first needed, opened again when it was cut, given up after a bounded number of tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut, Unreachable
from hostbackup.protocols.imap.session import ImapSession

BUDGET = 3  # cuts in a row without any progress between them


class _Session(Protocol):
    def close(self) -> None: ...

    def drop(self) -> None: ...


Session = TypeVar("Session", bound=_Session)


class AnyLine(Generic[Session]):
    """One connection at a time, made by `factory`. Only cuts are tried again; a refused login or certificate is raised at once."""

    def __init__(self, factory: Callable[[], Session], pause: Callable[[float], None] = time.sleep) -> None:
        self._factory = factory
        self._pause = pause
        self._session: Session | None = None
        self._cuts = 0

    def session(self) -> Session:
        """The open session, or a new one. Raises ConnectionFailed."""
        while self._session is None:
            if self._cuts:
                self._pause(0.5 * 2**self._cuts)
            try:
                self._session = self._factory()
            except (LineCut, Unreachable) as error:
                if not self._cuts:
                    raise
                self.cut(error)
        return self._session

    def progress(self) -> None:
        """Something came through: the next cut is a new one."""
        self._cuts = 0

    def cut(self, error: ConnectionFailed) -> None:
        """Drops the session; raises `error` where the budget is spent."""
        self.drop()
        self._cuts += 1
        if self._cuts > BUDGET:
            raise error

    def drop(self) -> None:
        """Closes without a word: the line's state is unknown."""
        if self._session is not None:
            self._session.drop()
            self._session = None

    def close(self) -> None:
        """Logs out. The line can be used again, on a new session."""
        if self._session is not None:
            self._session.close()
            self._session = None


Line = AnyLine[ImapSession]
