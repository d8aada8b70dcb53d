"""A TCP relay that makes loopback a long line: what comes in goes out `delay` seconds later, in both directions, at any rate.

    python -m scripts.benchmarks.relay --to PORT [--delay MS] [--http]       (MS is the round trip)

One thread over a selector. A line holds up to 64 MiB in flight each way, so that the delay never turns into a limit of bandwidth. A new connection
costs what TCP's handshake would: the first byte reaches the far side after one and a half round trips. It prints the port it listens on, answers each
line on its standard input with what has passed so far, as JSON, and ends when that input does. A turn begins when the connecting side speaks for the
first time, or again after it has heard something: so often, at most, has it waited for a round trip. With --http the requests are counted, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from scripts.benchmarks.traffic import Requests, Traffic

HOST = "127.0.0.1"
IN_FLIGHT = 64 << 20  # bytes a direction may hold: 6 GB/s at 10 ms one way
CHUNK = 256 << 10
PIECES = 64  # handed to the kernel in one call
Clock = Callable[[], float]


class Line:
    """One direction of a connection: bytes with the time each is due. Ends of file travel like bytes."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, delay: float, earliest: float, *, asks: bool, requests: Requests | None = None
    ) -> None:
        self.source, self.sink = source, sink
        self._requests = requests
        self.asks = asks  # the source is the side that connected
        self.heard = True  # something went out since the other direction's last turn
        self.blocked = False  # the sink takes nothing at the moment
        self.ended = False  # the source has
        self.closed = False  # and the sink knows
        self._delay, self._earliest = delay, earliest
        self._queue: deque[tuple[float, memoryview]] = deque()
        self.held = 0

    @property
    def reading(self) -> bool:
        return not self.ended and self.held < IN_FLIGHT

    @property
    def due(self) -> float | None:
        """When the next bytes go out; None while there are none, or the sink is full."""
        return self._queue[0][0] if self._queue and not self.blocked else None

    @property
    def idle(self) -> bool:
        return not self._queue

    def receive(self, now: float) -> int:
        """Takes in what the source has; tells how many bytes."""
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if self._requests is not None:
            self._requests.feed(memoryview(data))
        self._queue.append((max(now + self._delay, self._earliest), memoryview(data)))
        self.held += len(data)
        self.ended = not data
        return len(data)

    def deliver(self, now: float) -> None:
        """Hands over what is due."""
        while self._queue and self._queue[0][0] <= now and not self.blocked:
            pieces = [data for due, data in islice(self._queue, PIECES) if due <= now and data]
            if not pieces:  # the end of the file stands alone and last
                self._close()
                return
            try:
                sent = self.sink.sendmsg(pieces)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError:
                self._close()
                return
            self.heard = True
            self._drop(sent)

    def _drop(self, sent: int) -> None:
        self.held -= sent
        while sent:
            due, data = self._queue[0]
            if len(data) > sent:
                self._queue[0] = (due, data[sent:])
                return
            sent -= len(data)
            self._queue.popleft()

    def _close(self) -> None:
        self._queue.clear()
        self.held = 0
        self.ended = self.closed = True
        with contextlib.suppress(OSError):
            self.sink.shutdown(socket.SHUT_WR)


class Relay:
    """Takes connections on a free port of 127.0.0.1 and passes them to port `to`. `round_trip` in seconds; `clock` as time.monotonic.

    `http`: what passes is HTTP/1.1, and its requests are counted.
    """

    def __init__(self, to: int, round_trip: float, *, http: bool = False, clock: Clock = time.monotonic) -> None:
        self._to, self._round_trip, self._clock, self._http = to, round_trip, clock, http
        self._selector = selectors.SelectSelector()  # of all selectors, this one waits by the microsecond
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._lines: dict[socket.socket, tuple[Line, Line]] = {}  # a socket: the line it feeds, the line that feeds it
        self._waiting: set[Line] = set()  # those with bytes under way
        self.port = int(self._listener.getsockname()[1])
        self._turns = self._up = self._down = 0
        self._methods: Counter[str] = Counter()

    @property
    def traffic(self) -> Traffic:
        """Of all connections so far."""
        return Traffic(self._turns, self._up, self._down, dict(self._methods))

    def stop_at(self, handle: int) -> None:
        """Ends `run` when this file descriptor comes to its end; until then, what is read there is answered with what has passed so far."""
        self._selector.register(handle, selectors.EVENT_READ)

    def run(self) -> None:
        while self.step():
            pass

    def step(self, wait: float | None = None) -> bool:
        """Waits for what comes next, at most `wait` seconds, and does it. False at the end."""
        now = self._clock()
        dues = [due for line in self._waiting if (due := line.due) is not None]
        pause = max(0.0, min(dues) - now) if dues else None
        pause = wait if pause is None else pause if wait is None else min(pause, wait)
        for key, events in self._selector.select(pause):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                feeds, fed = self._lines[key.fileobj]
                if events & selectors.EVENT_READ:
                    self._count(feeds.receive(self._clock()), feeds, fed)
                    self._waiting.add(feeds)
                if events & selectors.EVENT_WRITE:
                    fed.blocked = False
            elif not self._asked(key.fd):
                return False
        now = self._clock()
        for line in list(self._waiting):
            if line.due is not None and line.due <= now:
                line.deliver(now)
            if line.idle:
                self._waiting.discard(line)
            for end in (line.source, line.sink):
                self._watch(end)
        return True

    def _count(self, size: int, feeds: Line, fed: Line) -> None:
        """So many bytes came in on a line; `fed` is the other direction of its connection."""
        if not feeds.asks:
            self._down += size
            return
        self._up += size
        if size and fed.heard:
            self._turns += 1
            fed.heard = False

    def _asked(self, handle: int) -> bool:
        """Tells what has passed to whoever started this; False if they have gone."""
        if not os.read(handle, CHUNK):
            return False
        print(json.dumps(self.traffic.document()), flush=True)
        return True

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection((HOST, self._to))
            except OSError:
                near.close()
                return
            opened = self._clock()
            one_way = self._round_trip / 2
            for end in (near, far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Socket buffers are left to the kernel: asked for a size, it would stop growing them with the traffic.
            # The connecting side may speak after one round trip, the listening side half of one later; each is heard half of one after that.
            requests = Requests(self._methods) if self._http else None
            there = Line(near, far, one_way, opened + 3 * one_way, asks=True, requests=requests)
            back = Line(far, near, one_way, opened + 4 * one_way, asks=False)
            self._lines[near] = (there, back)
            self._lines[far] = (back, there)
            for end in (near, far):
                self._watch(end)

    def _watch(self, one: socket.socket) -> None:
        """Has the selector look for what this socket can do next; lets go of a pair that is done."""
        if one not in self._lines:
            return
        feeds, fed = self._lines[one]
        if feeds.closed and fed.closed:
            for end in (one, feeds.sink):
                if end in self._selector.get_map():
                    self._selector.unregister(end)
                del self._lines[end]
                end.close()
            return
        events = (selectors.EVENT_READ if feeds.reading else 0) | (selectors.EVENT_WRITE if fed.blocked else 0)
        known = self._selector.get_map().get(one)
        if known is None:
            if events:
                self._selector.register(one, events)
        elif not events:
            self._selector.unregister(one)
        elif known.events != events:
            self._selector.modify(one, events)

    @property
    def open(self) -> int:
        """Connections that are passed on now."""
        return len(self._lines) // 2

    @property
    def held(self) -> int:
        """Bytes under way."""
        return sum(line.held for line in self._waiting)

    @property
    def ending(self) -> int:
        """Ends of file under way."""
        return sum(line.ended for line in self._waiting)

    def close(self) -> None:
        for one in (self._listener, *self._lines):
            one.close()
        self._selector.close()


@dataclass(frozen=True)
class Running:
    """A relay in a process of its own: the port to connect to, and how to ask it."""

    port: int
    _ask: Callable[[], Traffic]

    def traffic(self) -> Traffic:
        """Of all connections so far."""
        return self._ask()

    def turns(self) -> int:
        """Turns of all connections so far."""
        return self._ask().turns


@contextlib.contextmanager
def relay(to: int, delay_ms: float) -> Iterator[int]:
    """A relay in a process of its own; yields the port to connect to. It ends with this process, however that ends."""
    with counting(to, delay_ms) as running:
        yield running.port


@contextlib.contextmanager
def counting(to: int, delay_ms: float, *, http: bool = False) -> Iterator[Running]:
    """The same, and it can be asked for what has passed; `http`: for the requests, too."""
    command = [sys.executable, "-m", "scripts.benchmarks.relay", "--to", str(to), "--delay", str(delay_ms), *(["--http"] if http else [])]
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    assert process.stdin is not None
    asking, answers = process.stdin, process.stdout

    def ask() -> Traffic:
        asking.write(b"?\n")
        asking.flush()
        return Traffic(**json.loads(answers.readline()))

    try:
        port = answers.readline()
        if not port:
            raise RuntimeError("the relay did not start")
        yield Running(int(port), ask)
    finally:
        asking.close()
        process.wait(10)
        answers.close()


@dataclass(frozen=True)
class Found:
    """What a relay does: round trip in milliseconds, and bytes a second through it."""

    round_trip_ms: float
    bytes_per_second: float


def probe(delay_ms: float, *, size: int = 256 << 20, trips: int = 11) -> Found:
    """Measures a relay: the median of `trips` round trips of one byte, and one stream of `size` bytes."""
    with socket.create_server((HOST, 0)) as listener:
        server = threading.Thread(target=_answer, args=(listener,), daemon=True)
        server.start()
        with relay(int(listener.getsockname()[1]), delay_ms) as port, socket.create_connection((HOST, port)) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = []
            for _ in range(trips + 1):
                begun = time.perf_counter()
                line.sendall(b"?")
                line.recv(1)
                times.append(time.perf_counter() - begun)
            line.sendall(size.to_bytes(9, "big"))
            begun, left = time.perf_counter(), size
            while left:
                data = line.recv(min(left, 1 << 20))
                if not data:
                    raise RuntimeError("the relay ended while it was measured")
                left -= len(data)
            taken = time.perf_counter() - begun
        server.join(10)
    # The first trip has the connection's own in it.
    return Found(sorted(times[1:])[trips // 2] * 1000, size / taken)


def _answer(listener: socket.socket) -> None:
    line, _ = listener.accept()
    with line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (asked := line.recv(9, socket.MSG_PEEK)) == b"?":
            line.sendall(line.recv(len(asked)))
        left, zeros = int.from_bytes(line.recv(9, socket.MSG_WAITALL), "big"), bytes(1 << 20)
        while left:
            left -= line.send(zeros[: min(left, len(zeros))])


def main() -> None:
    parser = argparse.ArgumentParser(description="Passes TCP connections on, late.")
    parser.add_argument("--to", type=int, required=True, help="port of 127.0.0.1")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip in milliseconds")
    parser.add_argument("--http", action="store_true", help="count the HTTP requests")
    told = parser.parse_args()
    late = Relay(told.to, told.delay / 1000, http=told.http)
    late.stop_at(sys.stdin.fileno())
    print(late.port, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        late.run()


if __name__ == "__main__":
    main()
