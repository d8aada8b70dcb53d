"""A snapshot to the new host: every web tree that has a place there, every mailbox, each with its journal."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hostbackup.accounts import Account
from hostbackup.errors import Damaged, PlaceMissing, UsageError
from hostbackup.jobs import connect_ssh
from hostbackup.jobs.account_rows import Figures, tell_accounts
from hostbackup.jobs.accounts_pool import AccountWork
from hostbackup.jobs.context import Job, push_journal
from hostbackup.jobs.coverage import lost_filters, never_saved, unlisted
from hostbackup.jobs.filters import contents, filters_target, follow, names_from, to_adapt, were_pushed
from hostbackup.jobs.folder_map import settled_map
from hostbackup.jobs.part_work import PartWork
from hostbackup.jobs.proofs import Tally
from hostbackup.jobs.push_mail import MailPush
from hostbackup.jobs.push_tree import TreePush
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import MailScratch, Scratch
from hostbackup.jobs.settled import Settled
from hostbackup.model import Entry, Message, Part
from hostbackup.places.base import TreePlace
from hostbackup.places.exclude import Excludes
from hostbackup.places.sftp import SftpTree
from hostbackup.profile import NewWeb
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot


def web_target(job: Job, web: NewWeb) -> str:
    """What a tree's journal is called after: the machine and the folder."""
    section = connect_ssh.section(job.connections, "new")
    return f"{section.host}:{section.port}:{web.path}"


def mail_target(job: Job, account: Account) -> str:
    section = job.connections.imap_section("new")
    return f"{section.host}:{section.port}:{job.profile.new_account_for(account).user}"


_NONE = Excludes()


@dataclass(slots=True)
class Push:
    """Use: `run()`. `only` holds "web", "mail"; `accounts` users to restrict mail to; `overwrite` gitignore patterns."""

    job: Job
    only: Collection[str] = ("web", "mail")
    accounts: Collection[str] = ()
    since: datetime.date | None = None
    snapshot: str = ""
    overwrite: Sequence[str] = ()
    dry_run: bool = False
    result: Result = field(init=False)
    _snapshot: Snapshot = field(init=False)
    _evidence: list[dict[str, Any]] = field(init=False, default_factory=list)
    _unused: list[set[str]] = field(init=False, default_factory=list)  # of each mailbox the names in [mail] folders that it does not have
    _known: dict[str, Figures] = field(init=False, default_factory=dict)  # by mailbox that could be worked on

    def __post_init__(self) -> None:
        self.result = Result(self.job.observer)

    def run(self) -> Result:
        job = self.job
        found = job.vault.snapshots.get(self.snapshot or "latest")
        self._snapshot = found
        self.result.details["snapshot"] = found.id
        accounts = self._chosen()
        if not accounts and not self._webs():
            raise UsageError("nothing to push", where=str(job.profile.file), hint="add [new.ssh] with [[new.web]], or [new.imap], to the profile")
        job.connections.check_new_endpoints(web="web" in self.only and not self.accounts, mail="mail" in self.only)
        if not self.dry_run:
            job.vault.state.write("push", {"snapshot": found.id, "time": job.now})
        for part, push in self._webs():
            self._part(part, push)
        self._mailboxes([account for account in accounts if self._held(Part("mail", account.user)) is not None])
        if not self.dry_run:
            tell_accounts(self.result, [Part("mail", account.user).id for account in accounts], self._known)
        if self._evidence:
            job.vault.evidence.write("push", self._evidence + job.connections.weaker_settings())
        return self.result

    def _webs(self) -> list[tuple[Part, Callable[[PartState], None]]]:
        new = self.job.profile.new
        if "web" not in self.only or not new.ssh or self.accounts:
            return []
        return [(Part("web", web.source), functools.partial(self._web, web)) for web in new.web]

    def _chosen(self) -> list[Account]:
        """The accounts whose mail is pushed."""
        profile = self.job.profile
        if "mail" not in self.only or not profile.new.imap:
            return []
        users = {account.user: account for account in profile.old_accounts()}
        unknown = [user for user in self.accounts if user not in users]
        if unknown:
            raise UsageError(f"the profile has no account {unknown[0]!r}", hint=f"it has: {', '.join(users)}")
        return [users[user] for user in dict.fromkeys(self.accounts or users)]

    def _with_filters(self, accounts: Sequence[Account]) -> set[str]:
        """The users whose filters are pushed. Those that the backup could not get are told."""
        new = self.job.profile.new.imap
        if new is None or new.sieve == "never":
            return set()
        parts = [Part("sieve", account.user) for account in accounts]
        wanted = {*self._snapshot.parts, *(part.id for part in lost_filters(self.job.profile, self._snapshot))}
        return {part.name for part in parts if part.id in wanted and self._held(part) is not None}

    def _held(self, part: Part) -> PartState | None:
        """The part in the snapshot. One that is not there is told."""
        state = self._snapshot.parts.get(part.id)
        if state is None:
            [failure] = never_saved(self._snapshot, [part])
            self.result.fail(failure)
            self.result.undone += 1
            return None
        with contextlib.suppress(Damaged):  # told where the part is worked on
            for failure in unlisted(self.job.vault.snapshots, self.job.vault.manifests, self._snapshot, state):
                self.result.fail(failure)
        return state

    def _part(self, part: Part, push: Callable[[PartState], None]) -> None:
        state = self._held(part)
        if state is None:
            return
        PartWork(part, "new", self.result, functools.partial(push, state)).run()

    # -- web ----------------------------------------------------------------------------------------------------------------------------

    def _web(self, web: NewWeb, state: PartState) -> None:
        job, part = self.job, state.part
        reader = job.vault.objects.read
        target, witness = (connect_ssh.new_tree(job.connections, part.name, web.path, reader, witness=witness) for witness in (False, True))
        journal = push_journal(part, web_target(job, web))
        with self._tree(state, target, witness, self.result, journal=journal, adapted=Excludes(web.adapted)) as work:
            left = self._tidy(part, target)
            if not (planned := self._plan(work, state)):
                return
            self._remember_temporary(part, *left, target.temporary_prefix)
            self._evidence += self._apply(work, state, planned)
            if work.cut is None and not target.untidy:  # else half-written files may stand there still: the next push finds them by the prefix
                self._remember_temporary(part, *left)

    @contextlib.contextmanager
    def _tree(
        self, state: PartState, target: TreePlace, witness: TreePlace, result: Result, *, journal: str, adapted: Excludes = _NONE
    ) -> Iterator[TreePush]:
        """The push of one tree; both places are closed after it."""
        job = self.job
        with contextlib.ExitStack() as stack:
            stack.callback(witness.close)
            stack.callback(target.close)
            there, todo, bare = (stack.enter_context(Scratch[Entry](job.scratch)) for _ in range(3))
            yield TreePush(
                part=state.part,
                target=target,
                witness=witness,
                source=TreeRoot.open(job.vault.manifests, state.root),
                vault=job.vault,
                open_ledger=lambda: stack.enter_context(job.ledger(journal)),
                settled=Settled(job.vault.state, journal),
                there=there,
                todo=todo,
                bare=bare,
                result=result,
                adapted=adapted,
                overwrite=Excludes(self.overwrite),
                shrunk=state.shrunk is not None,
                gone_stays=state.part.kind == "sieve",  # a filter that somebody took away or switched off must not work again
                dry_run=self.dry_run,
            )

    def _plan(self, work: TreePush, state: PartState) -> dict[str, int]:
        """What there is to do; nothing in a dry run."""
        work.result.observer.phase(f"{state.part}: comparing with the new server", state.entries)
        planned = work.plan()
        self._planned(work.result, state.part, dict(planned))
        return {} if self.dry_run else {"write": planned["write"], "attributes": planned["attributes"], "write_bytes": planned["write_bytes"]}

    def _apply(self, work: TreePush, state: PartState, planned: dict[str, int]) -> list[dict[str, Any]]:
        """Does it. Gives lines of evidence."""
        entries = 2 * planned["write"] + planned["attributes"]
        work.result.observer.phase(f"{state.part}: writing and proving", entries, 2 * planned["write_bytes"])
        return self._record(work.result, work.apply(), state)

    def _tidy(self, part: Part, target: SftpTree) -> list[bytes]:
        """Removes what earlier pushes of this part may have left half-written on the target. Gives the prefixes of what may be left all the same."""
        known = self.job.vault.state.read(_temporary(part)) or {}
        prefixes = [prefix.encode() for prefix in known.get("prefixes", ())]
        if prefixes and not self.dry_run:
            with contextlib.suppress(PlaceMissing):
                target.remove_temporaries(prefixes)
        return prefixes if target.untidy else []

    def _remember_temporary(self, part: Part, *prefixes: bytes) -> None:
        self.job.vault.state.write(_temporary(part), {"prefixes": [prefix.decode() for prefix in prefixes]})

    # -- mail ---------------------------------------------------------------------------------------------------------------------------

    def _mailboxes(self, accounts: Sequence[Account]) -> None:
        if not accounts:
            return
        job, connections, with_filters = self.job, self.job.connections, self._with_filters(accounts)
        logins = [job.profile.new_account_for(account) for account in accounts]
        pool = connections.accounts_pool("new", "pushing mail", logins)
        works = [connections.account_work(pool, "new", login, account.user) for account, login in zip(accounts, logins, strict=True)]
        for account, work in zip(accounts, works, strict=True):
            work.work = functools.partial(self._mail, account, work)
            if account.user in with_filters:
                follow(work, functools.partial(self._filters, account, work), optional=not were_pushed(job, account))
        connections.knock_for_filters("new", [login for login, work in zip(logins, works, strict=True) if work.then])
        pool.run(works)
        for done in [*works, *(work.then for work in works if work.then)]:
            self.result.add(done.result)
            self._evidence += done.evidence
        for work in works:
            if work.error is None:
                state = self._snapshot.parts[work.part.id]
                self._known[work.part.id] = Figures(state.entries, state.bytes, work.result.counts["written"])
        self._tell_unused(len(accounts))

    def _tell_unused(self, accounts: int) -> None:
        """Names in the profile that may be mistyped, once every mailbox was looked at."""
        profile = self.job.profile
        if len(self._unused) == accounts == len(profile.old_accounts()):
            for name in sorted(set.intersection(*self._unused)):
                self.job.observer.warn(f"[mail] folders: no mailbox has a folder {name!r}, so nothing goes to {profile.mail.folders[name]!r}")

    def _mail(self, account: Account, account_work: AccountWork) -> None:
        """Runs in a thread of its own, beside others."""
        job, part, result = self.job, account_work.part, account_work.result
        state = self._snapshot.parts[part.id]
        target = job.connections.mailbox("new", job.profile.new_account_for(account), part.name, job.vault.objects.read)
        journal = push_journal(part, mail_target(job, account))
        with job.ledger(journal) as ledger, MailScratch(job.scratch) as todo:
            source = MailRoot.open(job.vault.manifests, state.root)
            try:
                mapping = settled_map(job, journal, source, target, result, dry_run=self.dry_run)
                self._unused.append(mapping.unused)
                result.details.setdefault("folders", {})[part.id] = [row.as_json() for row in mapping.rows]
                work = MailPush(
                    part,
                    target,
                    source,
                    job.vault,
                    ledger,
                    mapping,
                    result,
                    todo,
                    self.since,
                    self.dry_run,
                    patience=job.connections.imap_section("new").patience,
                )
                result.observer.phase(f"{part}: comparing with the new server")
                planned = work.plan()
                self._planned(result, part, dict(planned))
                if self.dry_run:
                    return
                result.observer.phase(f"{part}: appending and proving", planned["write"], planned["write_bytes"])
                work.apply()
                tally = work.prove()
                account_work.evidence += self._record(result, tally, state)
                result.details.setdefault("mail", []).append(tally.as_json())
            finally:
                target.close()

    # -- filters ------------------------------------------------------------------------------------------------------------------------

    def _filters(self, account: Account, mailbox: AccountWork, filters: PartWork) -> None:
        """Runs in a thread of its own, beside others."""
        job, part = self.job, filters.part
        state = self._snapshot.parts[part.id]
        source = TreeRoot.open(job.vault.manifests, state.root)
        login = job.profile.new_account_for(account)
        place = job.connections.filters("new", login, part.name, contents(source), names_from(source.meta))
        with self._tree(state, place, place, filters.result, journal=push_journal(part, filters_target(job, account))) as work:
            if planned := self._plan(work, state):
                filters.evidence += self._apply(work, state, planned)
        rows = mailbox.result.details.get("folders", {}).get(mailbox.part.id, [])
        if notes := list(to_adapt(source, job.vault.objects.read, rows)):
            filters.result.details.setdefault("filters_to_adapt", []).extend(notes)

    # -- account ------------------------------------------------------------------------------------------------------------------------

    def _planned(self, result: Result, part: Part, planned: dict[str, int]) -> None:
        result.details.setdefault("planned", {})[part.id] = planned
        result.counts.update(planned)

    def _record(self, result: Result, tally: Tally[Entry] | Tally[Message], state: PartState) -> list[dict[str, Any]]:
        """Tells what was proven; gives it as lines of evidence too, where there is anything."""
        result.counts["verified"] += tally.counts["verified"]
        result.details.setdefault("proven", {})[state.part.id] = {"counts": dict(tally.counts), "method": tally.method, "bytes": tally.bytes}
        return [tally.evidence(snapshot=self._snapshot.id, manifest=state.root)] if tally.counts else []


def _temporary(part: Part) -> str:
    return f"temporary-{part.id.replace('/', '-')}"
