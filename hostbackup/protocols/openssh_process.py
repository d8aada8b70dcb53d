"""The `ssh` process of a login: its private folder, its questions, and its end, which comes at the latest with ours."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from hostbackup.errors import ConnectionFailed, ProtocolBroken, UsageError
from hostbackup.protocols import openssh_askpass

_ROOM = 60  # characters of the folder's path: a socket's may have about 100, and ssh binds its own under a longer name first
_PLAIN = re.compile(r"[A-Za-z0-9/_.-]+")  # needs no quoting anywhere: in ssh_config, in a shell, in ssh's % tokens
_TOLD = 2000  # lines kept of what ssh says
_QUESTION = 1 << 16  # bytes
_WATCH = 'read -r _; rm -rf -- "$1"; kill -9 0'
_END = 5.0  # seconds a process that was killed may take to be gone


class Workshop:
    """A folder for its owner only: the sockets, and the scripts by which ssh asks. `listener` is where the questions come in."""

    def __init__(self) -> None:
        self.path = _private_folder()
        try:
            self.control = f"{self.path}/c"
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(f"{self.path}/q")
            self.listener.listen(8)
            self.askpass, self.host_key, self.line = (self._script(verb) for verb in ("askpass", "hostkey", "line"))
        except BaseException:
            self.close()
            raise

    def _script(self, verb: str) -> str:
        words = [sys.executable, "-I", "-S", str(Path(openssh_askpass.__file__).resolve()), f"{self.path}/q", verb]
        script = Path(self.path, verb)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8", errors="surrogateescape")
        script.chmod(0o700)
        return str(script)

    def write(self, name: str, text: str) -> str:
        """The path of a new file for the owner only."""
        path = Path(self.path, name)
        path.touch(0o600)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return str(path)

    def hang_up(self) -> None:
        """No more questions are taken."""
        self.listener.close()

    def close(self) -> None:
        with contextlib.suppress(AttributeError):  # not made yet
            self.hang_up()
        shutil.rmtree(self.path, ignore_errors=True)


def _private_folder() -> str:
    for parent in dict.fromkeys((os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108
        if parent.startswith("/") and len(parent) < _ROOM and _PLAIN.fullmatch(parent):
            try:
                if not os.statvfs(parent).f_flag & getattr(os, "ST_NOEXEC", 0):
                    return tempfile.mkdtemp(prefix="hb-", dir=parent)
            except OSError:
                continue
    raise UsageError("no temporary folder is fit for ssh: short path, writable, programs allowed", hint="set TMPDIR, or take out `client`")


class Question:
    """Something ssh wants to know. Answered once, or refused by hanging up."""

    def __init__(self, listener: socket.socket) -> None:
        self._line, _ = listener.accept()
        self._line.settimeout(5)
        asked = b""
        with contextlib.suppress(OSError):
            while len(asked) < _QUESTION and (more := self._line.recv(4096)):
                asked += more
        self.verb, self.kind, *self.words = [*os.fsdecode(asked).split("\0"), "", ""][:8]

    def answer(self, text: str) -> None:
        with contextlib.suppress(OSError), self._line:
            self._line.sendall(b"+" + text.encode("utf-8", "surrogateescape"))

    def hand_over(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self._line:
            socket.send_fds(self._line, [b"+"], [connection.fileno()])

    def refuse(self) -> None:
        self._line.close()


class SshProcess:
    """`ssh`, and a watcher beside it that kills both, and what else they started, once this process is gone: however that comes.

    They are a process group of their own: what a terminal sends to us (Ctrl-C) does not reach them. `lines` counts those on standard error;
    `heard` is readable when there are new ones, and at the end.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        # The watcher comes first, so that there is no moment in which ssh is on its own.
        quiet = subprocess.DEVNULL
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", folder], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, process_group=0, bufsize=0
        )
        try:
            self._process = subprocess.Popen(
                command, env=environment, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE, process_group=self._watcher.pid, bufsize=0
            )
        except OSError as error:
            self._end_watcher()
            raise ProtocolBroken(f"the ssh program cannot be started: {error.strerror}", where=command[0]) from error
        except BaseException:
            self._end_watcher()
            raise
        self._said: deque[str] = deque(maxlen=_TOLD)
        self.lines = 0
        self.heard, self._bell = socket.socketpair()
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name="openssh-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Takes what ssh says as it comes: a full pipe would stop it."""
        errors = self._process.stderr
        assert errors is not None
        with self._bell:
            for line in errors:
                self._said.append(line.decode("utf-8", "replace").rstrip())
                self.lines += 1
                with contextlib.suppress(OSError):
                    self._bell.send(b".", socket.MSG_DONTWAIT)

    def said(self) -> list[str]:
        """The last lines on standard error."""
        return list(self._said)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends ssh and all that it started. Never blocks for long; may be called twice."""
        with self._lock:
            if self._watcher.returncode is None:
                # The watcher is not waited for yet, so its number is still that of the group.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._watcher.pid, signal.SIGKILL)
                self._end_watcher()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END)

    def close(self) -> None:
        """As `kill`, and gives back what was used. May be called twice."""
        self.kill()
        self._listener.join(_END)
        self.heard.close()
        if self._process.stderr is not None and not self._listener.is_alive():
            self._process.stderr.close()

    def _end_watcher(self) -> None:
        assert self._watcher.stdin is not None
        self._watcher.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(_END)
        with contextlib.suppress(OSError):
            self._watcher.stdin.close()


def ask_program(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs ssh for what it prints at once (-V, -G, -Q). Raises UsageError where there is no such program, ProtocolBroken where it hangs."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except FileNotFoundError as error:
        reason = 'client = "openssh" needs the ssh program, and there is none'
        raise UsageError(reason, where=command[0], hint="install OpenSSH's client, or take out `client`") from error
    except OSError as error:
        raise UsageError(f"the ssh program cannot be run: {error.strerror}", where=command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise hung(timeout) from error


def hung(timeout: float) -> ConnectionFailed:
    return ProtocolBroken(f"the ssh program did not come to an end within {timeout:.0f} seconds")
