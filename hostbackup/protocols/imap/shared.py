"""A name and password that open many mailboxes, and how often they are tried."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from hostbackup.errors import LoginRefused

_TRIES = 3


class SharedLogin:
    """What is known of a master's login. Used by several threads.

    Refused for one mailbox, it may still open the next; but as long as it never opened any, it may as well be wrong, and servers lock out who tries
    that hundreds of times. So until the first success they are tried one after the other, and only a few.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accepted = False
        self._refused = 0

    @contextlib.contextmanager
    def one_login(self, where: str) -> Iterator[None]:
        """A login is tried within. Raises LoginRefused instead where it was refused too often."""
        if self._accepted:
            yield
            return
        with self._lock:
            if self._refused >= _TRIES and not self._accepted:
                told = f"the master was refused for {self._refused} mailboxes and never let in: not tried again in this run"
                raise LoginRefused(told, where=where, hint="check the master user's name, password and separator")
            try:
                yield
            except LoginRefused:
                self._refused += 1
                raise
            self._accepted = True
