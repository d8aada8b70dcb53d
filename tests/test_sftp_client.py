"""The pipelined client: over OpenSSH's sftp-server, and over servers that are slow, odd, broken or frozen."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.model import Entry, Kind, Part, Read
from hostbackup.places.exclude import Excludes
from hostbackup.places.sftp_read import FileRead
from hostbackup.places.sftp_scan import Scanner
from hostbackup.places.sftp_tree import Lines, Tree
from hostbackup.protocols.sftp.client import Connection, SocketChannel, Steps, ask, ask_one
from hostbackup.protocols.sftp.packets import Attrs, Code, Flag, Status, Type, attrs_bytes, on_handle, on_path, open_file, read, text, write
from hostbackup.protocols.sftp.pump import Pump, Work, works
from tests.support import sftp_server as fake
from tests.support.sftp_server import FileServer, Scripted, openssh
from tests.support.sink import HashSink, MemorySink


def run(connections: list[Connection], *begins: Callable[[], Steps[Any]], timeout: float = 5.0) -> list[Any]:
    return list(Pump[Any](connections, timeout=timeout).run(works(begins)))


def read_files(connection: Connection, entries: list[Entry], sink: HashSink, timeout: float = 5.0) -> list[Read[Entry]]:
    tree = Tree(b"/", "old", Part("web", "site"), root=b"")
    left = iter([FileRead(tree, entry, sink).work for entry in entries])
    return list(Pump[Read[Entry]]([connection], timeout=timeout).run(lambda: next(left, None)))


# -- OpenSSH's server


def test_extensions_and_limits_come_from_the_server() -> None:
    with openssh() as connection:
        assert b"posix-rename@openssh.com" in connection.extensions
        assert connection.limits.read == 255 * 1024


def test_a_file_is_written_and_read_back(tmp_path: Path) -> None:
    def steps() -> Steps[bytes]:
        handle = yield from ask_one(open_file(os.fsencode(tmp_path / "f"), Flag.WRITE | Flag.CREAT | Flag.EXCL))
        yield from ask(write(handle, 0, b"hello "), write(handle, 6, b"world"), on_handle(Type.CLOSE, handle))
        handle = yield from ask_one(open_file(os.fsencode(tmp_path / "f"), Flag.READ))
        data, attrs, _ = yield from ask(read(handle, 0, 100), on_handle(Type.FSTAT, handle), on_handle(Type.CLOSE, handle))
        assert isinstance(attrs, Attrs)
        assert attrs.size == 11
        return bytes(data)

    with openssh() as connection:
        assert run([connection], steps) == [b"hello world"]


def test_hundreds_of_chains_overlap_on_several_channels(tmp_path: Path) -> None:
    entries = []
    for number in range(800):
        data = os.urandom(number * 100)
        (tmp_path / f"f{number}").write_bytes(data)
        entries.append(Entry(os.fsencode(tmp_path / f"f{number}")[1:], Kind.FILE, len(data)))
    sink = MemorySink()
    tree = Tree(b"/", "old", Part("web", "site"), root=b"")
    left = iter([FileRead(tree, entry, sink).work for entry in entries])
    with openssh() as one, openssh() as two:
        reads = list(Pump[Read[Entry]]([one, two], timeout=10).run(lambda: next(left, None)))
        assert one.idle
        assert two.idle
    assert len(reads) == 800
    for outcome in reads:
        assert sink.contents[outcome.digest] == Path("/" + outcome.asked.path.decode()).read_bytes()
    assert sink.open_most > 32


def test_errors_of_the_server_are_told_not_raised(tmp_path: Path) -> None:
    def steps() -> Steps[Any]:
        return (yield from ask_one(on_path(Type.LSTAT, os.fsencode(tmp_path / "none"))))

    with openssh() as connection:
        (answer,) = run([connection], steps)
        assert isinstance(answer, Status)
        assert answer.code == Code.NO_SUCH_FILE


def test_works_wait_their_turn_by_weight() -> None:
    under_way, most = 0, 0

    def steps(_: Connection) -> Steps[int]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        yield from ask_one(on_path(Type.REALPATH, b"."))
        under_way -= 1
        return 1

    left = [Work(steps, 10) for _ in range(50)]
    with openssh() as connection:
        pump: Pump[int] = Pump([connection], timeout=5, weight=30)
        assert sum(pump.run(lambda: left.pop() if left else None)) == 50
    assert most == 3


# -- odd servers


def test_short_reads_are_filled_up() -> None:
    content = os.urandom(100_000)

    def short(number: int, offset: int, length: int) -> list[bytes]:
        part = content[offset : offset + min(length, 1000)]
        return [fake.data(number, part) if part else fake.status(number, Code.EOF)]

    sink = MemorySink()
    with Scripted(FileServer(content, short)) as server:
        (outcome,) = read_files(server.connect(), [Entry(b"f", Kind.FILE, 100_000)], sink)
    assert outcome.failure is None
    assert sink.contents[outcome.digest] == content


def test_a_small_file_that_comes_in_pieces_is_read_again_with_patience() -> None:
    content = os.urandom(5000)

    def short(number: int, offset: int, length: int) -> list[bytes]:
        return [fake.data(number, content[offset : offset + min(length, 700)])]

    sink = MemorySink()
    with Scripted(FileServer(content, short)) as server:
        (outcome,) = read_files(server.connect(), [Entry(b"f", Kind.FILE, 5000)], sink)
    assert outcome.failure is None
    assert sink.contents[outcome.digest] == content


def test_replies_out_of_order_are_put_in_order() -> None:
    content = os.urandom(400_000)
    held: list[bytes] = []

    def backwards(number: int, offset: int, length: int) -> list[bytes]:
        held.append(fake.data(number, content[offset : offset + length]))
        if len(held) == 4 or offset + length == len(content):
            answers = held[::-1]
            held.clear()
            return answers
        return []

    sink = MemorySink()
    with Scripted(FileServer(content, backwards)) as server:
        (outcome,) = read_files(server.connect(), [Entry(b"f", Kind.FILE, len(content))], sink)
    assert sink.contents[outcome.digest] == content


def test_an_error_in_mid_file_is_told_and_keeps_nothing() -> None:
    content = b"x" * 200_000
    server_side = FileServer(content)

    def failing(number: int, offset: int, length: int) -> list[bytes]:
        return [fake.status(number, Code.FAILURE, b"disk error")] if offset > 100_000 else server_side.plain(number, offset, length)

    server_side.reading = failing
    sink = HashSink()
    with Scripted(server_side) as server:
        connection = server.connect()
        (outcome,) = read_files(connection, [Entry(b"f", Kind.FILE, len(content))], sink)
        assert connection.outstanding == 0
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.digest) == ("refused", "")
    assert "disk error" in outcome.failure.reason
    assert (sink.commits, sink.open_now) == (0, 0)


def test_a_file_that_ends_before_its_size_is_never_called_whole() -> None:
    content = b"x" * 200_000
    server_side = FileServer(content)
    server_side.reading = lambda number, offset, length: (
        [fake.status(number, Code.EOF)] if offset >= 98304 else server_side.plain(number, offset, length)
    )
    with Scripted(server_side) as server:
        (outcome,) = read_files(server.connect(), [Entry(b"f", Kind.FILE, len(content))], HashSink())
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.size) == ("changing", 98304)


def test_an_empty_answer_to_a_read_does_not_loop() -> None:
    server_side = FileServer(b"x" * 100_000, lambda number, _offset, _length: [fake.data(number, b"")])
    with Scripted(server_side) as server:
        (outcome,) = read_files(server.connect(), [Entry(b"f", Kind.FILE, 100_000)], HashSink())
    assert outcome.failure is not None
    assert outcome.size == 0


def test_a_link_that_open_followed_is_noticed() -> None:
    server_side = FileServer(b"secret of another file")

    def answer(kind: int, number: int, body: bytes) -> list[bytes]:
        return [fake.attrs(number, 5, 0o120777)] if kind == Type.LSTAT else server_side(kind, number, body)

    sink = HashSink()
    with Scripted(answer) as server:
        (outcome,) = read_files(server.connect(), [Entry(b"f", Kind.FILE, 5)], sink)
        assert [kind for kind, _, _ in server.requests] == [Type.LSTAT, Type.OPEN, Type.CLOSE]
    assert outcome.failure is not None
    assert (outcome.failure.code, sink.commits) == ("changed-kind", 0)


@pytest.mark.parametrize(
    "reply",
    [
        lambda number: fake.attrs(number, 1),
        fake.handle,
        lambda number: fake.data(number, b"x" * 300_000),
        lambda number: fake.data(number + 1000, b"x"),
        lambda _: struct.pack(">I", 2**31) + b"\x65",
        lambda _: b"Welcome to our server!",
    ],
)
def test_nonsense_ends_the_connection_with_a_clear_error(reply: Callable[[int], bytes]) -> None:
    server_side = FileServer(b"x" * 1000, lambda number, _offset, _length: [reply(number)])
    sink = HashSink()
    with Scripted(server_side) as server, pytest.raises(ProtocolBroken):
        read_files(server.connect(), [Entry(b"f", Kind.FILE, 1000)], sink)
    assert sink.open_now == 0


def test_a_login_script_that_prints_is_named_as_the_cause() -> None:
    with Scripted(lambda *_: [], version=b"Last login: today\r\n") as server, pytest.raises(ProtocolBroken) as caught:
        server.connect()
    assert ".bashrc" in caught.value.hint


def test_an_older_version_is_refused() -> None:
    with Scripted(lambda *_: [], version=fake.frame(Type.VERSION, struct.pack(">I", 2))) as server, pytest.raises(ProtocolBroken, match="version 2"):
        server.connect()


def test_a_server_that_ends_is_a_cut_line_and_tells_what_was_under_way() -> None:
    with Scripted(lambda *_: [b""]) as server:
        connection = server.connect()
        work: Work[Any] = Work(lambda _: ask_one(on_path(Type.LSTAT, b"/")))
        left = [work]
        pump: Pump[Any] = Pump([connection], timeout=5)
        server._far.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LineCut):
            list(pump.run(lambda: left.pop() if left else None))
        assert pump.unfinished() == [work]


def test_results_that_came_before_the_cut_are_given_first() -> None:
    def answer(kind: int, number: int, body: bytes) -> list[bytes]:
        return [fake.attrs(number, 7)] if kind == Type.LSTAT else []

    with Scripted(answer) as server:
        connection = server.connect()
        found = []
        begins = [lambda: ask_one(on_path(Type.LSTAT, b"/")), lambda: ask_one(on_path(Type.STAT, b"/"))]
        with pytest.raises(LineCut):
            for value in Pump[Any]([connection], timeout=0.3).run(works(begins)):
                found.append(value)
    assert [value.size for value in found] == [7]


def test_a_frozen_server_is_noticed_by_its_silence() -> None:
    with Scripted(lambda *_: []) as server:
        connection = server.connect()
        started = time.monotonic()
        with pytest.raises(LineCut, match="silent"):
            run([connection], lambda: ask_one(on_path(Type.LSTAT, b"/")), timeout=0.3)
        assert 0.2 < time.monotonic() - started < 5


def test_one_frozen_channel_among_busy_ones_is_noticed() -> None:
    def slow(kind: int, number: int, body: bytes) -> list[bytes]:
        time.sleep(0.02)
        return [fake.attrs(number, 1)]

    with Scripted(slow) as busy, Scripted(lambda *_: []) as frozen:
        connections = [busy.connect(), frozen.connect()]
        begins = (lambda: ask_one(on_path(Type.LSTAT, b"/")) for _ in range(1000))
        with pytest.raises(LineCut, match="silent"):
            list(Pump[Any](connections, timeout=0.5).run(works(begins)))


def test_a_server_that_never_answers_the_greeting_is_given_up() -> None:
    near, far = socket.socketpair()
    with far, pytest.raises(LineCut):
        Connection.start(SocketChannel(near), 0.2)


# -- listings by odd servers


def listing_server(pages: list[list[tuple[bytes, bytes]]], lstat: Callable[[int], bytes] | None = None) -> fake.Answer:
    """One folder, told page by page; everything in it by `lstat`."""
    left = list(pages)

    def answer(kind: int, number: int, body: bytes) -> list[bytes]:
        if kind == Type.REALPATH:
            return [fake.names(number, (b"/r", attrs_bytes(Attrs())))]
        if kind == Type.STAT:
            return [fake.attrs(number, 0, 0o40755)]
        if kind == Type.OPENDIR:
            return [fake.handle(number)]
        if kind == Type.READDIR:
            return [fake.names(number, *left.pop(0)) if left else fake.status(number, Code.EOF)]
        if kind == Type.LSTAT and lstat is not None:
            return [lstat(number)]
        return [fake.status(number, Code.OK if kind == Type.CLOSE else Code.PERMISSION_DENIED)]

    return answer


class OneChannel:
    """Stands for a session with a scripted server behind it."""

    alive = True
    server_version = "SSH-2.0-Scripted"

    def __init__(self, server: Scripted) -> None:
        self._server = server

    def open_sftp_channel(self) -> SocketChannel:
        return SocketChannel(self._server._near)

    def close(self) -> None: ...


def scan(answer: fake.Answer) -> list[Any]:
    with Scripted(answer) as server:
        lines = Lines(lambda: OneChannel(server), channels=1)  # type: ignore[arg-type, return-value]
        return list(Scanner(lines, Tree(b"r", "old", Part("web", "site")), Excludes()).listings())


FILE = attrs_bytes(Attrs(5, 0, 0, 0o100644, 1, 1))


def test_names_that_lead_out_are_left_out_and_told() -> None:
    evil = [b"../x", b"/etc/passwd", b"a\0b", b"", b"a/b"]
    (listing,) = scan(listing_server([[(name, FILE) for name in [b".", b"..", b"fine", *evil]]]))
    assert [item.path for item in listing.items] == [b"fine"]
    assert listing.failure.code == "unsafe-name"


def test_names_told_twice_are_taken_once_and_told() -> None:
    (listing,) = scan(listing_server([[(b"a", FILE)], [(b"a", FILE), (b"b", FILE)]]))
    assert [item.path for item in listing.items] == [b"a", b"b"]
    assert listing.failure.code == "duplicate-name"


def test_what_readdir_leaves_out_is_asked_by_lstat() -> None:
    (listing,) = scan(listing_server([[(b"a", attrs_bytes(Attrs(permissions=0o644)))]], lambda number: fake.attrs(number, 99)))
    assert listing.items == [Entry(b"a", Kind.FILE, 99, 1_700_000_000 * 10**9, 0o644)]


def test_an_entry_that_nobody_describes_is_told_not_dropped() -> None:
    (listing,) = scan(listing_server([[(b"a", attrs_bytes(Attrs())), (b"b", FILE)]]))
    assert [item.path for item in listing.items] == [b"b"]
    assert (listing.failure.code, listing.failure.name) == ("permission", b"a")


def test_a_listing_that_ends_in_an_error_keeps_what_came_and_tells() -> None:
    answer = listing_server([[(b"a", FILE)]])

    def failing(kind: int, number: int, body: bytes) -> list[bytes]:
        replies = answer(kind, number, body)
        return [fake.status(number, Code.FAILURE, b"io")] if kind == Type.READDIR and replies[0][4] == Type.STATUS else replies

    (listing,) = scan(failing)
    assert [item.path for item in listing.items] == [b"a"]
    assert listing.failure.code == "refused"


def test_an_empty_page_ends_a_listing() -> None:
    (listing,) = scan(listing_server([[(b"a", FILE)], []]))
    assert [item.path for item in listing.items] == [b"a"]
    assert listing.failure is None


def test_an_unknown_login_folder_answer_is_refused() -> None:
    def answer(kind: int, number: int, body: bytes) -> list[bytes]:
        return [fake.names(number, (b"relative", attrs_bytes(Attrs())))]

    with pytest.raises(ProtocolBroken):
        scan(answer)


def test_text_is_length_and_bytes() -> None:
    assert text(b"\xff\0") == b"\0\0\0\2\xff\0"
