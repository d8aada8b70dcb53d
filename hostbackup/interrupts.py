"""Ctrl-C and SIGTERM at a good moment.

Python raises KeyboardInterrupt between any two instructions of the main thread, also right after a library took a lock: then nobody ever gives
that lock back, and tidying up waits for it for good. `later` marks the stretches where that could happen; an interrupt waits for their end. A
second one does not wait: a stretch may itself hang.
"""

from __future__ import annotations

import threading
from types import FrameType


class Stopped(KeyboardInterrupt):
    """The run has ended, by an interrupt or by an error that ends it, and this thread was still at work: it leaves at once. Told to nobody."""


class _Later:
    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0
        self._waiting = False

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self._depth -= 1
            if self._waiting and not self._depth:
                self._waiting = False
                raise KeyboardInterrupt

    def interrupt(self) -> None:
        if self._depth and not self._waiting:
            self._waiting = True
            return
        self._waiting = False
        raise KeyboardInterrupt


later = _Later()
"""Use as `with later:`; nests. In other threads than the main one, which no interrupt reaches, it does nothing."""


def stop(number: int, frame: FrameType | None) -> None:
    """A signal handler: raises KeyboardInterrupt, now or as soon as it may."""
    later.interrupt()
