"""What may be freed, and freeing it.

Planned first, so that it can be shown; then carried out in an order that leaves a whole vault wherever it is interrupted: snapshots go first,
then the manifests only they named, then the objects. What an interruption leaves over, the next prune finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from hostbackup import osal
from hostbackup.errors import Damaged, VaultError
from hostbackup.model import Entry, Kind, Message, Stored
from hostbackup.vault.faults import told
from hostbackup.vault.hashing import is_digest
from hostbackup.vault.mailbox import MailRoot, MailWriter
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.records import PartTotals
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot, TreeWriter
from hostbackup.vault.vault import Vault


@dataclass(slots=True)
class PrunePlan:
    """What would go and what stays. `kept`: snapshot id to the reasons that keep it; `remove`: ids that go, oldest first."""

    kept: dict[str, list[str]] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    manifests: int = 0  # how many go
    objects: int = 0
    bytes: int = 0  # freed in all
    vanished: int = 0  # records that leave the history
    vanished_before: str = ""  # time stamp; "" where vanished entries stay
    frozen: str = ""  # why nothing at all may go; "" where something may
    _marks: Marks | None = None

    @property
    def empty(self) -> bool:
        return not (self.remove or self.manifests or self.objects or self.vanished)

    def keeps(self, kind: str, digest: str) -> bool:
        """Whether something that stays needs this object or manifest (`kind`: "objects", "manifests"). True where nothing may go."""
        if self._marks is None:
            return True
        return bytes.fromhex(digest) in (self._marks.manifests if kind == "manifests" else self._marks.objects)


@dataclass(slots=True)
class Marks:
    """Digests that stay, as 32 bytes each."""

    manifests: set[bytes] = field(default_factory=set)
    objects: set[bytes] = field(default_factory=set)


def plan_prune(
    vault: Vault,
    *,
    keep_last: int | None = 10,
    keep_daily: int | None = 7,
    keep_weekly: int | None = 4,
    keep_monthly: int | None = 12,
    vanished_before: date | None = None,
    cited: Iterable[str] = (),
    freeze: bool = False,
    freeze_reason: str = "",
) -> PrunePlan:
    """What the policy frees; nothing is changed. Takes a vault open in any mode.

    keep_…: how many of the last snapshots, days, weeks, months keep one; None is 0, the newest snapshot always stays. `cited`: ids of snapshots
    that something outside relies on. `vanished_before`: what vanished before that day (UTC) leaves the history. `freeze`: nothing may go now.
    Raises Damaged where a snapshot or manifest cannot be read: then nobody knows what may go.
    """
    snapshots = [vault.snapshots.get(snapshot_id) for snapshot_id in vault.snapshots.list()]
    plan = PrunePlan(vanished_before=vanished_before.strftime("%Y%m%dT000000Z") if vanished_before else "")
    if freeze:
        plan.frozen = freeze_reason or "nothing may be freed now"
        plan.kept = {snapshot.id: [plan.frozen] for snapshot in snapshots}
        return plan
    roots, evidence = _evidence(vault)
    _keep_by_policy(plan, snapshots, {"last": keep_last, "day": keep_daily, "week": keep_weekly, "month": keep_monthly})
    _keep_newest_of_parts(plan, snapshots)
    ids = {snapshot.id for snapshot in snapshots}
    for snapshot_id, reason in [*evidence, *((cited_id, "cited") for cited_id in cited), *_pushed(vault)]:
        if snapshot_id in ids:
            _keep(plan, snapshot_id, reason)
    plan.kept = dict(sorted(plan.kept.items(), key=lambda item: int(item[0].partition("-")[0])))
    plan.remove = [snapshot.id for snapshot in snapshots if snapshot.id not in plan.kept]
    marks = plan._marks = Marks()
    for snapshot in snapshots:
        if snapshot.id in plan.kept:
            for state in snapshot.parts.values():
                _mark(vault, state.root, state.part.kind == "mail", marks, plan.vanished_before)
    for root, mail in roots:
        if vault.manifests.has(root):
            _mark(vault, root, mail, marks, plan.vanished_before)
    marks.objects.update(_in_journals(vault))
    if snapshots and plan.vanished_before:
        plan.vanished = sum(
            1 for state in snapshots[-1].parts.values() for record in _vanished(vault, state) if record.vanished < plan.vanished_before
        )
    plan.manifests, size = _garbage(vault.manifests, marks.manifests)
    plan.objects, objects_size = _garbage(vault.objects, marks.objects)
    plan.bytes = size + objects_size
    return plan


def apply_prune(vault: Vault, plan: PrunePlan, *, profile: str = "", now: datetime | None = None) -> Snapshot | None:
    """Carries the plan out, in a vault open for "prune" and unchanged since. The snapshot it wrote, if vanished entries left the history."""
    if vault.mode != "prune":
        raise VaultError("the vault must be open for pruning", where=str(vault.root))
    if plan.frozen or plan._marks is None:
        return None
    written = _forget_vanished(vault, plan, profile, now or datetime.now(UTC)) if plan.vanished else None
    if written is not None:
        for state in written.parts.values():
            _mark(vault, state.root, state.part.kind == "mail", plan._marks, "")
    try:
        for snapshot_id in plan.remove:
            vault.snapshots.remove(snapshot_id)
        osal.sync_folder(vault.snapshots.folder)
    except OSError as error:
        raise told(error, vault.snapshots.folder) from error
    for folder, marks in ((vault.manifests, plan._marks.manifests), (vault.objects, plan._marks.objects)):
        for digest, _ in folder.list():
            if bytes.fromhex(digest) not in marks:
                folder.remove(digest)
        folder.flush()
    return written


# ------------------------------------------------------------ what stays


def _keep(plan: PrunePlan, snapshot_id: str, reason: str) -> None:
    reasons = plan.kept.setdefault(snapshot_id, [])
    if reason not in reasons:
        reasons.append(reason)


_PERIODS: dict[str, Callable[[datetime], str]] = {
    "day": lambda time: time.strftime("%Y-%m-%d"),
    "week": lambda time: time.strftime("%G-W%V"),
    "month": lambda time: time.strftime("%Y-%m"),
}


def _keep_by_policy(plan: PrunePlan, snapshots: list[Snapshot], policy: dict[str, int | None]) -> None:
    if not snapshots:
        return
    _keep(plan, snapshots[-1].id, "the newest")
    last = policy["last"] or 0
    for snapshot in snapshots[-last:] if last else []:
        _keep(plan, snapshot.id, f"one of the last {last}")
    for period, name in _PERIODS.items():
        seen: set[str] = set()
        for snapshot in reversed(snapshots):
            label = name(datetime.strptime(snapshot.time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC))
            if label not in seen and len(seen) < (policy[period] or 0):
                seen.add(label)
                _keep(plan, snapshot.id, f"the last of {period} {label}")


def _keep_newest_of_parts(plan: PrunePlan, snapshots: list[Snapshot]) -> None:
    """Of each part that ever was: the newest complete snapshot, and the newest that has it at all."""
    complete: set[str] = set()
    there: set[str] = set()
    for snapshot in reversed(snapshots):
        for part_id, state in snapshot.parts.items():
            if state.root and part_id not in there:
                there.add(part_id)
                _keep(plan, snapshot.id, f"the newest with {part_id}")
            if state.state == "complete" and part_id not in complete:
                complete.add(part_id)
                _keep(plan, snapshot.id, f"the newest complete one of {part_id}")


def _evidence(vault: Vault) -> tuple[list[tuple[str, bool]], list[tuple[str, str]]]:
    """Of each part and side, what the newest evidence speaks of: root manifests (and whether of mail), and snapshots with the reason."""
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    for name, lines in vault.evidence.read_whole():
        if lines is None:
            hint = "run `verify`; a copy may have this file whole"
            raise Damaged("this evidence is damaged, so nobody knows what it relies on", where=f"evidence/{name}", hint=hint)
        for line in lines[1:]:
            if line.get("part") and (line.get("manifest") or line.get("snapshot")):
                newest[str(line["part"]), str(line.get("side", ""))] = str(line.get("manifest", "")), str(line.get("snapshot", ""))
    roots = [(manifest, part.startswith("mail/")) for (part, _), (manifest, _) in newest.items() if is_digest(manifest)]
    return roots, [(snapshot_id, f"evidence of {part} ({side})") for (part, side), (_, snapshot_id) in newest.items()]


def _pushed(vault: Vault) -> Iterator[tuple[str, str]]:
    for document in vault.state.documents("push"):
        if isinstance(document.get("snapshot"), str):
            yield document["snapshot"], "the last push"
    for journal in vault.state.journals("push"):
        cited = ""
        for record in journal:
            if isinstance(record.get("snapshot"), str):
                cited = record["snapshot"]
        yield cited, "the last push"


def _in_journals(vault: Vault) -> Iterator[bytes]:
    """Objects that a journal names: brought by a run that did not finish, saved from a target, or pushed."""
    for journal in vault.state.journals():
        for record in journal:
            digest = record.get("digest")
            if isinstance(digest, str) and is_digest(digest):
                yield bytes.fromhex(digest)


def _mark(vault: Vault, root: str, mail: bool, marks: Marks, vanished_before: str) -> None:
    """Marks all that a part's manifest names, except objects of entries that vanished before then."""
    if not root or bytes.fromhex(root) in marks.manifests:
        return
    marks.manifests.add(bytes.fromhex(root))
    for digest, records in _segments(vault, root, mail, marks):
        for record in records:
            if record.digest and not (record.vanished and record.vanished < vanished_before):
                marks.objects.add(bytes.fromhex(record.digest))
        marks.manifests.add(bytes.fromhex(digest))


def _segments(vault: Vault, root: str, mail: bool, marks: Marks) -> Iterator[tuple[str, Iterator[Stored[Message]] | Iterator[Stored[Entry]]]]:
    """The segments of a part that were not marked yet, with their records."""
    if mail:
        mailbox = MailRoot.open(vault.manifests, root)
        for folder in mailbox.folders():
            for _, _, ref in mailbox.ranges(folder.name):
                if ref.flags:
                    marks.manifests.add(bytes.fromhex(ref.flags))
                if bytes.fromhex(ref.messages) not in marks.manifests:
                    yield ref.messages, mailbox.segment(folder.name, ref)
        return
    tree = TreeRoot.open(vault.manifests, root)
    marks.manifests.update(bytes.fromhex(digest) for digest in tree.indexes())
    for segment in tree.segments():
        if bytes.fromhex(segment.digest) not in marks.manifests:
            yield segment.digest, tree.segment(segment)


def _garbage(folder: ObjectFolder, marks: set[bytes]) -> tuple[int, int]:
    number = freed = 0
    for digest, size in folder.list():
        if bytes.fromhex(digest) not in marks:
            number += 1
            freed += size
    return number, freed


# ------------------------------------------------------------ taking vanished entries out of the history


def _vanished(vault: Vault, state: PartState) -> Iterator[Stored[Message] | Stored[Entry]]:
    if not state.root or not state.vanished:
        return
    if state.part.kind == "mail":
        mailbox = MailRoot.open(vault.manifests, state.root)
        for folder in mailbox.folders():
            for ref in mailbox.refs(folder.name):
                if ref.vanished:
                    yield from (record for record in mailbox.segment(folder.name, ref) if record.vanished)
        return
    tree = TreeRoot.open(vault.manifests, state.root)
    for segment in tree.segments():
        if segment.vanished:
            yield from (record for record in tree.segment(segment) if record.vanished)


def _forget_vanished(vault: Vault, plan: PrunePlan, profile: str, now: datetime) -> Snapshot:
    """A snapshot like the newest, without what vanished before the plan's day."""
    newest = vault.snapshots.latest()
    assert newest is not None
    before = plan.vanished_before
    parts: dict[str, PartState] = {}
    for part_id, state in newest.parts.items():
        parts[part_id] = state
        if state.root and state.vanished:
            totals = _mail_without(vault, state, before) if state.part.kind == "mail" else _tree_without(vault, state, before)
            origin = state.carried_from or newest.id
            parts[part_id] = PartState.of(state.part, totals, state=state.state, carried_from=origin, reason=state.reason, shrunk=state.shrunk)
    note = f"what vanished before {before} left the history"
    return vault.snapshots.write(parts, [], command="prune", exit=0, profile=profile or newest.profile, now=now, note=note)


def _tree_without(vault: Vault, state: PartState, before: str) -> PartTotals:
    tree = TreeRoot.open(vault.manifests, state.root)
    writer = TreeWriter(vault.manifests, state.part, tree.meta)
    there = {b""}  # folders still to come that exist
    for path, refs in tree.by_folder():
        if not any(ref.vanished for ref in refs):
            records = [record for ref in refs for record in tree.segment(ref)] if any(ref.folders for ref in refs) else []
            writer.keep(refs)
        else:
            records = [record for ref in refs for record in tree.segment(ref) if not record.vanished or record.vanished >= before]
            if records or path in there:
                writer.add(path, records)
        there.discard(path)
        there.update(record.item.path for record in records if record.item.kind is Kind.DIR)
    return writer.finish()


def _mail_without(vault: Vault, state: PartState, before: str) -> PartTotals:
    mailbox = MailRoot.open(vault.manifests, state.root)
    writer = MailWriter(vault.manifests, state.part, mailbox.meta)
    for folder in mailbox.folders():
        writer.folder(folder)
        for ref in mailbox.refs(folder.name):
            if ref.vanished:
                writer.add([record for record in mailbox.segment(folder.name, ref) if not record.vanished or record.vanished >= before])
            else:
                writer.keep(ref)
    return writer.finish()
