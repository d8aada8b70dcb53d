"""Files on their way into a folder on a disk: where they stand until they get their names, and who alone may bring any."""

from __future__ import annotations

import contextlib
import errno
import threading
from pathlib import Path
from types import TracebackType

from hostbackup import osal
from hostbackup.vault.disk_errors import disk_error
from hostbackup.vault.disk_paths import INCOMING
from hostbackup.vault.hold import about_us, locked

_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Arrivals:
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
        incoming = self._root / INCOMING
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


class KernelHold:
    """The writer's lock that ends with its process: nothing to remember."""

    key = ""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def __enter__(self) -> KernelHold:
        self._arrivals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._arrivals.__exit__(kind, error, trace)
