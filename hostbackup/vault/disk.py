"""A folder on another disk as an object store: plain files, no links, no modes needed, so exFAT and network shares will do.

Files arrive in `incoming/` and get their names once they are synced. The folder itself is never created: a disk that is not mounted must be a
failure, and not a copy on the disk it was meant to survive.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from hostbackup import osal
from hostbackup.errors import DiskFull, HostbackupError, PlaceMissing, VaultError
from hostbackup.model import Method, Status
from hostbackup.vault import pool
from hostbackup.vault.faults import human
from hostbackup.vault.hold import ObjectHold, about_us, locked
from hostbackup.vault.stores import (
    LOCKS,
    Absent,
    Chunks,
    Hold,
    Listed,
    Outcome,
    Proven,
    SourceDamaged,
    Upload,
    Wanted,
    failed,
    prove_by_reading,
    ranged,
    valid_key,
)

_WORKERS = 4
_BATCH_BYTES = 256 << 20
_BATCH_FILES = 4096
_BATCH_SECONDS = 10.0
_INCOMING = "incoming"
_NOT_OURS = {"$recycle.bin", "lost+found", "system volume information"}  # what systems put on a disk by themselves
_ONE_FILE = (errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY)  # everything else concerns the disk
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_HINTS = {
    errno.EROFS: "the disk is mounted read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "the disk itself reports an error: check it, and have another copy",
}
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

_Arrived = tuple[Path | None, Outcome]  # the file in incoming/ if there is one, and what is to be told of it
_Batch = list[_Arrived]


def disk_error(error: OSError, where: Path, needed: int = 0) -> VaultError:
    """The error to raise for what a disk other than the vault's refused. `needed`: bytes that were to be written, where known."""
    if error.errno in _FULL:
        wanted = f"; {human(needed)} more were to be written" if needed else ""
        return DiskFull(f"the disk is full{wanted}", where=str(where), hint="free space there and run it again: what has arrived stays")
    return VaultError((error.strerror or str(error)).lower(), where=str(where), hint=_HINTS.get(error.errno or 0, ""))


class FolderStore:
    """A Store below `root`, which must exist. Raises PlaceMissing otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count()
        self._session = secrets.token_hex(6)
        self._device = self._look()
        self._arrivals = _Arrivals(root)
        self._held: ObjectHold | None = None

    def _look(self) -> int:
        """The device the folder is on."""
        try:
            found = self.root.stat()
            if not self.root.is_dir():
                raise PlaceMissing("is not a folder", where=str(self.root))
        except OSError as error:
            reason = "there is no such folder" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
            hint = "is the disk mounted? hostbackup never makes this folder itself: a copy belongs on another disk"
            raise PlaceMissing(reason, where=str(self.root), hint=hint) from error
        return found.st_dev

    @property
    def label(self) -> str:
        return str(self.root)

    def _path(self, key: str) -> Path:
        if not valid_key(key) or key.split("/", 1)[0] == _INCOMING:
            raise ValueError(f"not a key: {key[:200]!r}")
        return self.root / key

    # ------------------------------------------------------------ the writer's lock

    def hold(self, stale: str = "") -> Hold:
        """By the kernel's lock, which ends with its process; by an object where the file system knows no locks."""
        self._look()
        if self._arrivals.can_lock():
            return _KernelHold(self._arrivals)
        self._held = ObjectHold(self, stale)
        return self._held

    def _check_hold(self) -> None:
        if self._held is not None:
            self._held.check()

    def locks(self) -> Iterator[Listed]:
        return self.list(LOCKS)

    def write_lock(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise self._trouble(error) from error

    def read_lock(self, key: str) -> bytes:
        with self.get(key) as stream:
            return stream.read()

    def remove_lock(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._trouble(error) from error

    # ------------------------------------------------------------ reading

    def list(self, prefix: str = "") -> Iterator[Listed]:
        self._look()
        yield from self._walk("", prefix)

    def _walk(self, folder: str, prefix: str) -> Iterator[Listed]:
        try:
            with os.scandir(self.root / folder) as found:
                entries = sorted(found, key=lambda entry: entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""))
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(error, self.root / folder) from error
        for entry in entries:
            if not folder and (entry.name.lower() in _NOT_OURS or entry.name.startswith(".") or entry.name == _INCOMING):
                continue
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    told = entry.stat(follow_symlinks=False)
                    yield Listed(key, told.st_size, modified=told.st_mtime)

    def get(self, key: str, start: int = 0, size: int | None = None) -> BinaryIO:
        path = self._path(key)
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError as error:
            self._look()
            raise Absent("is not on the disk", where=str(path)) from error
        except OSError as error:
            raise disk_error(error, path) from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is proven is the disk, not the memory in front of it
        return ranged(os.fdopen(fd, "rb"), start, size, str(path))

    def prove(self, items: Iterable[Wanted], *, read: bool = False) -> Iterator[Proven]:
        self._look()
        return pool.each(self._prove, items, workers=_WORKERS)

    def _prove(self, wanted: Wanted) -> Proven:
        try:
            return prove_by_reading(wanted, self.get)
        except PlaceMissing:
            raise
        except (HostbackupError, OSError) as error:
            reason = error.reason if isinstance(error, HostbackupError) else (error.strerror or str(error)).lower()
            return Proven(wanted, Status.FAILED, Method.NONE, reason)

    # ------------------------------------------------------------ writing

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        self._look()
        self._check_hold()
        with self._arrivals:
            source = iter(items)
            while batch := self._write_some(source, at_once):
                self._check_hold()
                yield from self._name(batch)

    def tidy(self) -> None:
        try:
            with self._arrivals:
                for path in (self.root / _INCOMING).glob("*.part"):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self.root) from error

    def _write_some(self, source: Iterator[Upload], at_once: int | None) -> _Batch:
        """Writes the next few items to `incoming/`: what each became there. Nothing is durable yet."""
        deadline = time.monotonic() + _BATCH_SECONDS
        written: _Batch = []

        def some() -> Iterator[Upload]:
            size = 0
            while len(written) < _BATCH_FILES and size < _BATCH_BYTES and time.monotonic() < deadline:
                item = next(source, None)
                if item is None:
                    return
                size += item.size
                yield item

        try:
            for arrived in pool.each(self._write, some(), workers=_WORKERS, ahead=at_once):
                written.append(arrived)
        except BaseException:
            for _ in self._name(written):  # what did arrive is kept: the next run need not send it again
                pass
            raise
        return written

    def _write(self, item: Upload) -> _Arrived:
        part = self.root / _INCOMING / f"{self._session}-{next(self._numbers)}.part"
        try:
            self._path(item.key)
            arrived = self._fill(part, item)
        except ValueError as error:
            return None, Outcome(item.key, item.size, "name", str(error))
        except (SourceDamaged, HostbackupError) as error:
            part.unlink(missing_ok=True)
            return None, failed(item.key, error, item.size)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise self._trouble(error, item.size) from error
        return part, arrived

    @staticmethod
    def _fill(part: Path, item: Upload) -> Outcome:
        chunks = Chunks(item)
        fd = os.open(part, _CREATE, 0o600)
        try:
            for data in chunks:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        return Outcome(item.key, chunks.size, digest=chunks.digest)

    def _trouble(self, error: OSError, needed: int = 0) -> HostbackupError:
        """What to raise for an error of the disk: it may be gone, full or read-only."""
        try:
            if self._look() != self._device:
                raise PlaceMissing("the disk is not mounted any more", where=str(self.root))
        except PlaceMissing as gone:
            return gone
        return disk_error(error, self.root, needed)

    def _name(self, batch: _Batch) -> Iterator[Outcome]:
        """Syncs a batch, gives the files their names, syncs those, and only then tells the outcomes."""
        arrived = [(part, outcome) for part, outcome in batch if part is not None]
        outcomes = [outcome for part, outcome in batch if part is None]
        try:
            if arrived and not osal.sync_tree(self.root):
                for part, _ in arrived:
                    osal.sync_file(part)
            folders: set[Path] = set()
            for part, outcome in arrived:
                path = self._path(outcome.key)
                if path.parent not in folders:
                    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    folders.add(path.parent)
                outcomes.append(self._rename(part, path, outcome))
            if arrived and not osal.sync_tree(self.root):
                for folder in folders:
                    _sync_names(folder, self.root)
        except OSError as error:
            raise self._trouble(error) from error
        yield from outcomes

    @staticmethod
    def _rename(part: Path, path: Path, outcome: Outcome) -> Outcome:
        try:
            part.replace(path)
            if path.stat().st_size != outcome.size:
                return Outcome(outcome.key, outcome.size, "size", f"the disk kept {path.stat().st_size} bytes of {outcome.size}")
        except OSError as error:
            if error.errno not in _ONE_FILE:
                raise
            part.unlink(missing_ok=True)
            return failed(outcome.key, error, outcome.size)
        return outcome

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        self._look()
        for key in keys:
            self._check_hold()
            try:
                self._path(key).unlink(missing_ok=True)
            except OSError as error:
                yield failed(key, error)
            else:
                yield Outcome(key)

    def close(self) -> None:
        """Nothing is held."""


class _Arrivals:
    """`incoming/`, made ready and ours alone while it is entered, as often as need be. Raises Locked while another process has it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._inside = 0
        self._lock: osal.FileLock | None = None
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> None:
        with self._one_at_a_time:
            if not self._inside:
                self._lock = self._take()
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._one_at_a_time:
            self._inside -= 1
            if not self._inside and self._lock is not None:
                self._lock.release()
                self._lock = None

    def can_lock(self) -> bool:
        """Whether the file system knows locks. Raises Locked too."""
        with self:
            return self._lock is not None

    def _take(self) -> osal.FileLock | None:
        """None where the file system knows no locks."""
        incoming = self._root / _INCOMING
        try:
            incoming.mkdir(mode=0o700, exist_ok=True)
            lock = osal.FileLock.take(incoming / "lock", exclusive=True)
            if lock is not None:
                lock.describe(about_us().decode())
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise disk_error(error, incoming) from error
        if lock is None:
            told = b""
            with contextlib.suppress(OSError):
                told = (incoming / "lock").read_bytes()
            raise locked(str(self._root), told)
        return lock


class _KernelHold:
    """The writer's lock that ends with its process: nothing to remember."""

    key = ""

    def __init__(self, arrivals: _Arrivals) -> None:
        self._arrivals = arrivals

    def __enter__(self) -> _KernelHold:
        self._arrivals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._arrivals.__exit__(kind, error, trace)


def _sync_names(folder: Path, root: Path) -> None:
    """Makes names durable from `folder` up to `root`, for systems without syncfs. A file system that cannot sync a folder is taken as it is."""
    while True:
        with contextlib.suppress(OSError):
            osal.sync_folder(folder)
        if folder == root:
            return
        folder = folder.parent
