"""Restores trees: web and local parts, with true modes, mtimes and symlinks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from hostbackup.errors import Damaged
from hostbackup.jobs.references import Segment, open_root, segments, warmed
from hostbackup.jobs.restore_names import Taken
from hostbackup.jobs.restore_run import FileJob, Run
from hostbackup.jobs.restore_select import Choice
from hostbackup.jobs.restore_write import Content, Exists, Meta, Where, refuses_name
from hostbackup.model import Entry, Kind, Stored
from hostbackup.vault.layout import part_path, tree_top
from hostbackup.vault.tree import SegmentRef, TreeRoot


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that was made, to be finished once all is in it."""

    path: bytes
    meta: Meta


class TreeRestore:
    """Restores what is chosen of one tree. Use: `run()`."""

    def __init__(self, run: Run, choice: Choice) -> None:
        self._run = run
        self._choice = choice
        self._part = choice.state.part
        self._base: Where = part_path(self._part)
        self._renamed: dict[bytes, bytes] = {}  # paths of folders that have another name here
        self._made: list[_Folder] = []

    def run(self) -> None:
        manifests = self._run.source.manifests
        root = open_root(manifests, self._choice.state)
        assert isinstance(root, TreeRoot)
        try:
            self._run.target.folder(self._base)
        except (Exists, OSError) as error:
            self._run.fail(error, self._part.id, b"")
            return
        if (top := tree_top(root.meta)) is not None:
            self._made.append(_Folder(b"", Meta(top.mtime_ns or None, top.mode or 0o700)))
        chosen = (segment for segment in segments(root) if self._choice.wants_folder(segment.container))
        self._run.files(self._jobs(root, warmed(manifests, chosen)))
        for folder in reversed(self._made):
            try:
                self._run.target.finish_folder(self._where(folder.path), folder.meta)
            except (Exists, OSError) as error:
                self._run.fail(error, self._part.id, folder.path)

    def _jobs(self, root: TreeRoot, chosen: Iterator[Segment]) -> Iterator[FileJob]:
        current: bytes | None = None
        taken = self._run.target.taken()
        for segment in chosen:
            if segment.container != current:
                current, taken = segment.container, self._run.target.taken()
            assert isinstance(segment.ref, SegmentRef)
            try:
                found = list(root.segment(segment.ref))
            except Damaged as error:
                self._run.fail(error, self._part.id, segment.container)
                continue
            where = self._where(segment.container)
            for record in found:
                yield from self._entry(record, where, taken)

    def _where(self, folder: bytes) -> Where:
        """Where a folder of the tree stands in the target."""
        if not folder:
            return self._base
        names = folder.split(b"/")
        if not self._renamed:
            return (*self._base, *names)
        paths = (b"/".join(names[: number + 1]) for number in range(len(names)))
        return (*self._base, *(self._renamed.get(path, name) for path, name in zip(paths, names, strict=True)))

    def _entry(self, record: Stored[Entry], where: Where, taken: Taken) -> Iterator[FileJob]:
        item = record.item
        if record.vanished and not self._run.vanished:
            return
        name = taken.claim(item.name)
        if not self._choice.wants(item.path) and not (item.kind is Kind.DIR and self._choice.leads_to(item.path)):
            return
        try:
            if item.kind is Kind.DIR:
                self._folder(item, where, name)
            elif item.kind is Kind.LINK:
                self._link(item, where, name)
            elif record.digest:
                content = Content(record.digest, record.size, partial(self._run.source.objects.read, record.digest))
                yield FileJob(self._part.id, item.path, where, name, item.name, content, Meta(item.mtime_ns, item.mode))
            elif item.kind is Kind.FILE:
                self._run.lacking(self._part.id, item.path, record.failed or "its contents never came")
            else:
                self._run.result.observer.note(f"{self._part}: a socket, device or pipe was not restored: {item.path!r}")
        except (Exists, OSError, ValueError) as error:
            self._run.fail(error, self._part.id, item.path)

    def _folder(self, item: Entry, where: Where, name: bytes) -> None:
        target = self._run.target
        try:
            target.folder((*where, name))
        except OSError as error:
            other = target.names.last_resort(name)
            if not refuses_name(error) or other == name:
                raise
            name = other
            target.folder((*where, name))
        if name != item.name:
            self._renamed[item.path] = name
        target.note(where, name, item.name)
        self._made.append(_Folder(item.path, Meta(item.mtime_ns, item.mode)))
        self._run.done.folders += 1

    def _link(self, item: Entry, where: Where, name: bytes) -> None:
        target = self._run.target
        try:
            made = target.link(where, name, item.target, item.mtime_ns)
        except OSError as error:
            other = target.names.last_resort(name)
            if not refuses_name(error) or other == name:
                raise
            name = other
            made = target.link(where, name, item.target, item.mtime_ns)
        target.note(where, name, item.name)
        self._run.count(made)
        self._run.done.links += made
