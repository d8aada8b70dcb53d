"""A folder on another disk as an object store: plain files, with no links and no modes, which exFAT and network shares lack.

Files arrive in `incoming/` and get their names once they are synced. The folder itself is never created: a disk that is not mounted must be a
failure, and not a copy on the disk it was meant to survive.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from hostbackup import osal
from hostbackup.errors import HostbackupError, PlaceMissing, VaultError
from hostbackup.model import Method, Status
from hostbackup.vault import pool
from hostbackup.vault.disk_arrivals import Arrivals, KernelHold
from hostbackup.vault.disk_errors import disk_error
from hostbackup.vault.disk_paths import INCOMING, path_of, reserved
from hostbackup.vault.faults import human
from hostbackup.vault.hold import ObjectHold
from hostbackup.vault.stores import (
    LOCKS,
    Absent,
    Chunks,
    Described,
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
    unread,
)

_WORKERS = 4
_BATCH_BYTES = 256 << 20
_BATCH_FILES = 4096
_BATCH_SECONDS = 10.0
_ONE_FILE = (errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY, errno.EILSEQ)  # everything else concerns the disk
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

_Arrived = tuple[Path | None, Outcome]  # the file in incoming/ if there is one, and what is to be told of it
_Batch = list[_Arrived]


class FolderStore:
    """A Store below `root`, which must exist. Raises PlaceMissing otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count()
        self._session = secrets.token_hex(6)
        self._device = self._look()
        self._arrivals = Arrivals(root)
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
        return path_of(self.root, key)

    # ------------------------------------------------------------ the writer's lock

    def hold(self, stale: Collection[str] = ()) -> Hold:
        """By the kernel's lock, which ends with its process; by an object where the file system knows no locks."""
        self._look()
        if self._arrivals.can_lock():
            return KernelHold(self._arrivals)
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
            if not folder and reserved(entry.name):
                continue
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    told = entry.stat(follow_symlinks=False)
                    yield Listed(key, told.st_size, modified=told.st_mtime)

    def _standing(self, key: str) -> Path:
        try:
            return self._path(key)
        except ValueError as error:
            raise VaultError(str(error), where=f"{self.root}/{key}") from error

    def describe(self, key: str) -> Described:
        path = self._standing(key)
        try:
            return Described(path.stat(follow_symlinks=False).st_size)
        except FileNotFoundError as error:
            self._look()
            raise Absent("is not on the disk", where=str(path)) from error
        except OSError as error:
            raise disk_error(error, path) from error

    def get(self, key: str, start: int = 0, size: int | None = None) -> BinaryIO:
        path = self._standing(key)
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

    def prove(self, items: Iterable[Wanted], *, read: bool | None = False) -> Iterator[Proven]:
        self._look()
        return pool.each(lambda wanted: self._prove(wanted, may_read=read is not None), items, workers=_WORKERS)

    def _prove(self, wanted: Wanted, *, may_read: bool) -> Proven:
        try:
            if may_read:
                return prove_by_reading(wanted, self.get)
            with self.get(wanted.key) as stream:
                return unread(wanted, os.fstat(stream.fileno()).st_size)
        except Absent as error:
            return Proven(wanted, Status.MISSING, Method.BUCKET_REREAD, error.reason)
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
                for path in (self.root / INCOMING).glob("*.part"):
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
        part = self.root / INCOMING / f"{self._session}-{next(self._numbers)}.part"
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
            if error.errno == errno.EFBIG:  # FAT32 ends at 4 GiB
                hint = "format the disk as exFAT, or take another one"
                return None, Outcome(item.key, item.size, "too-large", f"the disk's file system holds no file of {human(item.size)}", hint)
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
        if item.mtime_ns:
            with contextlib.suppress(OSError, OverflowError):  # a time that this file system cannot hold
                os.utime(part, ns=(item.mtime_ns, item.mtime_ns))
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
                outcomes.append(self._place(part, outcome, folders))
            if arrived and not osal.sync_tree(self.root):
                for folder in folders:
                    _sync_names(folder, self.root)
        except OSError as error:
            raise self._trouble(error) from error
        yield from outcomes

    def _place(self, part: Path, outcome: Outcome, folders: set[Path]) -> Outcome:
        """Gives a file its name. `folders`: those that are known to stand, and grow."""
        try:
            path = self._path(outcome.key)
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                folders.add(path.parent)
            part.replace(path)
            found = path.stat(follow_symlinks=False)
        except ValueError as error:
            part.unlink(missing_ok=True)
            return Outcome(outcome.key, outcome.size, "name", str(error))
        except OSError as error:
            if error.errno not in _ONE_FILE:
                raise
            part.unlink(missing_ok=True)
            if error.errno in (errno.EEXIST, errno.ENOTDIR):
                return Outcome(outcome.key, outcome.size, "in-the-way", "a file stands where a folder is needed")
            return failed(outcome.key, error, outcome.size)
        if found.st_size != outcome.size:
            return Outcome(outcome.key, outcome.size, "size", f"the disk kept {found.st_size} bytes of {outcome.size}")
        return replace(outcome, modified=found.st_mtime)

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        self._look()
        for key in keys:
            self._check_hold()
            try:
                path = self._path(key)
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                yield Outcome(key)
            except ValueError as error:
                yield Outcome(key, code="name", reason=str(error))
            except OSError as error:
                yield failed(key, error)
            else:
                self._prune(path.parent)
                yield Outcome(key)

    def _prune(self, folder: Path) -> None:
        """Takes away folders that hold nothing any more: a store has keys, and no folders of its own."""
        with contextlib.suppress(OSError):  # as soon as one holds something
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent

    def close(self) -> None:
        """Nothing is held."""


def _sync_names(folder: Path, root: Path) -> None:
    """Makes names durable from `folder` up to `root`, for systems without syncfs. A file system that cannot sync a folder is taken as it is."""
    while True:
        with contextlib.suppress(OSError):
            osal.sync_folder(folder)
        if folder == root:
            return
        folder = folder.parent
