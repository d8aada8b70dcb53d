"""Dot-stuffing and the end of a response, in pieces of any length."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.protocols.pop3.dots import MORE, Unstuffer
from tests.support.pop3_script import stuff

_NASTY = st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"\r\n.", b"..", b"x", b"\0", b"\n.", b".\r\n"]), max_size=40).map(b"".join)


def unstuffed(wire: bytes, cuts: list[int], *, bare_lf: bool = False) -> tuple[bytes, bytes]:
    """What comes of `wire` in pieces that end at `cuts`, and what is left after the end."""
    got = bytearray()
    reader = Unstuffer(got.extend, bare_lf=bare_lf)
    places = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    for begin, end in itertools.pairwise(places):
        # The reader is given where to begin in a larger buffer, as the wire does it.
        at = reader.feed(b"#" * 3 + wire[begin:end], 3)
        if at != MORE:
            return bytes(got), wire[begin + at - 3 :]
    raise AssertionError(f"no end was seen in {wire!r}")


@given(st.binary(max_size=200) | _NASTY, st.lists(st.integers(0, 300)), st.sampled_from([b"", b"+OK\r\n", b".\r\n", b".", b"\n"]))
def test_what_was_stuffed_comes_back_however_it_is_cut(data: bytes, cuts: list[int], rest: bytes) -> None:
    expected = data if not data or data.endswith(b"\r\n") else data + b"\r\n"
    assert unstuffed(stuff(data) + rest, cuts) == (expected, rest)


@given(_NASTY, st.lists(st.integers(0, 300)))
def test_pieces_make_no_difference(data: bytes, cuts: list[int]) -> None:
    """Also of what no sound server would send."""
    wire = data + b"\r\n.\r\n"
    assert unstuffed(wire, cuts) == unstuffed(wire, [])


@given(_NASTY, st.lists(st.integers(0, 300)))
def test_lines_of_a_server_that_knows_no_cr(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\r", b"") + b"\n"
    wire = (b"\n" + data).replace(b"\n.", b"\n..")[1:] + b".\n"
    assert unstuffed(wire, cuts, bare_lf=True) == (data, b"")


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b".\r\n", b""),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"...\r\n.\r\n", b"..\r\n"),
        (b"a\n.\r\nb\r\n.\r\n", b"a\n.\r\nb\r\n"),  # a dot after a bare LF ends nothing
        (b"a\n..b\r\n.\r\n", b"a\n..b\r\n"),
        (b"a\r..b\r\n.\r\n", b"a\r..b\r\n"),
        (b".x\r\n.\r\n", b".x\r\n"),  # not stuffed: the dot is the message's
        (b".\rx\r\n.\r\n", b".\rx\r\n"),
        (b"\r\r\n.\r\n", b"\r\r\n"),
        (b"\r\n\r\n.\r\n", b"\r\n\r\n"),
    ],
)
def test_dots(wire: bytes, message: bytes) -> None:
    for cuts in ([], list(range(len(wire)))):
        assert unstuffed(wire, cuts) == (message, b"")
