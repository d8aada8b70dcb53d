"""Drives hundreds of small works over several SFTP channels in one thread.

A work (`Steps`) is a generator: it yields requests and is resumed by replies. The pump starts works while there is room (by bytes and by
number), coalesces what they ask into few sends, waits on all channels at once, and gives the results as they come. Nothing here blocks on one
file, so a round trip is paid once for hundreds of them. A channel that owes replies and stays silent for `timeout` seconds is a cut line.

How many works are under way follows what the line and the server turn out to bear (`Crowd`).
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut
from hostbackup.protocols.limits import RateLimit
from hostbackup.protocols.sftp.client import Connection, Steps
from hostbackup.protocols.sftp.crowd import Crowd
from hostbackup.protocols.sftp.packets import Reply

Result = TypeVar("Result")

WEIGHT = 24 << 20  # bytes under way at once on all channels
_POLL = 0.01  # seconds between looks at a send window that no selector can wait for


@dataclass(frozen=True, slots=True)
class Work(Generic[Result]):
    """Something to be done on any one connection. `weight` is the most bytes it will have in flight."""

    begin: Callable[[Connection], Steps[Result]]
    weight: int = 0


@dataclass(slots=True)
class _Begun(Generic[Result]):
    work: Work[Result]
    place: int
    epoch: int


class Pump(Generic[Result]):
    """One stretch of work over some connections. Used by one thread; ended by exhausting or closing what `run` gives.

    `overloaded` tells of a result whether it may only mean that the server had too much to do at once; such a work is done again among fewer.
    `requests` bounds those without a reply on all connections (0: not bounded).
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        *,
        timeout: float,
        weight: int = WEIGHT,
        requests: int = 0,
        rate: RateLimit | None = None,
        overloaded: Callable[[Result], bool] | None = None,
    ) -> None:
        self._connections = list(connections)
        self._timeout = timeout
        self._weight = min(weight, max(rate.rate, 1 << 16)) if rate else weight
        self._rate = rate
        self._crowd: Crowd[Work[Result], Result] = Crowd([connection.limits.handles for connection in connections], requests)
        self._overloaded = overloaded
        self._active: dict[Steps[Result], _Begun[Result]] = {}
        self._load = dict.fromkeys(range(len(connections)), 0)
        self._busy = 0  # bytes
        self._done: deque[Result] = deque()
        self._selector = selectors.DefaultSelector()
        self._write_interest = [False] * len(connections)
        self._held: Work[Result] | None = None
        for place, connection in enumerate(self._connections):
            connection.quiet = 0.0
            connection.most = max(1, requests // len(connections)) if requests else 0
            self._selector.register(connection.channel.fileno(), selectors.EVENT_READ, place)

    def run(self, source: Callable[[], Work[Result] | None]) -> Generator[Result, None, None]:
        """The results of the works that `source` gives, in any order. `source` gives None where it has none now; the end is None with none under way.

        Raises LineCut or ProtocolBroken after the results that came before; `unfinished` then tells what was under way. What a work raises
        itself passes through. At the end of a run that was not exhausted all connections are closed, since replies are still due.
        """
        whole = False
        try:
            yield from self._run(source)
            whole = True
        finally:
            self._selector.close()
            for steps in list(self._active):
                steps.close()
            if not whole:
                for connection in self._connections:
                    connection.close()

    def unfinished(self) -> list[Work[Result]]:
        """The works that were begun, or taken from the source, and gave no result."""
        begun = [begun.work for begun in self._active.values()] + self._crowd.waiting()
        return begun if self._held is None else [*begun, self._held]

    @property
    def moved(self) -> int:
        """Bytes of both ways, over all connections, since they were opened."""
        return sum(connection.moved for connection in self._connections)

    def _run(self, source: Callable[[], Work[Result] | None]) -> Generator[Result, None, None]:
        while True:
            try:
                self._fill(source)
                if not self._active and not self._done:
                    for connection in self._connections:
                        connection.flush()  # what nobody waits for may still be queued: sent, it keeps no connection from its next use
                    return
                if not self._done:
                    self._turn()
            except ConnectionFailed:
                while self._done:
                    yield self._done.popleft()
                raise
            while self._done:
                yield self._done.popleft()

    def _fill(self, source: Callable[[], Work[Result] | None]) -> None:
        while len(self._active) < self._crowd.limit:
            if self._held is None:
                self._held = self._crowd.again() or source() or self._crowd.alone(idle=not self._active)
            work = self._held
            if work is None or (self._active and self._busy + work.weight > self._weight):
                return
            place = min(self._load, key=self._load.__getitem__)
            connection = self._connections[place]
            steps = work.begin(connection)
            self._held = None
            self._load[place] += 1
            self._busy += work.weight
            self._active[steps] = _Begun(work, place, self._crowd.epoch)
            self._resume(connection, steps, None)

    def _resume(self, connection: Connection, steps: Steps[Result], reply: Reply | None) -> None:
        try:
            requests = next(steps) if reply is None else steps.send(reply)
        except StopIteration as end:
            begun = self._active.pop(steps, None)
            if begun is not None:  # None: a late reply to work that had its result without it
                self._load[begun.place] -= 1
                self._busy -= begun.work.weight
                self._settle(begun, end.value)
            return
        for request in requests:
            connection.post(steps, request)

    def _settle(self, begun: _Begun[Result], result: Result) -> None:
        if self._overloaded is not None and self._overloaded(result):
            self._done.extend(self._crowd.overloaded(begun.work, result, begun.epoch))
        else:
            self._crowd.succeeded(begun.work)
            self._done.append(result)

    def _turn(self) -> None:
        before = self.moved if self._rate else 0
        for connection in self._connections:
            connection.flush()
        for place in self._wait():
            connection = self._connections[place]
            for steps, reply in connection.receive():
                self._resume(connection, steps, reply)
        if self._rate is not None:
            self._rate.spend(self.moved - before)

    def _wait(self) -> list[int]:
        """The places of connections that have something to give. Raises LineCut where one that owes replies has been silent for too long."""
        owing = {place: connection for place, connection in enumerate(self._connections) if connection.outstanding}
        polling = False
        for place, connection in enumerate(self._connections):
            waiting = connection.unsent
            if connection.channel.selects_writes:
                if waiting != self._write_interest[place]:
                    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
                    self._selector.modify(connection.channel.fileno(), events, place)
                    self._write_interest[place] = waiting
            elif waiting:
                polling = True
        ready = self._selector.select(0)
        if not ready:
            self._crowd.waited(len(self._active))
            ready = self._select(owing, polling=polling)
        readable = [key.data for key, events in ready if events & selectors.EVENT_READ]
        for place, connection in owing.items():
            if place not in readable and connection.quiet >= self._timeout:
                raise LineCut(f"the SFTP server has been silent for {self._timeout:.0f} seconds with {connection.outstanding} answers due")
        return readable

    def _select(self, owing: dict[int, Connection], *, polling: bool) -> list[tuple[selectors.SelectorKey, int]]:
        longest = max((connection.quiet for connection in owing.values()), default=0.0)
        started = time.monotonic()
        ready = self._selector.select(_POLL if polling else max(0.0, self._timeout - longest))
        waited = time.monotonic() - started
        for connection in owing.values():
            connection.quiet += waited  # `receive` sets it back where bytes came
        return ready


def works(items: Iterable[Callable[[], Steps[Result]]]) -> Callable[[], Work[Result] | None]:
    """A source for `Pump.run` of light works, made from what begins each."""
    left = iter(items)

    def source() -> Work[Result] | None:
        begin = next(left, None)
        return None if begin is None else light(begin)

    return source


def light(begin: Callable[[], Steps[Result]]) -> Work[Result]:
    """A work of a few small requests, the same on any connection."""
    return Work(lambda _: begin())
