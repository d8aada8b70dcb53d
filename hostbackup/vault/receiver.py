"""Small and middling objects on their way in: held in memory until they are worth a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

from hostbackup.errors import VaultError
from hostbackup.vault.faults import told

if TYPE_CHECKING:
    from hostbackup.vault.objects import ObjectFolder

BUFFER = 128 * 1024  # bytes held in memory before a receiver goes to disk: most web files are smaller, and take one write
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class ObjectReceiver:
    """Takes the bytes of one object. Used by one thread at a time; exactly one of commit and abort ends it."""

    __slots__ = ("_buffer", "_fd", "_folder", "_hash", "_over", "_part", "_size")

    def __init__(self, folder: ObjectFolder) -> None:
        self._folder = folder
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._size = 0
        self._fd = -1
        self._part = ""
        self._over = False

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Takes more bytes. Raises DiskFull or VaultError; nothing can be written or committed after that."""
        if self._over:
            raise VaultError("written to after its end", where=os.fspath(self._folder.incoming))
        self._hash.update(data)
        before = len(self._buffer)
        self._buffer += data
        taken = len(self._buffer) - before
        self._size += taken
        if len(self._buffer) >= BUFFER:
            self._spill()
        return taken

    def _spill(self, digest: str = "") -> None:
        """Puts what is held into the file. `digest`: the file is made, and this is all of it."""
        try:
            if self._fd < 0:
                self._part = self._folder.whole_name(digest) if digest else self._folder.part_name()
                self._fd = os.open(self._part, _CREATE, 0o400)
            done = os.write(self._fd, self._buffer)
            if done < len(self._buffer):
                rest = memoryview(self._buffer)
                while done < len(rest):
                    done += os.write(self._fd, rest[done:])
                rest.release()
        except OSError as error:
            needed = len(self._buffer)
            self.abort()
            raise told(error, self._folder.incoming, needed) from error
        except BaseException:
            self.abort()
            raise
        self._buffer = bytearray()

    def commit(self) -> tuple[str, int]:
        """Digest and size. Durable only after the folder's next flush. Raises DiskFull or VaultError; nothing is left behind then."""
        if self._over:
            raise VaultError("committed after its end", where=os.fspath(self._folder.incoming))
        digest = self._hash.hexdigest()
        small = self._fd < 0
        if small and (self._folder.stands(digest, self._size) or self._hand_over(digest)):
            self._over = True
            return digest, self._size
        if small or self._buffer:
            self._spill(digest if small else "")
        self._over = True
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
            self._folder.take(self._part, digest, self._size, new=small)
        except VaultError:
            self.abort()
            raise
        except OSError as error:
            self.abort()
            raise told(error, self._folder.incoming, self._size) from error
        except BaseException:
            self.abort()  # others may wait for these bytes
            raise
        return digest, self._size

    def _hand_over(self, digest: str) -> bool:
        """Whether somebody else makes the file."""
        try:
            return self._folder.hand_over(digest, self._buffer)
        except BaseException:
            self._over = True
            raise

    def abort(self) -> None:
        """Forgets what was written. Harmless when repeated."""
        self._over = True
        self._buffer = bytearray()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._part:
            part, self._part = self._part, ""
            if self._folder.gave_up(part):
                with contextlib.suppress(OSError):
                    os.unlink(part)  # noqa: PTH108
