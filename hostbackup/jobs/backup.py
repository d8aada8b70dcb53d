"""The old server and the local folders into the vault: a new snapshot, whatever failed on the way.

One part's failure is never another's. A part that could not be read carries its last manifest; a run in which nothing could be read writes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hostbackup.accounts import Account
from hostbackup.errors import Damaged, HostbackupError, ProfileError
from hostbackup.jobs import ahead, doubts
from hostbackup.jobs.account_rows import Figures, tell_accounts
from hostbackup.jobs.accounts_pool import AccountWork
from hostbackup.jobs.context import Job, resume_journal
from hostbackup.jobs.coverage import coverage_evidence, filter_parts, tell_coverage
from hostbackup.jobs.filters import first_seen, follow, names_from, names_meta, recall_silence, remember_silence
from hostbackup.jobs.history import Root, bases, newest_readable, tell_damage
from hostbackup.jobs.part_work import PartWork
from hostbackup.jobs.result import Result
from hostbackup.jobs.shrink import shrunk
from hostbackup.model import Failure, Part
from hostbackup.places.base import TreePlace
from hostbackup.places.exclude import Excludes
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.records import COUNTERS, PartTotals
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.view_prints import Prints

if TYPE_CHECKING:
    from hostbackup.jobs.backup_mail import MailBackup
    from hostbackup.jobs.backup_tree import TreeBackup
    from hostbackup.jobs.scratch import MessageKey
    from hostbackup.places.base import MailSource
    from hostbackup.vault.mailbox import MailRoot
    from hostbackup.vault.tree import TreeRoot

_NONE = Excludes()
_AFTER_MAIL = ("hostbackup.vault.view", "hostbackup.report.terminal")
_FOR_FILTERS = ("hostbackup.jobs.backup_tree", "hostbackup.places.sieve", "hostbackup.protocols.sieve")


@dataclass(slots=True)
class Backup:
    """Use: `run()`. `only` holds "web", "mail", "local"; `accept_shrink` the ids of parts whose shrinking somebody has looked at."""

    job: Job
    only: Collection[str] = ("web", "mail", "local")
    checksum: bool = False
    dry_run: bool = False
    accept_shrink: Collection[str] = ()
    command: str = "backup"
    result: Result = field(init=False)
    _prints: Prints = field(init=False)
    _before: Snapshot | None = field(init=False, default=None)
    _parts: dict[str, PartState] = field(init=False, default_factory=dict)
    _finished: list[Part] = field(init=False, default_factory=list)
    _new: dict[str, int] = field(init=False, default_factory=dict)  # by mailbox, messages that the last snapshot did not have
    _doubts: dict[str, set[MessageKey]] = field(init=False, default_factory=dict)  # by mailbox, what could not be fetched again; by one thread, too
    _read: dict[str, PartState] = field(init=False, default_factory=dict)  # by part, what this run made of it; each is put there by one thread

    def __post_init__(self) -> None:
        self.result = Result(self.job.observer)
        self._prints = Prints(self.job.vault.root, self.job.vault.state)

    def run(self) -> Result:
        job = self.job
        job.connections.check_old_endpoints(web="web" in self.only and bool(job.profile.old.web), mail="mail" in self.only)
        self._before = newest_readable(job.vault, self.result)
        self._parts = dict(self._before.parts) if self._before else {}
        self._carry_all()
        webs, locals_ = (job.profile.old.web if "web" in self.only else ()), (job.profile.local if "local" in self.only else ())
        accounts = job.profile.old_accounts() if "mail" in self.only else []
        if not (webs or accounts or locals_):
            raise ProfileError(
                "the profile names nothing to back up", where=str(job.profile.file), hint="add [[old.web]], [old.imap], [old.pop3] or [[local]]"
            )
        for web in webs:
            self._part(Part("web", web.name), self._web)
        if "mail" in self.only:
            tell_coverage(job.profile, self.result)
        if accounts:
            filters = set(filter_parts(job.profile))
            self._mailboxes(accounts, filters, [*_AFTER_MAIL, *(_FOR_FILTERS if filters else ())])
        for local in locals_:
            self._part(Part("local", local.name), self._local)
        if self.dry_run:
            return self.result
        if self.result.done:
            self._commit()
        elif self._before is not None:
            self._lay_out(self._before)
        known = {key: Figures(state.entries, state.bytes, self._new.get(key, 0), state.state) for key, state in self._parts.items()}
        tell_accounts(self.result, [Part("mail", account.user).id for account in accounts], known)
        return self.result

    def _carry_all(self) -> None:
        """Until a part has been read it stands in the new snapshot as it stood in the last."""
        for key, state in self._parts.items():
            carried_from = state.carried_from or (self._before.id if self._before else "")
            self._parts[key] = dataclasses.replace(state, state="carried", carried_from=carried_from, reason="not part of this run")

    def _part(self, part: Part, back_up: Callable[[Part], None]) -> None:
        work = PartWork(part, "old", self.result, functools.partial(back_up, part), optional=part.id not in self._parts)
        work.run()
        self._settled(part, work.error)

    def _settled(self, part: Part, error: HostbackupError | None) -> None:
        """The part has been worked on, or has failed: it stands in the new snapshot as it was read, or as it stood in the last."""
        if error is None:
            self._finished.append(part)
            self._parts.update({part.id: self._read[part.id]} if part.id in self._read else {})
        elif part.id in self._parts:
            self._parts[part.id] = dataclasses.replace(self._parts[part.id], reason=str(error))

    # -- trees --------------------------------------------------------------------------------------------------------------------------

    def _web(self, part: Part) -> None:
        from hostbackup.jobs import connect_ssh

        web = next(web for web in self.job.profile.old.web if web.name == part.name)
        # What is proven here decides no more than what is fetched again.
        tree = connect_ssh.old_tree(self.job.connections, web, self.job.vault.objects.read, weak=True)
        self._tree(part, tree, self.result, lambda: {"path": web.path, "exclude": list(web.exclude)}, volatile=Excludes(web.volatile))

    def _local(self, part: Part) -> None:
        local = next(local for local in self.job.profile.local if local.name == part.name)
        self._tree(part, self.job.connections.local_tree(local.name, local.path), self.result, lambda: {"path": str(local.path)})

    def _filters(self, account: Account, filters: PartWork) -> None:
        """Runs in a thread of its own, beside others."""
        part = filters.part
        place = self.job.connections.filters("old", account, part.name)

        def ready(previous: TreeRoot | None) -> None:
            place.dated = first_seen(previous, self.job.started)
            place.names |= names_from(previous.meta) if previous else {}

        self._tree(part, place, filters.result, lambda: {"user": part.name, **names_meta(place.names)}, ready=ready)

    def _tree(
        self,
        part: Part,
        place: TreePlace,
        result: Result,
        meta: Callable[[], dict[str, Any]],
        *,
        volatile: Excludes = _NONE,
        ready: Callable[[TreeRoot | None], object] = lambda _: None,
    ) -> None:
        from hostbackup.jobs.backup_tree import TreeBackup
        from hostbackup.jobs.scratch import Scratch
        from hostbackup.vault.layout import tree_meta
        from hostbackup.vault.tree import TreeRoot

        def since(previous: TreeRoot | None) -> None:
            job = self.job
            ready(previous)
            with job.ledger(resume_journal(part)) as resume, Scratch(job.scratch) as scratch:
                work = TreeBackup(part, place, job.vault, scratch, result, job.now, previous, resume, volatile, self.checksum, self.dry_run)
                self._carry_out(part, work, result, lambda: work.finish({**meta(), **tree_meta(place.root_entry)}))

        self._on_what_there_is(part, place, result, TreeRoot.open, since)

    # -- mail ---------------------------------------------------------------------------------------------------------------------------

    def _mailboxes(self, accounts: Sequence[Account], filters: Collection[Part], later: Iterable[str]) -> None:
        """`filters`: those of these accounts that are wanted. `later`: modules that what comes after it will need."""
        connections = self.job.connections
        pool = connections.accounts_pool("old", "backing up mail", accounts)
        works = [connections.account_work(pool, "old", account, account.user) for account in accounts]
        for account, work in zip(accounts, works, strict=True):
            work.work = functools.partial(self._mail, account, work)
            part = Part("sieve", account.user)
            if part in filters:
                follow(work, functools.partial(self._filters, account), optional=part.id not in self._parts)
        if not any(state.part.kind == "sieve" for state in self._parts.values()):  # else filters may be lost
            recall_silence(self.job)
        if filters:
            connections.knock_for_filters("old", [account for account, work in zip(accounts, works, strict=True) if work.then])
        with ahead.loading(*later):
            pool.run(works)
        if not self.dry_run:
            remember_silence(self.job)
        for work in works:
            self._new[work.part.id] = work.result.counts["new"]
        for done in [*works, *(work.then for work in works if work.then)]:
            self.result.add(done.result)
            self._settled(done.part, done.error)

    def _mail(self, account: Account, account_work: AccountWork) -> None:
        """Runs in a thread of its own, beside others."""
        from hostbackup.jobs.backup_mail import MailBackup
        from hostbackup.jobs.scratch import MailScratch
        from hostbackup.vault.mailbox import MailRoot

        job, part, result = self.job, account_work.part, account_work.result
        place = job.connections.old_mailbox(account, part.name, job.vault.objects.read)

        def since(previous: MailRoot | None) -> None:
            with job.ledger(resume_journal(part)) as resume, MailScratch(job.scratch) as scratch:
                work = MailBackup(
                    part,
                    place,
                    job.vault,
                    scratch,
                    result,
                    job.now,
                    job.connections.identity,
                    previous,
                    resume,
                    self.dry_run,
                    self.checksum,
                    self._prints,
                    doubts.known(job.vault.state, part),
                )
                self._carry_out(part, work, result, work.finish)
                self._doubts[part.id] = work.doubted

        self._on_what_there_is(part, place, result, MailRoot.open, since)

    # -- both ---------------------------------------------------------------------------------------------------------------------------

    def _on_what_there_is(
        self,
        part: Part,
        place: TreePlace | MailSource,
        result: Result,
        opener: Callable[[Manifests, str], Root],
        since: Callable[[Root | None], None],
    ) -> None:
        """Backs up on top of the part's last manifest; of an earlier one, or from the start, where that is damaged."""
        try:
            for previous in bases(self.job.vault, part, result, opener):
                try:
                    since(previous)
                except Damaged as error:
                    tell_damage(result, part.id, b"manifest", error)
                else:
                    return
        finally:
            place.close()

    def _carry_out(self, part: Part, work: TreeBackup | MailBackup, result: Result, finish: Callable[[], PartTotals]) -> None:
        observer, before, failures = result.observer, self._parts.get(part.id), len(result.failures)
        observer.phase(f"{part}: looking")
        planned = work.plan()
        result.counts.update({key: planned[key] for key in ("new", "changed", "unchanged", "vanished", "resumed")})
        if self.dry_run:
            result.details.setdefault("planned", {})[part.id] = dict(planned)
            return
        observer.phase(f"{part}: reading", planned["wanted"], planned["wanted_bytes"])
        work.fetch()
        self.job.vault.objects.flush_soon()  # while the manifest is made
        self._finish(part, result, finish(), before, failed=len(result.failures) > failures)

    # -- snapshot -----------------------------------------------------------------------------------------------------------------------

    def _finish(self, part: Part, result: Result, totals: PartTotals, before: PartState | None, *, failed: bool) -> None:
        flag = None if part.id in self.accept_shrink or part.kind == "sieve" else shrunk(before, totals)  # somebody dropped the one filter there was
        if flag:
            reason = f"shrank from {flag['entries_before']} to {flag['entries_now']} entries ({flag['bytes_before']} to {flag['bytes_now']} bytes)"
            hint = f"look at the old server; if that is right, run again with --accept-shrink {part.id}"
            result.fail(Failure("old", part.id, b"", "shrunk", reason, hint))
        state = "incomplete" if failed or totals.failed or totals.stale else "complete"
        reason = f"{totals.failed} failed, {totals.stale} kept from before" if state == "incomplete" else ""
        self._read[part.id] = _part_state(part, totals, state, reason, flag)

    def _commit(self) -> None:
        job, vault = self.job, self.job.vault
        job.observer.phase("writing the snapshot")
        snapshot = vault.snapshots.write(
            self._parts, self.result.failures, command=self.command, exit=self.result.exit, profile=job.profile.name, now=job.started
        )
        self._lay_out(snapshot)
        vault.evidence.write(self.command, self._evidence(snapshot))
        for part in self._finished:
            vault.state.journal(resume_journal(part)).clear()
            if part.id in self._doubts:
                doubts.keep(vault.state, part, self._doubts[part.id])
        self._tell(snapshot)

    def _lay_out(self, snapshot: Snapshot) -> None:
        """Makes `latest/` equal the snapshot, also where nothing could be read: what somebody did to it is put right from the vault."""
        from hostbackup.vault.view import build_view

        job = self.job
        job.observer.phase("laying out latest/", sum(part.entries for part in snapshot.parts.values()))
        for failure in build_view(job.vault, snapshot, self._before, job.profile.view, job.observer, prints=self._prints):
            self.result.fail(failure)

    def _evidence(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = [
            {
                "type": "backup",
                "snapshot": snapshot.id,
                "part": part.id,
                "manifest": snapshot.parts[part.id].root,
                "side": "old",
                "state": snapshot.parts[part.id].state,
                "counts": {
                    "entries": snapshot.parts[part.id].entries,
                    "failed": snapshot.parts[part.id].failed,
                    "stale": snapshot.parts[part.id].stale,
                },
                "bytes": snapshot.parts[part.id].bytes,
                "time": self.job.now,
                **({"folders": folders} if (folders := self.result.details.get("folders", {}).get(part.id)) else {}),
            }
            for part in self._finished
        ]
        lines += [{"type": "not-covered", **row, "time": self.job.now} for row in self.result.details.get("not_covered", [])]
        lines += coverage_evidence(self.result, self.job.now)
        lines += [{"type": "shrink-accepted", "part": part, "time": self.job.now} for part in self.accept_shrink]
        return lines + self.job.connections.weaker_settings()

    def _tell(self, snapshot: Snapshot) -> None:
        self.result.details["snapshot"] = snapshot.id
        self.result.details["parts"] = {
            key: {
                "state": part.state,
                "entries": part.entries,
                "bytes": part.bytes,
                "folders": part.folders,
                "links": part.links,
                "failed": part.failed,
                "stale": part.stale,
                "vanished": part.vanished,
                "reason": part.reason,
            }
            for key, part in snapshot.parts.items()
        }
        self.result.counts["entries"] = sum(part.entries for part in snapshot.parts.values())
        self.result.counts["bytes"] = sum(part.bytes for part in snapshot.parts.values())


def _part_state(part: Part, totals: PartTotals, state: str, reason: str, flag: dict[str, int] | None) -> PartState:
    counters = {name: getattr(totals, name) for name in COUNTERS}
    return PartState(part, totals.root, **counters, state=state, reason=reason, shrunk=flag)
