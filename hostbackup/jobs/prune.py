"""Frees what the policy lets go, in the vault and, if asked, in its copies, which are brought up to date before."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from hostbackup.errors import Exit, HostbackupError
from hostbackup.jobs.context import Job
from hostbackup.jobs.copies import Copy, held, keys_of
from hostbackup.jobs.copy import CopyRun
from hostbackup.jobs.copy_prune import CopyPrune, Freed
from hostbackup.jobs.copy_source import copy_format
from hostbackup.jobs.keys import stamp
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.profile import BucketCopy
from hostbackup.vault.prune import PrunePlan, apply_prune, plan_prune

_PRUNED = "pruned"  # in state/: the snapshots that went


@dataclass(frozen=True, slots=True)
class Policy:
    """How many of the last snapshots, and of the last days, weeks and months, keep one; and from when vanished entries may be forgotten."""

    last: int = 10
    daily: int = 7
    weekly: int = 4
    monthly: int = 12
    vanished_before: datetime.date | None = None


def prune(job: Job, policy: Policy, *, apply: bool, copies: bool) -> Result:
    """Plans, and with `apply` carries out (the vault then has to be open for pruning)."""
    result = Result(job.observer)
    job.observer.phase("finding out what is still needed")
    frozen = _frozen(job) or _unreadable(job, result)
    plan = plan_prune(
        job.vault,
        keep_last=policy.last,
        keep_daily=policy.daily,
        keep_weekly=policy.weekly,
        keep_monthly=policy.monthly,
        vanished_before=policy.vanished_before,
        freeze=bool(frozen),
        freeze_reason=frozen,
    )
    if apply:
        _remember(job, plan.remove)
        written = apply_prune(job.vault, plan, profile=job.profile.name)
        if not plan.empty:
            facts = {"removed": plan.remove, "objects": plan.objects, "manifests": plan.manifests, "bytes": plan.bytes, "vanished": plan.vanished}
            job.vault.evidence.write("prune", [{"type": "prune", "time": stamp(), **facts, "snapshot": written.id if written else ""}])
    result.details.update(
        applied=apply,
        keep=[{"id": name, "why": why} for name, why in plan.kept.items()],
        go=plan.remove,
        objects=plan.objects,
        manifests=plan.manifests,
        bytes=plan.bytes,
        vanished=plan.vanished,
        frozen=plan.frozen,
    )
    result.counts.update(snapshots=len(plan.remove), objects=plan.objects, manifests=plan.manifests, bytes=plan.bytes)
    result.done += 1
    if copies and not plan.frozen:
        _copies(job, plan, result, apply=apply)
    return result


def _remember(job: Job, removed: Iterable[str]) -> None:
    """Notes which snapshots go on purpose, before they do: copies may lose those alone."""
    gone = {*((job.vault.state.read(_PRUNED) or {}).get("snapshots", ())), *removed}
    job.vault.state.write(_PRUNED, {"snapshots": sorted(gone)})


def _let_go(job: Job) -> set[str]:
    """Every snapshot that a prune of this vault let go."""
    gone = set((job.vault.state.read(_PRUNED) or {}).get("snapshots", ()))
    for _, lines in job.vault.evidence.read_whole():
        gone.update(name for line in lines or () if line.get("type") == "prune" for name in line.get("removed", ()))
    return gone


def _frozen(job: Job) -> str:
    """Between notice and a passed gate `delete` nothing is freed: the old server is going, and this is what will be left."""
    contract = job.profile.contract
    if contract is None or not (contract.notice_posted or contract.notice_accepted):
        return ""
    for _, lines in job.vault.evidence.read_whole():
        if lines and any(line.get("type") == "gate" and line.get("gate") == "delete" and line.get("verdict") == "yes" for line in lines):
            return ""
    return "notice was given and the gate `delete` has not been passed"


def _unreadable(job: Job, result: Result) -> str:
    """What damaged evidence spoke of is unknown, so nothing may go; each such file is told."""
    names = [name for name, lines in job.vault.evidence.read_whole() if lines is None]
    for name in names:
        reason = "this evidence is damaged, so nobody knows which snapshots it relies on"
        result.fail(
            Failure("vault", "", f"evidence/{name}".encode(), "damaged", reason, "run `verify`; a copy may have this file whole"), Exit.DAMAGE
        )
    return f"evidence/{names[0]} is damaged" if names else ""


def _copies(job: Job, plan: PrunePlan, result: Result, *, apply: bool) -> None:
    kept = set(job.vault.snapshots.list()) - set(plan.remove)
    for copy in job.profile.copies:
        if copy.mode == "mirror":  # holds what the newest snapshot has, and nothing that older ones need
            continue
        try:
            freed = _copy(job, copy, plan, kept, result, apply=apply)
        except HostbackupError as error:
            result.fail_part(error, side=f"copy:{copy.name}", part="")
        else:
            result.details.setdefault("copies", {})[copy.name] = dataclasses.asdict(freed)


def _copy(job: Job, copy: Copy, plan: PrunePlan, kept: set[str], result: Result, *, apply: bool) -> Freed:
    recipients, identities = keys_of(job, copy)
    store = job.connections.store(copy, job.vault.state)
    try:
        copy_format(store)
        with (
            CopyRun(job.vault, store, result, name=copy.name, recipients=recipients, identities=identities) as run,
            held(job, copy, store) if apply else contextlib.nullcontext(),
        ):
            if apply and run.run().snapshot != job.vault.snapshots.list()[-1]:
                return Freed()  # why it could not be brought up to date is told; what it has is better than nothing
            listing = run.look()
            pruned = {*plan.remove, *_let_go(job)}
            guard = datetime.timedelta(days=(copy.retain_days or 0) if isinstance(copy, BucketCopy) else 0)
            pruning = CopyPrune(run.archive, job.vault, plan, result, kept=kept, pruned=pruned, name=copy.name, retained=guard)
            return pruning.run(listing, apply=apply)
    finally:
        store.close()
