"""SHA256SUMS: sorted by path, however many lines, in flat memory; replaced only where it differs."""

from __future__ import annotations

import hashlib
import heapq
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from hostbackup import osal
from hostbackup.vault.hashing import hash_fd
from hostbackup.vault.layout import parse_sums_line, sums_line
from hostbackup.vault.safe import SafeFolder

NAME = b"SHA256SUMS"
_HELD = 100_000  # lines in memory before they are sorted and put on disk


class Sums:
    """Collects digests by path in any order."""

    def __init__(self, scratch: Path, held: int = _HELD) -> None:
        self._scratch = scratch
        self._held = held
        self._lines: list[tuple[bytes, str]] = []
        self._spilled: list[Path] = []

    def add(self, digest: str, path: bytes) -> None:
        self._lines.append((path, digest))
        if len(self._lines) >= self._held:
            self._spill()

    def _temporary(self) -> Path:
        return self._scratch / f"sums-{secrets.token_hex(8)}.part"

    def _spill(self) -> None:
        path = self._temporary()
        self._spilled.append(path)
        with path.open("wb") as file:
            file.writelines(self._held_lines())
        self._lines = []

    def _held_lines(self) -> Iterator[bytes]:
        self._lines.sort()
        return (sums_line(digest, path) for path, digest in self._lines)

    def lines(self) -> Iterator[bytes]:
        """All lines, sorted by the bytes of the path."""
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(path.open("rb")) for path in self._spilled]
            if files:
                yield from heapq.merge(*files, self._held_lines(), key=lambda line: parse_sums_line(line)[1])
            else:
                yield from self._held_lines()

    def replace(self, folder: SafeFolder) -> str:
        """Puts the file into `folder` unless the same one stands there. The digest of the file."""
        temporary = self._temporary()
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as file:
                for line in self.lines():
                    digest.update(line)
                    file.write(line)
            if self._standing(folder) != digest.hexdigest():
                temporary.chmod(0o400)
                osal.sync_file(temporary)
                folder.receive(temporary, NAME)
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def _standing(self, folder: SafeFolder) -> str:
        try:
            fd = folder.open_file(NAME)
        except OSError:
            return ""
        try:
            return hash_fd(fd)[0]
        finally:
            os.close(fd)

    def close(self) -> None:
        for path in self._spilled:
            path.unlink(missing_ok=True)
        self._spilled = []
