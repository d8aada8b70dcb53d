"""Files below one folder of this machine, reached so that a symlink planted below it leads nowhere.

Where the system has directory descriptors (openat(2) and its family) each component is opened from its parent without following links. Elsewhere
each parent is looked at before it is used, which is the best that can be done there.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from hostbackup.errors import PlaceMissing
from hostbackup.model import Entry, Failure, Kind, Part

DIR_FDS = {os.open, os.stat, os.mkdir, os.rename, os.unlink, os.symlink, os.readlink} <= os.supports_dir_fd and os.scandir in os.supports_fd
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# a fifo planted in a file's place must not hold the run up; regular files do not care
_READ_FILE = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
CHUNK = 1 << 20  # bytes a read(2)
_HELD = 64  # open folders kept: enough for any sane depth, far below any limit on descriptors
_NAMES_ARE_UTF8 = sys.getfilesystemencoding().lower() in ("utf-8", "utf8")

AnyDirEntry = os.DirEntry[str] | os.DirEntry[bytes]


class Folders:
    """The folders below `root`, held open as long as they are of use. One user at a time; `close` frees the descriptors."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._held: OrderedDict[bytes, int] = OrderedDict()
        self._root_fd = -1

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def at(self, path: bytes) -> tuple[bytes, int | None]:
        """What to hand to the functions of `os`: a name and its `dir_fd`. Raises OSError where a parent is missing or is no folder."""
        if path and not proper(path):
            raise OSError(errno.EINVAL, "a name that could lead elsewhere")
        parent, _, name = path.rpartition(b"/")
        if DIR_FDS and name:
            return name, self.fd(parent)
        return self._by_path(path), None

    def fd(self, folder: bytes) -> int:
        """A descriptor of `folder`, owned by this object and good until the next call."""
        if self._root_fd < 0:
            self._root_fd = os.open(self._root, _OPEN_FOLDER)
        missing = []
        while folder and folder not in self._held:
            folder, _, name = folder.rpartition(b"/")
            missing.append(name)
        fd = self._root_fd
        if folder:
            self._held.move_to_end(folder)
            fd = self._held[folder]
        for name in reversed(missing):
            fd = os.open(name, _OPEN_FOLDER | NO_FOLLOW, dir_fd=fd)
            folder = folder + b"/" + name if folder else name
            self._held[folder] = fd
            if len(self._held) > _HELD:
                os.close(self._held.popitem(last=False)[1])
        return fd

    def names(self, folder: bytes) -> AbstractContextManager[Iterator[AnyDirEntry]]:
        """scandir of `folder`. Over a descriptor Python gives text, which is exact where it decodes by UTF-8 and surrogateescape."""
        if not DIR_FDS:
            return os.scandir(self._by_path(folder) + b"/.")
        if _NAMES_ARE_UTF8:
            return os.scandir(self.fd(folder))
        return os.scandir(b"/proc/self/fd/%d" % self.fd(folder))

    def lstat(self, path: bytes) -> os.stat_result:
        """The entry itself; of the root, what a link there leads to."""
        name, fd = self.at(path)
        return os.stat(name, dir_fd=fd, follow_symlinks=not path)

    def entry(self, path: bytes) -> Entry:
        """The entry as it is now. Raises OSError."""
        known = self.lstat(path)
        target = b""
        if stat.S_ISLNK(known.st_mode):
            name, fd = self.at(path)
            target = os.readlink(name, dir_fd=fd)
        return describe(path, known, target)

    def root_entry(self) -> Entry:
        """The root, or PlaceMissing where there is no folder."""
        shown = os.fsdecode(self._root)
        try:
            found = self.entry(b"")
        except (FileNotFoundError, NotADirectoryError):
            raise PlaceMissing("there is no such folder", where=shown, hint="is the path right, and the disk mounted?") from None
        except PermissionError:
            raise PlaceMissing("this user may not look there", where=shown, hint="run as a user who may read it") from None
        if found.kind is not Kind.DIR:
            raise PlaceMissing("that is not a folder", where=shown)
        return found

    def _by_path(self, path: bytes) -> bytes:
        whole = self._root
        if not path:
            return whole
        *parents, name = path.split(b"/")
        for parent in parents:
            whole = whole + b"/" + parent
            if not stat.S_ISDIR(os.lstat(whole).st_mode):
                raise OSError(errno.ELOOP, "a folder became something else")
        return whole + b"/" + name


def describe(path: bytes, known: os.stat_result, target: bytes = b"") -> Entry:
    """The entry that stat(2) describes."""
    mode = stat.S_IMODE(known.st_mode)
    if stat.S_ISREG(known.st_mode):
        return Entry(path, Kind.FILE, known.st_size, known.st_mtime_ns, mode)
    if stat.S_ISDIR(known.st_mode):
        return Entry(path, Kind.DIR, 0, known.st_mtime_ns, mode)
    if stat.S_ISLNK(known.st_mode):
        return Entry(path, Kind.LINK, 0, known.st_mtime_ns, mode, target)
    return Entry(path, Kind.OTHER, 0, known.st_mtime_ns, mode)


class SourceFailed(Exception):
    """The file could not be opened or read. Apart from OSError, so that a sink's own trouble is not taken for it."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def opened(folders: Folders, path: bytes) -> Iterator[int]:
    """A regular file open for reading; a link in its place is not followed. Raises SourceFailed."""
    try:
        name, parent = folders.at(path)
        if not NO_FOLLOW and stat.S_ISLNK(folders.lstat(path).st_mode):
            raise OSError(errno.ELOOP, "a link")
        fd = os.open(name, _READ_FILE, dir_fd=parent)
    except OSError as error:
        raise SourceFailed(error) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SourceFailed(OSError(errno.ELOOP, "not a regular file"))
        yield fd
    finally:
        os.close(fd)


def pump(fd: int, expected: int, take: Callable[[bytes], object]) -> int:
    """Hands on what is in the file until its end; stops early once there is more than `expected`, so that a growing file cannot hold it.

    Gives the bytes handed on. Raises SourceFailed.
    """
    received = 0
    while received <= expected:
        try:
            data = os.read(fd, CHUNK)
        except OSError as error:
            raise SourceFailed(error) from error
        if not data:
            break
        take(data)
        received += len(data)
    return received


def same(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nothing was written in between, as far as the file system's clock can tell."""
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (after.st_size, after.st_mtime_ns, after.st_ctime_ns)


def proper(path: bytes) -> bool:
    """Whether `path` can only lead below a root: no empty, `.` or `..` component, no NUL; on Windows nothing that is a path of its own."""
    if b"\0" in path or (os.sep != "/" and (b"\\" in path or b":" in path)):
        return False
    return all(part not in (b"", b".", b"..") for part in path.split(b"/"))


_CODES = {
    errno.ENOENT: ("vanished", "it is not there any more"),
    errno.EACCES: ("permission", "this user may not use it"),
    errno.EPERM: ("permission", "this user may not use it"),
    errno.ELOOP: ("changed-kind", "it became something else"),
    errno.ENOTDIR: ("changed-kind", "it became something else"),
    errno.EISDIR: ("changed-kind", "it became something else"),
    errno.ENXIO: ("changed-kind", "it became something else"),
    errno.EEXIST: ("exists", "something else is there"),
    errno.ENOTEMPTY: ("exists", "something else is there"),
    errno.ENOSPC: ("disk-full", "the disk is full"),
    errno.EDQUOT: ("disk-full", "the quota is used up"),
    errno.EROFS: ("read-only", "the file system is read-only"),
    errno.ENAMETOOLONG: ("name-refused", "the file system refuses this name"),
    errno.EILSEQ: ("name-refused", "the file system refuses this name"),
    errno.EINVAL: ("name-refused", "the file system refuses this name"),
}
_HINTS = {
    "permission": "run as a user who may, or change its mode",
    "disk-full": "make room and run again",
    "name-refused": "it can only be kept under another name there",
}


def failure(error: OSError, side: str, part: Part, name: bytes) -> Failure:
    """What went wrong with one entry."""
    code, reason = _CODES.get(error.errno or 0, ("io", os.strerror(error.errno) if error.errno else str(error)))
    return Failure(side, part.id, name, code, reason, _HINTS.get(code, ""))
