"""Folders that are reached and written without following a symlink, whatever a manifest or a meddler put in the way.

Where the system has openat(2), each is held by its descriptor and entries are named relative to it; elsewhere by paths that are checked first.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from hostbackup.vault.records import check_component

_BY_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW") and hasattr(os, "O_DIRECTORY")
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_OLD = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP, errno.EMLINK)

_HELD_OPEN = 64  # folders of one descent; deeper ones are reached anew

Where = str | bytes


class SafeFolder:
    """An open folder. Names are bytes, one component each."""

    def __init__(self, path: Path, fd: int | None) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def open(cls, path: Path) -> SafeFolder:
        """A folder the user named. Raises OSError where it is none, or is a symlink itself."""
        if not _BY_FD and (path.is_symlink() or not path.is_dir()):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return cls(path, os.open(path, _FOLDER) if _BY_FD else None)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __enter__(self) -> SafeFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _at(self, name: bytes) -> Where:
        check_component(name)
        return name if self.fd is not None else os.path.join(self.path, os.fsdecode(name))  # noqa: PTH118

    # ------------------------------------------------------------ going down

    def below(self, names: Iterable[bytes], *, create: bool = False) -> SafeFolder:
        """The folder at the end of `names`. `create`: missing ones are made, 0700. Raises OSError where something else is in the way."""
        current = SafeFolder(self.path, os.dup(self.fd) if self.fd is not None else None)
        try:
            for name in names:
                following = current.step(name, create=create)
                current.close()
                current = following
        except BaseException:
            current.close()
            raise
        return current

    def step(self, name: bytes, *, create: bool = False) -> SafeFolder:
        """As `below`, one folder down."""
        where = self._at(name)
        path = self.path / os.fsdecode(name)
        for attempt in (0, 1):
            try:
                if self.fd is not None:
                    return SafeFolder(path, os.open(where, _FOLDER, dir_fd=self.fd))
                found = os.lstat(where)
                if not stat.S_ISDIR(found.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
                return SafeFolder(path, None)
            except FileNotFoundError:
                if not create or attempt:
                    raise
                os.mkdir(where, 0o700, dir_fd=self.fd)
        raise AssertionError

    def folder(self, name: bytes) -> None:
        """Makes sure that `name` is a folder, 0700; what else bears the name is removed."""
        found = self.stat(name)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            self.remove(name)
            found = None
        if found is None:
            os.mkdir(self._at(name), 0o700, dir_fd=self.fd)
        elif stat.S_IMODE(found.st_mode) != 0o700 and _BY_FD:
            os.chmod(self._at(name), 0o700, dir_fd=self.fd)

    # ------------------------------------------------------------ looking

    def names(self) -> set[bytes]:
        """Everything in it."""
        return {os.fsencode(name) for name in os.listdir(self.fd if self.fd is not None else self.path)}  # noqa: PTH208 - of a descriptor

    def entries(self) -> dict[bytes, os.DirEntry[str]]:
        """Everything in it by name, with what one listing tells of each; to be used while it is open."""
        with os.scandir(self.fd if self.fd is not None else self.path) as found:
            return {os.fsencode(entry.name): entry for entry in found}

    def stat(self, name: bytes) -> os.stat_result | None:
        """lstat of an entry, None where there is none."""
        try:
            return os.stat(self._at(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def readlink(self, name: bytes) -> bytes:
        check_component(name)
        if self.fd is not None:
            return os.readlink(name, dir_fd=self.fd)
        return os.fsencode((self.path / os.fsdecode(name)).readlink())

    def open_file(self, name: bytes) -> int:
        """A descriptor to read a regular file. Raises OSError where it is anything else."""
        fd = os.open(self._at(name), _OLD, dir_fd=self.fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(name))
        return fd

    # ------------------------------------------------------------ changing

    def create_file(self, name: bytes, mode: int = 0o400) -> int:
        """A descriptor to write a new file. Raises FileExistsError."""
        return os.open(self._at(name), _NEW, mode, dir_fd=self.fd)

    def hard_link(self, source: str, name: bytes) -> None:
        os.link(source, self._at(name), dst_dir_fd=self.fd, follow_symlinks=False)

    def symlink(self, target: bytes, name: bytes) -> None:
        os.symlink(target if self.fd is not None else os.fsdecode(target), self._at(name), dir_fd=self.fd)

    def receive(self, source: Path, name: bytes) -> None:
        """Renames a file from elsewhere on the same file system to here, over what bears the name."""
        found = self.stat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            self.remove(name)
        os.rename(os.fsencode(source) if self.fd is not None else source, self._at(name), dst_dir_fd=self.fd)

    def set_mtime(self, name: bytes, mtime_ns: int) -> None:
        """Of the entry itself, also where it is a symlink (as far as the system can)."""
        times = (mtime_ns, mtime_ns)
        if os.utime in os.supports_follow_symlinks:
            os.utime(self._at(name), ns=times, dir_fd=self.fd, follow_symlinks=False)
        elif (found := self.stat(name)) is not None and not stat.S_ISLNK(found.st_mode):
            os.utime(self._at(name), ns=times)

    def set_own_mtime(self, mtime_ns: int, tolerance_ns: int = 0) -> None:
        """Of this folder, where it is not that already."""
        own = self.fd if self.fd is not None else self.path
        if abs(os.stat(own).st_mtime_ns - mtime_ns) > tolerance_ns:  # noqa: PTH116 - of a descriptor
            os.utime(own, ns=(mtime_ns, mtime_ns))

    def remove(self, name: bytes) -> None:
        """Takes an entry away, a folder with all that is in it. Symlinks are removed, never followed."""
        where = self._at(name)
        found = self.stat(name)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(where, dir_fd=self.fd)
        else:
            os.unlink(where, dir_fd=self.fd)


class Descent:
    """Enters the folders of a tree one after another, each from the nearest one above it that is still open: in depth-first order one step each."""

    def __init__(self, base: SafeFolder) -> None:
        self._base = base
        self._open: list[tuple[bytes, SafeFolder]] = []  # each below the one before

    def enter(self, path: bytes) -> SafeFolder:
        """The folder at `path` (components joined by `/`, b"" for the base itself). It stays open until the next is entered. Raises OSError."""
        while self._open and not (path + b"/").startswith(self._open[-1][0] + b"/"):
            self._open.pop()[1].close()
        above, current = self._open[-1] if self._open else (b"", self._base)
        for name in path[len(above) :].split(b"/") if path != above else ():
            if not name:
                continue  # the separator after what is above
            current = current.step(name)
            above = above + b"/" + name if above else name
            if len(self._open) >= _HELD_OPEN:
                self._open.pop()[1].close()
            self._open.append((above, current))
        return current

    def close(self) -> None:
        while self._open:
            self._open.pop()[1].close()


def is_in_the_way(error: OSError) -> bool:
    """Whether a folder could not be entered because something else bears its name."""
    return error.errno in _IN_THE_WAY
