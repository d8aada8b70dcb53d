"""The benchmark's relay: every byte arrives, half a round trip late, neither earlier nor changed."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.benchmarks import relay as relays
from scripts.benchmarks.relay import Relay, counting, relay


class Late:
    """A relay with a clock that stands still until it is moved, and both ends of a connection through it."""

    def __init__(self, round_trip: float) -> None:
        self.now = 0.0
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.relay = Relay(int(listener.getsockname()[1]), round_trip, clock=lambda: self.now)
            self.near = socket.create_connection(("127.0.0.1", self.relay.port))
            self.until(lambda: bool(self.relay.open))
            self.far, _ = listener.accept()

    def until(self, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not so():
            assert time.monotonic() < deadline
            self.relay.step(0.01)

    def send(self, end: socket.socket, data: bytes) -> None:
        """Sends, and sees to it that the relay has it."""
        held = self.relay.held
        end.sendall(data)
        self.until(lambda: self.relay.held == held + len(data))

    def at(self, now: float) -> None:
        self.now = now
        self.relay.step(0)

    def close(self) -> None:
        for one in (self.near, self.far, self.relay):
            one.close()


@pytest.fixture
def late() -> Iterator[Late]:
    made = Late(2.0)
    yield made
    made.close()


def heard(end: socket.socket) -> bytes:
    """What has arrived; b"" if nothing has."""
    end.setblocking(False)
    try:
        return end.recv(1 << 20)
    except BlockingIOError:
        return b""
    finally:
        end.setblocking(True)
        end.settimeout(20)


def test_a_byte_arrives_half_a_round_trip_later_and_not_before(late: Late) -> None:
    late.at(100)
    late.send(late.near, b"question")
    late.at(100.99)
    assert heard(late.far) == b""
    late.at(101)
    assert late.far.recv(100) == b"question"
    late.send(late.far, b"answer")
    late.at(101.99)
    assert heard(late.near) == b""
    late.at(102)
    assert late.near.recv(100) == b"answer"


def test_bytes_sent_one_after_another_are_late_by_the_same_time_each(late: Late) -> None:
    late.at(100)
    late.send(late.near, b"first")
    late.at(100.5)
    late.send(late.near, b"second")
    late.at(101)
    assert late.far.recv(100) == b"first"
    late.at(101.49)
    assert heard(late.far) == b""
    late.at(101.5)
    assert late.far.recv(100) == b"second"


def test_a_new_connection_costs_the_round_trips_of_a_handshake(late: Late) -> None:
    late.send(late.far, b"banner")
    late.send(late.near, b"hello")
    late.at(2.99)
    assert heard(late.far) == b""
    late.at(3)
    assert late.far.recv(100) == b"hello"
    assert heard(late.near) == b""
    late.at(4)
    assert late.near.recv(100) == b"banner"


def test_the_end_of_one_direction_is_late_too_and_leaves_the_other_open(late: Late) -> None:
    late.at(100)
    late.send(late.near, b"last")
    late.near.shutdown(socket.SHUT_WR)
    late.until(lambda: late.relay.ending == 1)
    late.at(101)
    assert late.far.recv(100) == b"last"
    late.far.settimeout(20)
    assert late.far.recv(100) == b""
    late.send(late.far, b"still here")
    late.at(102)
    assert late.near.recv(100) == b"still here"
    late.far.close()
    late.until(lambda: late.relay.ending == 1)
    late.at(103)
    assert late.near.recv(100) == b""
    late.until(lambda: late.relay.open == 0)


def test_a_turn_is_one_however_much_is_said_before_the_other_side_is_heard(late: Late) -> None:
    late.at(100)
    late.send(late.far, b"banner")
    assert late.relay.traffic.turns == 0
    for part in (b"hello", b" and", b" more"):
        late.send(late.near, part)
    assert late.relay.traffic.turns == 1
    late.at(101)
    assert late.near.recv(100) == b"banner"
    late.send(late.near, b"next")
    late.send(late.near, b" and next")
    assert late.relay.traffic.turns == 2
    late.send(late.far, b"on its way, not yet heard")
    late.send(late.near, b"still the same turn")
    assert late.relay.traffic.turns == 2


def test_a_relay_of_its_own_process_tells_the_turns_of_all_its_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, counting(int(listener.getsockname()[1]), 0) as running:
        assert running.turns() == 0
        for turns in (1, 3):
            with socket.create_connection(("127.0.0.1", running.port)) as near, listener.accept()[0] as far:
                for _ in range(turns):
                    near.sendall(b"question")
                    assert _exactly(far, 8) == b"question"
                    far.sendall(b"answer")
                    assert _exactly(near, 6) == b"answer"
        assert running.turns() == 4


def test_a_relay_takes_no_more_than_a_line_holds_and_loses_nothing(late: Late, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "IN_FLIGHT", 100_000)
    monkeypatch.setattr(relays, "CHUNK", 30_000)
    data = random.Random(3).randbytes(400_000)
    late.at(100)
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(late.near.sendall, data)
        late.until(lambda: late.relay.held >= 100_000)
        late.relay.step(0.05)
        assert late.relay.held < 130_000
        found, deadline = bytearray(), time.monotonic() + 20
        while len(found) < len(data) and time.monotonic() < deadline:
            late.at(late.now + 1)
            late.relay.step(0.01)
            found += heard(late.far)
        late.near.shutdown(socket.SHUT_RDWR)  # lets a sender go that is stuck
    assert found == data
    assert sent.exception() is None


def test_a_relay_of_its_own_process_passes_every_byte_both_ways_and_ends() -> None:
    there, back = random.Random(1).randbytes(20 << 20), random.Random(2).randbytes(20 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with relay(int(listener.getsockname()[1]), 2) as port:
            near = socket.create_connection(("127.0.0.1", port))
            far, _ = listener.accept()
            with near, far:
                # More than any socket holds, and nobody reads yet: the relay does.
                near.sendall(there)
                far.sendall(back)
                assert _exactly(far, len(there)) == there
                assert _exactly(near, len(back)) == back
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def _exactly(end: socket.socket, size: int) -> bytes:
    end.settimeout(20)
    found = bytearray()
    while len(found) < size:
        found += end.recv(1 << 20) or b"(ended)" * size
    return bytes(found)
