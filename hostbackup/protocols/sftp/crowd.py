"""How many works may be under way at once: as many as a line needs to be busy, and no more than a server bears.

It grows while the pump waits with all of them under way, for then the line is longer than they fill. It is halved, at most once for all that
were begun before, when the server refuses in a way that too many open files explain; what was refused comes again among fewer, and at last
alone. Only what is refused even then counts as refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")

FIRST = 64  # works at once on one channel to begin with
MOST = 256  # and at most: a process may usually have 1024 files open, and a server may run all channels in one
_TRIES = 3  # among others, before a refused work is kept for the end
_HOPELESS = 64  # works in a row refused although each was alone: then the rest will be too
_CALM = 32  # successes after which one more is let in again


class Crowd(Generic[Work, Result]):
    """The count for one pump. `handles`: for each channel, how many files the server lets be open at once (0: not told)."""

    def __init__(self, handles: Sequence[int], requests: int = 0) -> None:
        def bounded(count: int) -> int:
            total = sum(min(count, told * 3 // 4) if told else count for told in handles)
            return max(1, min(total, requests) if requests else total)

        self.limit = bounded(FIRST)
        self.epoch = 0
        self._most = bounded(MOST)
        self._calm = 0
        self._again: deque[Work] = deque()
        self._tries: dict[int, int] = {}  # by the work's id, while it waits or is under way
        self._last: deque[tuple[Work, Result]] = deque()  # to be done alone, with what they gave among others
        self._alone: tuple[Work, Result] | None = None
        self._refused_alone = 0

    def waiting(self) -> list[Work]:
        """The works that are to be done again."""
        return [*self._again, *(work for work, _ in self._last)]

    def again(self) -> Work | None:
        """A work to be done again now."""
        return self._again.popleft() if self._again else None

    def alone(self, *, idle: bool) -> Work | None:
        """A work to be done while nothing else is. To be asked when there is no other work left."""
        if not idle or not self._last:
            return None
        self._alone = self._last.popleft()
        return self._alone[0]

    def waited(self, active: int) -> None:
        """The line fell silent with so many works under way."""
        if active >= self.limit and not self.epoch:
            self.limit = min(self._most, self.limit + max(1, self.limit // 16))

    def succeeded(self, work: Work) -> None:
        self._tries.pop(id(work), None)
        self._alone, self._refused_alone = None, 0
        self._calm += 1
        if self.epoch and self._calm >= _CALM:
            self.limit, self._calm = min(self._most, self.limit + 1), 0

    def overloaded(self, work: Work, result: Result, epoch: int) -> list[Result]:
        """Notes a refusal of a work begun in `epoch`. Gives the results that count: none where the work is to be done again."""
        if self._alone is not None and self._alone[0] is work:
            self._alone = None
            self._refused_alone += 1
            final = [result]
            if self._refused_alone >= _HOPELESS:
                final += [kept for _, kept in self._last]
                self._last.clear()
            return final
        tries = self._tries.pop(id(work), 0) + 1
        if tries >= _TRIES:
            self._last.append((work, result))
            return []
        self._tries[id(work)] = tries
        self._again.append(work)
        if epoch == self.epoch:
            self.epoch += 1
            self.limit, self._calm = max(1, self.limit // 2), 0
        return []
