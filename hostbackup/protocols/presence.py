"""Whether a server is there, as all who look for it find: so that hundreds of accounts do not each wait for a machine that is gone.

A server with a living session is there, whatever becomes of one account's line. It is gone where several accounts, and not one of them again and
again, found nothing for a while, and nobody was answered meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hostbackup.errors import ConnectionFailed, LineCut, NameNotResolved, ServerBusy, Unreachable

PATIENCE = 20.0  # seconds of nothing but failures, until a server counts as gone: it may be starting again
_AGAIN = 300.0  # seconds until one that was gone is looked for once more
_MISSES = 2  # accounts that could not reach it at all
_CUTS = 3  # accounts whose connection was cut before the login: it may lie in one account, not in three

_Gone = (Unreachable, NameNotResolved, LineCut)


@dataclass(slots=True)
class Presence:
    """Of one server, by its name or by its address. Used by many threads."""

    clock: Callable[[], float] = time.monotonic
    met: bool = False  # it has answered in this run
    _living: int = 0  # sessions
    _missed: set[str] = field(default_factory=set)  # accounts that found nothing, since anybody found something
    _since: float = 0.0
    _gone: ConnectionFailed | None = None
    _gone_since: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self) -> None:
        """Somebody was let in, or turned away."""
        with self._lock:
            self._answered()

    def _answered(self) -> None:
        self.met = True
        self._missed.clear()
        self._gone = None

    def begun(self) -> None:
        """A session lives, until `ended`."""
        with self._lock:
            self._answered()
            self._living += 1

    def ended(self) -> None:
        with self._lock:
            self._living -= 1

    def missed(self, account: str, error: ConnectionFailed) -> None:
        """An account did not get as far as a login. What says nothing of the server (it is busy, a certificate is wrong) does not count."""
        if not isinstance(error, _Gone) or isinstance(error, ServerBusy):
            return
        with self._lock:
            if self._living:
                return
            if not self._missed:
                self._since = self.clock()
            self._missed.add(account)
            enough = len(self._missed) >= (_CUTS if isinstance(error, LineCut) else _MISSES)
            if enough and self.clock() - self._since >= PATIENCE:
                self._gone, self._gone_since = error, self.clock()

    @property
    def gone(self) -> bool:
        return self._gone is not None

    def check(self) -> None:
        """Raises what those found who looked for the server, so that each further account does not wait as long for the same."""
        with self._lock:
            if self._gone is None:
                return
            if self.clock() - self._gone_since >= _AGAIN:
                self._gone_since = self.clock()  # one may look
                return
            error = self._gone
        raise type(error)(f"not tried again, since the server was not there: {error.reason}", where=error.where, hint=error.hint)
