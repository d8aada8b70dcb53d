"""The extension check-file (draft-ietf-secsh-filexfer-extensions-00, section 3): digests of files, computed by the SFTP server.

Only whole files are asked for: ProFTPD up to 1.3.8 takes offset + length for the length. Servers differ in how they answer: ProFTPD sends the
algorithm and the bare digest; the draft for version 6, Apache MINA and paramiko put the extension's name in front, and the last two a length
before each digest. All are understood.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from hostbackup.protocols.sftp.packets import Request, extended, text

SIZES = {b"sha256": 32, b"sha1": 20, b"md5": 16, b"crc32": 4}  # bytes of a digest, the strongest first
WHOLE_LIMIT = (1 << 31) - 1  # bytes: some servers count a file that is hashed as one block in 31 or 32 bits

_u32 = struct.Struct(">I")


class Checked(NamedTuple):
    """What the server computed: lower-case hex, one digest a block."""

    algorithm: str
    digests: tuple[str, ...]


def check_file(path: bytes, algorithms: Sequence[bytes], *, block: int = 0) -> Request:
    """Asks for digests of a whole file, one each `block` bytes (0: one in all), by the first of `algorithms` that the server knows."""
    return extended(b"check-file-name", text(path) + text(b",".join(algorithms)) + struct.pack(">QQI", 0, 0, block))


def parse(body: memoryview, algorithms: Sequence[bytes], *, blocks: int = 1) -> Checked | None:
    """What a reply tells; None where it is no answer to what was asked."""
    name, rest = _string(bytes(body))
    if name == b"check-file":
        name, rest = _string(rest)
    if name is None or name not in algorithms:
        return None
    size = SIZES[name]
    if len(rest) == blocks * size:
        found = [rest[at : at + size] for at in range(0, len(rest), size)]
    elif len(rest) == blocks * (4 + size):
        starts = range(0, len(rest), 4 + size)
        if any(_u32.unpack_from(rest, at)[0] != size for at in starts):
            return None
        found = [rest[at + 4 : at + 4 + size] for at in starts]
    else:
        return None
    return Checked(name.decode(), tuple(digest.hex() for digest in found))


def _string(body: bytes) -> tuple[bytes | None, bytes]:
    if len(body) < 4:
        return None, b""
    end = 4 + _u32.unpack_from(body)[0]
    return (body[4:end], body[end:]) if end <= len(body) else (None, b"")
