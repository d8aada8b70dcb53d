"""What a server tells of a file by digests, and this side's half of the comparison: digests of the vault's own bytes, by whatever algorithm."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from hostbackup.errors import HostbackupError
from hostbackup.model import Claim, Entry

_PIECE = 1 << 20
Reader = Callable[[str], BinaryIO]
"""Gives the vault's bytes of a SHA-256. Raises HostbackupError or OSError where it cannot."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the server computed for a claim's file: digests as `local` gives them, one each `block` bytes (0: one in all); none if it told none."""

    claim: Claim[Entry]
    algorithm: str = ""
    digests: tuple[str, ...] = ()
    block: int = 0


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # the bits of each byte, mirrored


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


class Crc32:
    """The CRC of ISO 3309, as zip has it."""

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: bytes, /) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def hexdigest(self) -> str:
        return f"{self._crc:08x}"


class Cksum:
    """What POSIX cksum prints: its CRC in decimal, and the size.

    It takes bits from the other end than zlib does, begins with zeros, and counts the length in. On mirrored bytes zlib computes the same
    (500 MB/s).
    """

    def __init__(self) -> None:
        self._crc = 0xFFFFFFFF  # zlib inverts it to zeros
        self._size = 0

    def update(self, data: bytes, /) -> None:
        self._crc = zlib.crc32(data.translate(_REVERSED), self._crc)
        self._size += len(data)

    def hexdigest(self) -> str:
        length = self._size.to_bytes((self._size.bit_length() + 7) // 8, "little")
        crc = zlib.crc32(length.translate(_REVERSED), self._crc)
        return f"{int(f'{crc:032b}'[::-1], 2)} {self._size}"


def _new(algorithm: str) -> _Hash:
    if algorithm == "crc32":
        return Crc32()
    if algorithm == "cksum":
        return Cksum()
    return hashlib.new(algorithm, usedforsecurity=False)


def local(reader: Reader, sha256: str, algorithm: str, *, block: int = 0) -> tuple[str, ...] | None:
    """Digests of the vault's bytes, one each `block` bytes (0: one in all). None where the vault cannot give the bytes, or gives damaged ones."""
    whole, found, current, room = hashlib.sha256(), [], _new(algorithm), block
    try:
        with reader(sha256) as stream:
            while data := stream.read(min(_PIECE, room) if block else _PIECE):
                whole.update(data)
                current.update(data)
                room -= len(data)
                if block and not room:
                    found.append(current.hexdigest())
                    current, room = _new(algorithm), block
    except (HostbackupError, OSError):
        return None
    if room != block or not found:
        found.append(current.hexdigest())
    return tuple(found) if whole.hexdigest() == sha256 else None
