"""Large files over SFTP: whatever the server does with long READs and in whichever order it answers, the bytes are exact."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Entry, Kind, Part, Read
from hostbackup.places.sftp_large import SPARE, WINDOW, Reading, Stream, Window
from hostbackup.places.sftp_read import FileRead
from hostbackup.places.sftp_tree import Lines, Tree
from hostbackup.protocols.sftp.client import DEFAULT_CHUNK
from hostbackup.protocols.sftp.packets import Code, Reply, Request, Status, Type
from tests.support import sftp_server as fake
from tests.support.sftp_server import FileServer, Scripted, read_body
from tests.support.sink import MemorySink

LONG = 255 * 1024
LARGE = random.Random(1).randbytes((17 << 20) + 12345)  # worth the trial of a length the server tells nothing of


def entry(content: bytes) -> Entry:
    return Entry(b"f", Kind.FILE, len(content), 1_700_000_000 * 10**9)


def tree() -> Tree:
    return Tree(b"/", "old", Part("web", "site"), root=b"")


class Logins:
    """Makes logins whose channels lead to servers with the same answers."""

    def __init__(self, answer: fake.Answer) -> None:
        self.answer = answer
        self.servers: list[Scripted] = []
        self.alive = True
        self.server_version = "SSH-2.0-scripted"

    def __call__(self) -> Any:
        return self

    def open_sftp_channel(self) -> Any:
        self.servers.append(Scripted(self.answer))
        return self.servers[-1].channel()

    def close(self) -> None:
        for server in self.servers:
            server.close()

    @property
    def lengths(self) -> list[int]:
        """Of all READs that were asked."""
        return [read_body(body)[1] for server in self.servers for kind, _, body in server.requests if kind == Type.READ]


def bring(answer: fake.Answer, content: bytes, *, files: int = 1) -> tuple[list[Read[Entry]], MemorySink, Logins]:
    """Reads the file so many times, over as many logins as it takes."""
    logins, sink, place = Logins(answer), MemorySink(), tree()
    lines = Lines(logins, 1, pause=lambda _: None)
    left = iter([FileRead(place, entry(content), sink).work for _ in range(files)])
    try:
        return list(lines.carry_out(lambda: next(left, None))), sink, logins
    finally:
        lines.close()
        logins.close()


def whole(answer: fake.Answer, content: bytes = LARGE) -> Logins:
    """Reads the file, which must be exact, and gives what the server saw."""
    (read,), sink, logins = bring(answer, content)
    assert read.failure is None
    assert sink.contents[read.digest] == content
    assert sink.open_now == 0
    return logins


# -- the length of a READ


def test_long_reads_are_used_once_the_server_has_proven_them() -> None:
    lengths = whole(FileServer(LARGE)).lengths
    assert lengths.count(LONG) > 60
    assert lengths.index(LONG) == 0, "tried at once"
    assert lengths[1:9] == [DEFAULT_CHUNK] * 7 + [LONG - 7 * DEFAULT_CHUNK], "and compared with short ones"


def test_a_file_that_is_not_worth_it_is_read_in_lengths_that_every_server_takes() -> None:
    assert max(whole(FileServer(LARGE[: 15 << 20]), LARGE[: 15 << 20]).lengths) == DEFAULT_CHUNK


def test_a_server_that_garbles_long_reads_is_asked_for_short_ones_only() -> None:
    def garbled(number: int, offset: int, length: int) -> list[bytes]:
        part = bytearray(LARGE[offset : offset + length])
        if length > DEFAULT_CHUNK:
            part[40_000] ^= 1
        return [fake.data(number, bytes(part))]

    assert [length for length in whole(FileServer(LARGE, garbled)).lengths if length > DEFAULT_CHUNK] == [LONG]


def test_a_server_that_refuses_long_reads_is_asked_for_short_ones_only() -> None:
    server = FileServer(LARGE)
    server.reading = lambda number, offset, length: (
        server.plain(number, offset, length) if length <= DEFAULT_CHUNK else [fake.status(number, Code.FAILURE, b"too much")]
    )
    assert [length for length in whole(server).lengths if length > DEFAULT_CHUNK] == [LONG]


def test_a_server_that_drops_the_line_over_a_long_read_is_asked_once_only() -> None:
    server = FileServer(LARGE)

    def dropping(number: int, offset: int, length: int) -> list[bytes]:
        if length > DEFAULT_CHUNK:
            raise EOFError
        return server.plain(number, offset, length)

    server.reading = dropping
    reads, sink, logins = bring(server, LARGE, files=3)
    assert [sink.contents[read.digest] == LARGE for read in reads] == [True] * 3
    assert [length for length in logins.lengths if length > DEFAULT_CHUNK] == [LONG]
    assert len(logins.servers) == 2


@pytest.mark.parametrize("most", [700, 5000, 65536])
def test_a_server_that_always_gives_less_is_asked_for_no_more_than_that(most: int) -> None:
    content = LARGE if most > DEFAULT_CHUNK else LARGE[: 6 << 20]
    server = FileServer(content)
    server.reading = lambda number, offset, length: server.plain(number, offset, min(length, most))
    lengths = whole(server, content).lengths
    after = lengths[lengths.index(most) :]
    assert max(after[len(after) // 2 :]) <= most
    assert len(lengths) < 3 * (len(content) // most + 9) + WINDOW // DEFAULT_CHUNK


def test_the_end_of_a_file_does_not_make_reads_shorter() -> None:
    reading, out = Reading(), bytearray()
    drive(Stream(b"h", 0, 100_000, reading, out.extend), content=LARGE[:90_000], choose=lambda count: 0, cut=lambda length: length)
    assert bytes(out) == LARGE[:90_000]
    assert reading.chunk == DEFAULT_CHUNK


def test_a_length_that_was_once_too_much_is_never_proven_again() -> None:
    reading = Reading()
    reading.lower(4000)
    reading.proven(LONG)
    assert reading.chunk == 4000
    assert reading.try_out(LONG, 1 << 30) == 0


# -- the order of answers


def drive(
    stream: Stream,
    content: bytes,
    choose: Callable[[int], int],
    cut: Callable[[int], int],
    *,
    told: int = DEFAULT_CHUNK,
    refuse: Callable[[int], bool] = lambda offset: False,
) -> int | Status:
    """Answers a stream's READs in any order and length. `choose` picks from so many waiting; `cut` shortens an answer."""
    steps = stream.run(told)
    waiting: list[Request] = []
    try:
        waiting += next(steps)
    except StopIteration as end:
        nothing: int | Status = end.value
        return nothing
    while True:
        request = waiting.pop(choose(len(waiting)))
        offset, length = read_body(request.body)
        value: Any = memoryview(content[offset : offset + cut(length)])
        if offset >= len(content):
            value = Status(Code.EOF)
        if refuse(offset):
            value = Status(Code.FAILURE, b"disk error")
        try:
            waiting += steps.send(Reply(request.mark, value))
        except StopIteration as end:
            assert not waiting, "every reply is awaited"
            result: int | Status = end.value
            return result


@given(
    data=st.data(), size=st.integers(0, 3_000_000), lost=st.integers(0, 300_000), start=st.integers(0, 500_000), told=st.sampled_from([32768, LONG])
)
def test_any_order_and_any_lengths_give_exact_bytes(data: st.DataObject, size: int, lost: int, start: int, told: int) -> None:
    """`lost`: bytes by which the file is shorter than was told when it was opened."""
    chance = random.Random(data.draw(st.integers()))
    shortest = data.draw(st.sampled_from([1, 9_000, 30_000, LONG]))
    start = min(start, size)
    content = LARGE[: max(size - lost, start)]
    reading, out = Reading(), bytearray()
    result = drive(
        Stream(b"h", start, size, reading, out.extend),
        content,
        choose=chance.randrange,
        cut=lambda length: min(length, max(2_000, chance.randint(shortest, LONG))),
        told=told,
    )
    assert result == len(content)
    assert out == content[start:]
    assert reading.spare == SPARE


@given(seed=st.integers(), bad=st.integers(0, 2_700_000))
def test_an_error_in_mid_file_is_the_result_and_what_came_before_is_in_order(seed: int, bad: int) -> None:
    chance, out = random.Random(seed), bytearray()
    content = LARGE[:3_000_000]
    stream = Stream(b"h", 0, len(content), Reading(), out.extend)
    result = drive(stream, content, chance.randrange, lambda length: length, told=LONG, refuse=lambda offset: offset >= bad)
    assert isinstance(result, Status)
    assert out == content[: len(out)]


def test_what_waits_for_its_turn_is_bounded_by_the_window() -> None:
    reading = Reading()
    reading.lower(DEFAULT_CHUNK)
    steps = Stream(b"h", 0, 100 << 20, reading, lambda data: None).run(DEFAULT_CHUNK)
    first, *others = list(next(steps))
    assert max(read_body(request.body)[0] for request in others) < WINDOW
    for request in others:
        assert list(steps.send(Reply(request.mark, memoryview(bytes(DEFAULT_CHUNK))))) == []
    assert read_body(first.body)[0] == 0
    assert len(list(steps.send(Reply(first.mark, memoryview(bytes(DEFAULT_CHUNK)))))) == WINDOW // DEFAULT_CHUNK


def test_more_than_was_asked_for_ends_the_line() -> None:
    server = FileServer(LARGE)
    server.reading = lambda number, offset, length: server.plain(number, offset, length + 1)
    with pytest.raises(ProtocolBroken, match="more than"):
        bring(server, LARGE)


@pytest.mark.parametrize("grows", [-70_000, 70_000])
def test_a_file_that_grows_or_shrinks_meanwhile_is_read_again(grows: int) -> None:
    before, after = LARGE[:800_000], LARGE[: 800_000 + grows]
    server = FileServer(before)

    def changing(number: int, offset: int, length: int) -> list[bytes]:
        if offset > 300_000:
            server.content = after
        return server.plain(number, offset, length)

    server.reading = changing
    (read,), sink, _ = bring(server, before)
    assert read.failure is None
    assert sink.contents[read.digest] == after
    assert sink.aborts == 1


# -- the window


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def carry(window: Window, clock: Clock, *, rate: float, round_trip: float, rounds: int = 40) -> None:
    """A line of so many bytes a second brings what the window asks for."""
    for _ in range(rounds):
        size = window.size
        clock.now += max(round_trip, size / rate)
        window.took(size)


@pytest.mark.parametrize(
    ("rate", "round_trip", "size"),
    [(100e6, 0.0005, WINDOW), (1e6, 0.3, WINDOW), (30e6, 0.1, 6_000_000), (100e6, 0.2, WINDOW + SPARE), (1e9, 0.3, WINDOW + SPARE)],
)
def test_the_window_becomes_what_the_line_needs_and_no_more(rate: float, round_trip: float, size: int) -> None:
    clock, reading = Clock(), Reading()
    reading.answered(round_trip)
    reading.answered(round_trip * 9)
    window = Window(reading, clock)
    carry(window, clock, rate=rate, round_trip=round_trip)
    assert window.size == pytest.approx(size, rel=0.05)
    assert reading.spare == pytest.approx(WINDOW + SPARE - window.size)
    window.close()
    window.close()
    assert reading.spare == SPARE


def test_all_windows_together_are_bounded() -> None:
    reading = Reading()
    reading.answered(0.5)
    windows = []
    for _ in range(6):
        clock = Clock()
        windows.append(Window(reading, clock))
        carry(windows[-1], clock, rate=1e9, round_trip=0.5)
    assert sum(window.size for window in windows) == 6 * WINDOW + SPARE
