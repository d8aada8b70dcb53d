"""Small objects are written by a process of their own, where there is more than one processor.

Making a file costs the file system more than receiving its bytes does. Done here, it keeps everything else waiting: no two threads of one Python run
at a time, and each that comes back from the system queues again. What may be believed of a file is decided here all the same, after `settle`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hostbackup.errors import VaultError
from hostbackup.interrupts import later
from hostbackup.vault import writer_process as process
from hostbackup.vault.writer_process import HEADER, MARK, NAME, NO_DIGEST, REPLY, WRITE

BEGIN = 256  # objects after which it pays to start a process
_TOGETHER = 256 << 10  # bytes that are sent in one go
_PIPE = 1 << 20  # bytes that may wait for the process, where the system gives so many
_PARTS = 1000  # buffers of one writev(2): IOV_MAX is 1024 at least
_SET_PIPE_SIZE = 1031  # fcntl F_SETPIPE_SZ


def worth_it() -> bool:
    """Whether this system can run such a process, and has a processor for it."""
    if sys.platform == "win32" or not sys.executable or not Path(process.__file__).is_file():
        return False
    return len(os.sched_getaffinity(0)) > 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) > 1


class Writer:
    """Writes files to `incoming` and names them in `objects`. May be used from several threads; `settle` and `name` by one at a time.

    `held`: descriptors that the process keeps open as long as it lives: a vault is locked until nobody writes to it.
    Raises OSError or VaultError where the process cannot be begun. After an error, kept in `broken`, every further call raises: nothing is known
    then of what had been handed over.
    """

    def __init__(self, incoming: Path, objects: Path, held: Sequence[int] = ()) -> None:
        self._lock = threading.Lock()  # the queue, and the order of what is sent
        self._reading = threading.Lock()  # what comes back, and what is thought of it
        self._queue: list[bytes | bytearray] = []
        self._queued = 0
        self.broken: OSError | VaultError | None = None
        self._where = os.fspath(incoming)
        script = [sys.executable, "-I", "-S", process.__file__, str(os.getpid()), os.fspath(incoming), os.fspath(objects)]
        # A session of its own: Ctrl-C reaches this process alone, which knows what is to be brought to an end.
        try:
            self._process = subprocess.Popen(
                script,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=tuple(held),
                start_new_session=True,
            )
        except subprocess.SubprocessError as error:
            raise OSError(str(error)) from error
        assert self._process.stdin is not None
        self._out = self._process.stdin.fileno()
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # a user may have as many large pipes as the system allows
                fcntl.fcntl(self._out, _SET_PIPE_SIZE, _PIPE)
        try:
            self.settle()  # it may have been killed at once, by whatever guards this system
        except BaseException:
            self.close()
            raise

    def write(self, digest: str, data: bytearray) -> None:
        """Has `data` written, which belongs to the writer from now on. Raises OSError or VaultError, also for earlier ones."""
        with later, self._whole(), self._lock:
            self._add(HEADER.pack(WRITE, bytes.fromhex(digest), len(data)), data)

    def name(self, digests: Iterable[str]) -> None:
        """Gives whole files their names, in folders that are there. Raises as `write`."""
        with later, self._whole():
            with self._lock:
                for digest in digests:
                    self._add(HEADER.pack(NAME, bytes.fromhex(digest), 0))
            self.settle()

    def settle(self) -> None:
        """After it everything that was handed over is done. Raises as `write`."""
        with later, self._whole():
            with self._lock:
                self._add(HEADER.pack(MARK, NO_DIGEST, 0))
                self._send()
            self._answer()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What is left half-way breaks the writer."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _add(self, *parts: bytes | bytearray) -> None:
        if self.broken is not None:
            raise self.broken
        self._queue += parts
        self._queued += sum(map(len, parts))
        if self._queued >= _TOGETHER or len(self._queue) >= _PARTS - 2:
            self._send()

    def _send(self) -> None:
        queue, self._queue, self._queued = self._queue, [], 0
        if not queue:
            return
        try:
            done = os.writev(self._out, queue)
            for part in queue:
                if done >= len(part):
                    done -= len(part)
                    continue
                rest = memoryview(part)[done:]
                done = 0
                while rest:
                    rest = rest[os.write(self._out, rest) :]
        except BrokenPipeError:
            while True:
                self._answer()  # until it says why

    def _answer(self) -> None:
        """One answer. Two may ask for one at a time, and only one of them gets to see why there is none: the other is told."""
        with self._reading:
            if self.broken is not None:
                raise self.broken
            with self._whole():  # before the other one looks
                self._read()

    def _read(self) -> None:
        assert self._process.stdout is not None
        answer = b""
        while len(answer) < REPLY.size and (more := self._process.stdout.read(REPLY.size - len(answer))):
            answer += more
        if len(answer) < REPLY.size:
            raise VaultError("the process that writes objects has ended", where=self._where, hint="run again: what is stored is whole")
        code, digest = REPLY.unpack(answer)
        if code:
            raise OSError(code, os.strerror(code), f"{self._where}{os.sep}{digest.hex()}")

    def _fail(self, error: BaseException) -> None:
        if self.broken is None:
            interrupted = VaultError(
                "what was being written to the vault was interrupted", where=self._where, hint="run again: what is stored is whole"
            )
            self.broken = error if isinstance(error, OSError | VaultError) else interrupted

    def close(self) -> None:
        """Ends the process; what was not settled may or may not be there. Harmless when repeated."""
        with self._lock:
            self._fail(VaultError("nobody writes objects any more", where=self._where, hint="run again: what is stored is whole"))
            self._queue.clear()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process.wait()
