"""Writing into a folder of this machine: each entry whole under its name, or not at all."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hostbackup.errors import HostbackupError
from hostbackup.model import Entry, Failure, Kind, Part, Write, Written
from hostbackup.osal import sync_fd, sync_file, sync_tree
from hostbackup.places.local_fs import CHUNK, DIR_FDS, NO_FOLLOW, Folders, SourceFailed, failure, opened, proper, pump

BATCH_ENTRIES = 1024  # files synced together before they are renamed
BATCH_BYTES = 64 << 20
_FEW = 4  # up to here syncing one by one is less than syncing all
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINKS_HERE = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_LINK_AT = DIR_FDS and os.link in os.supports_dir_fd


class _Unfit(Exception):
    """An entry that cannot be written; tells why."""

    def __init__(self, told: Failure) -> None:
        super().__init__(told.reason)
        self.told = told


@dataclass(frozen=True, slots=True)
class _Staged:
    """A file whose bytes stand under a temporary name."""

    write: Write[Entry]
    temporary: bytes


class LocalWriter:
    """One call of write. `folders` reaches what is below `root`."""

    def __init__(self, folders: Folders, root: Path, *, side: str, part: Part) -> None:
        self._folders = folders
        self._root = root
        self._side = side
        self._part = part
        self._staged: list[_Staged] = []
        self._bytes = 0
        self._made: list[Write[Entry]] = []  # folders, finished last

    def write(self, items: Iterable[Write[Entry]]) -> Iterator[Written[Entry]]:
        source = iter(items)
        first = next(source, None)
        if first is None:
            return
        if first.item.path or first.item.kind is not Kind.DIR:
            self._folders.root_entry()
        try:
            for item in itertools.chain([first], source):
                outcome = self._begin(item)
                if outcome is not None:
                    yield outcome
                if len(self._staged) >= BATCH_ENTRIES or self._bytes >= BATCH_BYTES:
                    yield from self._bring()
            yield from self._bring()
            for item in reversed(self._made):  # children first: a parent's mode may shut it
                yield self._attempt(item, self._finish_folder)
        finally:
            for staged in self._staged:
                self._discard(staged.temporary)

    def _begin(self, item: Write[Entry]) -> Written[Entry] | None:
        """Does what can be done at once; None where the outcome comes later."""
        entry = item.item
        if entry.path and not proper(entry.path):
            return self._failed(item, self._tell(item, "name-refused", "its name could lead out of the folder"))
        try:
            if entry.kind is Kind.DIR:
                self._make_folder(item)
                self._made.append(item)
                return None
            if entry.kind is Kind.LINK:
                return Written(item, self._make_link(item))
            if entry.kind is Kind.FILE and entry.path:
                self._stage(item)
                return None
        except _Unfit as unfit:
            return self._failed(item, unfit.told)
        except OSError as error:
            return self._failed(item, self._explain(item, error))
        return self._failed(item, self._tell(item, "unsupported", "only files, folders and symlinks can be written"))

    # -- folders ------------------------------------------------------------------------------------------------------------------------

    def _make_folder(self, item: Write[Entry]) -> None:
        """Usable by its owner until `_finish_folder`; otherwise with its mode at once, so that a run that ends early shuts nobody out."""
        entry = item.item
        mode = entry.mode & 0o7777 | 0o700
        if not entry.path:
            self._root.mkdir(parents=True, exist_ok=True)
            return
        name, parent = self._folders.at(entry.path)
        try:
            os.mkdir(name, mode, dir_fd=parent)
            fresh = True
        except FileExistsError:
            fresh = False
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(there.st_mode):
            raise _Unfit(self._tell(item, "exists", "something that is no folder is there"))
        if fresh or there.st_mode & 0o700 != 0o700:
            self._chmod(entry.path, mode if fresh else stat.S_IMODE(there.st_mode) | 0o700)

    def _finish_folder(self, item: Write[Entry]) -> Entry:
        entry = item.item
        self._chmod(entry.path, entry.mode)
        name, parent = self._folders.at(entry.path)
        _set_time(name, parent, entry.mtime_ns, follow=not entry.path)
        return self._folders.entry(entry.path)

    def _chmod(self, path: bytes, mode: int) -> None:
        if DIR_FDS and hasattr(os, "fchmod"):
            os.fchmod(self._folders.fd(path), mode & 0o7777)
        else:
            Path(os.fsdecode(self._folders.at(path)[0])).chmod(mode & 0o7777)

    # -- links --------------------------------------------------------------------------------------------------------------------------

    def _make_link(self, item: Write[Entry]) -> Entry:
        entry = item.item
        name, parent = self._folders.at(entry.path)
        try:
            os.symlink(entry.target, name, dir_fd=parent)
        except FileExistsError:
            there = self._folders.entry(entry.path)
            if there.kind is Kind.LINK and there.target == entry.target:
                return there
            if not item.replace or there.kind is Kind.DIR or not _as_expected(item, there):
                raise _Unfit(self._in_the_way(item, there)) from None
            temporary = _temporary(entry.path)
            os.symlink(entry.target, self._folders.at(temporary)[0], dir_fd=self._folders.at(temporary)[1])
            self._rename(temporary, entry.path)
        name, parent = self._folders.at(entry.path)
        _set_time(name, parent, entry.mtime_ns, follow=False)
        return self._folders.entry(entry.path)

    # -- files --------------------------------------------------------------------------------------------------------------------------

    def _stage(self, item: Write[Entry]) -> None:
        entry = item.item
        temporary = _temporary(entry.path)
        name, parent = self._folders.at(temporary)
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            try:
                self._fill(fd, item)
                if hasattr(os, "fchmod"):
                    os.fchmod(fd, entry.mode & 0o7777)
            finally:
                os.close(fd)
            name, parent = self._folders.at(temporary)
            _set_time(name, parent, entry.mtime_ns, follow=False)
        except BaseException:
            self._discard(temporary)
            raise
        self._staged.append(_Staged(item, temporary))
        self._bytes += item.size

    def _fill(self, fd: int, item: Write[Entry]) -> None:
        seen = hashlib.sha256()
        for data in self._contents(item):
            seen.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        if item.digest and seen.hexdigest() != item.digest:
            raise _Unfit(self._tell(item, "damaged", "the bytes to be written are not those on record", "run `verify`"))

    def _contents(self, item: Write[Entry]) -> Iterator[bytes]:
        """The bytes to write. What goes wrong with them is the source's trouble, and this one entry's."""
        try:
            stream = _open(item)
            with stream:
                while data := stream.read(CHUNK):
                    yield data
        except HostbackupError as error:
            raise _Unfit(self._tell(item, error.code, error.reason, error.hint)) from error
        except OSError as error:
            raise _Unfit(self._tell(item, "io", f"the bytes to be written could not be read: {error.strerror or error}")) from error

    def _bring(self) -> Iterator[Written[Entry]]:
        """Syncs what is staged, gives it its names, and syncs those."""
        staged, self._bytes = list(self._staged), 0
        trouble = self._sync(staged)
        outcomes = []
        for one in staged:
            if trouble is not None:
                self._discard(one.temporary)
                outcomes.append(self._failed(one.write, self._explain(one.write, trouble)))
            else:
                outcomes.append(self._place(one))
            self._staged.remove(one)
        self._sync_names({one.write.item.parent for one in staged})
        yield from outcomes

    def _sync(self, staged: list[_Staged]) -> OSError | None:
        try:
            if len(staged) > _FEW and sync_tree(self._root):
                return None
            for one in staged:
                name, parent = self._folders.at(one.temporary)
                if parent is None:
                    sync_file(Path(os.fsdecode(name)))
                    continue
                # a mode that shuts the owner out was set already: then only syncing all helps
                try:
                    fd = os.open(name, os.O_RDONLY | NO_FOLLOW, dir_fd=parent)
                except PermissionError:
                    sync_tree(self._root)
                    return None
                try:
                    sync_fd(fd)
                finally:
                    os.close(fd)
        except OSError as error:
            return error
        return None

    def _sync_names(self, parents: set[bytes]) -> None:
        with suppress(OSError):  # the names are there; the system makes them durable in its own time at the latest
            if len(parents) > _FEW and sync_tree(self._root):
                return
            for parent in parents if DIR_FDS else ():
                os.fsync(self._folders.fd(parent))

    def _place(self, staged: _Staged) -> Written[Entry]:
        item, path = staged.write, staged.write.item.path
        try:
            if item.replace and self._unchanged(item):
                self._rename(staged.temporary, path)
            else:
                self._link(staged.temporary, path)
            return Written(item, self._folders.entry(path))
        except FileExistsError:
            self._discard(staged.temporary)
            return self._attempt(item, self._keep_equal)
        except OSError as error:
            self._discard(staged.temporary)
            return self._failed(item, self._explain(item, error))

    def _unchanged(self, item: Write[Entry]) -> bool:
        """Whether what is to be replaced still is what the caller looked at."""
        try:
            return item.expected is None or _as_expected(item, self._folders.entry(item.item.path))
        except FileNotFoundError:
            return True

    def _keep_equal(self, item: Write[Entry]) -> Entry:
        """What is there, if it has the very bytes that were to be written."""
        there = self._folders.entry(item.item.path)
        if there.kind is not Kind.FILE or not item.digest or there.size != item.size or self._digest(there) != item.digest:
            raise _Unfit(self._in_the_way(item, there))
        return there

    def _digest(self, there: Entry) -> str:
        seen = hashlib.sha256()
        try:
            with opened(self._folders, there.path) as fd:
                pump(fd, there.size, seen.update)
        except SourceFailed as failed:
            raise failed.cause from failed
        return seen.hexdigest()

    def _rename(self, temporary: bytes, path: bytes) -> None:
        """Over what is there, but never over a folder."""
        source, parent = self._folders.at(temporary)
        target, _ = self._folders.at(path)
        try:
            os.replace(source, target, src_dir_fd=parent, dst_dir_fd=parent)
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileExistsError(errno.EEXIST, "a folder is there") from error

    def _link(self, temporary: bytes, path: bytes) -> None:
        """Gives the file its name unless that is taken: link(2) decides that in one step."""
        source, parent = self._folders.at(temporary)
        target, _ = self._folders.at(path)
        try:
            if not _LINK_AT:
                raise OSError(errno.ENOSYS, "no link(2) by descriptor")
            os.link(source, target, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS_HERE:
                raise
        else:
            os.unlink(source, dir_fd=parent)
            return
        with suppress(FileNotFoundError):
            os.stat(target, dir_fd=parent, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, "something is there")
        self._rename(temporary, path)

    def _discard(self, temporary: bytes) -> None:
        with suppress(OSError):
            name, parent = self._folders.at(temporary)
            os.unlink(name, dir_fd=parent)

    # -- telling ------------------------------------------------------------------------------------------------------------------------

    def _attempt(self, item: Write[Entry], step: Callable[[Write[Entry]], Entry]) -> Written[Entry]:
        try:
            return Written(item, step(item))
        except _Unfit as unfit:
            return self._failed(item, unfit.told)
        except OSError as error:
            return self._failed(item, self._explain(item, error))

    def _failed(self, item: Write[Entry], told: Failure) -> Written[Entry]:
        return Written(item, item.item, told)

    def _explain(self, item: Write[Entry], error: OSError) -> Failure:
        told = failure(error, self._side, self._part, item.item.label)
        return dataclasses.replace(told, code="parent", reason="its folder is not there") if told.code == "vanished" else told

    def _in_the_way(self, item: Write[Entry], there: Entry) -> Failure:
        what = {Kind.FILE: "another file", Kind.DIR: "a folder", Kind.LINK: "another symlink"}.get(there.kind, "something else")
        return self._tell(item, "exists", f"{what} is there, and is left as it is")

    def _tell(self, item: Write[Entry], code: str, reason: str, hint: str = "") -> Failure:
        return Failure(self._side, self._part.id, item.item.label, code, reason, hint)


def _open(item: Write[Entry]) -> BinaryIO:
    if item.open is None:
        raise ValueError(f"no contents given for {item.item.path!r}")
    return item.open()


def _as_expected(item: Write[Entry], there: Entry) -> bool:
    said = item.expected
    return said is None or (there.kind, there.size, there.mtime_ns // 1_000_000_000) == (said.kind, said.size, said.mtime_ns // 1_000_000_000)


def _temporary(path: bytes) -> bytes:
    """A name in the same folder that nobody else uses, short enough for any file system."""
    parent = path.rpartition(b"/")[0]
    name = b".hostbackup-" + secrets.token_hex(8).encode() + b".part"
    return parent + b"/" + name if parent else name


def _set_time(name: bytes, parent: int | None, mtime_ns: int, *, follow: bool) -> None:
    if follow or os.utime in os.supports_follow_symlinks:
        os.utime(name, ns=(time.time_ns(), mtime_ns), dir_fd=parent, follow_symlinks=follow)
    elif not stat.S_ISLNK(os.lstat(name).st_mode):
        os.utime(name, ns=(time.time_ns(), mtime_ns))
