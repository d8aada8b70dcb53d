"""The tar format as a stream, both ways: POSIX.1-1988 ustar headers with GNU's extensions (GNU tar manual, "Basic Tar Format").

A header is one block of 512 bytes; contents follow, padded to a block; two blocks of zeros end the archive. GNU's `L` member carries a name longer
than 100 bytes, and a number that does not fit its octal digits is binary. Names are bytes. Sizes are never trusted with memory: contents are
given in pieces as they come.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BLOCK = 512
FILE, HARD_LINK, FOLDER = b"0", b"1", b"5"  # type flags
_LONG_NAME, _LONG_LINK = b"L", b"K"
_EXTENDED = b"xg"  # POSIX.1-2001 headers may say anything of the next member, its name included
_NAME_LIMIT = 1 << 16  # bytes of a long name: far above any system's longest path
_HEADER = struct.Struct("100s8s16x12s12s8sc100s6s2x80x155s12x")
_WRITTEN = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s183x")
_ZEROS = bytes(BLOCK)


class TarBroken(Exception):
    """The bytes are no tar archive, or end before it does."""


class Member(NamedTuple):
    """What a header says. `kind` is the type flag; what it calls a folder may end in a slash."""

    name: bytes
    kind: bytes
    size: int  # bytes of contents that follow
    mtime: int  # whole seconds since the epoch
    mode: int  # permission bits, 0o7777


class Archive:
    """Reads an archive from chunks of any size. Iterate over the members; `pieces` gives the contents of the last one given.

    `ended` is set once the end of the archive was seen; without it the archive is torn. What comes after the end is not looked at.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = memoryview(b"")
        self._at = 0
        self._left = 0  # bytes of the current member's contents
        self._padding = 0
        self.ended = False

    def __iter__(self) -> Iterator[Member]:
        """Members in order; contents not taken are passed over. Raises TarBroken."""
        name = b""
        while True:
            for _ in self.pieces():
                pass
            self._skip(self._padding)
            self._padding = 0
            header = self._exactly(BLOCK)
            if header == _ZEROS:
                self.ended = True
                return
            member = _parse(header, name)
            if member.kind == _LONG_NAME:
                name = self._long(member)
            elif member.kind == _LONG_LINK:
                self._long(member)
            else:
                name = b""
                self._left, self._padding = member.size, -member.size % BLOCK
                yield member

    def pieces(self) -> Iterator[memoryview]:
        """What is left of the current member's contents. Raises TarBroken where they end too early."""
        while self._left:
            if self._at >= len(self._buffer):
                self._more()
            piece = self._buffer[self._at : self._at + self._left]
            self._at += len(piece)
            self._left -= len(piece)
            yield piece

    def _long(self, member: Member) -> bytes:
        if not 0 < member.size <= _NAME_LIMIT:
            raise TarBroken(f"a name of {member.size} bytes")
        told = bytes(self._exactly(member.size))
        self._skip(-member.size % BLOCK)
        return told.partition(b"\0")[0]

    def _exactly(self, length: int) -> memoryview:
        """The next `length` bytes, few of them."""
        end = self._at + length
        while end > len(self._buffer):
            rest = self._buffer[self._at :]
            self._more()
            if rest:
                self._buffer = memoryview(b"".join((rest, self._buffer)))
            end = length
        found = self._buffer[self._at : end]
        self._at = end
        return found

    def _skip(self, length: int) -> None:
        while length:
            if self._at >= len(self._buffer):
                self._more()
            step = min(length, len(self._buffer) - self._at)
            self._at += step
            length -= step

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise TarBroken("it ends in the middle")
        self._buffer, self._at = memoryview(chunk), 0


def _parse(header: memoryview, long_name: bytes) -> Member:
    # the checksum's own place counts as eight spaces
    name, mode, size, mtime, checksum, kind, _, magic, prefix = _HEADER.unpack(header)
    if _sum(header[:256]) + _sum(header[256:]) - sum(checksum) + 8 * 32 != _number(checksum):
        raise TarBroken("a header's checksum is wrong")
    if kind in _EXTENDED:
        raise TarBroken("extended headers were not asked for")
    told = name.partition(b"\0")[0]
    if magic == b"ustar\0" and prefix[0]:
        told = prefix.partition(b"\0")[0] + b"/" + told
    length = _number(size)
    if length < 0:
        raise TarBroken("a negative size")
    return Member(long_name or told, FILE if kind in b"\0007" else kind, length, _number(mtime), _number(mode) & 0o7777)


def _sum(data: memoryview) -> int:
    """The sum of up to 256 bytes: half of what Adler-32 adds up (RFC 1950), too few to be reduced. Several times as fast as `sum`, for each file."""
    return (zlib.adler32(data) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """Octal digits, ended by a space, NUL or the field's end; or, the first bit set, a binary number in two's complement after that bit."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    try:
        return int(field.partition(b"\0")[0].strip(b" ") or b"0", 8)
    except ValueError:
        raise TarBroken("a header's number is none") from None


def header(name: bytes, size: int, mtime: int, mode: int) -> bytes:
    """The header of a regular file owned by whoever extracts it. `name`: at most 100 bytes. Raises ValueError where something does not fit."""
    if not 0 < len(name) <= 100 or size < 0:
        raise ValueError("a name or size that does not fit")

    def packed(checksum: bytes) -> bytes:
        numbers = (_octal(mode & 0o7777, 8), _octal(0, 8), _octal(0, 8), _octal(size, 12), _octal(mtime, 12))
        return _WRITTEN.pack(name, *numbers, checksum, FILE, b"", b"ustar  \0", b"", b"")

    return packed(b"%06o\0 " % sum(packed(b" " * 8)))


def _octal(value: int, length: int) -> bytes:
    if 0 <= value < 1 << 3 * (length - 1):
        return b"%0*o\0" % (length - 1, value)
    bits = 8 * length - 1
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueError("a number that does not fit")
    return (value % (1 << bits) | 1 << bits).to_bytes(length, "big")


def padding(size: int) -> bytes:
    """What follows contents of `size` bytes."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)
