"""The SFTP codec: what is encoded comes back, and no garbage does harm."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Kind
from hostbackup.protocols.sftp import packets
from hostbackup.protocols.sftp.packets import Attrs, Framer, Name, Status, Type, attrs_bytes, parse_attrs, parse_reply, text

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
seconds = st.integers(-(2**31), 2**31 - 1)


@st.composite
def attributes(draw: st.DrawFn) -> Attrs:
    uid, gid = draw(st.just((None, None)) | st.tuples(u32, u32))
    atime, mtime = draw(st.just((None, None)) | st.tuples(seconds, seconds))
    return Attrs(draw(st.none() | u64), uid, gid, draw(st.none() | u32), atime, mtime)


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


def cut_up(stream: bytes, sizes: list[int]) -> list[bytes]:
    parts, at = [], 0
    for size in sizes:
        parts.append(stream[at : at + size])
        at += size
    return [part for part in [*parts, stream[at:]] if part]


@given(attributes())
def test_attributes_come_back(attrs: Attrs) -> None:
    encoded = attrs_bytes(attrs)
    assert parse_attrs(memoryview(encoded), 0) == (attrs, len(encoded))


@given(u32, st.lists(st.tuples(st.binary(max_size=40), attributes()), max_size=20))
def test_lists_of_names_come_back_byte_by_byte(number: int, listed: list[tuple[bytes, Attrs]]) -> None:
    body = struct.pack(">BII", Type.NAME, number, len(listed)) + b"".join(text(n) + text(b"ls -l") + attrs_bytes(a) for n, a in listed)
    assert parse_reply(memoryview(body)) == (number, [Name(*pair) for pair in listed])


@given(st.lists(st.binary(min_size=5, max_size=300), max_size=20), st.lists(st.integers(1, 50), max_size=60))
def test_a_stream_falls_into_the_same_packets_however_it_is_cut(bodies: list[bytes], sizes: list[int]) -> None:
    framer = Framer()
    found = [bytes(body) for part in cut_up(framed(*bodies), sizes) for body in framer.feed(part)]
    assert found == bodies
    assert framer.between


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_understood_and_nothing_else(garbage: bytes) -> None:
    for parse in (parse_reply, packets.parse_version, packets.parse_limits, packets.parse_statvfs):
        if garbage:
            with contextlib.suppress(ProtocolBroken):
                parse(memoryview(garbage))


@given(st.sampled_from([Type.STATUS, Type.HANDLE, Type.DATA, Type.NAME, Type.ATTRS]), u32, st.binary(max_size=200))
def test_garbage_in_a_reply_of_a_known_kind_is_refused_or_understood(kind: Type, number: int, garbage: bytes) -> None:
    try:
        told, _ = parse_reply(memoryview(struct.pack(">BI", kind, number) + garbage))
    except ProtocolBroken:
        return
    assert told == number


@pytest.mark.parametrize("length", [0, 4, packets.PACKET_LIMIT + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_before_anything_is_held(length: int) -> None:
    with pytest.raises(ProtocolBroken):
        Framer().feed(struct.pack(">I", length) + b"x")


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">BII", Type.NAME, 1, 2**32 - 1),
        struct.pack(">BII", Type.DATA, 1, 2**32 - 1),
        struct.pack(">BIII", Type.ATTRS, 1, 0x80000000, 2**32 - 1),
        struct.pack(">BII", Type.ATTRS, 1, 0x10),
        struct.pack(">BI", Type.HANDLE, 1) + text(b""),
        struct.pack(">BI", Type.HANDLE, 1) + text(b"x" * 257),
        struct.pack(">BI", Type.DATA, 1) + text(b"x") + b"left over",
        struct.pack(">BI", Type.ATTRS, 1) + attrs_bytes(Attrs(size=1)) + b"left over",
        struct.pack(">BI", 99, 1),
        b"\x65",
    ],
)
def test_lies_about_lengths_and_kinds_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        parse_reply(memoryview(body))


def test_extended_attributes_are_passed_over() -> None:
    encoded = struct.pack(">I", 0x80000001) + struct.pack(">QI", 7, 1) + text(b"acl") + text(b"xyz")
    assert parse_attrs(memoryview(encoded), 0) == (Attrs(size=7), len(encoded))


def test_a_status_without_message_is_understood() -> None:
    assert parse_reply(memoryview(struct.pack(">BII", Type.STATUS, 5, 2))) == (5, Status(2))


def test_a_status_is_shown_without_control_bytes() -> None:
    assert str(Status(4, b"\x1b[31mno\n\xff")) == "?[31mno?\ufffd"
    assert str(Status(4)) == "status 4"


@pytest.mark.parametrize(("mode", "kind"), [(0o100644, Kind.FILE), (0o40755, Kind.DIR), (0o120777, Kind.LINK), (0o10644, Kind.OTHER), (0o644, None)])
def test_kinds_come_from_the_type_bits(mode: int, kind: Kind | None) -> None:
    assert Attrs(permissions=mode).kind is kind


def test_the_version_tells_extensions() -> None:
    body = struct.pack(">BI", Type.VERSION, 3) + text(b"posix-rename@openssh.com") + text(b"1")
    assert packets.parse_version(memoryview(body)) == (3, {b"posix-rename@openssh.com": b"1"})
    with pytest.raises(ProtocolBroken):
        packets.parse_version(memoryview(body[:-1]))


@given(st.binary(max_size=30), u64, u32, st.binary(max_size=100))
def test_requests_are_what_the_draft_says(name: bytes, offset: int, number: int, data: bytes) -> None:
    wire = packets.packet(number, packets.write(name, offset, data))
    assert wire == framed(struct.pack(">BI", Type.WRITE, number) + text(name) + struct.pack(">Q", offset) + text(data))
    wire = packets.packet(number, packets.read(name, offset, 99))
    assert wire == framed(struct.pack(">BI", Type.READ, number) + text(name) + struct.pack(">QI", offset, 99))
    wire = packets.packet(number, packets.two_paths(Type.RENAME, name, data))
    assert wire == framed(struct.pack(">BI", Type.RENAME, number) + text(name) + text(data))
