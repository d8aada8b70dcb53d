"""Evidence: one file a run that says what was proven, chained by digests so that none can be changed or taken out unnoticed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from hostbackup import osal
from hostbackup.errors import Damaged
from hostbackup.vault.faults import told
from hostbackup.vault.records import Line, canonical, parse_line
from hostbackup.vault.snapshots import timestamp

VERSION = 1
_NAME = re.compile(r"(\d{6,})-(\d{8}T\d{6}Z)-([a-z0-9-]+)\.jsonl\Z")


def is_evidence_name(name: str) -> bool:
    """Whether a file of evidence can be called so."""
    return _NAME.match(name) is not None


class EvidenceLog:
    """`evidence/`: written once, never changed, never pruned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """All files, oldest first."""
        try:
            found = [(int(match[1]), path.name) for path in self.folder.iterdir() if (match := _NAME.match(path.name))]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise told(error, self.folder) from error
        return [name for _, name in sorted(found)]

    def head(self) -> tuple[str, str]:
        """Name and SHA-256 of the newest file; two empty texts where there is none. Kept elsewhere, it proves the whole chain."""
        names = self.names()
        return (names[-1], hashlib.sha256(self._bytes(names[-1])).hexdigest()) if names else ("", "")

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise told(error, self.folder / name) from error

    def write(self, command: str, lines: Iterable[Line], now: datetime | None = None) -> Path:
        """Adds a file durably: a header that names the previous file and its digest, then the lines. `command`: letters, digits, dashes."""
        time = timestamp(now or datetime.now(UTC))
        previous_name, previous = self.head()
        number = int(previous_name.partition("-")[0]) + 1 if previous_name else 1
        name = f"{number:06d}-{time}-{command}.jsonl"
        if not _NAME.match(name):
            raise ValueError(f"not a command: {command!r}")
        header: Line = {
            "type": "evidence",
            "version": VERSION,
            "number": number,
            "time": time,
            "command": command,
            "previous_name": previous_name,
            "previous": previous,
        }
        data = b"".join(map(canonical, [header, *lines]))
        path = self.folder / name
        try:
            osal.write_durably(path, data, mode=0o400)
        except OSError as error:
            raise told(error, path, len(data)) from error
        return path

    def read(self) -> Iterator[tuple[str, list[Line]]]:
        """Name and lines of each file, oldest first, the header being the first line. Raises Damaged where a line is no JSON."""
        for name in self.names():
            yield name, [parse_line(line, str(self.folder / name)) for line in self._bytes(name).split(b"\n") if line]

    def read_whole(self) -> Iterator[tuple[str, list[Line] | None]]:
        """The same, but with None for a file that cannot be read to its end."""
        for name in self.names():
            data = self._bytes(name)
            yield name, None if _torn(name, data, header=True) else [parse_line(line, name) for line in data.split(b"\n") if line]

    def check_chain(self) -> list[str]:
        """What is wrong with the chain, in words; nothing where it is whole."""
        problems: list[str] = []
        previous_name = previous = ""
        expected = 1
        for name in self.names():
            data = self._bytes(name)
            number = int(name.partition("-")[0])
            if number != expected:
                problems.append(f"evidence/{name}: number {expected} was expected; a file is missing or was put in")
            try:
                header = parse_line(data.partition(b"\n")[0], name)
            except Damaged as error:
                problems.append(f"evidence/{name}: its header cannot be read: {error.reason}")
            else:
                if header.get("number") != number or header.get("type") != "evidence":
                    problems.append(f"evidence/{name}: its header belongs to another file")
                if (header.get("previous_name"), header.get("previous")) != (previous_name, previous):
                    problems.append(
                        f"evidence/{name}: it does not follow {previous_name or 'the beginning'} as that stands now; one of them was changed"
                    )
            problems += _torn(name, data)
            previous_name, previous = name, hashlib.sha256(data).hexdigest()
            expected = number + 1
        return problems


def _torn(name: str, data: bytes, *, header: bool = False) -> list[str]:
    """What is wrong with the lines of a file, in words; the first one is looked at where `header` says so."""
    problems = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        if number == 1 and not header:
            continue
        try:
            parse_line(line, name)
        except Damaged as error:
            problems.append(f"evidence/{name}: line {number} cannot be read: {error.reason}")
    if not data.endswith(b"\n"):
        problems.append(f"evidence/{name}: its end is missing")
    return problems
