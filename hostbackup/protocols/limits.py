"""How hard a run may work a server and its line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

STALL = 60.0


class RateLimit:
    """So many bytes a second, shared by all who spend from it. Used by several threads."""

    def __init__(self, rate: int, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep) -> None:
        if rate <= 0:
            raise ValueError("a rate is more than nothing")
        self.rate = rate  # bytes a second
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0  # when all that was spent is paid for
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        """Notes that `count` bytes have moved, and waits until the rate allows for that. A second of silence saves nothing up."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self.rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person set for a run."""

    connections: int = 1  # logins at once on one server
    requests: int = 0  # SFTP requests without a reply at once on one server; 0: as many as pay
    stall: float = STALL  # seconds without a byte from a server that owes answers: then the line counts as cut
    rate: RateLimit | None = None


UNLIMITED = Limits()
