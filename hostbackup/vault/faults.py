"""What the disk under a vault answers, in words for a person."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hostbackup.errors import DiskFull, VaultError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

_HINTS = {
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "the vault belongs to the user who made it; run as that user",
    errno.EPERM: "the vault belongs to the user who made it; run as that user",
    errno.EIO: "the disk itself reports an error: check it before anything else",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def human(size: int) -> str:
    """A size for people: 532 bytes, 12.4 MiB."""
    if size < 1024:
        return f"{size} bytes"
    power = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def told(error: OSError, path: Path | str | bytes, needed: int = 0) -> VaultError:
    """The error to raise for what the operating system refused. `needed`: bytes that were to be written, where known."""
    where = os.fsdecode(path)
    if error.errno in _FULL:
        wanted = f"; {human(needed)} more were to be written" if needed else ""
        over = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        hint = "free space or prune the vault, then run again: what is stored is whole, and the run goes on from there"
        return DiskFull(f"{over}{wanted}", where=where, hint=hint)
    return VaultError((error.strerror or str(error)).lower(), where=where, hint=_HINTS.get(error.errno or 0, ""))
