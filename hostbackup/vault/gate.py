"""Whether a vault may be written to yet, for threads that a run has left behind."""

from __future__ import annotations

import threading
import time
from collections import Counter

from hostbackup.errors import VaultError

_PATIENCE = 10.0  # seconds that closing waits for a write under way
_LOOK = 0.01


class Gate:
    """Use as `with gate:` around each write: raises VaultError once it is closed. Any number of threads may be inside; it is not closed before all
    of them have left, or some seconds have passed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Counter[int] = Counter()  # by thread
        self._closed = False

    def __enter__(self) -> None:
        with self._lock:
            if self._closed:
                raise VaultError("the vault was closed meanwhile", hint="run it again")
            self._inside[threading.get_ident()] += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside[threading.get_ident()] -= 1
            self._inside += Counter()  # a thread that has left is forgotten

    def close(self) -> None:
        """From now on nobody comes in. Harmless when repeated."""
        me, until = threading.get_ident(), time.monotonic() + _PATIENCE
        while True:
            with self._lock:
                self._closed = True
                others = any(thread != me for thread in self._inside)  # an interrupt may have kept this one from saying that it left
            if not others or time.monotonic() > until:
                return
            time.sleep(_LOOK)
