"""Ctrl-C and SIGTERM at a good moment.

Python raises KeyboardInterrupt between any two instructions of the main thread, also right after a library took a lock: then nobody ever gives
that lock back, and tidying up waits for it for good. `later` marks the stretches where that could happen; an interrupt waits for their end. A
second one does not wait: a stretch may itself hang.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

_LOOK = 0.1  # seconds between looks at whether the run has ended

T = TypeVar("T")


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


def beside(work: Callable[[], T], stop: threading.Event, drop: Callable[[T], object] = lambda _: None) -> T:
    """What `work` gives or raises, which may wait for a server that cannot be told to hurry: where `stop` comes first, raises Stopped at once.

    `work` then goes on without anybody, on a thread of its own, so it must hold nothing but its connection; what it gives goes to `drop`. In the main
    thread, which an interrupt reaches, it simply runs.
    """
    if threading.current_thread() is threading.main_thread():
        return work()
    if stop.is_set():
        raise Stopped
    lock, done = threading.Lock(), threading.Event()
    given: list[T] = []
    raised: list[BaseException] = []
    left = False

    def run() -> None:
        try:
            made = work()
        except BaseException as error:
            raised.append(error)
        else:
            with lock:
                given.append(made)
                unwanted = left
            if unwanted:
                drop(made)
        finally:
            done.set()

    try:
        threading.Thread(target=run, name="beside", daemon=True).start()
    except RuntimeError:  # this user may have no more of them
        return work()
    while not done.wait(_LOOK):
        if stop.is_set():
            with lock:
                left = not given
            if left:
                raise Stopped
    if raised:
        raise raised[0]
    return given[0]
