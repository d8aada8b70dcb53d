"""How many connections one server is asked to bear at once, by all accounts together.

Servers count connections: Dovecot 10 for each user and address, many web hosts 10 to 20 for each address, whoever the user is. An account needs one
connection to do its work and never waits for a second: so those that wait hold nothing, and no two can wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hostbackup.interrupts import Stopped

CONNECTIONS = 6  # at once on one server, unless the profile says otherwise
PER_ACCOUNT = 4
_REST = 60.0  # seconds until a server that refused a connection is asked for as many again …
_LONGEST_REST = 960.0  # … twice as many each time that it refuses again, up to here
_LOOK = 0.5  # seconds between looks at whether the run has ended


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
    _asked: int = field(init=False)  # the limit, before the server refused any
    _rest: float = 0.0
    _more_at: float = 0.0  # when one more may be tried

    def __post_init__(self) -> None:
        self._asked = self.limit

    def _taken(self) -> int:
        """An account with a spare connection keeps the slot of its main one, also while that is cut: else two such could wait for each other."""
        accounts = {*self._mains, *self._spares}
        return sum(max(self._mains[one], 1 if self._spares[one] else 0) + self._spares[one] for one in accounts)

    def _free(self) -> bool:
        """Whether there is a slot. A server that refused one is asked for as many again after a while: others may have held them."""
        if self._taken() < self.limit:
            return True
        if self.limit >= self._asked or self.clock() < self._more_at:
            return False
        self.limit += 1
        self._more_at = self.clock() + self._rest
        return True

    def main(self, account: str, stopped: Callable[[], bool] = lambda: False) -> None:
        """Takes a slot for the connection that an account cannot do without; waits for one. Raises Stopped where `stopped` says so meanwhile."""
        with self._changed:
            if self._mains[account] or not self._spares[account]:
                self._waiting += 1
                try:
                    while not self._free():
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
            if self._waiting or not 0 < own < self.per_account or not self._free():
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
        """The server refused a connection, which still has its slot: it takes no more than there were without it, for now."""
        with self._changed:
            self.limit = max(1, min(self.limit, self._mains.total() + self._spares.total() - 1))
            if self.clock() >= self._more_at or not self._rest:  # the refusals of one moment are one
                self._rest = min(2 * self._rest or _REST, _LONGEST_REST)
            self._more_at = self.clock() + self._rest
