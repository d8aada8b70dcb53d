"""Packed lines (RFC 4978): bytes stay what they are wherever they are cut, memory stays bounded, and packing is used where it was measured to pay."""

from __future__ import annotations

import dataclasses
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.imap.channel import Channel
from hostbackup.protocols.imap.deflate import Deflated, Packing
from hostbackup.protocols.imap.framer import Number
from hostbackup.protocols.imap.session import ImapTarget, connect
from hostbackup.protocols.imap.wire import CHUNK, Wire
from hostbackup.protocols.limits import RateLimit
from tests.support.dovecot import Dovecot, dovecot
from tests.support.imap_script import FakeImap, Talk
from tests.support.mail_move import Hands, letter

PLUGIN = "protocol imap {\n  mail_plugins = $mail_plugins imap_zlib\n}\n"


class Pieces:
    """A line that gives what it holds in pieces of given sizes, and keeps what is sent."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        self._data = data
        self._sizes = sizes
        self.sent = b""

    def settimeout(self, seconds: float, /) -> None:
        pass

    def recv(self, size: int, /) -> bytes:
        piece, self._data = self._data[: min(size, size_ := next(self._sizes, size))], self._data[min(size, size_) :]
        return piece

    def sendall(self, data: bytes | memoryview, /) -> None:
        self.sent += data

    def close(self) -> None:
        pass


def deflated(*pieces: bytes) -> bytes:
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return b"".join(deflate.compress(piece) + deflate.flush(zlib.Z_SYNC_FLUSH) for piece in pieces)


def inflated(data: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(data)


def all_of(line: Deflated, size: int) -> bytes:
    got = b""
    while data := line.recv(size):
        assert len(data) <= size
        got += data
    return got


# -- the stream ---------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=3000), max_size=6), st.lists(st.integers(1, 500), max_size=40), st.integers(1, 2000), st.integers(0, 400))
def test_bytes_are_the_same_wherever_the_stream_is_cut(pieces: list[bytes], sizes: list[int], size: int, begun: int) -> None:
    packed = deflated(*pieces)
    line = Pieces(packed[begun:], iter(sizes))
    assert all_of(Deflated(line, "there", packed[:begun], None), size) == b"".join(pieces)


def test_what_is_sent_can_be_read_at_once_by_the_other_side() -> None:
    line = Pieces(b"", iter(()))
    packed = Deflated(line, "there", b"", None)
    for count, said in enumerate((b"a NOOP\r\n", letter(1) * 50, b"b LOGOUT\r\n"), 1):
        packed.sendall(memoryview(said))
        assert inflated(line.sent).endswith(said), count
    assert len(line.sent) < len(letter(1)) * 10


@given(st.binary(min_size=1, max_size=300))
def test_garbage_is_a_broken_protocol_or_the_end(data: bytes) -> None:
    line = Deflated(Pieces(data, iter(())), "there", b"", None)
    try:
        all_of(line, 1000)
    except ProtocolBroken as error:
        assert error.where == "there"


def test_a_stream_that_ends_and_goes_on_is_broken() -> None:
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    whole = deflate.compress(b"* OK\r\n") + deflate.flush(zlib.Z_FINISH)
    assert all_of(Deflated(Pieces(whole, iter(())), "there", b"", None), 1000) == b"* OK\r\n"
    for at in (len(whole), 1 << 20):  # in a piece of its own, or together
        with pytest.raises(ProtocolBroken, match="ended its packed stream"):
            all_of(Deflated(Pieces(whole + b"more", iter([at])), "there", b"", None), 1000)


def test_a_bomb_is_unpacked_no_further_than_it_is_taken() -> None:
    bomb = deflated(bytes(64 << 20))
    assert len(bomb) < CHUNK * 2
    line = Deflated(Pieces(bomb, iter(())), "there", b"", None)
    tracemalloc.start()
    try:
        taken = sum(len(line.recv(CHUNK)) for _ in range(1024))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert taken == 64 << 20


def test_a_line_without_end_is_still_refused_when_it_comes_packed() -> None:
    near, far = socket.socketpair()
    with near, far:
        wire = Wire(near, "there", 5.0)
        wire.pack()
        threading.Thread(target=far.sendall, args=(deflated(bytes(64 << 20)),), daemon=True).start()
        with pytest.raises(ProtocolBroken, match="a line of more than"):
            wire.readline()


def test_the_rate_limit_counts_what_goes_over_the_wire() -> None:
    spent: list[float] = []
    rate = RateLimit(1_000_000, clock=lambda: 0.0, sleep=spent.append)
    text = letter(1) * 400
    near, far = socket.socketpair()
    with near, far:
        wire = Wire(near, "there", 5.0, rate)
        wire.pack()
        far.sendall(deflated(text))
        assert wire.read(len(text)) == text
        wire.send(text)
        over = len(deflated(text)) * 2
    assert spent[-1] == pytest.approx(over / 1_000_000, rel=0.1)


# -- agreeing on it -----------------------------------------------------------------------------------------------------------------------


def packing(mode: Literal["auto", "always"] = "always") -> Packing:
    return Packing(mode)


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(extra=PLUGIN) as running:
        Hands(running, "taro@example.test").deliver((), *(letter(number, 20_000) for number in range(20)))
        yield running


@pytest.mark.parametrize("security", ["tls", "plain"])
def test_dovecot_packs_and_every_byte_is_what_it_was(server: Dovecot, security: str) -> None:
    session = connect(dataclasses.replace(server.target(security=security), packing=packing()))
    assert session.list_folders()[0]
    assert session.channel.wire.packed
    session.open_mailbox(b"INBOX")
    bodies: list[Body] = []

    def take(size: int) -> Body:
        body = Body()
        bodies.append(body)
        return body

    tags = [session.channel.start(b"UID FETCH 1:10 (BODY.PEEK[])"), session.channel.start(b"UID FETCH 11:20 (BODY.PEEK[])")]
    answered = 0
    while answered < len(tags):
        answered += getattr(session.channel.next(take), "tag", b"") in tags
    assert [bytes(body) for body in bodies] == [letter(number, 20_000) for number in range(20)]
    selected = session.status(b"INBOX")
    assert selected is not None
    session.close()


class Body(bytearray):
    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self += data


def test_a_server_that_does_not_offer_it_is_not_asked_and_one_that_refuses_only_once() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "COMPRESS":
            talk.send(b"* 7 EXISTS\r\n" + tag + b" NO [COMPRESSIONACTIVE] no\r\n")
        return verb == "COMPRESS"

    for capabilities, asked in ((b"IMAP4rev1", 0), (b"IMAP4rev1 COMPRESS=DEFLATE", 1)):
        fake = FakeImap(capabilities=capabilities, hook=hook)
        with fake.running():
            session = connect(_target(fake, packing()))
            told: list[object] = []
            for _ in range(2):
                session.channel.run(b"NOOP", on=told.append)
            assert not session.channel.wire.packed
            session.close()
        assert fake.commands.count(b"COMPRESS DEFLATE") == asked
        assert told == [Number("EXISTS", 7)] * asked  # what came meanwhile is not lost


def test_a_server_that_agrees_and_sends_garbage_is_left() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "COMPRESS":
            talk.send(tag + b" OK\r\n* LIST and so on in the clear\r\n")
        return verb == "COMPRESS"

    fake = FakeImap(capabilities=b"IMAP4rev1 COMPRESS=DEFLATE", hook=hook)
    with fake.running():
        session = connect(_target(fake, packing()))
        with pytest.raises((ProtocolBroken, LineCut)):
            session.list_folders()
        session.drop()


def _target(fake: FakeImap, wanted: Packing) -> ImapTarget:
    return ImapTarget("127.0.0.1", "user", "secret", fake.port, "plain", timeout=5.0, packing=wanted)


# -- whether it pays ----------------------------------------------------------------------------------------------------------------------


def seen(judge: Packing, rate: float, *, packed: bool = False, waited: float = 0.9, seconds: float = 3.1) -> None:
    for _ in range(10):
        judge.measured(packed=packed, size=int(rate * seconds / 10), seconds=seconds / 10, waited=seconds / 10 * waited)


def test_a_slow_line_is_packed_a_fast_one_and_a_busy_machine_are_not() -> None:
    told: list[str] = []
    judge = Packing("auto", told.append)
    seen(judge, 40e6)
    seen(judge, 5e6, waited=0.1)
    seen(judge, 5e6, seconds=2)
    assert (judge.on, told) == (False, [])
    seen(judge, 5e6)
    assert judge.on
    assert "5.0 MB/s" in told[0]


def test_packing_that_does_not_help_is_left_off_for_good() -> None:
    told: list[str] = []
    judge = Packing("auto", told.append)
    seen(judge, 5e6)
    seen(judge, 4e6)  # from a connection that is still plain
    seen(judge, 6e6, packed=True)
    assert judge.on
    seen(judge, 5.2e6, packed=True)
    assert not judge.on
    assert "plain" in told[1]
    seen(judge, 1e6)
    assert not judge.on


def test_always_means_always() -> None:
    judge = packing()
    seen(judge, 1e6, packed=True)
    assert judge.on


def test_a_slow_line_is_seen_while_mail_comes_in_and_packed_once_no_command_waits(server: Dovecot) -> None:
    """On a clock of the test's own: the line that the rate limit makes is slow, and no time passes."""
    judge = Packing("auto")
    session = connect(dataclasses.replace(server.target(), packing=judge))
    session.open_mailbox(b"INBOX")
    channel: Channel = session.channel
    tag = channel.start(b"UID FETCH 1:20 (BODY.PEEK[])")
    channel.flush()
    assert not channel.wants_rest
    seen(judge, 2e6)
    assert channel.wants_rest
    channel.finish(tag)
    assert not channel.wants_rest
    assert not channel.wire.packed
    assert session.status(b"INBOX") is not None
    assert channel.wire.packed
    session.close()
