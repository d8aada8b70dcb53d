"""What differs by operating system: sync, reflink, lock. Everything else of the package is portable."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_O_BINARY = getattr(os, "O_BINARY", 0)
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_LINUX = sys.platform.startswith("linux")


@functools.cache
def _libc() -> Any:
    """The C library, where it has calls that Python has not; None elsewhere."""
    if not _LINUX:
        return None
    import ctypes  # 3 ms, for those who write

    return ctypes.CDLL(None, use_errno=True)


def sync_tree(folder: Path) -> bool:
    """Makes everything written on `folder`'s file system durable, in one go. False where the system cannot (then sync file by file).

    syncfs(2); since Linux 5.8 it reports write-back errors, which become OSError.
    """
    libc = _libc()
    if libc is None:
        return False
    fd = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(fd) != 0:
            import ctypes

            code = ctypes.get_errno()
            if code == errno.ENOSYS:
                return False
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(fd)
    return True


@functools.cache
def give_back_large_buffers(least: int = 4 << 20) -> None:
    """Has buffers of `least` bytes and more go back to the system as soon as they are free. Where the C library is not glibc, nothing.

    Left to itself, glibc keeps them by the thread once the first one was freed: many threads then hold many times what is in use.
    """
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, least)


def sync_file(path: Path) -> None:
    """fsync of one file (on macOS F_FULLFSYNC, which alone reaches the platter)."""
    fd = os.open(path, (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | _O_BINARY)
    try:
        sync_fd(fd)
    finally:
        os.close(fd)


def sync_fd(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def begin_write_back(fd: int, offset: int, length: int) -> None:
    """Lets the system begin to bring these bytes to the disk, so that a later sync is short. sync_file_range(2); elsewhere nothing."""
    libc = _libc()
    if libc is not None and hasattr(libc, "sync_file_range"):
        import ctypes

        libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _WRITE)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; Windows has nothing of the kind."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` whole or not at all: temporary file, sync, rename, sync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _O_BINARY, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            sync_fd(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def reflink(source: int, target: int) -> bool:
    """Makes the open file `target` share the blocks of `source`. False where the file system cannot."""
    if not _LINUX:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


class FileLock:
    """A kernel lock on a file, held until released or until the process is gone. flock(2): advisory, whole file.

    A child that is given `fd` holds it too, until it ends.
    """

    def __init__(self, fd: int) -> None:
        self.fd: int | None = fd

    @classmethod
    def take(cls, path: Path, *, exclusive: bool) -> FileLock | None:
        """The lock, or None while another process holds it in a way that conflicts. Never waits."""
        writable = exclusive or not path.exists()
        fd = os.open(path, (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | _O_BINARY, 0o600)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                return None
            raise
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def describe(self, text: str) -> None:
        """Writes who holds the lock into it: information for people, never relied on."""
        if self.fd is not None:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, text.encode(), 0) if hasattr(os, "pwrite") else os.write(self.fd, text.encode())

    def release(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def holder() -> str:
    """Who this process is: host, boot and pid, as a lock's text tells it."""
    import socket

    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"host={socket.gethostname()} boot={boot or 'unknown'} pid={os.getpid()}\n"


def uptime() -> float:
    """Seconds that passed since some moment, those in which the machine slept included: time.monotonic() leaves them out on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def private_to_owner(path: Path) -> bool:
    """Whether nobody but the owner can read the file. True on Windows, whose permissions Python does not show."""
    if sys.platform == "win32":
        return True
    return not path.stat().st_mode & 0o077


def free_bytes(folder: Path) -> int:
    """Bytes an ordinary user can still write on the folder's file system."""
    import shutil

    return shutil.disk_usage(folder).free
