"""Object stores: a folder on another disk, a bucket, or memory, behind the same few verbs, each over many objects.

An object is bytes under a key: path components joined by `/` (see `valid_key`). It shows whole or not at all, and putting it again is harmless.
What goes wrong with one object is told in its outcome; what ends the whole store is raised: PlaceMissing (no such folder or bucket, disk not
mounted), LoginRefused, Unreachable, LineCut, DiskFull, Locked. Outcomes come in any order, exactly one an item. Closing a generator early stops it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from hostbackup.errors import Damaged, HostbackupError
from hostbackup.model import Method, Status

CHUNK = 1 << 20
LOCKS = "locks/"  # keys of the writer's lock, where it is an object
KEY_BYTES = 1024  # what S3 takes, as UTF-8


class Listed(NamedTuple):
    """`etag` and `modified` (seconds since the epoch, by the store's clock) are "" and 0 where a store does not tell them in its listing. A folder
    has no ETags, and a file's own time as `modified`.
    """

    key: str
    size: int
    etag: str = ""
    modified: float = 0.0


@dataclass(frozen=True, slots=True)
class Upload:
    """An object to be put: its key, size in bytes and SHA-256; `open` gives the contents from the start each time.

    `digest` "": the bytes are known once they were read, and `size` is about how many they will be; the outcome tells both. `content_type` and
    `metadata` (names and values, ASCII) are what a bucket tells whoever fetches it; a folder keeps neither. `mtime_ns`: the time that the file is
    to bear in a folder, 0 where it does not matter; a bucket keeps it only as far as the metadata tell it. `lasting`: falls under the retention that
    a bucket was set up for.
    """

    key: str
    size: int
    digest: str
    open: Callable[[], BinaryIO]
    content_type: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    lasting: bool = True
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object that was put or deleted. `code` is "" where all went well.

    `size` and `digest` are those of the stored bytes. `checksum` is what the store computed over an object that went up in parts ("…-3", a digest
    of their SHA-256s), "" where it computed none; `until` the time stamp before which it lets nobody delete it, "" where it does not say; `etag` and
    `modified` what the next listing will tell, as far as the store says it. Code "source-damaged": the bytes read for the upload are not those of
    its digest; nothing was stored.
    """

    key: str
    size: int = 0
    code: str = ""
    reason: str = ""
    hint: str = ""
    digest: str = ""
    checksum: str = ""
    until: str = ""
    etag: str = ""
    modified: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.code


def mark(told: Listed | Outcome) -> str:
    """What tells one version of an object from another without a look at its bytes; "" where the store tells nothing of the kind."""
    return told.etag or (repr(told.modified) if told.modified else "")


class Described(NamedTuple):
    """What a store says of one object. `sha256` is what it computed itself, "" where it did not; a folder tells neither that nor metadata."""

    size: int
    sha256: str = ""
    metadata: Mapping[str, str] = {}


class Wanted(NamedTuple):
    """An object whose contents are to be proven. `checksum`: what the outcome of its upload told."""

    key: str
    digest: str
    size: int
    checksum: str = ""


class Proven(NamedTuple):
    """What a store can say of a wanted object. `reason` is "" where it is VERIFIED."""

    wanted: Wanted
    status: Status
    method: Method
    reason: str = ""


class Hold(Protocol):
    """The writer's lock of a store, while its `with` block lasts. Getting or entering it raises Locked, which names who has it and since when.

    A lock that is lost meanwhile (the machine slept, and somebody took it over) makes every later `put` and `delete` raise Locked.
    """

    @property
    def key(self) -> str:
        """What to remember before it is entered, beside what was `stale` then, and to forget after. "" where nothing is needed."""
        ...

    def __enter__(self) -> Hold: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Store(Protocol):
    """Where copies lie. Its methods may be called from several threads."""

    @property
    def label(self) -> str:
        """What people know it by: a path or `s3://bucket/prefix`."""
        ...

    def hold(self, stale: Collection[str] = ()) -> Hold:
        """The writer's lock, to be entered. `stale`: keys of locks that killed runs of the same vault left; they are taken over at once."""
        ...

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Every object whose key begins with `prefix`, keys ascending. Raises PlaceMissing where the store itself is not there."""
        ...

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        """Stores the objects; each outcome is told once the object is durable there. `at_once`: no more are taken before the outcomes of others."""
        ...

    def get(self, key: str, start: int = 0, size: int | None = None) -> BinaryIO:
        """The contents, or the `size` bytes from `start` on, in a stream that raises rather than end early. Raises Absent."""
        ...

    def describe(self, key: str) -> Described:
        """What the store says of an object, at the price of one request. Raises Absent."""
        ...

    def prove(self, items: Iterable[Wanted], *, read: bool | None = False) -> Iterator[Proven]:
        """Whether the store has these contents, by its own SHA-256, else by reading all of it back.

        `read`: always the latter; None: never, so that what has no such SHA-256 is UNVERIFIED.
        """
        ...

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        """Removes objects; one that is not there is removed already."""
        ...

    def tidy(self) -> None:
        """Clears away what killed uploads left behind and nobody can see."""
        ...

    def close(self) -> None: ...


class Absent(Damaged):
    """The store has no such object."""

    code = "missing"


class SourceDamaged(Damaged):
    """Bytes on their way into a store are not those their digest names."""

    code = "source-damaged"


def valid_key(key: str) -> bool:
    """Whether `key` can be one: UTF-8 of up to 1,024 bytes without control characters, its components neither empty nor `.` or `..`.

    A folder takes of these what its file system can hold; keys that every store can hold are portable ASCII.
    """
    if not key.isprintable() and any(ord(character) < 32 or 127 <= ord(character) < 160 for character in key):
        return False
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return False
    return size <= KEY_BYTES and all(name not in ("", ".", "..") for name in key.split("/"))


class Chunks:
    """The contents of an upload in pieces of `piece` bytes (the last may be shorter), to be gone through once; `size` and `digest` are theirs then.

    Raises SourceDamaged, before the last piece, where they are not as said.
    """

    def __init__(self, item: Upload, piece: int = CHUNK) -> None:
        self._item = item
        self.piece = piece
        self.size = 0
        self.digest = ""

    def __iter__(self) -> Iterator[bytes]:
        item, hasher = self._item, hashlib.sha256()
        with item.open() as stream:
            data = _exactly(stream, self.piece, item.key)
            while data:
                hasher.update(data)
                self.size += len(data)
                following = _exactly(stream, self.piece, item.key) if len(data) == self.piece else b""
                if not following:
                    break
                yield data
                data = following
                if item.digest and self.size + len(data) > item.size:
                    raise self._not_as_said()
        self.digest = hasher.hexdigest()
        if item.digest and (self.size != item.size or self.digest != item.digest):
            raise self._not_as_said()
        if data:
            yield data

    def _not_as_said(self) -> SourceDamaged:
        return SourceDamaged("its bytes are not those its name stands for", where=self._item.key)


def _exactly(stream: BinaryIO, size: int, where: str) -> bytes:
    """`size` bytes, or fewer at the end of the stream."""
    parts: list[bytes] = []
    try:
        while size and (data := stream.read(size)):
            parts.append(data)
            size -= len(data)
    except OSError as error:
        raise SourceDamaged(f"cannot be read: {(error.strerror or str(error)).lower()}", where=where) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def failed(key: str, error: HostbackupError | OSError, size: int = 0) -> Outcome:
    """The outcome of an object that an error befell."""
    if isinstance(error, HostbackupError):
        return Outcome(key, size, error.code, error.reason, error.hint)
    return Outcome(key, size, "io", error.strerror or str(error))


def prove_by_reading(wanted: Wanted, open_it: Callable[[str], BinaryIO]) -> Proven:
    """Reads an object back and hashes it. Whole-store errors are the caller's to tell apart: whatever `open_it` raises but Absent goes through."""
    digest = hashlib.sha256()
    size = 0
    try:
        with open_it(wanted.key) as stream:
            while data := stream.read(CHUNK):
                digest.update(data)
                size += len(data)
    except Absent as error:
        return Proven(wanted, Status.MISSING, Method.BUCKET_REREAD, error.reason)
    if size != wanted.size:
        return Proven(wanted, Status.DIFFERENT, Method.BUCKET_REREAD, f"{size} bytes are stored instead of {wanted.size}")
    if digest.hexdigest() != wanted.digest:
        return Proven(wanted, Status.DIFFERENT, Method.BUCKET_REREAD, "the stored bytes are others than were put there")
    return Proven(wanted, Status.VERIFIED, Method.BUCKET_REREAD)


def unread(wanted: Wanted, size: int) -> Proven:
    """What can be said of an object of `size` bytes that has no checksum and was not read."""
    if size != wanted.size:
        return Proven(wanted, Status.DIFFERENT, Method.BUCKET_REREAD, f"{size} bytes are stored instead of {wanted.size}")
    return Proven(wanted, Status.UNVERIFIED, Method.NONE, "it was not read back, and the store offers no checksum of it")


class PassedOn(io.RawIOBase):
    """Another stream, looked at as it is read, and closed with this one. Whoever derives from it gives `readinto`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Checked(PassedOn):
    def __init__(self, stream: BinaryIO, digest: str, size: int | None, where: str) -> None:
        super().__init__(stream)
        self._hash = hashlib.sha256()
        self._digest = digest
        self._left = size
        self._where = where
        self._checked = False

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        self._hash.update(data)
        if self._left is not None:
            self._left -= len(data)
        if not data and not self._checked:
            self._checked = True
            if self._left or self._hash.hexdigest() != self._digest:
                raise Damaged("its bytes are not those its name stands for", where=self._where)
        buffer[: len(data)] = data
        return len(data)


def checked(stream: BinaryIO, digest: str, where: str, size: int | None = None) -> BinaryIO:
    """`stream`, which raises Damaged at its end if its bytes were not those of `digest`."""
    return cast(BinaryIO, io.BufferedReader(_Checked(stream, digest, size, where), 1 << 17))


class _Ranged(PassedOn):
    def __init__(self, stream: BinaryIO, size: int, where: str) -> None:
        super().__init__(stream)
        self._left = size
        self._where = where

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise Damaged("it ends before the bytes that are to be in it", where=self._where)
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def ranged(stream: BinaryIO, start: int, size: int | None, where: str) -> BinaryIO:
    """The `size` bytes (None: all) from `start` on of a stream that can seek. Raises Damaged where there are not so many."""
    if start:
        stream.seek(start)
    return stream if size is None else cast(BinaryIO, io.BufferedReader(_Ranged(stream, size, where), 1 << 17))
