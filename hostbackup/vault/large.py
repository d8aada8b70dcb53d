"""Large objects: hashed and written by a thread of their own while more comes, zeros left out as holes, resumed where an origin is known.

The thread begins write-back as it goes, so that the sync at the end finds little left to do. A resumable object is synced every so often, and
what is on the disk for certain is noted (`hostbackup.vault.partial`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hostbackup import osal
from hostbackup.errors import VaultError
from hostbackup.interrupts import later
from hostbackup.vault.faults import told
from hostbackup.vault.partial import Hash, Origin

if TYPE_CHECKING:
    from hostbackup.vault.objects import ObjectFolder

LARGE = 8 << 20  # bytes from which an object is one of these
NOTED = 64 << 20  # bytes between two notes of what is on the disk, at least …
APART = 5.0  # … and seconds: each keeps the disk from taking more for a while
_BATCH = 1 << 20  # bytes passed to the thread at once
_AHEAD = 4  # batches that may wait for it
_WRITE_BACK = 8 << 20
_BLOCK = 64 << 10  # zeros are looked for in blocks of so many bytes
_ZEROS = bytes(_BLOCK)

Piece = bytes | memoryview


class LargeReceiver:
    """Takes the bytes of one large object. Used by one thread at a time; exactly one of commit, abort and suspend ends it.

    With an `origin` it can be resumed: it goes on after the `received` bytes that are there already.
    """

    def __init__(self, folder: ObjectFolder, origin: Origin | None = None) -> None:
        self._folder = folder
        self._origin = origin
        if origin is not None:
            self._part = os.fspath(folder.partials.data(origin.name))
            fd, seen, self.received = folder.partials.take(origin)
        else:
            self._part = folder.part_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            fd, seen, self.received = os.open(self._part, flags, 0o600), hashlib.sha256(), 0
        self._batch: list[Piece] = []
        self._held = 0
        self._over = False
        self._writer = _Writer(fd, seen, self.received, self._note if origin is not None else None)

    def _note(self, seen: Hash, offset: int) -> None:
        assert self._origin is not None
        self._folder.partials.note(self._origin, seen, offset)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Takes more bytes; waits where the disk is slower than they come. Raises DiskFull or VaultError: it is over then, as if suspended."""
        if self._over:
            raise VaultError("written to after its end", where=os.fspath(self._folder.incoming))
        piece = _lasting(data)
        self._batch.append(piece)
        self._held += len(piece)
        self.received += len(piece)
        if self._held >= _BATCH:
            self._pass_on()
            if self._writer.error is not None:
                self._fail(self._writer.error)
        return len(piece)

    def _pass_on(self) -> None:
        batch, self._batch, self._held = self._batch, [], 0
        if batch:
            self._writer.take(batch)

    def _fail(self, error: OSError) -> None:
        self.suspend()
        raise told(error, self._folder.incoming, _BATCH) from error

    def commit(self) -> tuple[str, int]:
        """Digest and size. Durable only after the folder's next flush. Raises DiskFull or VaultError."""
        if self._over:
            raise VaultError("committed after its end", where=os.fspath(self._folder.incoming))
        self._pass_on()
        self._writer.finish()
        if self._writer.error is not None:
            self._fail(self._writer.error)
        self._over = True
        digest, size = self._writer.seen.hexdigest(), self._writer.offset
        try:
            self._writer.close()
            self._folder.take(self._part, digest, size, seal=True)
            if self._origin is not None:
                self._folder.partials.settle(self._origin.name)
        except VaultError:
            if self._origin is None:  # else what is noted can be gone on with yet
                self._forget()
            raise
        except OSError as error:
            self._forget()
            raise told(error, self._folder.incoming, size) from error
        return digest, size

    def sample(self, offset: int, length: int, /) -> bytes:
        """So many of the bytes that were there from the start, by a descriptor of their own; b"" where they cannot be read."""
        with contextlib.suppress(OSError), Path(self._part).open("rb") as file:
            file.seek(offset)
            return file.read(length)
        return b""

    def suspend(self) -> None:
        """Ends it. What came is kept for the next receiver of the same origin; without an origin it goes. Harmless when repeated."""
        if self._over:
            return
        self._over = True
        self._pass_on()
        writer = self._writer
        writer.finish()
        kept = False
        if self._origin is not None:
            kept = writer.secure()
            if kept:
                self._folder.partials.keep(self._origin, writer.seen)
        writer.close()
        if not kept:
            self._forget()

    def abort(self) -> None:
        """Forgets what was written. Harmless when repeated."""
        if self._over:
            return
        self._over = True
        self._batch = []
        self._writer.drop()
        self._writer.close()
        self._forget()

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            if self._origin is not None:
                self._folder.partials.drop(self._origin.name)
            else:
                Path(self._part).unlink(missing_ok=True)


def _lasting(data: bytes | bytearray | memoryview) -> Piece:
    """The same bytes, copied only where somebody could change them."""
    if isinstance(data, bytes) or (isinstance(data, memoryview) and isinstance(data.obj, bytes)):
        return data
    return bytes(data)


class _Writer:
    """The thread, and the file it has for itself until `finish` or `drop`."""

    def __init__(self, fd: int, seen: Hash, offset: int, note: Callable[[Hash, int], None] | None) -> None:
        self.seen = seen
        self.offset = offset  # bytes hashed and written, holes included
        self.noted = offset
        self._noted_at = -math.inf  # on the monotonic clock
        self.error: OSError | None = None
        self._fd = fd
        self._note = note
        self._begun = offset  # write-back has begun up to here
        self._through = False  # the thread has taken all there was
        self._unsafe = False  # a sync failed: nothing of this file is to be believed
        self._queue: queue.Queue[list[Piece] | None] = queue.Queue(_AHEAD)
        os.lseek(fd, offset, os.SEEK_SET)
        self._thread = threading.Thread(target=self._run, name="large-object", daemon=True)
        self._thread.start()

    def take(self, batch: list[Piece] | None) -> None:
        while self._thread.is_alive():
            with later, contextlib.suppress(queue.Full):
                self._queue.put(batch, timeout=1.0)
                return

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self.error is None:  # else what comes is only taken, so that nobody waits for room
                try:
                    self._store(batch)
                except OSError as error:
                    self.error = error
        self._through = True

    def _store(self, batch: Iterable[Piece]) -> None:
        for piece in batch:
            self.seen.update(piece)
            view, begin = memoryview(piece), 0
            for at in range(0, len(view), _BLOCK):
                block = view[at : at + _BLOCK]
                if _ZEROS.startswith(block):
                    self._write(view[begin:at])
                    begin = at + len(block)
                    os.lseek(self._fd, len(block), os.SEEK_CUR)
                    self.offset += len(block)
            self._write(view[begin:])
        if self.offset - self._begun >= _WRITE_BACK:
            osal.begin_write_back(self._fd, self._begun, self.offset - self._begun)
            self._begun = self.offset
        if self._note is not None and self.offset - self.noted >= NOTED and time.monotonic() - self._noted_at >= APART:
            self._make_sure()

    def _write(self, data: memoryview) -> None:
        self.offset += len(data)
        while data:
            data = data[os.write(self._fd, data) :]

    def _make_sure(self) -> None:
        """Brings all that was written to the disk, then notes it."""
        try:
            os.ftruncate(self._fd, self.offset)  # should it end in a hole
            osal.sync_fd(self._fd)
        except OSError:
            self._unsafe = True  # the system may call pages clean that never got to the disk
            raise
        if self._note is not None:
            self._note(self.seen, self.offset)
        self.noted, self._noted_at = self.offset, time.monotonic()

    def finish(self) -> None:
        """Waits until all is written. `error` tells what went wrong."""
        self._end()
        if not self._through and self.error is None:
            self.error = OSError("the thread that writes has ended early")
        if self.error is None:
            try:
                os.ftruncate(self._fd, self.offset)
            except OSError as error:
                self.error = error

    def drop(self) -> None:
        """Ends without writing what waits."""
        self.error = self.error or OSError("not wanted any more")
        self._end()

    def _end(self) -> None:
        if self._thread.is_alive():
            self.take(None)
            self._thread.join()

    def secure(self) -> bool:
        """After `finish`: whether there is a note of what can be used later, of all where that can be had."""
        if self.error is None and self.offset > self.noted:
            try:
                self._make_sure()
            except OSError as error:
                self.error = error
        return self.noted > 0 and not self._unsafe

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
