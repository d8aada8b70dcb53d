"""Packs: many small contents in one plain tar (POSIX.1-1988, ustar), so that a store is asked once for thousands of them.

A member is called `objects/ab/abcd…` or `manifests/ab/abcd…`, as in a vault, with `.zst` behind it where it is compressed (RFC 8878).
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hostbackup.errors import Damaged
from hostbackup.protocols import tar
from hostbackup.vault.hashing import is_digest

if TYPE_CHECKING:
    import zstandard

PACK_BYTES = 16 << 20  # of contents, after which a pack is closed
SMALL = 8 << 20  # contents that are larger lie on their own
KINDS = ("objects", "manifests")
_LARGEST = 64 << 20  # bytes; no member of a pack is larger
_LEVEL = 3  # zstd's own default
_WORTH = 64  # bytes below which nothing is compressed
_END = bytes(2 * tar.BLOCK)


class Member(NamedTuple):
    """Where one content lies in a blob: `length` bytes from `offset` on, which are its `size` bytes, or those packed ("zstd")."""

    digest: str
    offset: int
    length: int
    size: int
    packing: str = ""


def footprint(member: Member) -> int:
    """How many bytes a member takes in a pack, its header included."""
    return tar.BLOCK + member.length + -member.length % tar.BLOCK


class PackBuilder:
    """One pack of one kind of contents. Used by one thread."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.members: list[Member] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._compressor: zstandard.ZstdCompressor | None = None

    def add(self, digest: str, data: bytes) -> None:
        """Adds a content; the caller has compared its digest."""
        stored, packing = self._packed(data)
        name = f"{self.kind}/{digest[:2]}/{digest}{'.zst' if packing else ''}"
        padding = tar.padding(len(stored))
        self.members.append(Member(digest, self._size + tar.BLOCK, len(stored), len(data), packing))
        self._parts += (tar.header(name.encode(), len(stored), 0, 0o400), stored, padding)
        self._size += tar.BLOCK + len(stored) + len(padding)

    def _packed(self, data: bytes) -> tuple[bytes, str]:
        if len(data) < _WORTH:
            return data, ""
        if self._compressor is None:
            import zstandard

            self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        packed = self._compressor.compress(data)
        return (packed, "zstd") if len(packed) <= len(data) * 0.9 else (data, "")

    def finish(self) -> bytes:
        """The whole pack. The builder is used up by it."""
        parts, self._parts = self._parts, []
        return b"".join([*parts, _END])


def unpacked(member: Member, stored: bytes, where: str) -> bytes:
    """The content of a member, of whose pack `stored` is its piece. Raises Damaged where that is not what its digest says."""
    data = stored
    if member.packing:
        import zstandard

        try:
            if not 0 <= member.size <= _LARGEST:
                raise zstandard.ZstdError("a size that no member has")
            if zstandard.frame_content_size(stored) != member.size:
                raise zstandard.ZstdError("another size")
            data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=member.size)
        except zstandard.ZstdError as error:
            raise Damaged("its packed bytes are damaged", where=where) from error
    if len(data) != member.size or hashlib.sha256(data).hexdigest() != member.digest:
        raise Damaged("its bytes are not those its name stands for", where=where)
    return data


def content_of(member: Member, pack: bytes, where: str) -> bytes:
    """The same, out of the whole pack."""
    return unpacked(member, pack[member.offset : member.offset + member.length], where)


def is_whole(member: Member, pack: bytes) -> bool:
    """Whether a member of a pack, which may be damaged or cut, is what its digest says."""
    try:
        content_of(member, pack, "")
    except Damaged:
        return False
    return True


def read_pack(data: bytes) -> Iterator[tuple[str, Member]]:
    """The members of a pack, with their kind, by its tar headers alone; those of other names are passed over.

    What is no header is passed over block by block, so that what stands behind a damaged one is found too.
    """
    place = 0
    while place + tar.BLOCK <= len(data):
        found = _read_member(data, place)
        if found is None:
            place += tar.BLOCK
            continue
        yield found
        place += footprint(found[1])


def _read_member(data: bytes, place: int) -> tuple[str, Member] | None:
    import zstandard

    try:
        info = tarfile.TarInfo.frombuf(data[place : place + tar.BLOCK], "ascii", "strict")
    except (tarfile.TarError, ValueError):
        return None
    kind, _, name = info.name.partition("/")
    digest, _, end = name.partition("/")[2].partition(".")
    start = place + tar.BLOCK
    if not info.isreg() or kind not in KINDS or not is_digest(digest) or end not in ("", "zst") or not 0 <= info.size <= len(data) - start:
        return None
    size = info.size
    if end:
        try:
            size = zstandard.frame_content_size(data[start : start + info.size])
        except zstandard.ZstdError:
            return None
    return (kind, Member(digest, start, info.size, size, "zstd" if end else "")) if 0 <= size <= _LARGEST else None
