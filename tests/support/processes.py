"""What runs below this process, as /proc shows it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_DEADLINE = 20.0


def children(pid: int | None = None, *, without: int | None = None) -> set[int]:
    """All processes below one (this one, if not told), whatever became of those between; `without` one and those below it."""
    root = os.getpid() if pid is None else pid
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = stat.read_text(errors="replace").partition(" ")
            if int(number) != without:
                parents[int(number)] = int(rest.rpartition(")")[2].split()[1])
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def command(pid: int) -> list[bytes]:
    """Its words; none for one that is gone, or is a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def ssh_of(pid: int | None = None) -> set[int]:
    """Those below one that are ssh at work."""
    return {child for child in children(pid) if command(child)[:1] and command(child)[0].endswith(b"ssh")}


def descriptors() -> set[tuple[str, str]]:
    """This process's open files: number, and what it leads to."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add((link.name, str(link.readlink())))
    return found


def gone(pids: set[int]) -> bool:
    """Whether none of them is left before a deadline."""
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        if not [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            return True
        time.sleep(0.02)
    return False
