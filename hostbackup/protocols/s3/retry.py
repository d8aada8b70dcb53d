"""Asks again where that may help: a store that is busy, a line that was cut."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from hostbackup.errors import HostbackupError, LineCut, Unreachable

T = TypeVar("T")

_ATTEMPTS = 6
_FIRST = 0.5  # seconds; doubled each time, and between half and all of that is waited, so that many who were refused do not come back at once
_LONGEST = 20.0


class Patience:
    """Tries a request up to six times. `wait` is called with the seconds to wait, and should end early once `stopped` is set, as the default does."""

    def __init__(self, wait: Callable[[float], object] | None = None) -> None:
        self.stopped = threading.Event()
        self._wait = wait or self.stopped.wait
        self._worked = False

    def stop(self) -> None:
        """Nobody waits any more: requests that fail now fail for good."""
        self.stopped.set()

    def ask(self, request: Callable[[], T]) -> T:
        """What `request` gives. Raises what it raises: LineCut only after every attempt, Unreachable at once where the store never answered yet."""
        for attempt in range(_ATTEMPTS):
            try:
                answer = request()
            except (LineCut, Unreachable) as error:
                hopeless = isinstance(error, Unreachable) and not self._worked
                if hopeless or attempt + 1 == _ATTEMPTS or self.stopped.is_set():
                    raise
                self._wait(min(_LONGEST, _FIRST * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311
            except HostbackupError:
                self._worked = True
                raise
            else:
                self._worked = True
                return answer
        raise AssertionError("the last attempt returns or raises")
