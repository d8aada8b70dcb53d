"""How many works are under way: as many as pay, as few as the server bears, and none is lost on the way."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Entry, Kind, Part, Read
from hostbackup.places.sftp_read import FileRead
from hostbackup.places.sftp_tree import Tree, overloaded
from hostbackup.protocols.limits import RateLimit
from hostbackup.protocols.sftp.client import Connection, Steps, ask, ask_one
from hostbackup.protocols.sftp.crowd import FIRST, MOST, Crowd
from hostbackup.protocols.sftp.packets import Code, Status, Type, on_path
from hostbackup.protocols.sftp.pump import Pump, Work, works
from tests.support import sftp_server as fake
from tests.support.sftp_server import Scripted
from tests.support.sink import MemorySink

TREE = Tree(b"/", "old", Part("web", "site"), root=b"")


class FewHandles:
    """Serves any name with its own name as contents, and lets only so many files be open at once. `broken` names cannot be opened at all."""

    def __init__(self, allowed: int, broken: frozenset[bytes] = frozenset()) -> None:
        self.allowed = allowed
        self.broken = broken
        self.open: dict[bytes, bytes] = {}
        self.most = 0
        self.refused = 0
        self._count = 0

    def __call__(self, kind: int, number: int, body: bytes) -> list[bytes]:
        (length,) = struct.unpack_from(">I", body)
        name = body[4 : 4 + length]
        if kind == Type.LSTAT:
            return [fake.attrs(number, len(name))]
        if kind == Type.OPEN:
            if len(self.open) >= self.allowed or name in self.broken:
                self.refused += 1
                return [fake.status(number, Code.FAILURE, b"Failure")]
            self._count += 1
            handle = b"%d" % self._count
            self.open[handle] = name
            self.most = max(self.most, len(self.open))
            return [fake.handle(number, handle)]
        contents = self.open[name]
        if kind == Type.FSTAT:
            return [fake.attrs(number, len(contents))]
        if kind == Type.READ:
            offset, wanted = fake.read_body(body)
            part = contents[offset : offset + wanted]
            return [fake.data(number, part) if part else fake.status(number, Code.EOF)]
        assert kind == Type.CLOSE
        del self.open[name]
        return [fake.status(number, Code.OK)]


def read_all(server: FewHandles, count: int, **settings: Any) -> dict[bytes, Read[Entry]]:
    paths = [b"f%04d" % number for number in range(count)]
    sink = MemorySink()
    left = iter([FileRead(TREE, Entry(path, Kind.FILE, len(TREE.full(path)), 1_700_000_000_000_000_000, 0o644), sink).work for path in paths])
    with Scripted(server) as scripted:
        pump: Pump[Read[Entry]] = Pump([scripted.connect()], timeout=10, overloaded=overloaded, **settings)
        reads = {read.asked.path: read for read in pump.run(lambda: next(left, None))}
    assert sorted(reads) == paths
    assert sink.open_now == 0
    for path, read in reads.items():
        assert read.failure is not None or sink.contents[read.digest] == TREE.full(path)
    return reads


def test_a_server_that_allows_one_open_file_gives_every_file() -> None:
    server = FewHandles(1)
    assert all(read.failure is None for read in read_all(server, 300).values())
    assert server.most == 1


def test_a_server_that_allows_a_few_open_files_is_not_worked_one_by_one() -> None:
    server = FewHandles(10)
    assert all(read.failure is None for read in read_all(server, 1000).values())
    assert server.most == 10
    assert server.refused < 1000


def test_what_cannot_be_opened_even_alone_is_told_and_the_rest_comes() -> None:
    broken = frozenset(TREE.full(b"f%04d" % number) for number in (3, 77, 200))
    reads = read_all(FewHandles(1000, broken), 300)
    assert {path for path, read in reads.items() if read.failure is not None} == {b"f0003", b"f0077", b"f0200"}


def test_a_server_that_opens_nothing_is_not_asked_for_ever() -> None:
    server = FewHandles(0)
    reads = read_all(server, 500)
    assert all(read.failure is not None and read.failure.code == "refused" for read in reads.values())
    assert server.refused < 500 * 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.sets(st.integers(0, 119), max_size=20))
def test_every_work_has_one_outcome_whatever_the_server_bears(allowed: int, broken: set[int]) -> None:
    names = frozenset(TREE.full(b"f%04d" % number) for number in broken)
    reads = read_all(FewHandles(allowed, names), 120)
    assert {path for path, read in reads.items() if read.failure} == {b"f%04d" % number for number in broken}


def test_no_more_requests_are_on_the_line_than_asked_for() -> None:
    most = 0

    class Counting:
        """Holds every answer back until it owes as many as there may be, so that one more would show."""

        def __init__(self) -> None:
            self.held: list[bytes] = []

        def __call__(self, kind: int, number: int, body: bytes) -> list[bytes]:
            nonlocal most
            self.held.append(fake.status(number, Code.NO_SUCH_FILE))
            most = max(most, len(self.held))
            if len(self.held) < 5:
                return []
            answers, self.held = self.held, []
            return answers

    def steps() -> Steps[int]:
        return len((yield from ask(*(on_path(Type.LSTAT, b"x") for _ in range(10)))))

    with Scripted(Counting()) as server:
        pump: Pump[int] = Pump([server.connect()], timeout=5, requests=5)
        assert list(pump.run(works([steps] * 20))) == [10] * 20
    assert most == 5


def test_a_rate_is_paid_for_every_byte_of_both_ways() -> None:
    paid: list[float] = []
    with Scripted(FewHandles(100)) as server:
        connection = server.connect()
        before = connection.moved
        pump: Pump[Any] = Pump([connection], timeout=5, rate=RateLimit(1000, clock=lambda: 0.0, sleep=paid.append))
        list(pump.run(works([lambda: ask_one(on_path(Type.LSTAT, b"name"))] * 50)))
        assert max(paid) * 1000 == pytest.approx(pump.moved - before)
        assert pump.moved - before > 50 * 13


# -- the count itself


def test_the_crowd_grows_only_while_the_line_waits_with_all_under_way() -> None:
    crowd: Crowd[str, int] = Crowd([0])
    assert crowd.limit == FIRST
    crowd.waited(FIRST - 1)
    assert crowd.limit == FIRST
    for _ in range(1000):
        crowd.waited(crowd.limit)
    assert crowd.limit == MOST


def test_the_crowd_keeps_below_what_the_server_says_it_can_open() -> None:
    crowd: Crowd[str, int] = Crowd([20, 0])
    assert crowd.limit == 15 + FIRST
    for _ in range(1000):
        crowd.waited(crowd.limit)
    assert crowd.limit == 15 + MOST


def test_the_crowd_is_halved_once_for_all_that_were_refused_together() -> None:
    crowd: Crowd[str, int] = Crowd([0])
    for number in range(40):
        assert crowd.overloaded(f"w{number}", 0, 0) == []
    assert crowd.limit == FIRST // 2
    assert len(crowd.waiting()) == 40


def test_what_was_under_way_or_waiting_for_its_turn_survives_a_cut() -> None:
    order = random.Random(1)

    def refusing(kind: int, number: int, body: bytes) -> list[bytes]:
        if order.random() < 0.5:
            return [fake.status(number, Code.FAILURE)]
        return [b"\0\0\0\1"]  # nonsense: the connection ends

    left = [Work(lambda _: ask_one(on_path(Type.LSTAT, b"x"))) for _ in range(100)]
    given: list[Work[Any]] = []

    def source() -> Work[Any] | None:
        if left:
            given.append(left.pop())
            return given[-1]
        return None

    results: list[Any] = []
    with Scripted(refusing) as server:
        pump: Pump[Any] = Pump([server.connect()], timeout=5, overloaded=lambda value: isinstance(value, Status))
        with pytest.raises(ProtocolBroken):
            for value in pump.run(source):
                results.append(value)
    assert len(results) + len(pump.unfinished()) == len(given)


def test_a_reply_that_nobody_waits_for_keeps_no_connection_from_its_next_use() -> None:
    def steps() -> Steps[int]:
        return len((yield from ask(on_path(Type.LSTAT, b"x"), also=on_path(Type.LSTAT, b"y"))))

    with Scripted(lambda kind, number, body: [fake.status(number, Code.NO_SUCH_FILE)] if body.endswith(b"x") else []) as server:
        connection: Connection = server.connect()
        assert list(Pump[int]([connection], timeout=5).run(works([steps]))) == [1]
        assert connection.outstanding == 1
        assert connection.idle
        assert list(Pump[int]([connection], timeout=5).run(works([steps]))) == [1]


def test_what_nobody_waits_for_is_sent_before_a_run_ends() -> None:
    def steps(connection: Connection) -> Steps[int]:
        yield from ask_one(on_path(Type.LSTAT, b"x"))
        connection.post(None, on_path(Type.LSTAT, b"y"))
        return 1

    with Scripted(lambda kind, number, body: [fake.status(number, Code.NO_SUCH_FILE)]) as server:
        connection = server.connect()
        left = [Work(steps)]
        assert list(Pump[int]([connection], timeout=5).run(lambda: left.pop() if left else None)) == [1]
        assert connection.idle
