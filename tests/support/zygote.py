"""A process that has hostbackup loaded and forks for each run of the command line: a run starts in milliseconds instead of half a second.

Each run still is a process of its own, with its own environment, folder, output, exit code and end of interpreter.
`python -m tests.support.zygote FD` serves one client over a socket until that closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_SIZE = struct.Struct(">I")
_ROOT = Path(__file__).parents[2]
_FDS = 2  # standard output and error of the run


class Zygote:
    """One at a time: `run` says None where another run is at work already, or the interpreter itself would have to start otherwise."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._owner = 0
        self._line: socket.socket | None = None
        self._python: dict[str, str] = {}

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[bytes] | None:
        """Runs `hostbackup words…` to its end. TimeoutExpired as with subprocess."""
        if not self._busy.acquire(blocking=False):
            return None
        try:
            line = self._start()
            if _python(env) != self._python:
                return None
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                request = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
                line.settimeout(timeout)
                socket.send_fds(line, [_SIZE.pack(len(request))], [out.fileno(), err.fileno()])
                line.sendall(request)
                (pid,) = _SIZE.unpack(_exactly(line, _SIZE.size))
                try:
                    (status,) = _SIZE.unpack(_exactly(line, _SIZE.size))
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    line.settimeout(None)
                    _exactly(line, _SIZE.size)
                    raise subprocess.TimeoutExpired(list(words), timeout) from None
                for stream in (out, err):
                    stream.seek(0)
                return subprocess.CompletedProcess(list(words), os.waitstatus_to_exitcode(status), out.read(), err.read())
        finally:
            self._busy.release()

    def _start(self) -> socket.socket:
        """The line to the process, started at first need; a forked worker never uses its parent's."""
        if self._line is None or self._owner != os.getpid():
            mine, its = socket.socketpair()
            with its:
                words = [sys.executable, "-m", __name__, str(its.fileno())]
                subprocess.Popen(words, cwd=_ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            self._line, self._owner, self._python = mine, os.getpid(), _python(os.environ)
        return self._line


def _python(env: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter looks at when it starts: a run that wants it otherwise needs an interpreter of its own."""
    return {name: value for name, value in env.items() if name.startswith(("PYTHON", "LC_", "LANG"))}


def _exactly(line: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = line.recv(count - len(got))
        if not more:
            raise EOFError("the process that forks is gone")
        got += more
    return got


def _preload() -> None:
    import hostbackup

    for module in pkgutil.walk_packages(hostbackup.__path__, "hostbackup."):
        importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # else each fork copies what its collector touches


def _become(request: dict[str, object], fds: Sequence[int]) -> None:
    """In the fork: as if just started with these words, this folder, this environment and these outputs."""
    env = request["env"]
    assert isinstance(env, dict)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(str(request["cwd"]))
    tempfile.tempdir = None
    for number, fd in enumerate(fds, 1):
        os.dup2(fd, number)
        os.close(fd)
    words = request["words"]
    assert isinstance(words, list)
    sys.argv = ["hostbackup", *words]


def _serve(line: socket.socket) -> None:
    while True:
        head, fds, _, _ = socket.recv_fds(line, _SIZE.size, _FDS)
        if not head:
            return
        request = json.loads(_exactly(line, *_SIZE.unpack(head)))
        if not (pid := os.fork()):
            line.close()
            _become(request, fds)
            from hostbackup.cli.main import main

            main()
        for fd in fds:
            os.close(fd)
        line.sendall(_SIZE.pack(pid))
        line.sendall(_SIZE.pack(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    _preload()
    with contextlib.suppress(KeyboardInterrupt, ConnectionError):
        _serve(socket.socket(fileno=int(sys.argv[1])))
