"""The response stream: the same events however the bytes are cut, and a clear end for anything that is no IMAP."""

from __future__ import annotations

import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import LineCut, ProtocolBroken
from hostbackup.protocols.imap import framer
from hostbackup.protocols.imap.channel import Channel, Lit
from hostbackup.protocols.imap.framer import Answer, Body, Continue, Data, Fetch, Framer, Number, Response, Tagged, Untagged
from hostbackup.protocols.imap.lexer import Streamed
from hostbackup.protocols.imap.wire import CHUNK, MAX_LINE, Wire


@dataclass(eq=False)
class Taken:
    pieces: list[bytes] = field(default_factory=list)

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self.pieces.append(bytes(data))


class Pieces(Wire):
    """A wire whose bytes come in given pieces, then end."""

    def __init__(self, pieces: list[bytes]) -> None:
        left, right = socket.socketpair()
        right.close()
        super().__init__(left, "test", 5.0)
        self._pieces = iter([piece for piece in pieces if piece])

    def _fill(self, *, bulk: bool = False) -> None:
        self._buffer, self._at = next(self._pieces, b""), 0
        if not self._buffer:
            raise LineCut("the server closed the connection", where=self.where)


def _events(pieces: list[bytes]) -> list[tuple[object, ...]]:
    wire = Pieces(pieces)
    reader = Framer(wire)
    found: list[tuple[object, ...]] = []
    taken: list[Taken] = []

    def taker(size: int) -> Taken:
        taken.append(Taken())
        return taken[-1]

    try:
        while True:
            response = reader.next(taker)
            if isinstance(response, Fetch):
                body = None if response.body is None else (response.body.size, response.body.nil)
                told = (response.sequence, response.uid, response.flags, response.internaldate, response.size, body)
                found.append((told, [b"".join(one.pieces) for one in taken]))
                taken.clear()
            else:
                found.append((response,))
    except LineCut:
        return found
    except ProtocolBroken as error:
        return [*found, ("broken", error.reason)]
    finally:
        wire.close()


_CONVERSATION = (
    b"* OK [CAPABILITY IMAP4rev1] hello {5}\r\n"
    b'* LIST (\\HasNoChildren) "/" "a \\"b\\\\c"\r\n'
    b'* LIST (\\Noselect) NIL {7}\r\nodd\r\n"x\r\n'
    b"* 23 EXISTS\r\n"
    b"* FLAGS (\\Seen $Forwarded)\r\n"
    b"* OK [PERMANENTFLAGS (\\Answered ]odd \\*)] limited\r\n"
    b"* OK [UIDVALIDITY 38505] ok\r\n"
    b'* 1 FETCH (UID 4 FLAGS (\\Seen) INTERNALDATE " 1-Jul-2026 02:44:25 +0900" RFC822.SIZE 44)\r\n'
    b"* 1 FETCH (UID 4 BODY[] {11}\r\na\r\n)\r\n* 2 F FLAGS (\\Seen))\r\n"
    b"* 2 FETCH (BODY[] ~{2}\r\n\x00\xff UID 5)\r\n"
    b'* 3 FETCH (UID 6 BODY[] "short")\r\n'
    b"* 4 FETCH (UID 7 BODY[] NIL)\r\n"
    b"* 5 FETCH (BODY[]<0> {0}\r\n UID 8)\r\n"
    b'* STATUS "x" (MESSAGES 1)\r\n'
    b'* NAMESPACE (("INBOX." ".")) NIL (("Public/" "/"))\r\n'
    b"h1 OK [APPENDUID 38505 3955] done\r\n"
    b"+ idling\r\n"
    b"h2 NO [TRYCREATE] no\r\n"
    b"* BYE see you\r\n"
)
_WHOLE = _events([_CONVERSATION])


def test_a_conversation_is_read_as_it_was_meant() -> None:
    assert len(_WHOLE) == 19
    assert _WHOLE[0] == (Untagged(Answer("OK", "CAPABILITY", (b"IMAP4rev1",), b"hello {5}")),)
    assert _WHOLE[1] == (Data("LIST", ([b"\\HasNoChildren"], b"/", b'a "b\\c')),)
    assert _WHOLE[2] == (Data("LIST", ([b"\\Noselect"], None, b'odd\r\n"x')),)
    assert _WHOLE[3] == (Number("EXISTS", 23),)
    assert _WHOLE[5] == (Untagged(Answer("OK", "PERMANENTFLAGS", ([b"\\Answered", b"]odd", b"\\*"],), b"limited")),)
    assert _WHOLE[7] == ((1, 4, ("\\Seen",), " 1-Jul-2026 02:44:25 +0900", 44, None), [])
    assert _WHOLE[8] == ((1, 4, ("\\Seen",), None, None, (11, False)), [b"a\r\n)\r\n* 2 F"])
    assert _WHOLE[9] == ((2, 5, None, None, None, (2, False)), [b"\x00\xff"])
    assert _WHOLE[10] == ((3, 6, None, None, None, (5, False)), [b"short"])
    assert _WHOLE[11] == ((4, 7, None, None, None, (0, True)), [])
    assert _WHOLE[12] == ((5, 8, None, None, None, (0, False)), [b""])
    assert _WHOLE[15] == (Tagged(b"h1", Answer("OK", "APPENDUID", (b"38505", b"3955"), b"done")),)
    assert _WHOLE[16] == (Continue(b"idling"),)
    assert _WHOLE[18] == (Untagged(Answer("BYE", "", (), b"see you")),)


@given(st.lists(st.integers(0, len(_CONVERSATION)), max_size=40))
def test_however_the_bytes_are_cut_the_events_are_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(_CONVERSATION)]
    assert _events([_CONVERSATION[a:b] for a, b in itertools.pairwise(edges)]) == _WHOLE


def test_byte_by_byte_too() -> None:
    assert _events([bytes([byte]) for byte in _CONVERSATION]) == _WHOLE


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_garbage_ends_in_an_error_and_never_hangs(noise: bytes) -> None:
    _events([noise])


@given(st.integers(0, len(_CONVERSATION) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=300)
def test_a_damaged_conversation_ends_in_an_error_and_never_hangs(at: int, noise: bytes) -> None:
    _events([_CONVERSATION[:at] + noise + _CONVERSATION[at + len(noise) :]])


@pytest.mark.parametrize(
    "line",
    [
        b"* 1 FETCH (UID\r\n",
        b"* 1 FETCH (UID x)\r\n",
        b"* 1 FETCH UID 5\r\n",
        b"* 1 FETCH (UID 5))\r\n",
        b"* \r\n",
        b"*\r\n",
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"* 1\r\n",
        b'* LIST () "/" "open\r\n',
        b"* 1 FETCH (BODY[] atom UID 5)\r\n",
        b"* 1 FETCH (BODY[] {1}\r\nx BODY[] {1}\r\ny)\r\n",
        b"* 1 FETCH (" + b"(" * 100 + b"\r\n",
        b"* 1 FETCH (UID 99999999999999999999)\r\n",
    ],
)
def test_malformed_responses_are_told_as_such(line: bytes) -> None:
    assert _events([line])[-1][0] == "broken"


def test_a_line_without_end_is_refused_before_it_fills_memory() -> None:
    events = _events([b"* OK "] + [b"x" * CHUNK] * (MAX_LINE // CHUNK + 2))
    assert events == [("broken", f"the server sent a line of more than {MAX_LINE} bytes")]


def test_a_response_of_endless_literals_is_refused() -> None:
    piece = b'{60000}\r\n"' + b"x" * 59999 + b" "
    assert _events([b"* LIST "] + [piece] * (framer.MAX_RESPONSE // 60000 + 2))[-1][0] == "broken"


def test_a_body_comes_in_bounded_pieces_and_other_large_literals_are_dropped() -> None:
    body = b"m" * (5 * CHUNK + 3)
    taken = Taken()
    wire = Pieces(_split(b"* 1 FETCH (UID 1 BODY[] {%d}\r\n%s)\r\n" % (len(body), body), 3 * 7919))
    response = Framer(wire).next(lambda size: taken)
    assert isinstance(response, Fetch)
    assert response.body == Body(len(body), taken)
    assert b"".join(taken.pieces) == body
    assert max(len(piece) for piece in taken.pieces) <= CHUNK
    wire.close()
    dropped = _events([b"* LIST {%d}\r\n%s\r\n* 1 EXISTS\r\n" % (len(body), body)])
    assert dropped[0] == (Data("LIST", (Streamed(len(body)),)),)
    assert dropped[1] == (Number("EXISTS", 1),)


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


# -- the channel over a socket pair -----------------------------------------------------------------------------------------------------


def _with_server(serve: Callable[[socket.socket], None], use: Callable[[Channel], None]) -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    wire = Wire(ours, "test", 2.0)
    try:
        use(Channel(wire))
    finally:
        wire.close()
        thread.join(5)
        theirs.close()
    assert not thread.is_alive()


def test_pipelined_commands_find_their_answers() -> None:
    def serve(sock: socket.socket) -> None:
        assert sock.recv(100) == b"h1 ONE\r\nh2 TWO\r\n"
        sock.sendall(b"* 1 EXISTS\r\nh1 OK one\r\n* 2 EXISTS\r\nh2 NO [ALREADYEXISTS] two\r\n")

    def use(channel: Channel) -> None:
        first, second = channel.start(b"ONE"), channel.start(b"TWO")
        seen: list[Response] = []
        assert channel.finish(first, seen.append).ok
        assert seen == [Number("EXISTS", 1)]
        assert channel.finish(second, seen.append).answer.code == "ALREADYEXISTS"
        assert seen[1:] == [Number("EXISTS", 2)]
        assert not channel.busy

    _with_server(serve, use)


def test_a_literal_waits_for_leave_where_it_must() -> None:
    def serve(sock: socket.socket) -> None:
        assert sock.recv(100) == b"h1 STATUS {4}\r\n"
        sock.sendall(b"+ go\r\n")
        assert sock.recv(100) == b"\xe9\x80\x81!\r\n"
        sock.sendall(b"h1 OK\r\n")
        assert sock.recv(100) == b"h2 STATUS {1}\r\n"
        sock.sendall(b"h2 BAD no\r\n")
        assert sock.recv(100) == b"h3 STATUS {1+}\r\nx (A)\r\n"
        sock.sendall(b"h3 OK\r\n")

    def use(channel: Channel) -> None:
        assert channel.run(b"STATUS", Lit(b"\xe9\x80\x81!")).ok
        assert not channel.run(b"STATUS", Lit(b"x"), b"(A)").ok
        channel.learn(["LITERAL-"])
        assert channel.at_once(Lit(b"x" * 4096))
        assert not channel.at_once(Lit(b"x" * 4097))
        assert channel.run(b"STATUS", Lit(b"x"), b"(A)").ok

    _with_server(serve, use)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"* BYE shutting \x1b[31mdown\r\n", LineCut),
        (b"h9 OK never asked\r\n", ProtocolBroken),
        (b"+ go on\r\n", ProtocolBroken),
        (b"* 1 FETCH (UID 1 BODY[] {100}\r\nhalf", LineCut),
        (b"", LineCut),
    ],
)
def test_what_ends_a_session_is_told(said: bytes, error: type[Exception]) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(said)
        sock.shutdown(socket.SHUT_RDWR)

    def use(channel: Channel) -> None:
        with pytest.raises(error) as caught:
            channel.run(b"NOOP")
        assert "\x1b" not in str(caught.value)

    _with_server(serve, use)


def test_a_frozen_server_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(ours, "test", 0.05)
    with pytest.raises(LineCut, match="nothing moved for"):
        Channel(wire).run(b"NOOP")
    wire.close()
    theirs.close()


def test_the_wire_hands_out_exact_sizes_and_lines_in_any_order() -> None:
    def feed() -> Iterator[bytes]:
        yield b"abc\r\nde"
        yield b"fgh\nij"
        yield b"k\r\n"

    wire = Pieces(list(feed()))
    assert wire.readline() == b"abc\r\n"
    assert wire.read(4) == b"defg"
    assert wire.readline() == b"h\n"
    assert wire.readline() == b"ijk\r\n"
    wire.close()


_USUAL = [
    b'* 1 FETCH (UID 7 FLAGS (\\Seen $Label1) INTERNALDATE " 1-Jul-2026 02:44:25 +0900" RFC822.SIZE 16675)\r\n',
    b'* 1 FETCH (UID 7 FLAGS () INTERNALDATE "" RFC822.SIZE 0)\r\n',
    b"* 1 FETCH (UID 7 FLAGS (\\Seen) MODSEQ (12))\r\n",
    b'* 1 FETCH (UID 7 FLAGS (NIL nil \xe4) INTERNALDATE "\xff" RFC822.SIZE 1 MODSEQ (9))\r\n',
    b"* 1 FETCH (UID 7 FLAGS (a ]\\*) )\r\n",
    b"* 1 FETCH (UID 7 BODY[] {5}\r\nh)\r\n\r)\r\n",
    b"* 1 FETCH (UID 7 BODY[] {5}\r\nhello FLAGS (\\Seen) INTERNALDATE {3}\r\nabc)\r\n",
    b"* 1 FETCH (UID 7 BODY[] {2}\r\nhi BODY[] {2}\r\nho)\r\n",
    b"* 1 FETCH (UID 7 BODY[] {0}\r\n)\r\n",
    b"* 1 FETCH (UID 7 BODY[] {2}\r\nhi))\r\n",
    b"* 1 FETCH (UID 7 BODY[] {2}\r\nhi\r\n",
]


@given(st.lists(st.sampled_from(_USUAL), min_size=1, max_size=4), st.integers(0, 80), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_the_short_way_reads_what_the_long_way_reads(responses: list[bytes], where: int, byte: int) -> None:
    data = bytearray(b"".join(responses))
    if where < len(data):
        data[where] = byte
    never = re.compile(b"(?!)")
    short = _events([bytes(data)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framer, "_PLAIN", never)
        patch.setattr(framer, "_WHOLE", never)
        assert _events([bytes(data)]) == short
