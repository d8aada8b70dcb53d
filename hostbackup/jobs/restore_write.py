"""Brings files into a person's folder: each whole and proven before it has its name, over nothing that is there, and never through a symlink."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from hostbackup import osal
from hostbackup.errors import Damaged, Exit, HostbackupError, Locked, UsageError
from hostbackup.jobs.restore_names import Names, Taken
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, name_json
from hostbackup.vault.disk_errors import disk_error
from hostbackup.vault.hashing import hash_fd
from hostbackup.vault.records import canonical
from hostbackup.vault.safe import SafeFolder, is_in_the_way
from hostbackup.vault.stores import CHUNK

NAMES_FILE = "hostbackup-names.jsonl"
_ARRIVING = ".hostbackup-restoring"
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EIO)
_REFUSED = (errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
_NO_METADATA = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EOVERFLOW)
_WIDEST_NS = 2**63 - 1

Where = tuple[bytes, ...]  # components below the target folder, as they stand there


class Exists(Exception):
    """Something else stands under this name."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What a file gets beside its bytes."""

    mtime_ns: int | None  # None: now
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file. `open` may be left out where they are at hand otherwise."""

    digest: str
    size: int
    open: Callable[[], BinaryIO] = io.BytesIO


class Target:
    """The folder of one restore, held for it alone. A context manager. Its methods may be called from several threads.

    `names`: what the file system's names may be; found out by trying where it is None.
    """

    def __init__(self, root: Path, result: Result, names: Names | None = None) -> None:
        """Makes `root` where it is not there. Raises UsageError where it is no folder, Locked, DiskFull or VaultError."""
        self.root = root
        self._result = result
        self._lock_file = self._hold()
        try:
            self.base = SafeFolder.open(root.resolve())
            self._arriving = self.base.below([_ARRIVING.encode()])
            self._clear()
            self.names = names or Names.probe(root / _ARRIVING)
            self.colon = not self.names.windows
        except OSError as error:
            self._lock_file.release()
            raise disk_error(error, root) from error
        self.mapped: dict[str, str] = {}  # path as it stands in the folder, and as it was
        self.without_setuid: list[bytes] = []  # paths of files made without the setuid or setgid they had, since they are root's now
        self._numbers = itertools.count()
        self._last: dict[int, tuple[Where, SafeFolder]] = {}  # by thread: the folder it wrote into last, which it will mostly want again
        self._token = secrets.token_hex(6)
        self._guard = threading.Lock()
        self._warned = False

    def _hold(self) -> osal.FileLock:
        arriving = self.root / _ARRIVING
        try:
            if self.root.exists() and not self.root.is_dir():
                raise UsageError("is not a folder", where=str(self.root), hint="give --to a folder, new or not")
            arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
            if arriving.is_symlink():
                raise UsageError(f"{_ARRIVING} in it is a symlink", where=str(self.root), hint="remove it, or restore to another folder")
            lock = osal.FileLock.take(arriving / "lock", exclusive=True)
        except OSError as error:
            raise disk_error(error, self.root) from error
        if lock is None:
            raise Locked("another restore is writing to this folder", where=str(self.root))
        return lock

    def _clear(self) -> None:
        for name in self._arriving.names() - {b"lock"}:
            self._arriving.remove(name)

    def close(self) -> None:
        """Makes everything durable, and the helper folder vanish."""
        for _, folder in self._last.values():
            folder.close()
        try:
            with contextlib.suppress(OSError):
                self._clear()
            self._lock_file.release()
            with contextlib.suppress(OSError):
                self._arriving.remove(b"lock")
                self.base.remove(_ARRIVING.encode())
            osal.sync_tree(self.root)
        except OSError as error:
            raise disk_error(error, self.root) from error
        finally:
            self._arriving.close()
            self.base.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- names --------------------------------------------------------------------------------------------------------------------------

    def note(self, folder: Where, name: bytes, original: bytes) -> None:
        """Remembers that `name` in `folder` was called `original`."""
        if name != original:
            path = b"/".join((*folder, name))
            with self._guard:
                self.mapped[os.fsdecode(path)] = os.fsdecode(original)

    def taken(self) -> Taken:
        return Taken(self.names)

    def write_names(self) -> None:
        """Adds the mapped names to `hostbackup-names.jsonl`: one JSON object a line, `path` as it stands, `original` as the last part was called."""
        if self.mapped:
            lines = [
                canonical({**name_json(os.fsencode(path), "path"), **name_json(os.fsencode(original), "original")})
                for path, original in sorted(self.mapped.items())
            ]
            try:
                self.merge((), NAMES_FILE.encode(), lines)
            except (Exists, OSError) as error:
                self.fail(error, "", NAMES_FILE.encode())

    # -- folders ------------------------------------------------------------------------------------------------------------------------

    def folder(self, where: Where) -> None:
        """Makes sure that a folder is there, and those above it. Raises Exists, OSError."""
        try:
            self.base.below(where, create=True).close()
        except OSError as error:
            if is_in_the_way(error):
                raise Exists("something else bears the name of this folder, or of one above it") from error
            raise

    def finish_folder(self, where: Where, meta: Meta) -> None:
        """Gives a folder its mode and mtime, once nothing more is written into it."""
        with self.base.below(where) as folder:
            with self._as_far_as_it_goes():
                if meta.mtime_ns is not None:
                    folder.set_own_mtime(_bounded(meta.mtime_ns))
            with self._as_far_as_it_goes():
                if folder.fd is not None and hasattr(os, "fchmod"):
                    os.fchmod(folder.fd, meta.mode)
                else:
                    folder.path.chmod(meta.mode | stat.S_IWUSR)

    @contextlib.contextmanager
    def _as_far_as_it_goes(self) -> Iterator[None]:
        """Modes and times are kept where the file system can; where it cannot, that is said once."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_METADATA:
                raise
            with self._guard:
                if not self._warned:
                    self._warned = True
                    self._result.observer.warn(f"{self.root}: this file system does not keep all modes and times")

    # -- files --------------------------------------------------------------------------------------------------------------------------

    def arrive(self) -> tuple[bytes, int]:
        """A new temporary file: its name, and a descriptor to write."""
        name = f"{self._token}-{next(self._numbers)}.part".encode()
        return name, self._arriving.create_file(name, 0o600)

    def reopen(self, part: bytes) -> int:
        """A descriptor to read a temporary file from its start."""
        return self._arriving.open_file(part)

    def forget(self, part: bytes) -> None:
        with contextlib.suppress(OSError):
            self._arriving.remove(part)

    def put(self, folder: Where, name: bytes, content: Content, meta: Meta) -> tuple[bytes, bool]:
        """Makes a file: the name it got, and whether it had to be made. An equal one that stands there is left as it is, and nothing is read.

        Raises Damaged where the contents are not those of the digest, Exists, OSError.
        """
        with self._down(folder) as inner:
            if self._stands(inner, name, content):
                return name, False
            part, fd = self.arrive()
            try:
                try:
                    _pour(content, fd)
                finally:
                    os.close(fd)
                name, made = self._place(part, inner, name, content, meta)
            except BaseException:
                self.forget(part)
                raise
        if made and _harmless(meta.mode) != meta.mode:
            with self._guard:
                self.without_setuid.append(b"/".join((*folder, name)))
        return name, made

    def put_arrived(self, part: bytes, folder: Where, name: bytes, content: Content) -> tuple[bytes, bool]:
        """The same, of a temporary file that is written already."""
        try:
            with self._down(folder) as inner:
                if self._stands(inner, name, content):
                    return name, False
                return self._place(part, inner, name, content, Meta(None))
        finally:
            self.forget(part)

    def _stands(self, inner: SafeFolder, name: bytes, content: Content) -> bool:
        try:
            found = inner.stat(name)
        except OSError as error:
            if error.errno in _REFUSED:
                return False  # so there is none; a name that will do is found in the end
            raise
        if found is None:
            return False
        if _is_equal(inner, name, found, content):
            return True
        raise Exists("something else is there under this name")

    @contextlib.contextmanager
    def _down(self, folder: Where) -> Iterator[SafeFolder]:
        """The folder, made where it is not there."""
        last, opened = self._last.get(threading.get_ident(), (None, None))
        if opened is None or last != folder:
            try:
                following = self.base.below(folder, create=True)
            except OSError as error:
                if is_in_the_way(error):
                    raise Exists("something else bears the name of a folder above it") from error
                raise
            if opened is not None:
                opened.close()
            self._last[threading.get_ident()] = folder, following
            opened = following
        yield opened

    def _place(self, part: bytes, inner: SafeFolder, name: bytes, content: Content, meta: Meta) -> tuple[bytes, bool]:
        """Gives a temporary file its mode, its mtime and its name, or another where the file system refuses that one."""
        own = part if self._arriving.fd is not None else os.fsencode(self._arriving.path / os.fsdecode(part))
        with self._as_far_as_it_goes():
            if meta.mtime_ns is not None:
                self._arriving.set_mtime(part, _bounded(meta.mtime_ns))
        with self._as_far_as_it_goes():
            os.chmod(own, _harmless(meta.mode), dir_fd=self._arriving.fd)
        try:
            self._rename(part, inner, name)
        except OSError as error:
            other = self.names.last_resort(name)
            if error.errno not in _REFUSED or other == name:
                raise
            if self._stands(inner, other, content):
                self.forget(part)
                return other, False
            self._rename(part, inner, other)
            return other, True
        return name, True

    def _rename(self, part: bytes, inner: SafeFolder, name: bytes) -> None:
        """Moves a file from the helper folder, never onto another."""
        if inner.fd is None:
            if inner.stat(name) is not None:
                raise Exists("something else is there under this name")
            inner.receive(self._arriving.path / os.fsdecode(part), name)
            return
        try:
            os.link(part, name, src_dir_fd=self._arriving.fd, dst_dir_fd=inner.fd, follow_symlinks=False)
        except FileExistsError as error:
            raise Exists("something else is there under this name") from error
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            if inner.stat(name) is not None:
                raise Exists("something else is there under this name") from error
            os.rename(part, name, src_dir_fd=self._arriving.fd, dst_dir_fd=inner.fd)
        else:
            os.unlink(part, dir_fd=self._arriving.fd)

    def link(self, folder: Where, name: bytes, target: bytes, mtime_ns: int) -> bool:
        """Makes a symlink, whatever it leads to; whether it had to be made. Raises Exists, OSError."""
        with self._down(folder) as inner:
            found = inner.stat(name)
            if found is not None:
                if stat.S_ISLNK(found.st_mode) and inner.readlink(name) == target:
                    return False
                raise Exists("something else is there under this name")
            inner.symlink(target, name)
            with contextlib.suppress(NotImplementedError):
                inner.set_mtime(name, _bounded(mtime_ns))
        return True

    def data(self, folder: Where, name: bytes, data: bytes, meta: Meta) -> bool:
        """The same as `put`, of bytes at hand."""
        return self.put(folder, name, Content(hashlib.sha256(data).hexdigest(), len(data), partial(io.BytesIO, data)), meta)[1]

    def merge(self, folder: Where, name: bytes, lines: Iterable[bytes]) -> None:
        """Adds lines to a file that restores keep, such as the list of mapped names; one that stands there is not added. Raises OSError, Exists."""
        with self._down(folder) as inner:
            part, fd = self.arrive()
            try:
                known: set[bytes] = set()
                with os.fdopen(fd, "wb") as file:
                    if inner.stat(name) is not None:
                        with os.fdopen(inner.open_file(name), "rb") as before:
                            for line in before:
                                known.add(hashlib.sha256(line).digest())
                                file.write(line)
                    file.writelines(line for line in lines if hashlib.sha256(line).digest() not in known)
                    file.flush()
                    osal.sync_fd(file.fileno())
                inner.receive(self._arriving.path / os.fsdecode(part), name)
            except BaseException:
                self.forget(part)
                raise

    # -- failures -----------------------------------------------------------------------------------------------------------------------

    def fail(self, error: Exception, part: str, label: bytes) -> None:
        """Tells why an entry was not restored. Raises where nothing else could be restored either: DiskFull, a store that is gone."""
        result = self._result
        if isinstance(error, Damaged):
            result.fail(Failure("vault", part, label, "damaged", error.reason, error.hint), Exit.DAMAGE)
        elif isinstance(error, HostbackupError):
            raise error
        elif isinstance(error, Exists):
            hint = "it was left as it is; restore to another folder to have both"
            result.fail(Failure("local", part, label, "exists", str(error), hint))
        elif isinstance(error, OSError):
            if error.errno in _NO_ROOM:
                raise disk_error(error, self.root) from error
            reason = (error.strerror or str(error)).lower()
            result.fail(Failure("local", part, label, "refused", f"this file system refuses it: {reason}"))
        else:
            result.fail(Failure("local", part, label, "refused", str(error)))


def _is_equal(inner: SafeFolder, name: bytes, found: os.stat_result, content: Content) -> bool:
    if not stat.S_ISREG(found.st_mode) or found.st_size != content.size:
        return False
    fd = inner.open_file(name)
    try:
        return hash_fd(fd)[0] == content.digest
    finally:
        os.close(fd)


def _pour(content: Content, fd: int) -> None:
    found = hashlib.sha256()
    done = 0
    with content.open() as contents:
        while data := contents.read(CHUNK):
            found.update(data)
            write_all(fd, data)
            done += len(data)
    if found.hexdigest() != content.digest or done != content.size:
        hint = "run verify, then `copy --repair` to bring it from a copy"
        raise Damaged(f"its bytes are not those that were stored ({done} of {content.size} bytes)", where=content.digest, hint=hint)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _harmless(mode: int) -> int:
    """The mode a file gets: what root restores belongs to root, and must not run as root for whoever starts it."""
    return mode & ~0o6000 if os.name == "posix" and os.geteuid() == 0 else mode


def _bounded(mtime_ns: int) -> int:
    return max(-_WIDEST_NS, min(_WIDEST_NS, mtime_ns))


def refuses_name(error: OSError) -> bool:
    """Whether it is the name that the file system refuses."""
    return error.errno in _REFUSED
