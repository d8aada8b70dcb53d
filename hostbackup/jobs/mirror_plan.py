"""What a snapshot wants of a mirror: read segment by segment, and only those that the mirror's last snapshot did not have."""

from __future__ import annotations

from collections.abc import Iterator

from hostbackup.errors import Damaged, VaultTooNew
from hostbackup.jobs.mirror_names import Keys, too_long
from hostbackup.jobs.mirror_state import Aside, MirrorState, Want
from hostbackup.model import Entry, Kind, Stored
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.tree import SegmentRef, TreeRoot

_NEVER = "it never came whole from the old server"


def plan(state: MirrorState, keys: Keys, manifests: Manifests, part: PartState) -> int:
    """Has `state` want what the part holds now. The part's number there. Raises Damaged where its manifests are."""
    number, last = state.part(part.part.id)
    if last == part.root:
        return number
    root = TreeRoot.open(manifests, part.root)
    try:
        old = TreeRoot.open(manifests, last) if last else None
        _follow(state, keys, number, root, old)
    except (Damaged, VaultTooNew):  # the old one was pruned, or cannot be read; if it is the new one, the next line says so
        _follow(state, keys, number, root, None)
    return number


def _follow(state: MirrorState, keys: Keys, number: int, root: TreeRoot, old: TreeRoot | None) -> None:
    prefix = keys.prefix(root.part)
    with state.change():
        if old is None:
            state.clear(number)
        else:
            for folder, before in old.by_folder():
                now = {ref.digest for ref in root.refs(folder)}
                for ref in before:
                    if ref.digest not in now:
                        state.want(number, _rows(old, keys, prefix, ref), gone=True)
        for folder, refs in root.by_folder():
            held = {ref.digest for ref in old.refs(folder)} if old is not None else set()
            for ref in refs:
                if ref.digest not in held:
                    state.want(number, _rows(root, keys, prefix, ref))
        state.set_root(number, root.digest)


def _rows(root: TreeRoot, keys: Keys, prefix: str, ref: SegmentRef) -> Iterator[Want | Aside]:
    begin = keys.key(prefix, ref.folder) + "/" if ref.folder else prefix
    for record in root.segment(ref):
        if not record.vanished:
            yield from _of(record, begin + keys.name(record.item.name), prefix)


def _of(record: Stored[Entry], key: str, prefix: str) -> Iterator[Want | Aside]:
    item = record.item
    if item.kind is Kind.LINK or item.kind is Kind.OTHER:
        yield Aside(item.path, "link" if item.kind is Kind.LINK else "special")
        return
    if record.failed or (item.kind is Kind.FILE and not record.digest):
        yield Aside(item.path, "failed", f"{_NEVER}: {record.failed}" if record.failed else _NEVER)
    if item.kind is Kind.DIR:
        return
    if too_long(key):
        yield Aside(item.path, "name", f"its key would be {len(key.encode())} bytes long, and a store takes 1,024")
        return
    if record.stale:
        yield Aside(item.path, "stale", record.stale)
    odd = b"" if key[len(prefix) :].encode() == item.path else item.path
    yield Want(key, odd, record.digest, record.size, item.mtime_ns, item.mode)
