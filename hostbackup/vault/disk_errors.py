"""What a disk other than the vault's answers, in words for a person."""

from __future__ import annotations

import errno
from pathlib import Path

from hostbackup.errors import DiskFull, VaultError
from hostbackup.vault.faults import human

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_HINTS = {
    errno.EROFS: "the disk is mounted read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "the disk itself reports an error: check it, and have another copy",
}


def disk_error(error: OSError, where: Path, needed: int = 0) -> VaultError:
    """The error to raise for what a disk other than the vault's refused. `needed`: bytes that were to be written, where known."""
    if error.errno in _FULL:
        wanted = f"; {human(needed)} more were to be written" if needed else ""
        return DiskFull(f"the disk is full{wanted}", where=str(where), hint="free space there and run it again: what has arrived stays")
    return VaultError((error.strerror or str(error)).lower(), where=str(where), hint=_HINTS.get(error.errno or 0, ""))
