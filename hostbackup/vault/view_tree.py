"""The trees of latest/: web and local parts."""

from __future__ import annotations

from hostbackup.errors import Damaged
from hostbackup.model import Entry, Failure, Kind, Stored
from hostbackup.vault.fill import Content
from hostbackup.vault.layout import part_path, tree_top
from hostbackup.vault.safe import SafeFolder
from hostbackup.vault.tree import SegmentRef, TreeRoot
from hostbackup.vault.view_build import Build, refused


class TreeView:
    """Makes one tree of the view equal its manifest."""

    def __init__(self, build: Build, tree: TreeRoot) -> None:
        self._build = build
        self._tree = tree
        self._prefix = b"/".join((*part_path(tree.part), b""))

    def build(self, base: SafeFolder) -> None:
        tree = self._tree
        top = tree_top(tree.meta)
        pending: dict[bytes, int | None] = {b"": top.mtime_ns or None if top else None}  # folders made and not yet filled, with their mtimes
        for folder, refs in tree.by_folder():
            if folder in pending:
                self._folder(base, folder, refs, pending)
            elif any(ref.live for ref in refs):
                reason = "the manifest lists what is in this folder, but not the folder"
                self._build.failures.append(Failure("view", tree.part.id, folder, "no-folder", reason, "run backup again"))
        for folder in list(pending):
            self._folder(base, folder, [], pending)

    def _folder(self, base: SafeFolder, path: bytes, refs: list[SegmentRef], pending: dict[bytes, int | None]) -> None:
        mtime_ns = pending.pop(path)
        part = self._tree.part
        try:
            with base.below(path.split(b"/") if path else ()) as folder:
                left = folder.names()
                done = size = 0
                for ref in refs:
                    for record in self._tree.segment(ref):
                        if not record.vanished and self._entry(folder, record, pending):
                            left.discard(record.item.name)
                            done += 1
                            size += record.size
                for name in left:
                    folder.remove(name)
                if mtime_ns is not None:
                    folder.set_own_mtime(mtime_ns, self._build.tolerance_ns)
            self._build.observer.advance(done, size)
        except OSError as error:
            self._build.failures.append(refused(error, part, path))

    def _entry(self, folder: SafeFolder, record: Stored[Entry], pending: dict[bytes, int | None]) -> bool:
        """Whether something now stands there for the record."""
        item, part = record.item, self._tree.part
        try:
            if item.kind is Kind.DIR:
                folder.folder(item.name)
                pending[item.path] = item.mtime_ns
            elif item.kind is Kind.LINK:
                self._build.filler.symlink(folder, item.name, item.target, item.mtime_ns)
            elif item.kind is Kind.FILE and record.digest:
                self._build.filler.file(folder, item.name, Content(record.digest, record.size, item.mtime_ns))
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
