"""What had come of large files when a run ended: two files of `incoming/` for each, `NAME.partial` with the bytes and `NAME.partial.json`.

The JSON says whose bytes these are and how many of them, from the start, were on the disk for certain, with their SHA-256. Only that prefix is
ever used, and only after it was hashed again: nothing that a power cut tore can get into an object. NAME follows from the part and the path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hostbackup import osal
from hostbackup.model import name_from_json, name_json

DATA = ".partial"
NOTE = ".partial.json"
LASTS = 30 * 86400.0  # seconds after which what nobody came back for is dropped
_CHUNK = 1 << 20
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

Hash: TypeAlias = "hashlib._Hash"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose contents: a file of a part, as the scan described it."""

    part: str  # Part.id
    path: bytes
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """The same whatever size and time the file has."""
        return hashlib.sha256(self.part.encode("utf-8", "surrogateescape") + b"\0" + self.path).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Note:
    """The first `offset` bytes of the data have this digest, and were on the disk when that was written."""

    origin: Origin
    offset: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        told = {"type": "partial", "version": 1, "part": self.origin.part, **name_json(self.origin.path)}
        return told | {"size": self.origin.size, "mtime_ns": self.origin.mtime_ns, "offset": self.offset, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: Any) -> Note:
        """Raises ValueError, KeyError or TypeError where that is no note."""
        if value["type"] != "partial" or value["version"] != 1:
            raise ValueError("a note of another kind")
        size, mtime_ns, offset = (int(value[key]) for key in ("size", "mtime_ns", "offset"))
        if not 0 < offset <= size:
            raise ValueError("an impossible offset")
        return cls(Origin(str(value["part"]), name_from_json(value), size, mtime_ns), offset, str(value["sha256"]))


class Partials:
    """Those of one vault; the vault's lock sees to it that one run has them. Raises OSError."""

    def __init__(self, incoming: Path) -> None:
        self._incoming = incoming
        self._hashes: dict[str, Hash] = {}  # of prefixes that this process has let go of: they need not be read again

    def data(self, name: str) -> Path:
        return self._incoming / (name + DATA)

    def _note(self, name: str) -> Path:
        return self._incoming / (name + NOTE)

    def _noted(self, name: str) -> Note | None:
        """What is on record, None where that is damaged or does not fit what is there."""
        try:
            note = Note.from_json(json.loads(self._note(name).read_bytes()))
            fits = note.origin.name == name and self.data(name).lstat().st_size >= note.offset
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note if fits else None

    def note(self, origin: Origin, seen: Hash, offset: int) -> None:
        """Records a prefix that is on the disk."""
        text = json.dumps(Note(origin, offset, seen.hexdigest()).as_json(), ensure_ascii=False, sort_keys=True) + "\n"
        osal.write_durably(self._note(origin.name), text.encode("utf-8", "backslashreplace"))

    def keep(self, origin: Origin, seen: Hash) -> None:
        """For a prefix that was noted and let go: its hash, so that this process need not make it again."""
        self._hashes[origin.name] = seen

    def take(self, origin: Origin) -> tuple[int, Hash, int]:
        """A descriptor to go on writing, the hash of what is there, and how many bytes that are: none where nothing fits the origin."""
        note, seen = self._noted(origin.name), self._hashes.pop(origin.name, None)
        if note is not None and note.origin == origin:
            with contextlib.suppress(OSError):  # what cannot be used is worth no more than nothing: the file is read from the start
                return self._go_on(note, seen)
        self.drop(origin.name)
        return os.open(self.data(origin.name), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600), hashlib.sha256(), 0

    def _go_on(self, note: Note, seen: Hash | None) -> tuple[int, Hash, int]:
        """As `take`. Raises OSError also where the data is not what was noted."""
        fd = os.open(self.data(note.origin.name), _FLAGS)
        try:
            if seen is None or seen.hexdigest() != note.sha256:
                seen = _hash(fd, note.offset)
            if seen.hexdigest() != note.sha256:
                raise OSError("not what was noted")
            os.ftruncate(fd, note.offset)
        except BaseException:
            os.close(fd)
            raise
        return fd, seen, note.offset

    def settle(self, name: str) -> None:
        """The data is whole and has another name by now."""
        self._note(name).unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Forgets what came. Harmless when repeated."""
        self._hashes.pop(name, None)
        # the note first: data alone is never believed
        self._note(name).unlink(missing_ok=True)
        self.data(name).unlink(missing_ok=True)

    def of_part(self, part: str) -> list[Origin]:
        """What is kept of a part's files."""
        notes = [self._noted(path.name.removesuffix(NOTE)) for path in sorted(self._incoming.glob(f"*{NOTE}"))]
        return [note.origin for note in notes if note is not None and note.origin.part == part]

    def kept(self, found: Iterable[str]) -> set[str]:
        """Which of these names of `incoming/` belong to prefixes that can be used yet. What has aged beyond use does not."""
        good: set[str] = set()
        for name in found:
            stem = name.removesuffix(NOTE)
            if stem == name:
                continue
            with contextlib.suppress(OSError):
                fresh = abs(time.time() - self._note(stem).stat().st_mtime) < LASTS
                if fresh and self._noted(stem) is not None:
                    good |= {stem + DATA, stem + NOTE}
        return good


def _hash(fd: int, size: int) -> Hash:
    """Of the first `size` bytes, or of what can be read of them."""
    seen, left = hashlib.sha256(), size
    with contextlib.suppress(OSError):
        while left and (data := os.read(fd, min(_CHUNK, left))):
            seen.update(data)
            left -= len(data)
    return seen
