"""How many connections one server is asked to bear at once, by all accounts together, and whether it is there at all.

Servers count connections: Dovecot 10 for each user and address, many web hosts 10 to 20 for each address, whoever the user is. An account needs one
connection to do its work and never waits for a second: so those that wait hold nothing, and no two can wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hostbackup.errors import ConnectionFailed, LineCut, NameNotResolved, ServerBusy, Unreachable
from hostbackup.interrupts import Stopped

CONNECTIONS = 6  # at once on one server, unless the profile says otherwise
PER_ACCOUNT = 4
_PATIENCE = 20.0  # seconds of nothing but failures, until a server counts as not there: it may be starting again
_AGAIN = 300.0  # seconds until one that was not there is asked once more
_CUTS = 3  # accounts whose connection was cut before the login: it may lie in one account, not in three
_LOOK = 0.5  # seconds between looks at whether the run has ended

_Gone = (Unreachable, NameNotResolved, LineCut)


@dataclass(slots=True)
class Slots:
    """The connections to one server: at most `limit` at once. Used by many threads."""

    limit: int = CONNECTIONS
    per_account: int = PER_ACCOUNT
    clock: Callable[[], float] = time.monotonic
    most: int = 0  # the most connections that were open at once
    _mains: Counter[str] = field(default_factory=Counter)  # open connections by account: those that it cannot do without,
    _spares: Counter[str] = field(default_factory=Counter)  # and the others
    _waiting: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _failed: list[str] = field(default_factory=list)  # accounts that did not get as far as a login, since somebody did
    _failed_since: float = 0.0
    _dead: ConnectionFailed | None = None
    _dead_since: float = 0.0

    # -- slots --------------------------------------------------------------------------------------------------------------------------

    def _taken(self) -> int:
        """An account with a spare connection keeps the slot of its main one, also while that is cut: else two such could wait for each other."""
        accounts = {*self._mains, *self._spares}
        return sum(max(self._mains[one], 1 if self._spares[one] else 0) + self._spares[one] for one in accounts)

    def main(self, account: str, stopped: Callable[[], bool] = lambda: False) -> None:
        """Takes a slot for the connection that an account cannot do without; waits for one. Raises Stopped where `stopped` says so meanwhile."""
        with self._changed:
            if self._mains[account] or not self._spares[account]:
                self._waiting += 1
                try:
                    while self._taken() >= self.limit:
                        if stopped():
                            raise Stopped
                        self._changed.wait(_LOOK)
                finally:
                    self._waiting -= 1
            self._mains[account] += 1
            self._note()

    def spare(self, account: str) -> bool:
        """Takes one more for an account that is at work, where one is free that nobody else wants."""
        with self._changed:
            own = self._mains[account] + self._spares[account]
            if self._waiting or not 0 < own < self.per_account or self._taken() >= self.limit:
                return False
            self._spares[account] += 1
            self._note()
            return True

    def _note(self) -> None:
        self.most = max(self.most, self._mains.total() + self._spares.total())

    def give_back(self, account: str, *, spare: bool = False) -> None:
        """A connection has ended."""
        with self._changed:
            (self._spares if spare else self._mains)[account] -= 1
            self._mains += Counter()  # an account that has none is forgotten
            self._spares += Counter()
            self._changed.notify_all()

    def lower(self) -> None:
        """The server refused a connection, which still has its slot: it takes no more than there were without it."""
        with self._changed:
            self.limit = max(1, min(self.limit, self._mains.total() + self._spares.total() - 1))

    # -- whether it is there ------------------------------------------------------------------------------------------------------------

    def reached(self) -> None:
        """A login was answered."""
        with self._changed:
            self._failed.clear()
            self._dead = None

    def missed(self, account: str, error: ConnectionFailed) -> None:
        """An account did not get as far as a login. Two are enough for a server that cannot be reached at all, once some time has passed."""
        if not isinstance(error, _Gone) or isinstance(error, ServerBusy):
            return
        with self._changed:
            if not self._failed:
                self._failed_since = self.clock()
            self._failed.append(account)
            enough = len(set(self._failed)) >= _CUTS if isinstance(error, LineCut) else len(self._failed) >= 2
            if enough and self.clock() - self._failed_since >= _PATIENCE:
                self._dead, self._dead_since = error, self.clock()

    def check(self) -> None:
        """Raises what those found who looked for the server, so that each further account does not wait as long for the same."""
        with self._changed:
            if self._dead is None:
                return
            if self.clock() - self._dead_since >= _AGAIN:
                self._dead_since = self.clock()  # one may look
                return
            error = self._dead
        raise type(error)(f"not tried again, since the server was not there: {error.reason}", where=error.where, hint=error.hint)
