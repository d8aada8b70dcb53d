"""Brings what a snapshot holds into a folder, laid out as `latest/` is, from a vault or from a copy of one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hostbackup.errors import Damaged, UsageError
from hostbackup.jobs.copy_source import CopySource, Source
from hostbackup.jobs.coverage import lost_parts, never_saved, unlisted
from hostbackup.jobs.restore_export import EmlRestore, MboxRestore
from hostbackup.jobs.restore_mail import MaildirRestore
from hostbackup.jobs.restore_names import Names
from hostbackup.jobs.restore_run import Restored, Run
from hostbackup.jobs.restore_select import Choice, select
from hostbackup.jobs.restore_tree import TreeRestore
from hostbackup.jobs.restore_write import Target
from hostbackup.jobs.result import Result
from hostbackup.model import Part, name_json
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.snapshots import Snapshot
from hostbackup.vault.vault import Vault

Format = Literal["tree", "mbox", "eml"]
FORMATS: tuple[Format, ...] = ("tree", "mbox", "eml")
_SHOWN = 5
_MAIL = {"tree": MaildirRestore, "mbox": MboxRestore, "eml": EmlRestore}


def restore(
    source: Source,
    result: Result,
    *,
    to: Path,
    snapshot: str = "latest",
    selection: Sequence[str] = (),
    format: Format = "tree",
    vanished: bool = False,
    names: Names | None = None,
    expected: Sequence[Part] = (),
) -> Restored:
    """Writes files below `to`, which is made where it is not there. Nothing that stands there is changed: equal files stay, others are told.

    `selection`: parts, paths or mail folders, see `restore_select`; everything without. `format` concerns mail; trees are trees. `vanished`: with
    what had vanished from the source. `names`: what the file system takes, found out where it is None. `expected`: parts that the snapshot should
    hold. What it lacks of them, and of what the run wanted that wrote it, is told as well as entries that fail: in `result`, and in its details
    `without_setuid` the files that lost setuid or setgid.
    Raises UsageError for a selection that is not there, VaultError, Damaged where the snapshot is, DiskFull, Locked, and what ends a store.
    """
    to = to.expanduser()
    _refuse_inside(source, to)
    chosen = source.snapshots.get(snapshot)
    choices = select(source, chosen, selection, vanished=vanished)
    done = Restored(chosen.id)
    with Target(to, result, names) as target:
        run = Run(source, target, result, vanished, done)
        try:
            for choice in choices:
                _part(run, choice, format)
                _tell_unlisted(run, choice, chosen)
            _tell_never_saved(result, chosen, selection, expected)
        finally:
            target.write_names()
            done.mapped = target.mapped
            _tell_without_setuid(result, sorted(target.without_setuid))
    return done


def _tell_unlisted(run: Run, choice: Choice, snapshot: Snapshot) -> None:
    """Of a whole part, the folders of which the snapshot may lack something: whoever restores it must not take it for all there was."""
    if choice.whole:
        with contextlib.suppress(Damaged):  # told by the part itself
            for failure in unlisted(run.source.snapshots, run.source.manifests, snapshot, choice.state):
                run.result.fail(failure)


def _tell_never_saved(result: Result, snapshot: Snapshot, selection: Sequence[str], expected: Sequence[Part]) -> None:
    parts = dict.fromkeys([*(state.part for state in snapshot.parts.values()), *lost_parts(snapshot), *expected])
    kinds = {text.strip("/") for text in selection}
    for failure in never_saved(snapshot, (part for part in parts if not selection or part.kind in kinds)):
        result.fail(dataclasses.replace(failure, code="not-stored"))


def _tell_without_setuid(result: Result, paths: list[bytes]) -> None:
    result.details["without_setuid"] = [name_json(path) for path in paths]
    if paths:
        shown = ", ".join(path.decode("utf-8", "backslashreplace") for path in paths[:_SHOWN]) + (", …" if len(paths) > _SHOWN else "")
        few = "1 file was" if len(paths) == 1 else f"{len(paths)} files were"
        result.observer.warn(f"{few} restored without setuid or setgid, as what root restores belongs to root: {shown}")


def _part(run: Run, choice: Choice, format: Format) -> None:
    state = choice.state
    known = (state.entries, state.bytes) if choice.whole else (None, None)
    run.result.observer.phase(f"{state.part}: restoring", *known)
    try:
        if state.part.kind == "mail":
            _MAIL[format](run, choice).run()
        else:
            TreeRestore(run, choice).run()
        run.result.done += 1
    except Damaged as error:  # its root manifest, or an index of it
        run.fail(error, state.part.id, b"")


def _refuse_inside(source: Source, to: Path) -> None:
    """A restore into the vault, or into a copy, would be lost among its files, or harm them."""
    root: Path | None = None
    if isinstance(source, Vault):
        root = source.root
    elif isinstance(source, CopySource) and isinstance(source.store, FolderStore):
        root = source.store.root
    if root is not None and to.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"this is inside {root}, where it would be restored from", where=str(to), hint="restore to another folder")
