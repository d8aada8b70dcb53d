"""Looking into a vault or a copy: what a snapshot holds, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hostbackup.errors import Damaged, UsageError
from hostbackup.jobs.copy_source import Source
from hostbackup.model import Part, Stored, name_json
from hostbackup.vault.layout import folder_names, mail_prefix
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState, Snapshot, Snapshots
from hostbackup.vault.tree import TreeRoot

Row = dict[str, Any]


def summaries(snapshots: Snapshots) -> Iterator[Row]:
    """One row a snapshot, oldest first. One that is damaged is told as such, and hides no other."""
    for name in snapshots.list():
        try:
            one = snapshots.get(name)
        except Damaged as error:
            yield {
                "id": name,
                "time": "",
                "command": "(damaged)",
                "exit": 4,
                "entries": 0,
                "bytes": 0,
                "failures": 1,
                "reason": error.reason,
                "parts": [],
            }
            continue
        states = one.parts.values()
        sums = {"entries": sum(state.entries for state in states), "bytes": sum(state.bytes for state in states), "failures": len(one.failures)}
        parts = [{"part": key, "state": state.state, "entries": state.entries, "bytes": state.bytes} for key, state in one.parts.items()]
        yield {"id": one.id, "time": one.time, "command": one.command, "exit": one.exit, **sums, "parts": parts}


def listing(source: Source, snapshot: Snapshot, paths: Sequence[str], *, vanished: bool = False) -> Iterator[Row]:
    """Rows of what a snapshot holds below the given paths (`web/public_html/img`, `mail/taro@example.jp/INBOX`); parts alone where none is given."""
    if not paths:
        for key, state in snapshot.parts.items():
            yield {"kind": "part", "name": key, "entries": state.entries, "bytes": state.bytes, "state": state.state}
        return
    for path in paths:
        state, below = _find(snapshot, path)
        found = False
        for row in _records(source, state, below, vanished=vanished):
            found = True
            yield row
        if not found and below and state.part.kind != "mail":
            raise UsageError(f"nothing is called {path!r} in snapshot {snapshot.id}", hint="`ls PROFILE PART` shows what there is")


def _find(snapshot: Snapshot, path: str) -> tuple[PartState, bytes]:
    kind, _, rest = path.strip("/").partition("/")
    name, _, below = rest.partition("/")
    for state in snapshot.parts.values():
        if state.part.kind == kind and name in (state.part.name, state.part.id.partition("/")[2]):
            return state, below.encode("utf-8", "surrogateescape")
    raise UsageError(f"no part of snapshot {snapshot.id} is called {path!r}", hint=f"it holds: {', '.join(snapshot.parts)}")


def _records(source: Source, state: PartState, below: bytes, *, vanished: bool) -> Iterator[Row]:
    if state.part.kind == "mail":
        yield from _mail(source, state, below, vanished=vanished)
        return
    root = TreeRoot.open(source.manifests, state.root)
    single = root.find(below) if below else None
    if single is not None and single.item.kind.value != "dir":
        yield _entry_row(single)
        return
    for record in root.walk(vanished=vanished):
        if not below or record.item.path == below or record.item.path.startswith(below + b"/"):
            yield _entry_row(record)


def _entry_row(record: Stored[Any]) -> Row:
    item = record.item
    row: Row = {"kind": item.kind.value, **name_json(item.path), "size": record.size, "mtime_ns": item.mtime_ns, "mode": item.mode}
    if item.target:
        row.update(name_json(item.target, "target"))
    return row | _story(record)


def _mail(source: Source, state: PartState, below: bytes, *, vanished: bool) -> Iterator[Row]:
    """A mailbox's folders, or the messages of the one called `below` (as on the wire, as in `latest/`, or as people read it)."""
    from hostbackup.protocols.imap.names import display

    root = MailRoot.open(source.manifests, state.root)
    names = folder_names(root.folders(), mail_prefix(root.meta))
    known = False
    for folder in root.folders():
        shown = display(folder.name)
        if not below:
            count = sum(ref.entries for ref in root.refs(folder.name))
            yield {"kind": "folder", **name_json(folder.name), "display": shown, "messages": count}
        elif below in (folder.name, names[folder.name], shown.encode("utf-8", "surrogateescape")):
            known = True
            for record in root.records(folder.name):
                if vanished or not record.vanished:
                    item = record.item
                    row: Row = {"kind": "message", "uid": item.uid, "internaldate": item.internaldate, "flags": list(item.flags)}
                    yield row | {"size": record.size} | _story(record)
    if below and not known:
        raise UsageError(f"{state.part} has no folder {below.decode('utf-8', 'backslashreplace')!r}", hint=f"`ls PROFILE {state.part.id}` lists them")


def _story(record: Stored[Any]) -> Row:
    told = {"digest": record.digest, "stale": record.stale, "failed": record.failed, "vanished": record.vanished}
    return {key: value for key, value in told.items() if value}


def differences(source: Source, before: Snapshot, after: Snapshot) -> Iterator[Row]:
    """What came, changed and went between two snapshots, part by part; segments that are alike are not even read."""
    for key in sorted({*before.parts, *after.parts}):
        old, new = before.parts.get(key), after.parts.get(key)
        if old is None or new is None:
            yield {"part": key, "action": "part-added" if old is None else "part-removed", "name": ""}
        elif old.root != new.root:
            compare = _mail_differences if new.part.kind == "mail" else _tree_differences
            yield from compare(source, new.part, old.root, new.root)


def _tree_differences(source: Source, part: Part, old_root: str, new_root: str) -> Iterator[Row]:
    old, new = TreeRoot.open(source.manifests, old_root), TreeRoot.open(source.manifests, new_root)
    for folder in sorted({*old.folders(), *new.folders()}):
        if [ref.digest for ref in old.refs(folder)] == [ref.digest for ref in new.refs(folder)]:
            continue
        before = {record.item.path: record for record in old.records(folder) if not record.vanished}
        after = {record.item.path: record for record in new.records(folder) if not record.vanished}
        for path in sorted({*before, *after}):
            action = _action(before.get(path), after.get(path))
            if action:
                yield {"part": part.id, "action": action, **name_json(path)}


def _mail_differences(source: Source, part: Part, old_root: str, new_root: str) -> Iterator[Row]:
    old, new = MailRoot.open(source.manifests, old_root), MailRoot.open(source.manifests, new_root)
    names = sorted({folder.name for folder in (*old.folders(), *new.folders())})
    for name in names:
        before = {(record.item.uidvalidity, record.item.uid): record for record in old.records(name) if not record.vanished}
        after = {(record.item.uidvalidity, record.item.uid): record for record in new.records(name) if not record.vanished}
        for key in sorted({*before, *after}):
            action = _action(before.get(key), after.get(key))
            if action:
                yield {"part": part.id, "action": action, **name_json((after.get(key) or before[key]).item.label)}


def _action(before: Stored[Any] | None, after: Stored[Any] | None) -> str:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if before.digest != after.digest or getattr(before.item, "target", b"") != getattr(after.item, "target", b""):
        return "changed"
    return "metadata" if before.item != after.item else ""
