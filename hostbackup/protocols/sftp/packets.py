"""The packets of SFTP version 3 (draft-ietf-secsh-filexfer-02): encoding of requests, strict decoding of replies.

Names and handles are bytes. Nothing is allocated from a length that the server only claims: every length is checked against the bytes that are
there, and a packet's own length against a cap. What does not fit raises ProtocolBroken.
"""

from __future__ import annotations

import enum
import stat
import struct
from typing import Any, NamedTuple

from hostbackup.errors import ProtocolBroken
from hostbackup.model import Kind

VERSION = 3
PACKET_LIMIT = 1 << 20  # bytes; OpenSSH ends at 256 KiB, and no request made here asks for more


class Type(enum.IntEnum):
    """Packet types (section 3)."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Code(enum.IntEnum):
    """Status codes (section 7)."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


class Flag(enum.IntFlag):
    """How OPEN opens (section 6.3)."""

    READ = 0x01
    WRITE = 0x02
    APPEND = 0x04
    CREAT = 0x08
    TRUNC = 0x10
    EXCL = 0x20


_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
_ALL = _SIZE | _OWNER | _PERMISSIONS | _TIMES

_u32 = struct.Struct(">I")
_u64 = struct.Struct(">Q")
_two = struct.Struct(">II")
_read = struct.Struct(">QI")
_head = struct.Struct(">IBI")
_status = struct.Struct(">I")
_times = struct.Struct(">ii")
_all_attrs = struct.Struct(">QIIIii")

_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIR, stat.S_IFLNK: Kind.LINK}


class Attrs(NamedTuple):
    """File attributes (section 5); None where the server told none.

    Times are whole seconds. The draft has them unsigned, and servers put times before 1970 into the upper half, cut to 32 bits: read with a
    sign they are what the file has (a zip without a date, unpacked east of Greenwich, is from 1969), where a time after 2038 is a clock gone wrong.
    To be sent they must not be negative: servers would take that for one after 2038.
    """

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    permissions: int | None = None  # with the type bits
    atime: int | None = None
    mtime: int | None = None

    @property
    def kind(self) -> Kind | None:
        """What it is, or None where the server told no type bits."""
        told = (self.permissions or 0) & 0o170000
        return _KINDS.get(told, Kind.OTHER) if told else None

    @property
    def mode(self) -> int:
        return (self.permissions or 0) & 0o7777

    @property
    def mtime_ns(self) -> int:
        return (self.mtime or 0) * 1_000_000_000

    @property
    def whole(self) -> bool:
        """Whether kind, size and mtime are all told."""
        return self.size is not None and self.mtime is not None and self.kind is not None


class Status(NamedTuple):
    """A STATUS reply: `code` is one of Code, or a number unknown to version 3."""

    code: int
    message: bytes = b""

    @property
    def ok(self) -> bool:
        return self.code == Code.OK

    def __str__(self) -> str:
        text = self.message.decode("utf-8", "replace")
        return "".join(c if c.isprintable() else "?" for c in text[:200]) or f"status {self.code}"


class Name(NamedTuple):
    """One item of a NAME reply."""

    name: bytes
    attrs: Attrs


UNHEARD: Any = object()
"""The mark of a request whose reply nobody waits for."""


class Request(NamedTuple):
    """What is asked: the packet's type, its body after the id, and the caller's mark, given back with the reply."""

    type: int
    body: bytes
    mark: Any = None


class Reply(NamedTuple):
    """What came back: a Status, a handle (bytes), data (memoryview), Names (list), Attrs, or the raw body of an EXTENDED_REPLY (memoryview)."""

    mark: Any
    value: Any


# -- requests


def text(value: bytes) -> bytes:
    """A string on the wire: its length, then its bytes."""
    return _u32.pack(len(value)) + value


def attrs_bytes(attrs: Attrs) -> bytes:
    flags, body = 0, b""
    if attrs.size is not None:
        flags, body = flags | _SIZE, body + _u64.pack(attrs.size)
    if attrs.uid is not None and attrs.gid is not None:
        flags, body = flags | _OWNER, body + _two.pack(attrs.uid, attrs.gid)
    if attrs.permissions is not None:
        flags, body = flags | _PERMISSIONS, body + _u32.pack(attrs.permissions)
    if attrs.atime is not None and attrs.mtime is not None:
        flags, body = flags | _TIMES, body + _two.pack(attrs.atime & 0xFFFFFFFF, attrs.mtime & 0xFFFFFFFF)
    return _u32.pack(flags) + body


def packet(number: int, request: Request) -> bytes:
    """The whole packet of a request, its length in front."""
    return _head.pack(len(request.body) + 5, request.type, number) + request.body


def init() -> bytes:
    return struct.pack(">IBI", 5, Type.INIT, VERSION)


def on_path(kind: Type, path: bytes, mark: Any = None) -> Request:
    """LSTAT, STAT, OPENDIR, REMOVE, RMDIR, REALPATH or READLINK."""
    return Request(kind, _u32.pack(len(path)) + path, mark)


def on_handle(kind: Type, handle: bytes, mark: Any = None) -> Request:
    """CLOSE, FSTAT or READDIR."""
    return Request(kind, _u32.pack(len(handle)) + handle, mark)


def open_file(path: bytes, flags: Flag, attrs: Attrs = Attrs(), mark: Any = None) -> Request:  # noqa: B008 - immutable
    return Request(Type.OPEN, text(path) + _u32.pack(flags) + attrs_bytes(attrs), mark)


def read(handle: bytes, offset: int, length: int, mark: Any = None) -> Request:
    return Request(Type.READ, _u32.pack(len(handle)) + handle + _read.pack(offset, length), mark)


def write(handle: bytes, offset: int, data: bytes, mark: Any = None) -> Request:
    return Request(Type.WRITE, text(handle) + _u64.pack(offset) + _u32.pack(len(data)) + data, mark)


def set_attrs(kind: Type, target: bytes, attrs: Attrs, mark: Any = None) -> Request:
    """SETSTAT (a path), FSETSTAT (a handle) or MKDIR (a path)."""
    return Request(kind, text(target) + attrs_bytes(attrs), mark)


def two_paths(kind: Type, first: bytes, second: bytes, mark: Any = None) -> Request:
    """RENAME (old, new) or SYMLINK, whose order OpenSSH reversed: (what the link says, where the link stands)."""
    return Request(kind, text(first) + text(second), mark)


def extended(name: bytes, body: bytes, mark: Any = None) -> Request:
    return Request(Type.EXTENDED, text(name) + body, mark)


# -- replies


def _broken(what: str) -> ProtocolBroken:
    return ProtocolBroken(f"the server sent an SFTP packet that is not valid: {what}")


class Framer:
    """Cuts a byte stream into packets. Linear in the bytes fed, holds at most one packet's bytes beside the newest chunk."""

    def __init__(self, limit: int = PACKET_LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = 4

    def feed(self, data: bytes) -> list[memoryview]:
        """The packets that are whole by now, without their length. Raises ProtocolBroken where a length is impossible."""
        self._parts.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return []
        bodies = []
        whole = data if len(self._parts) == 1 else b"".join(self._parts)
        view, at, end = memoryview(whole), 0, len(whole)
        while True:
            if end - at < 4:
                self._needed = 4
                break
            (length,) = _u32.unpack_from(whole, at)
            if not 5 <= length <= self._limit:
                raise _broken(f"its length is {length}")
            if end - at - 4 < length:
                self._needed = 4 + length
                break
            at += 4 + length
            bodies.append(view[at - length : at])
        self._parts = [whole[at:]] if at < end else []
        self._held = end - at
        return bodies

    @property
    def between(self) -> bool:
        """Whether no packet has begun that is not whole."""
        return self._held == 0


def _string(body: memoryview, at: int) -> tuple[memoryview, int]:
    if len(body) - at < 4:
        raise _broken("a string's length is cut off")
    end = at + 4 + _u32.unpack_from(body, at)[0]
    if end > len(body):
        raise _broken("a string is longer than its packet")
    return body[at + 4 : end], end


def parse_attrs(body: memoryview, at: int) -> tuple[Attrs, int]:
    """Attributes at an offset, and the offset after them."""
    try:
        (flags,) = _u32.unpack_from(body, at)
        if flags == _ALL:
            return Attrs(*_all_attrs.unpack_from(body, at + 4)), at + 32
        return _some_attrs(body, at + 4, flags)
    except struct.error as error:
        raise _broken("attributes are cut off") from error


def _some_attrs(body: memoryview, at: int, flags: int) -> tuple[Attrs, int]:
    if flags & ~(_ALL | _EXTENDED):
        raise _broken(f"attribute flags {flags:#x} are unknown to version 3")
    size = uid = gid = permissions = atime = mtime = None
    if flags & _SIZE:
        (size,), at = _u64.unpack_from(body, at), at + 8
    if flags & _OWNER:
        (uid, gid), at = _two.unpack_from(body, at), at + 8
    if flags & _PERMISSIONS:
        (permissions,), at = _u32.unpack_from(body, at), at + 4
    if flags & _TIMES:
        (atime, mtime), at = _times.unpack_from(body, at), at + 8
    if flags & _EXTENDED:
        (count,), at = _u32.unpack_from(body, at), at + 4
        if count * 8 > len(body) - at:
            raise _broken("more extended attributes than bytes")
        for _ in range(2 * count):
            _, at = _string(body, at)
    return Attrs(size, uid, gid, permissions, atime, mtime), at


def _names(body: memoryview, at: int) -> list[Name]:
    if len(body) - at < 4:
        raise _broken("a list of names is cut off")
    (count,), at = _u32.unpack_from(body, at), at + 4
    if count * 12 > len(body) - at:
        raise _broken("more names than bytes")
    names = []
    unpack = _u32.unpack_from
    try:  # a length that leads past the end leaves nothing to unpack behind it
        for _ in range(count):
            begin, end = at + 4, at + 4 + unpack(body, at)[0]
            at = end + 4 + unpack(body, end)[0]  # past the long name, as `ls -l` would show it: for people only
            if unpack(body, at)[0] == _ALL:
                attrs, at = Attrs._make(_all_attrs.unpack_from(body, at + 4)), at + 32
            else:
                attrs, at = parse_attrs(body, at)
            names.append(Name(bytes(body[begin:end]), attrs))
    except struct.error as error:
        raise _broken("a name is cut off") from error
    if at != len(body):
        raise _broken("bytes left over after a list of names")
    return names


def _parse_status(body: memoryview, at: int) -> Status:
    if len(body) - at < 4:
        raise _broken("a status is cut off")
    (code,) = _status.unpack_from(body, at)
    # Early servers end here, without message and language.
    message = bytes(_string(body, at + 4)[0]) if len(body) > at + 4 else b""
    return Status(code, message)


def parse_reply(body: memoryview) -> tuple[int, Any]:
    """The request's number and the value of a reply, as `Reply.value` has it. Raises ProtocolBroken."""
    if len(body) < 5:
        raise _broken("it has no number")
    kind, (number,) = body[0], _u32.unpack_from(body, 1)
    if kind == Type.STATUS:
        return number, _parse_status(body, 5)
    if kind == Type.ATTRS:
        attrs, end = parse_attrs(body, 5)
        if end != len(body):
            raise _broken("bytes left over after attributes")
        return number, attrs
    if kind == Type.NAME:
        return number, _names(body, 5)
    if kind == Type.EXTENDED_REPLY:
        return number, body[5:]
    if kind not in (Type.DATA, Type.HANDLE):
        raise _broken(f"type {kind} is no reply")
    value, end = _string(body, 5)
    if end != len(body):
        raise _broken("bytes left over after a string")
    if kind == Type.DATA:
        return number, value
    if not 0 < len(value) <= 256:
        raise _broken(f"a handle of {len(value)} bytes")
    return number, bytes(value)


def parse_version(body: memoryview) -> tuple[int, dict[bytes, bytes]]:
    """The version and the extensions of a VERSION packet."""
    if body[0] != Type.VERSION or len(body) < 5:
        raise _broken("the first packet is not VERSION")
    (version,), at = _u32.unpack_from(body, 1), 5
    extensions: dict[bytes, bytes] = {}
    while at < len(body):
        name, at = _string(body, at)
        data, at = _string(body, at)
        extensions[bytes(name)] = bytes(data)
    return version, extensions


def parse_limits(body: memoryview) -> tuple[int, int, int, int]:
    """The reply to `limits@openssh.com`: longest packet, read, write (bytes) and most open handles; 0 where there is no limit."""
    if len(body) < 32:
        raise _broken("limits are cut off")
    longest, reading, writing, handles = struct.unpack_from(">QQQQ", body)
    return longest, reading, writing, handles


def parse_statvfs(body: memoryview) -> int:
    """Free bytes for an ordinary user, from the reply to `statvfs@openssh.com`."""
    if len(body) < 88:
        raise _broken("file-system figures are cut off")
    figures = struct.unpack_from(">11Q", body)
    return int(figures[1] * figures[4])  # f_frsize * f_bavail
