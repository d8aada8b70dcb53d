"""The trees of latest/: web and local parts."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from hostbackup.errors import Damaged
from hostbackup.model import Entry, Failure, Kind, Stored
from hostbackup.vault.fill import Content
from hostbackup.vault.layout import part_path, tree_top
from hostbackup.vault.records import Line, stored_size
from hostbackup.vault.safe import Descent, SafeFolder
from hostbackup.vault.tree import SegmentRef, TreeRoot
from hostbackup.vault.view_build import Build, refused

_FOLDER = stat.S_IFDIR | 0o700

Pending = dict[bytes, int | None]  # folders made and not yet filled, with their mtimes


class TreeView:
    """Makes one tree of the view equal its manifest."""

    def __init__(self, build: Build, tree: TreeRoot) -> None:
        self._build = build
        self._tree = tree
        self._prefix = b"/".join((*part_path(tree.part), b""))

    def build(self, base: SafeFolder) -> None:
        descent = Descent(base)
        try:
            self._build_in(descent)
        finally:
            descent.close()

    def _build_in(self, descent: Descent) -> None:
        tree = self._tree
        top = tree_top(tree.meta)
        pending: Pending = {b"": top.mtime_ns or None if top else None}
        for folder, refs in tree.by_folder():
            if folder in pending:
                self._folder(descent, folder, refs, pending)
            elif any(ref.live for ref in refs):
                reason = "the manifest lists what is in this folder, but not the folder"
                self._build.failures.append(Failure("view", tree.part.id, folder, "no-folder", reason, "run backup again"))
        for folder in list(pending):
            self._folder(descent, folder, [], pending)

    def _folder(self, descent: Descent, path: bytes, refs: list[SegmentRef], pending: Pending) -> None:
        mtime_ns = pending.pop(path)
        try:
            folder = descent.enter(path)
            left = folder.entries()
            done = size = 0
            for ref in refs:
                for line in self._tree.lines(ref):
                    if "vanished" in line or not (name := self._line(folder, ref, line, left, pending)):
                        continue
                    left.pop(name, None)
                    done += 1
                    size += stored_size(line)
            for name in left:
                folder.remove(name)
            if mtime_ns is not None:
                folder.set_own_mtime(mtime_ns, self._build.tolerance_ns)
            self._build.observer.advance(done, size)
        except OSError as error:
            self._build.failures.append(refused(error, self._tree.part, path))

    def _line(self, folder: SafeFolder, ref: SegmentRef, line: Line, standing: Mapping[bytes, os.DirEntry[str]], pending: Pending) -> bytes:
        """The name that something now stands under for a live line, b"" where nothing does. `standing`: what the folder held before.

        Nearly all of it is right already. That is seen by the line and one look at what stands there, and no record is made.
        """
        name = line["name"].encode() if type(line.get("name")) is str else b""
        found = standing.get(name)
        kind, mtime_ns, digest = line.get("kind"), line.get("mtime_ns", 0), line.get("digest")
        if found is not None and type(mtime_ns) is int:
            path = ref.folder + b"/" + name if ref.folder else name
            there = found.stat(follow_symlinks=False)
            if kind == "dir" and there.st_mode == _FOLDER:
                pending[path] = mtime_ns
                return name
            if kind == "file" and digest and self._build.filler.stands(there, digest, stored_size(line), mtime_ns):
                self._build.sums.add(digest, self._prefix + path)
                return name
        record = self._tree.record(ref, line)
        return record.item.name if self._entry(folder, record, pending, absent=record.item.name not in standing) else b""

    def _entry(self, folder: SafeFolder, record: Stored[Entry], pending: Pending, *, absent: bool) -> bool:
        """Whether something now stands there for the record."""
        item, part = record.item, self._tree.part
        try:
            if item.kind is Kind.DIR:
                folder.folder(item.name)
                pending[item.path] = item.mtime_ns
            elif item.kind is Kind.LINK:
                self._build.filler.symlink(folder, item.name, item.target, item.mtime_ns)
            elif item.kind is Kind.FILE and record.digest:
                self._build.filler.file(folder, item.name, Content(record.digest, record.size, item.mtime_ns), absent=absent)
                self._build.sums.add(record.digest, self._prefix + item.path)
            else:
                return False
        except Damaged as error:
            self._build.failures.append(Failure("vault", part.id, item.label, "damaged", error.reason, error.hint))
            return False
        except (OSError, ValueError) as error:
            self._build.failures.append(refused(error, part, item.label))
            return False
        return True
