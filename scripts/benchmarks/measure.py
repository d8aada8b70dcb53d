"""Runs one command and tells how long it took and how much memory all its processes had. Linux only: it reads /proc."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.05  # seconds between two looks at the memory
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Measured:
    """`seconds` of wall time, `cpu` seconds of the command and what it waited for, `memory` in bytes at the highest moment seen."""

    exit: int
    seconds: float
    cpu: float
    memory: int
    said: str
    """The end of its standard output and error."""
    programs: frozenset[str]
    """Names of the processes that were seen."""


def measure(command: Sequence[str], *, sync: Path | None = None, env: Mapping[str, str] | None = None, limit: float = 3600) -> Measured:
    """Runs `command` to its end, and, inside the time, `sync -f` on the file system of `sync`.

    Memory is the resident memory of the command and all its descendants together, looked at every 50 ms. After `limit` seconds everything is ended
    and the exit is -9.
    """
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True)
        try:
            memory, programs = _watch(process.pid, begun + limit)
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            # Whatever it left running must not disturb the next run.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.returncode = os.waitstatus_to_exitcode(status)
        if sync is not None and process.returncode == 0:
            subprocess.run(["sync", "-f", str(sync)], check=True)
        seconds = time.perf_counter() - begun
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4000))
        said = output.read().decode("utf-8", "replace")
    return Measured(process.returncode, seconds, usage.ru_utime + usage.ru_stime, memory, said, programs)


def _watch(pid: int, until: float) -> tuple[int, frozenset[str]]:
    """Waits for the process to end; the most memory it and its descendants had, and their names."""
    highest, names = 0, set()
    handle = os.pidfd_open(pid)
    try:
        while not select.select([handle], [], [], INTERVAL)[0]:
            family = _family(pid)
            highest = max(highest, sum(_resident(one) for one in family))
            names |= {_name(one) for one in family}
            if time.perf_counter() > until:
                os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(handle)
    return highest, frozenset(names)


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found.extend(map(int, (task / "children").read_bytes().split()))
    return found


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    return 0


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""
