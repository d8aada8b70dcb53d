"""Copies of messages as mail servers rewrite them, and the tier that still holds; checked against the tiers' definitions written out plainly."""

from __future__ import annotations

import io
import re
import tracemalloc
from collections.abc import Iterator
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.places import mail_compare
from hostbackup.places.mail_compare import HEADER_BYTES, Fingerprint, Fingerprinter, Tier, compare, fingerprint

LETTER = (
    b"Received: from a.example\r\n\tby b.example; Wed, 1 Jul 2026\r\nFrom: =?utf-8?B?5bGx55Sw?= <yamada@customer.example>\r\n"
    b"Subject: \x8c\xa9\x90\xcf\x8f\x91\r\nMessage-ID: <1@customer.example>\r\n\r\nFirst line\r\n\r\nlast line\r\n"
)


def of(data: bytes) -> Fingerprint:
    return fingerprint(io.BytesIO(data))


def tier(stored: bytes, found: bytes) -> Tier:
    return compare(of(stored), of(found)).tier


def plain(data: bytes) -> bytes:
    """All line endings as LF, one at the end."""
    text = re.sub(rb"\r\n|\r", b"\n", data)
    return text if text.endswith(b"\n") or not text else text + b"\n"


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """Header fields and body, by the definition."""
    text = plain(data)
    if text.startswith(b"\n"):
        return [], text[1:]
    header, _, body = text.partition(b"\n\n")
    return re.findall(rb"[^\n]+(?:\n[ \t][^\n]*)*", header.removesuffix(b"\n")), body


def defined(stored: bytes, found: bytes) -> Tier:
    """What the tier must be, in quadratic time and all of memory."""
    if stored == found:
        return Tier.RAW
    if plain(stored) == plain(found):
        return Tier.LINE_ENDINGS
    (before, old), (after, new) = split(stored), split(found)
    if old != new:
        return Tier.DIFFERENT
    rest = iter(after)
    if all(any(field == one for one in rest) for field in before):
        return Tier.ADDED_HEADERS
    return Tier.BODY if old or set(before) & set(after) else Tier.DIFFERENT


def test_equal_bytes_are_raw() -> None:
    assert compare(of(LETTER), of(LETTER)) == mail_compare.Verdict(Tier.RAW)


@pytest.mark.parametrize(
    "found",
    [
        LETTER.replace(b"\r\n", b"\n"),
        LETTER.replace(b"\r\n", b"\r"),
        LETTER.replace(b"\r\n", b"\n", 3),
        LETTER.removesuffix(b"\r\n"),
        LETTER.removesuffix(b"\n"),
    ],
)
def test_changed_line_endings_are_told_as_such(found: bytes) -> None:
    verdict = compare(of(LETTER), of(found))
    assert verdict.tier is Tier.LINE_ENDINGS
    assert verdict.reason == "the server changed line endings"


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (b"X-Spam: no\r\n" + LETTER, "X-Spam"),
        (LETTER.replace(b"From:", b"Received: here\r\n\tand there\r\nX-Two: 2\r\nFrom:"), "Received, X-Two"),
        (LETTER.replace(b"\r\n\r\nFirst", b"\r\nStatus: RO\r\n\r\nFirst"), "Status"),
        ((b"X-Spam: no\r\n" + LETTER).replace(b"\r\n", b"\n"), "X-Spam"),
        (b"Received: from a.example\r\n\tby b.example; Wed, 1 Jul 2026\r\n" + LETTER, "Received"),
    ],
)
def test_added_headers_are_named(found: bytes, named: str) -> None:
    verdict = compare(of(LETTER), of(found))
    assert (verdict.tier, verdict.reason) == (Tier.ADDED_HEADERS, f"the server added headers: {named}")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (LETTER.replace(b"<1@", b"<2@"), "changed or left out: Message-ID; new: Message-ID"),
        (LETTER.replace(b"\r\n\tby", b" by"), "changed or left out: Received; new: Received"),
        (LETTER.replace(b"Message-ID: <1@customer.example>\r\n", b""), "changed or left out: Message-ID)"),
        (LETTER.replace(b"Message-ID: <1@customer.example>\r\n", b"").replace(b"From", b"Message-ID: <1@customer.example>\r\nFrom"), "another order"),
    ],
)
def test_rewritten_headers_leave_only_the_body(found: bytes, told: str) -> None:
    verdict = compare(of(LETTER), of(found))
    assert verdict.tier is Tier.BODY
    assert told in verdict.reason


@pytest.mark.parametrize(
    "found", [LETTER.replace(b"last", b"lst"), LETTER + b"\r\n", LETTER.replace(b"\r\n\r\nlast", b"\r\nlast"), LETTER[:-20], b"", b"\r\nFirst line"]
)
def test_anything_else_is_different(found: bytes) -> None:
    assert tier(LETTER, found) is Tier.DIFFERENT
    assert tier(found, LETTER) is Tier.DIFFERENT


def test_a_different_body_under_equal_headers_is_said() -> None:
    reason = compare(of(LETTER), of(LETTER.replace(b"last", b"lost"))).reason
    assert reason == f"the server gives {len(LETTER)} bytes with another digest: its headers are as they were, its body is not"


def test_an_empty_body_alone_proves_nothing() -> None:
    assert tier(b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n") is Tier.DIFFERENT
    assert tier(b"From: me\r\nSubject: one\r\n\r\n", b"From: me\r\nSubject: two\r\n\r\n") is Tier.BODY
    assert tier(b"Subject: one\r\n", b"Subject: one\r\n\r\n") is Tier.ADDED_HEADERS


def test_names_of_headers_are_few_and_short() -> None:
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(200))
    reason = compare(of(LETTER), of(b"X-" + b"\x1b[2J" * 100 + b": 1\r\n" + many + LETTER)).reason
    assert len(reason) < 300
    assert "and 193 more" in reason


PIECES = st.sampled_from([b"\r\n", b"\r", b"\n", b"\n\n", b"\r\n\r\n", b" ", b"\t", b"A: 1", b"B: 2", b"X-C: 3", b"text", b"\0", b"\xff"])
MESSAGES = st.lists(PIECES, max_size=14).map(b"".join)


def changes(data: bytes) -> st.SearchStrategy[bytes]:
    """What a server may make of a message, small and near."""
    return st.one_of(
        st.sampled_from(
            [data.replace(b"\r\n", b"\n"), data.replace(b"\n", b"\r\n"), plain(data), b"A: 1\r\n" + data, data.replace(b"A", b"Z"), data]
        ),
        st.integers(0, len(data)).map(lambda at: data[:at] + data[at + 1 :]),
        st.tuples(st.integers(0, len(data)), PIECES).map(lambda cut: data[: cut[0]] + cut[1] + data[cut[0] :]),
        MESSAGES,
    )


@given(MESSAGES.flatmap(lambda data: st.tuples(st.just(data), changes(data))))
def test_the_tier_is_the_one_that_the_definitions_give(pair: tuple[bytes, bytes]) -> None:
    assert tier(*pair) is defined(*pair)


@given(MESSAGES.flatmap(lambda data: st.tuples(st.just(data), changes(data))))
def test_copies_of_a_tier_share_the_digests_by_which_they_are_looked_up(pair: tuple[bytes, bytes]) -> None:
    stored, found = map(of, pair)
    at = compare(stored, found).tier
    assert (stored.lines == found.lines) == (at in (Tier.RAW, Tier.LINE_ENDINGS))
    assert stored.body == found.body or at is Tier.DIFFERENT


@given(MESSAGES, st.lists(st.integers(0, 60), max_size=6))
def test_how_a_message_is_cut_into_pieces_does_not_matter(data: bytes, cuts: list[int]) -> None:
    maker = Fingerprinter()
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        maker.write(memoryview(data)[at : max(at, cut)])
        at = max(at, cut)
    assert maker.finish() == of(data)


@pytest.mark.parametrize("length", [HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, 2 * HEADER_BYTES + 7])
@pytest.mark.parametrize("chunk", [997, 65_536, 1 << 20, 1 << 30])
def test_a_header_of_more_than_a_mebibyte_is_not_compared_field_by_field(length: int, chunk: int) -> None:
    header = (b"X-Long: " + b"x" * 70 + b"\n") * (length // 79)
    header += b"y" * (length - len(header) - 1) + b"\n"
    data = header + b"\nbody\n"
    maker = Fingerprinter()
    for at in range(0, len(data), chunk):
        maker.write(data[at : at + chunk])
    made = maker.finish()
    assert (made.header is None) == (length > HEADER_BYTES)
    assert made.body == of(b"\nbody\n").body
    assert compare(made, of(b"A: 1\n" + data)).tier is (Tier.BODY if length + 5 > HEADER_BYTES else Tier.ADDED_HEADERS)


class Endless:
    """A message of any size that stands nowhere."""

    def __init__(self, head: bytes, size: int) -> None:
        self._parts: Iterator[bytes] = self._make(head, size)

    @staticmethod
    def _make(head: bytes, size: int) -> Iterator[bytes]:
        yield head
        line = b"0123456789" * 7 + b"\r\n"
        for _ in range(size // (len(line) * 1000)):
            yield line * 1000

    def read(self, size: int = -1) -> bytes:
        return next(self._parts, b"")


@pytest.mark.parametrize("head", [LETTER, b"no header and no empty line "])
def test_a_message_of_40_mb_needs_a_few_megabytes(head: bytes) -> None:
    tracemalloc.start()
    try:
        made = fingerprint(cast(BinaryIO, Endless(head, 40_000_000)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.size > 39_000_000
    assert peak < 8_000_000
