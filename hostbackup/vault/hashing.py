"""Digests of files, and what one looks like."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_CHUNK = 1024 * 1024
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def is_digest(text: str) -> bool:
    return _DIGEST.match(text) is not None


def hash_file(path: Path, *, medium: bool = False) -> tuple[str, int]:
    """Digest and size of a file as it is now; never follows a symlink. `medium`: from the disk rather than from memory, where the system can."""
    fd = os.open(path, _READ)
    try:
        return hash_fd(fd, medium=medium)
    finally:
        os.close(fd)


def hash_fd(fd: int, *, medium: bool = False) -> tuple[str, int]:
    if medium and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    digest, size = hashlib.sha256(), 0
    while data := os.read(fd, _CHUNK):
        digest.update(data)
        size += len(data)
    return digest.hexdigest(), size
