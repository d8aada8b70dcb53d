"""Putting one file or link in its place over SFTP."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from hostbackup.errors import ConnectionFailed, HostbackupError
from hostbackup.model import Entry, Failure, Kind, Write
from hostbackup.places.sftp_read import Got, read_whole
from hostbackup.places.sftp_tree import Tree, entry
from hostbackup.protocols.sftp.client import Connection, Steps, ask, ask_one
from hostbackup.protocols.sftp.packets import (
    Attrs,
    Code,
    Flag,
    Request,
    Status,
    Type,
    extended,
    on_handle,
    on_path,
    open_file,
    set_attrs,
    text,
    two_paths,
    write,
)

if TYPE_CHECKING:
    from hostbackup.protocols.remote import Login

WINDOW = 2 << 20  # bytes of one file under way
_POSIX_RENAME = b"posix-rename@openssh.com"
_FSYNC = b"fsync@openssh.com"
_LSETSTAT = b"lsetstat@openssh.com"
OLD = b".old-"  # between a temporary prefix and a name: the target's own file, moved aside for a moment


class Refused(Exception):
    """This entry cannot be written; tells why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _as_expected(item: Write[Entry], there: Attrs) -> bool:
    """Whether what is to be replaced still is what the caller looked at, as far as version 3 tells."""
    said = item.expected
    if said is None:
        return True
    size = there.size if there.kind is Kind.FILE else 0
    return (there.kind, size, there.mtime) == (said.kind, said.size, said.mtime_ns // 1_000_000_000)


class Put:
    """How entries get their places. `orphans` are temporary names that may still stand on the server."""

    def __init__(self, tree: Tree, prefix: bytes, session: Callable[[], Login]) -> None:
        self._tree = tree
        self._prefix = prefix
        self._numbers = itertools.count()
        self._session = session
        self._link_first: bool | None = None
        self.orphans: set[bytes] = set()

    @staticmethod
    def weight(item: Write[Entry]) -> int:
        return min(item.size or item.item.size, WINDOW) + 1

    def _temporary(self, path: bytes) -> bytes:
        folder = path.rpartition(b"/")[0]
        return self._tree.full((folder + b"/" if folder else b"") + b"%s-%x.part" % (self._prefix, next(self._numbers)))

    # -- files ------------------------------------------------------------------------------------------------------------------------

    def file(self, connection: Connection, item: Write[Entry]) -> Steps[Entry]:
        """The file in its place, as the server then describes it. Raises Refused."""
        path = item.item.path
        full = self._tree.full(path)
        there = yield from ask_one(on_path(Type.LSTAT, full))
        if isinstance(there, Attrs):
            kept = yield from self._in_the_way(connection, item, there)
            if kept is not None:
                return kept
        elif there.code != Code.NO_SUCH_FILE:
            raise Refused(self._tree.refused(path, there))
        temporary = self._temporary(path)
        self.orphans.add(temporary)
        try:
            yield from self._fill(connection, item, temporary)
            yield from self._rename(connection, item, temporary, full, taken=isinstance(there, Attrs))
        except Refused:
            yield from ask(on_path(Type.REMOVE, temporary))
            self.orphans.discard(temporary)
            raise
        self.orphans.discard(temporary)
        now = yield from ask_one(on_path(Type.LSTAT, full))
        if not isinstance(now, Attrs):
            raise Refused(self._tree.refused(path, now))
        return entry(path, now)

    def _in_the_way(self, connection: Connection, item: Write[Entry], there: Attrs) -> Steps[Entry | None]:
        """What to do with what is there already: the entry to be content with, or None to go on. Raises Refused."""
        path = item.item.path
        if item.replace and there.kind in (Kind.FILE, Kind.LINK) and _as_expected(item, there):
            return None
        if there.kind is Kind.FILE and item.digest and there.size == item.size:
            seen = hashlib.sha256()
            got = yield from read_whole(connection, self._tree.full(path), seen.update, careful=True)
            if isinstance(got, Got) and got.still and seen.hexdigest() == item.digest:
                return entry(path, got.after)
        what = {Kind.FILE: "another file", Kind.DIR: "a folder", Kind.LINK: "a symlink"}.get(there.kind or Kind.OTHER, "something else")
        raise Refused(self._tree.tell(path, "exists", f"{what} is there, and is left as it is"))

    def _fill(self, connection: Connection, item: Write[Entry], temporary: bytes) -> Steps[None]:
        """The contents under a temporary name: whole, as on record, with mode and time, synced. Raises Refused."""
        path = item.item.path
        handle = yield from ask_one(open_file(temporary, Flag.WRITE | Flag.CREAT | Flag.EXCL, Attrs(permissions=0o600)))
        if not isinstance(handle, bytes):
            raise Refused(self._refused(path, handle))
        seen = hashlib.sha256()
        chunks = self._contents(item, connection.limits.write)
        try:
            refused = yield from self._pour(handle, path, chunks, seen.update)
        except Refused:
            yield from ask(on_handle(Type.CLOSE, handle))
            raise
        if refused is None and item.digest and seen.hexdigest() != item.digest:
            refused = self._tree.tell(path, "damaged", "the bytes to be written are not those on record", "run `hostbackup verify`")
        if refused is not None:
            yield from ask(on_handle(Type.CLOSE, handle))
            raise Refused(refused)
        seconds = item.item.mtime_ns // 1_000_000_000
        times = seconds if 0 <= seconds < 1 << 32 else None
        last = [set_attrs(Type.FSETSTAT, handle, Attrs(permissions=item.item.mode & 0o7777, atime=times, mtime=times))]
        if _FSYNC in connection.extensions:
            last.append(extended(_FSYNC, text(handle)))
        # A server that keeps no modes or times has the file all the same; what it made of them is told by the LSTAT at the end.
        _, *results = yield from ask(*last, on_handle(Type.CLOSE, handle))
        for status in results:
            if not status.ok and status.code != Code.OP_UNSUPPORTED:
                raise Refused(self._refused(path, status))

    def _contents(self, item: Write[Entry], chunk: int) -> Iterator[bytes]:
        """The bytes to write. What goes wrong with them is the source's trouble, and this one entry's."""
        path = item.item.path
        if item.open is None:
            raise Refused(self._tree.tell(path, "failed", "no contents were given"))
        try:
            stream: BinaryIO = item.open()
            with stream:
                while data := stream.read(chunk):
                    yield data
        except ConnectionFailed:
            raise
        except HostbackupError as error:
            raise Refused(self._tree.tell(path, error.code, error.reason, error.hint)) from error
        except OSError as error:
            raise Refused(self._tree.tell(path, "io", f"the bytes to be written could not be read: {error.strerror or error}")) from error

    def _pour(self, handle: bytes, path: bytes, chunks: Iterator[bytes], seen: Callable[[bytes], object]) -> Steps[Failure | None]:
        """Sends all chunks, a window of WRITEs at a time, and awaits every reply."""
        offset = due = 0
        trouble: Failure | None = None
        ended = False
        while True:
            requests: list[Request] = []
            while not ended and trouble is None and due < WINDOW:
                try:
                    data = next(chunks, b"")
                except Refused as refused:
                    trouble = refused.failure
                    break
                if not data:
                    ended = True
                    break
                seen(data)
                requests.append(write(handle, offset, data, len(data)))
                offset += len(data)
                due += len(data)
            if not due:
                return trouble
            length, status = yield requests
            due -= length
            if not (isinstance(status, Status) and status.ok):
                trouble = trouble or self._refused(path, status)

    def _refused(self, path: bytes, status: object) -> Failure:
        if not isinstance(status, Status):
            status = Status(Code.FAILURE, b"an answer of the wrong kind")
        if status.code == Code.FAILURE:
            hint = "the server tells no reason: is the disk or the quota full there?"
            return self._tree.tell(path, "refused", f"the server refused to write: {status}", hint)
        return self._tree.refused(path, status)

    # -- names ------------------------------------------------------------------------------------------------------------------------

    def _rename(self, connection: Connection, item: Write[Entry], temporary: bytes, full: bytes, *, taken: bool) -> Steps[None]:
        """Gives what stands under `temporary` its name. Raises Refused; then `temporary` still stands."""
        path = item.item.path
        if item.replace and _POSIX_RENAME in connection.extensions:
            status = yield from ask_one(extended(_POSIX_RENAME, text(temporary) + text(full)))
        elif taken:
            status = yield from self._swap(temporary, full)
        else:
            # Version 3 forbids RENAME to replace; OpenSSH does it by link(2), which decides in one step.
            status = yield from ask_one(two_paths(Type.RENAME, temporary, full))
        if isinstance(status, Status) and status.ok:
            return
        there = yield from ask_one(on_path(Type.LSTAT, full))
        if isinstance(there, Attrs) and not item.replace:
            kept = yield from self._in_the_way(connection, item, there)
            if kept is not None:  # renamed by an attempt whose line was cut, or put there by somebody with the same bytes
                yield from ask(on_path(Type.REMOVE, temporary))
                return
        raise Refused(self._refused(path, status))

    def _swap(self, temporary: bytes, full: bytes) -> Steps[object]:
        """Replaces without posix-rename: the old file steps aside under a name that tells where it belongs, and comes back if that fails."""
        folder, _, name = full.rpartition(b"/")
        aside = folder + b"/" + self._prefix + OLD + name
        status = yield from ask_one(two_paths(Type.RENAME, full, aside))
        if not (isinstance(status, Status) and status.ok):
            return status
        status = yield from ask_one(two_paths(Type.RENAME, temporary, full))
        if isinstance(status, Status) and status.ok:
            yield from ask(on_path(Type.REMOVE, aside))
        else:
            yield from ask(two_paths(Type.RENAME, aside, full))
        return status

    # -- links ------------------------------------------------------------------------------------------------------------------------

    def link(self, connection: Connection, item: Write[Entry]) -> Steps[Entry]:
        """The symlink in its place. Raises Refused."""
        path, full, target = item.item.path, self._tree.full(item.item.path), item.item.target
        there = yield from ask_one(on_path(Type.LSTAT, full))
        if isinstance(there, Attrs):
            if there.kind is Kind.LINK:
                names = yield from ask_one(on_path(Type.READLINK, full))
                if isinstance(names, list) and names and names[0].name == target:
                    return entry(path, there, target)
            if not item.replace or there.kind not in (Kind.FILE, Kind.LINK) or not _as_expected(item, there):
                what = {Kind.DIR: "a folder", Kind.LINK: "another symlink", Kind.FILE: "a file"}.get(there.kind or Kind.OTHER, "something else")
                raise Refused(self._tree.tell(path, "exists", f"{what} is there, and is left as it is"))
            temporary = self._temporary(path)
            self.orphans.add(temporary)
            yield from self._make_link(path, target, temporary)
            try:
                yield from self._rename(connection, item, temporary, full, taken=True)
            except Refused:
                yield from ask(on_path(Type.REMOVE, temporary))
                self.orphans.discard(temporary)
                raise
            self.orphans.discard(temporary)
        else:
            yield from self._make_link(path, target, full)
        seconds = item.item.mtime_ns // 1_000_000_000
        if _LSETSTAT in connection.extensions and 0 < seconds < 1 << 32:
            times = set_attrs(Type.SETSTAT, full, Attrs(atime=seconds, mtime=seconds))
            yield from ask(extended(_LSETSTAT, times.body))
        now, names = yield from ask(on_path(Type.LSTAT, full), on_path(Type.READLINK, full))
        if not isinstance(now, Attrs) or not isinstance(names, list) or len(names) != 1:
            raise Refused(self._refused(path, now if isinstance(now, Status) else names))
        return entry(path, now, names[0].name)

    def _make_link(self, path: bytes, target: bytes, where: bytes) -> Steps[None]:
        if self._link_first is None:
            self._link_first = yield from self._probe_order(path)
        first, second = (where, target) if self._link_first else (target, where)
        status = yield from ask_one(two_paths(Type.SYMLINK, first, second))
        if not (isinstance(status, Status) and status.ok):
            raise Refused(self._refused(path, status))

    def _probe_order(self, path: bytes) -> Steps[bool]:
        """Whether SYMLINK takes the link's own path first, as the draft says. OpenSSH and those who follow it take it second.

        Tried out with two temporary names where the server does not call itself OpenSSH: in the wrong order a link's target would become a place.
        """
        if "OpenSSH" in self._session().server_version:
            return False
        one, two = self._temporary(path), self._temporary(path)
        yield from ask(two_paths(Type.SYMLINK, one, two))
        first, second = yield from ask(on_path(Type.LSTAT, one), on_path(Type.LSTAT, two))
        made = [name for name, value in ((one, first), (two, second)) if isinstance(value, Attrs)]
        yield from ask(*(on_path(Type.REMOVE, name) for name in made or [one]))
        if not made:
            raise Refused(self._tree.tell(path, "unsupported", "the server makes no symlinks"))
        return made == [one]
