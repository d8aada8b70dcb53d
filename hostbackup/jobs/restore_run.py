"""What the parts of one restore share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hostbackup.errors import Damaged
from hostbackup.jobs.copy_source import Source, foreseen
from hostbackup.jobs.restore_write import Content, Exists, Meta, Target, Where
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.vault import pool

WORKERS = 2  # threads that make files: more would only wait for one another
_FILES = 16  # that a thread makes before it tells
_BYTES = 1 << 20


@dataclass(slots=True)
class Restored:
    """What one restore did. `existing`: equal files and links that stood there already."""

    snapshot: str = ""
    files: int = 0  # messages too
    bytes: int = 0
    folders: int = 0
    links: int = 0
    existing: int = 0
    mapped: dict[str, str] = field(default_factory=dict)  # path as it stands in the folder, and how its last part was called


@dataclass(frozen=True, slots=True)
class FileJob:
    """One file to be made. `original`: how its name was in the vault; the same as `name` where that is not a mapped one."""

    part: str
    label: bytes
    where: Where
    name: bytes
    original: bytes
    content: Content
    meta: Meta


_Done = tuple[FileJob, bytes, bool, Exception | None]  # with the name it got, and whether it had to be made


def _shares(jobs: Iterable[FileJob]) -> Iterator[list[FileJob]]:
    """The jobs in lists, each of few files and few bytes."""
    some: list[FileJob] = []
    size = 0
    for job in jobs:
        some.append(job)
        size += job.content.size
        if len(some) >= _FILES or size >= _BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


@dataclass(slots=True)
class Run:
    """One restore."""

    source: Source
    target: Target
    result: Result
    vanished: bool
    done: Restored

    def files(self, jobs: Iterable[FileJob]) -> None:
        """Makes files, some threads at once. Each takes several files at a time: to hand one over costs as much as to make it."""
        source = foreseen(self.source.objects, jobs, lambda job: job.content.digest)
        for done in pool.each(self._some, _shares(source), workers=WORKERS):
            for job, name, made, error in done:
                if error is not None:
                    self.fail(error, job.part, job.label)
                    continue
                self.target.note(job.where, name, job.original)
                self.count(made)
                if made:
                    self.done.files += 1
                    self.done.bytes += job.content.size
                self.result.observer.advance(1, job.content.size)

    def _some(self, jobs: list[FileJob]) -> list[_Done]:
        return [self._file(job) for job in jobs]

    def _file(self, job: FileJob) -> _Done:
        try:
            name, made = self.target.put(job.where, job.name, job.content, job.meta)
        except (Damaged, Exists, OSError, ValueError) as error:
            return job, job.name, False, error
        return job, name, made, None

    def count(self, made: bool) -> None:
        self.done.existing += not made

    def fail(self, error: Exception, part: str, label: bytes) -> None:
        self.target.fail(error, part, label)

    def lacking(self, part: str, label: bytes, why: str) -> None:
        """Something that the snapshot lists and the vault never got."""
        self.result.fail(Failure("vault", part, label, "not-stored", f"it is not in the vault: {why}"))
