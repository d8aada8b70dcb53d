"""Putting one file or link in its place over SFTP."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from hostbackup.errors import ConnectionFailed, HostbackupError
from hostbackup.model import Entry, Failure, Kind, Write
from hostbackup.places.sftp_expect import as_expected, as_wanted, sendable
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
PRIVATE = Attrs(permissions=0o600)  # of what is half-written
_NOTHING = Status(Code.NO_SUCH_FILE, b"")
OLD = b".old-"  # between a temporary prefix and a name: the target's own file, moved aside for a moment


class Refused(Exception):
    """This entry cannot be written; tells why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _gone(answer: object) -> bool:
    """Whether an answer to REMOVE, RMDIR or RENAME says that nothing stands under that name any more."""
    return isinstance(answer, Status) and (answer.ok or answer.code == Code.NO_SUCH_FILE)


class Put:
    """How entries get their places.

    `orphans` are temporary names that may still stand on the server, `folders` those of folders for them, `stepped` places whose own files may
    stand aside: none is forgotten before the server has said that nothing is there any more. `staged` tells where files wait that
    have come another way (`hostbackup.places.stream_write`), by path. `keeps`: RENAME was seen to leave alone what stands where it leads
    (`hostbackup.places.sftp_rename`).
    """

    def __init__(self, tree: Tree, prefix: bytes, session: Callable[[], Login]) -> None:
        self._tree = tree
        self._prefix = prefix
        self._numbers = itertools.count()
        self._session = session
        self._is_openssh: bool | None = None
        self.stepped: set[bytes] = set()
        self.orphans: set[bytes] = set()
        self.folders: set[bytes] = set()
        self.staged: dict[bytes, bytes] = {}
        self.keeps = False

    def openssh(self) -> bool:
        """Whether the server calls itself OpenSSH."""
        if self._is_openssh is None:
            self._is_openssh = "OpenSSH" in self._session().server_version
        return self._is_openssh

    @staticmethod
    def weight(item: Write[Entry]) -> int:
        return min(item.size or item.item.size, WINDOW) + 1

    def temporary(self, path: bytes) -> bytes:
        """A new name beside `path`, in full. It counts as an orphan until `place` or `discard` is done with it."""
        folder = path.rpartition(b"/")[0]
        name = self._tree.full((folder + b"/" if folder else b"") + b"%s-%x.part" % (self._prefix, next(self._numbers)))
        self.orphans.add(name)
        return name

    # -- files ------------------------------------------------------------------------------------------------------------------------

    def file(self, connection: Connection, item: Write[Entry]) -> Steps[Entry]:
        """The file in its place, as the server then describes it. Raises Refused.

        Three round trips where a window holds it: open; write, dress, sync and close, with a look at its place; rename. Nothing is renamed
        before the server has said that all of it is written.
        """
        full = self._tree.full(item.item.path)
        if item.item.path in self.staged:
            placed = yield from self._staged(connection, item, self.staged[item.item.path])
            self.staged.pop(item.item.path, None)  # gone already where another attempt was here
            if placed is not None:
                return placed
        small = item.size <= WINDOW
        data = self._whole(item) if small else b""
        if not small:
            there = yield from ask_one(on_path(Type.LSTAT, full))
            kept = yield from self._look(connection, item, there)
            if kept is not None:
                return kept
        temporary = self.temporary(item.item.path)
        handle = yield from ask_one(open_file(temporary, Flag.WRITE | Flag.CREAT | Flag.EXCL, PRIVATE))
        if not isinstance(handle, bytes):
            yield from self.discard(temporary)
            raise Refused(self.refused(item.item.path, handle, "refused"))
        if small:
            there = yield from self._fill(connection, item, handle, temporary, data)
        else:
            there = yield from self._pour(connection, item, handle, temporary)
        return (yield from self.place(connection, item, temporary, there))

    def _staged(self, connection: Connection, item: Write[Entry], temporary: bytes) -> Steps[Entry | None]:
        """Places what waits under `temporary`; None where that is not what it should be, or cannot be brought there: on another file system perhaps.

        Raises Refused.
        """
        there, waits = yield from ask(on_path(Type.LSTAT, self._tree.full(item.item.path)), on_path(Type.LSTAT, temporary))
        if not (isinstance(waits, Attrs) and as_wanted(item.item, waits) and waits.mode == item.item.mode & 0o7777):
            yield from self.discard(temporary)
            return None
        try:
            return (yield from self.place(connection, item, temporary, there))
        except Refused as refused:
            if refused.failure.code != "not-written":
                raise
            return None

    def whole(self, item: Write[Entry]) -> bytes | None:
        """The contents of a file that a window holds; None where they are not as on record."""
        try:
            return self._whole(item)
        except Refused:
            return None

    def dress(self, item: Write[Entry]) -> Steps[Entry]:
        """Mode and time of a file that keeps its contents. Raises Refused."""
        path, full = item.item.path, self._tree.full(item.item.path)
        there = yield from ask_one(on_path(Type.LSTAT, full))
        if not isinstance(there, Attrs):
            raise Refused(self.refused(path, there))
        if there.kind is not Kind.FILE or not as_expected(item, there):
            raise Refused(self._tree.tell(path, "exists", "it was changed since it was looked at, and is left as it is"))
        seconds = sendable(item.item.mtime_ns)
        wanted = Attrs(permissions=item.item.mode & 0o7777, atime=seconds, mtime=seconds)
        done, now = yield from ask(set_attrs(Type.SETSTAT, full, wanted), on_path(Type.LSTAT, full))
        if not isinstance(now, Attrs) or not (isinstance(done, Status) and (done.ok or done.code == Code.OP_UNSUPPORTED)):
            raise Refused(self.refused(path, now if not isinstance(now, Attrs) else done))
        return entry(path, now)

    def place(self, connection: Connection, item: Write[Entry], temporary: bytes, there: object) -> Steps[Entry]:
        """Gives what stands whole, dressed and synced under `temporary` its name, and tells how the server then describes it.

        `there` is the answer to an LSTAT of its place, taken a moment ago. Raises Refused; then nothing stands under `temporary` any more.
        """
        full = self._tree.full(item.item.path)
        try:
            kept = yield from self._look(connection, item, there)
            if kept is None:
                kept = yield from self.rename(connection, item, temporary, full, taken=isinstance(there, Attrs))
            else:
                yield from self.discard(temporary)
        except Refused:
            yield from self.discard(temporary)
            raise
        return kept

    def discard(self, temporary: bytes) -> Steps[None]:
        """Removes what may stand under `temporary`. Where the server does not, it stays an orphan."""
        if _gone((yield from ask_one(on_path(Type.REMOVE, temporary)))):
            self.orphans.discard(temporary)

    def discard_folder(self, folder: bytes) -> Steps[None]:
        """The same for a folder of temporary names."""
        if _gone((yield from ask_one(on_path(Type.RMDIR, folder)))):
            self.folders.discard(folder)

    def bring_back(self, full: bytes) -> Steps[None]:
        """Ends a swap that was interrupted: the file that stepped aside comes back, unless its place is taken: then the new one stands."""
        there = yield from ask_one(on_path(Type.LSTAT, full))
        if isinstance(there, Attrs):
            yield from self._forget_aside(full)
        elif (
            isinstance(there, Status)
            and there.code == Code.NO_SUCH_FILE
            and _gone((yield from ask_one(two_paths(Type.RENAME, self._aside(full), full))))
        ):
            self.stepped.discard(full)

    def _look(self, connection: Connection, item: Write[Entry], there: object) -> Steps[Entry | None]:
        """What an LSTAT of its place means: the entry to be content with, or None to go on. Raises Refused."""
        if isinstance(there, Attrs):
            return (yield from self._in_the_way(connection, item, there))
        if isinstance(there, Status) and there.code == Code.NO_SUCH_FILE:
            return None
        raise Refused(self.refused(item.item.path, there))

    def _in_the_way(self, connection: Connection, item: Write[Entry], there: Attrs) -> Steps[Entry | None]:
        """What to do with what is there already: the entry to be content with, or None to go on. Raises Refused."""
        path = item.item.path
        if item.replace and there.kind in (Kind.FILE, Kind.LINK) and as_expected(item, there):
            return None
        kept = yield from self._same(connection, item, there)
        if kept is not None:
            return kept
        what = {Kind.FILE: "another file", Kind.DIR: "a folder", Kind.LINK: "a symlink"}.get(there.kind or Kind.OTHER, "something else")
        raise Refused(self._tree.tell(path, "exists", f"{what} is there, and is left as it is"))

    def _same(self, connection: Connection, item: Write[Entry], there: Attrs) -> Steps[Entry | None]:
        """The entry that is there already, if it has the bytes that are to be written. Raises Refused where that cannot be seen now."""
        if there.kind is not Kind.FILE or not item.digest or there.size != item.size:
            return None
        path, seen = item.item.path, hashlib.sha256()
        got = yield from read_whole(connection, self._tree, self._tree.full(path), seen.update, careful=True)
        if isinstance(got, Status) and got.code == Code.FAILURE:
            raise Refused(self._tree.refused(path, got))
        return entry(path, got.after) if isinstance(got, Got) and got.still and seen.hexdigest() == item.digest else None

    def _whole(self, item: Write[Entry]) -> bytes:
        """The contents of a file that a window holds, found to be as on record before anything stands on the server. Raises Refused."""
        data = b"".join(self._contents(item, item.size + 1))  # a larger buffer would be made and thrown away for each file
        if item.digest and hashlib.sha256(data).hexdigest() != item.digest:
            raise Refused(self._not_on_record(item))
        return data

    def _fill(self, connection: Connection, item: Write[Entry], handle: bytes, temporary: bytes, data: bytes) -> Steps[object]:
        """All of a small file at once. Gives the answer to an LSTAT of its place. Raises Refused; then nothing stands under `temporary`."""
        chunk = connection.limits.write
        if len(data) <= chunk:
            writes = [write(handle, 0, data)] if data else []
        else:
            writes = [write(handle, at, data[at : at + chunk]) for at in range(0, len(data), chunk)]
        return (yield from self._end(connection, item, handle, temporary, writes))

    def _end(self, connection: Connection, item: Write[Entry], handle: bytes, temporary: bytes, writes: Sequence[Request] = ()) -> Steps[object]:
        """The last WRITEs, mode and time, sync and CLOSE, with a look at the file's place. Raises Refused; then nothing stands under `temporary`.

        Requests on one handle are answered as if in order (draft, section 6); each answer counts, and only then comes the rename. Where nothing is to
        be replaced and RENAME leaves alone what is there, the look is left out.
        """
        path = item.item.path
        seconds = sendable(item.item.mtime_ns)
        last = [set_attrs(Type.FSETSTAT, handle, Attrs(permissions=item.item.mode & 0o7777, atime=seconds, mtime=seconds))]
        if _FSYNC in connection.extensions:
            last.append(extended(_FSYNC, text(handle)))
        last.append(on_handle(Type.CLOSE, handle))
        if self.keeps and not item.replace:
            results, there = (yield from ask(*writes, *last)), _NOTHING
        else:
            *results, there = yield from ask(*writes, *last, on_path(Type.LSTAT, self._tree.full(path)))
        for place, status in enumerate(results):
            # A server that keeps no modes or times has the file all the same; what it made of them is told by the LSTAT at the end.
            if not status.ok and (place < len(writes) or status.code != Code.OP_UNSUPPORTED):
                yield from self.discard(temporary)
                raise Refused(self.refused(path, status))
        return there

    def _pour(self, connection: Connection, item: Write[Entry], handle: bytes, temporary: bytes) -> Steps[object]:
        """All of a large file, a window of WRITEs at a time. As `_fill`."""
        seen = hashlib.sha256()
        trouble = yield from self._stream(handle, item, self._contents(item, connection.limits.write), seen.update)
        if trouble is None and item.digest and seen.hexdigest() != item.digest:
            trouble = self._not_on_record(item)
        if trouble is not None:
            yield from ask(on_handle(Type.CLOSE, handle))
            yield from self.discard(temporary)
            raise Refused(trouble)
        return (yield from self._end(connection, item, handle, temporary))

    def _not_on_record(self, item: Write[Entry]) -> Failure:
        return self._tree.tell(item.item.path, "damaged", "the bytes to be written are not those on record", "run `hostbackup verify`")

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

    def _stream(self, handle: bytes, item: Write[Entry], chunks: Iterator[bytes], seen: Callable[[bytes], object]) -> Steps[Failure | None]:
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
                trouble = trouble or self.refused(item.item.path, status)

    def refused(self, path: bytes, status: object, code: str = "not-written") -> Failure:
        """A failure without a reason has `code`: "refused" is worth another try among fewer, since too many files may have been open."""
        if not isinstance(status, Status):
            status = Status(Code.FAILURE, b"an answer of the wrong kind")
        if status.code == Code.FAILURE:
            hint = "the server tells no reason: is the disk or the quota full there?"
            return self._tree.tell(path, code, f"the server refused to write: {status}", hint)
        return self._tree.refused(path, status)

    # -- names ------------------------------------------------------------------------------------------------------------------------

    def rename(self, connection: Connection, item: Write[Entry], temporary: bytes, full: bytes, *, taken: bool) -> Steps[Entry]:
        """Gives what stands under `temporary` its name, and tells how it is described there. Raises Refused; then `temporary` still stands."""
        path = item.item.path
        if item.replace and _POSIX_RENAME in connection.extensions:
            status, now = yield from ask(extended(_POSIX_RENAME, text(temporary) + text(full)), on_path(Type.LSTAT, full))
        elif taken:
            status, now = (yield from self._swap(temporary, full)), None
        else:
            # Version 3 forbids RENAME to replace; OpenSSH does it by link(2), which decides in one step.
            status, now = yield from ask(two_paths(Type.RENAME, temporary, full), on_path(Type.LSTAT, full))
        done = isinstance(status, Status) and status.ok
        if not (done and isinstance(now, Attrs) and as_wanted(item.item, now)):
            # Also where the server looked before it had renamed: requests on different names may overtake each other.
            now = yield from ask_one(on_path(Type.LSTAT, full))
        if done and isinstance(now, Attrs):
            self.orphans.discard(temporary)
            if full in self.stepped:  # in an attempt whose line was cut
                yield from self._forget_aside(full)
            return entry(path, now)
        if not done and isinstance(now, Attrs):
            # Renamed by an attempt whose line was cut, or put there by somebody with the same bytes.
            kept = yield from (self._same if item.replace else self._in_the_way)(connection, item, now)
            if kept is not None:
                yield from self.discard(temporary)
                if full in self.stepped:
                    yield from self._forget_aside(full)
                return kept
        raise Refused(self.refused(path, now if done else status))

    def _aside(self, full: bytes) -> bytes:
        folder, _, name = full.rpartition(b"/")
        return folder + b"/" + self._prefix + OLD + name

    def _swap(self, temporary: bytes, full: bytes) -> Steps[object]:
        """Replaces without posix-rename: the old file steps aside under a name that tells where it belongs, and comes back if that fails."""
        aside = self._aside(full)
        self.stepped.add(full)
        status = yield from ask_one(two_paths(Type.RENAME, full, aside))
        if not (isinstance(status, Status) and status.ok):
            return status
        status = yield from ask_one(two_paths(Type.RENAME, temporary, full))
        if isinstance(status, Status) and status.ok:
            yield from self._forget_aside(full)
        else:
            yield from self.bring_back(full)
        return status

    def _forget_aside(self, full: bytes) -> Steps[None]:
        """Removes the file that stepped aside: the new one stands."""
        if _gone((yield from ask_one(on_path(Type.REMOVE, self._aside(full))))):
            self.stepped.discard(full)
