"""Turns objects into ordinary files, for the view and for a restore: linked, reflinked or copied, with their times and modes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hostbackup import osal
from hostbackup.errors import Damaged
from hostbackup.vault.hashing import hash_fd, hash_file
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.safe import SafeFolder

Style = Literal["reflink", "link", "copy"]
_CHUNK = 1024 * 1024
_NO_LINK = (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
_WIDEST_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the file system of a folder can do, found by trying."""

    reflink: bool
    link: bool
    colon: bool  # may a name hold `:`
    tolerance_ns: int  # how far a kept mtime may be from the one that was set

    @classmethod
    def probe(cls, folder: Path) -> Abilities:
        """Tries with small files in `folder`, which are gone again afterwards."""
        token = secrets.token_hex(8)
        first, second, third = (folder / f"probe-{token}{end}.part" for end in ("", "-2", "-3"))
        colon = folder / f"probe-{token}:.part"
        fine = 1_000_000_000 * 1_700_000_001 + 123_456_789
        try:
            first.write_bytes(b"probe")
            os.utime(first, ns=(fine, fine))
            kept = first.stat().st_mtime_ns
            with first.open("rb") as source, second.open("wb") as target:
                reflink = osal.reflink(source.fileno(), target.fileno())
            link = colon_kept = False
            with contextlib.suppress(OSError):
                third.hardlink_to(first)
                link = True
            with contextlib.suppress(OSError):
                colon.touch()
                colon_kept = colon.name in os.listdir(folder)  # noqa: PTH208 - on NTFS the part behind the colon would be no name
            return cls(reflink, link, colon_kept, 0 if kept == fine else 2_000_000_000)
        finally:
            for path in (first, second, third, colon):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def probe_style(abilities: Abilities, method: str) -> Style:
    """How files get into the view where the profile says `link` or `copy`."""
    if method == "copy":
        return "copy"
    return "reflink" if abilities.reflink else "link" if abilities.link else "copy"


@dataclass(frozen=True, slots=True)
class Content:
    """What a file is to be: the object with its bytes, and its metadata."""

    digest: str
    size: int  # bytes
    mtime_ns: int
    mode: int = 0o400  # the view's; any other is never linked, since a link shares the mode of the object


class Filler:
    """Makes files of objects in folders.

    `trust`: a file of its own with the right size and mtime is taken for right without reading it. `before_copy` is called once, before the first
    file that will have bytes of its own: they are not durable when its name is.
    """

    def __init__(
        self,
        objects: ObjectFolder,
        style: Style,
        *,
        tolerance_ns: int = 0,
        trust: bool = True,
        before_copy: Callable[[], None] | None = None,
    ) -> None:
        self._objects = objects
        self._style = style
        self._tolerance = tolerance_ns
        self._trust = trust
        self._before_copy = before_copy

    def stands(self, found: os.stat_result, digest: str, size: int, mtime_ns: int) -> bool:
        """Whether a file of the view, as `found` by lstat, is the object itself and right in size and time: then `file` would leave it alone."""
        if self._style != "link" or found.st_size != size or abs(found.st_mtime_ns - mtime_ns) > self._tolerance:
            return False
        # Where a listing tells other inodes than lstat, as on overlays, or the disk is another one: `file` looks closely.
        return self._objects.inode(digest) == found.st_ino and found.st_dev == self._objects.device and stat.S_ISREG(found.st_mode)

    def file(self, folder: SafeFolder, name: bytes, content: Content, *, absent: bool = False) -> bool:
        """Makes `name` a file with this content; True where it had to be made, False where it was right. `absent`: nothing stands there, for sure.

        Raises Damaged where the object is missing or found to be wrong (it is set aside then), OSError where the file system refuses.
        """
        source = self._objects.where(content.digest)
        try:
            stored = os.stat(source, follow_symlinks=False)  # noqa: PTH116 - str paths: this runs once an entry
        except FileNotFoundError as error:
            folder.remove(name)
            raise self._objects.missing(content.digest) from error
        if stored.st_size != content.size or not stat.S_ISREG(stored.st_mode):
            self._damaged(content.digest, f"{stored.st_size} bytes long where {content.size} were stored", folder, name)
        standing = None if absent else folder.stat(name)
        shared = standing is not None and (standing.st_ino, standing.st_dev) == (stored.st_ino, stored.st_dev)
        timely = self._timely(stored, content)
        # an object's mtime is the view's to set as long as no second entry relies on it
        linkable = self._style == "link" and content.mode == 0o400 and (timely or stored.st_nlink <= 1 + shared)
        if standing is not None:
            if linkable and shared:
                if not timely:
                    self._touch(source, folder, name, content)
                return False
            if not linkable and not shared and self._is_right(folder, name, standing, content):
                return False
            folder.remove(name)
        if linkable:
            if not timely:
                os.utime(source, ns=_times(content))
            if _hard_link(folder, name, source):
                return True
        self._copy(folder, name, source, content)
        return True

    def _timely(self, found: os.stat_result, content: Content) -> bool:
        return abs(found.st_mtime_ns - _times(content)[0]) <= self._tolerance

    def _is_right(self, folder: SafeFolder, name: bytes, standing: os.stat_result, content: Content) -> bool:
        alike = stat.S_ISREG(standing.st_mode) and standing.st_nlink == 1 and standing.st_size == content.size
        if not alike or stat.S_IMODE(standing.st_mode) != content.mode or not self._timely(standing, content):
            return False
        if self._trust:
            return True
        fd = folder.open_file(name)
        try:
            return hash_fd(fd)[0] == content.digest
        finally:
            os.close(fd)

    def _touch(self, source: str, folder: SafeFolder, name: bytes, content: Content) -> None:
        """Sets the mtime of a file that is the object itself. A mtime that is not ours may mean that somebody wrote to it: so it is read."""
        found, size = hash_file(Path(source))
        if found != content.digest:
            self._damaged(content.digest, f"its {size} bytes have the SHA-256 {found}; perhaps it was changed through latest/", folder, name)
        os.utime(source, ns=_times(content))

    def _copy(self, folder: SafeFolder, name: bytes, source: str, content: Content) -> None:
        if self._before_copy is not None:
            self._before_copy()
            self._before_copy = None
        fd = folder.create_file(name, 0o600)
        try:
            with Path(source).open("rb", buffering=0) as file:
                cloned = self._style == "reflink" and osal.reflink(file.fileno(), fd)
                found = content.digest if cloned else _pour(file.fileno(), fd)
            if hasattr(os, "fchmod"):
                os.fchmod(fd, content.mode)
            os.utime(fd if os.utime in os.supports_fd else folder.path / os.fsdecode(name), ns=_times(content))
        except BaseException:
            os.close(fd)
            folder.remove(name)
            raise
        os.close(fd)
        if found != content.digest:
            self._damaged(content.digest, f"its bytes have the SHA-256 {found}", folder, name)

    def _damaged(self, digest: str, reason: str, folder: SafeFolder, name: bytes) -> None:
        folder.remove(name)
        self._objects.set_aside(digest, reason)
        hint = "run backup to fetch it again, or `copy --repair` to bring it from a copy"
        raise Damaged(f"the object of this entry is damaged: {reason}", where=self._objects.where(digest), hint=hint)

    def symlink(self, folder: SafeFolder, name: bytes, target: bytes, mtime_ns: int) -> bool:
        """Makes `name` a symlink; True where it had to be made."""
        standing = folder.stat(name)
        if standing is not None and stat.S_ISLNK(standing.st_mode) and folder.readlink(name) == target:
            made = False
        else:
            if standing is not None:
                folder.remove(name)
            folder.symlink(target, name)
            made = True
        if standing is None or made or abs(standing.st_mtime_ns - mtime_ns) > self._tolerance:
            folder.set_mtime(name, mtime_ns)
        return made

    def data(self, folder: SafeFolder, name: bytes, data: bytes) -> str:
        """Makes `name` a file with these bytes, read-only; their digest."""
        digest = hashlib.sha256(data).hexdigest()
        standing = folder.stat(name)
        if standing is not None:
            if stat.S_ISREG(standing.st_mode) and standing.st_size == len(data):
                fd = folder.open_file(name)
                try:
                    if hash_fd(fd)[0] == digest:
                        return digest
                finally:
                    os.close(fd)
            folder.remove(name)
        fd = folder.create_file(name)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        return digest


def _times(content: Content) -> tuple[int, int]:
    mtime_ns = max(-_WIDEST_NS, min(_WIDEST_NS, content.mtime_ns))
    return mtime_ns, mtime_ns


def _hard_link(folder: SafeFolder, name: bytes, source: str) -> bool:
    try:
        folder.hard_link(source, name)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _pour(source: int, target: int) -> str:
    digest = hashlib.sha256()
    while data := os.read(source, _CHUNK):
        digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    return digest.hexdigest()
