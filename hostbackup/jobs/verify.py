"""Proves what the vault holds, against itself and against every other side that is asked for, and records the evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from hostbackup.accounts import Account
from hostbackup.errors import NotOffered, UsageError, WrongMachine
from hostbackup.jobs import connect_ssh
from hostbackup.jobs.account_rows import Figures, tell_accounts
from hostbackup.jobs.context import Job, push_journal
from hostbackup.jobs.coverage import filter_parts, never_saved_evidence, tell_never_saved
from hostbackup.jobs.filters import filters_target, follow, names_from, were_pushed
from hostbackup.jobs.folder_map import decided
from hostbackup.jobs.history import newest_readable
from hostbackup.jobs.mail_tally import MailTally
from hostbackup.jobs.part_work import PartWork
from hostbackup.jobs.proofs import Tally
from hostbackup.jobs.push import mail_target, web_target
from hostbackup.jobs.result import Result
from hostbackup.jobs.verify_live import NewTree, OldTree
from hostbackup.jobs.verify_mail import NewMail, OldMail
from hostbackup.jobs.verify_vault import VaultCheck
from hostbackup.model import Failure
from hostbackup.places.exclude import Excludes
from hostbackup.profile import NewWeb
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot

SIDES = ("old", "new", "copy")
Tallies = dict[str, Tally[Any]]  # by part
_PUSH = "run `hostbackup push`, with this profile"


@dataclass(slots=True)
class Verify:
    """Use: `run()`. The vault and its view are always re-read; `against` names further sides."""

    job: Job
    against: Collection[str] = ()
    only: Collection[str] = ("web", "mail", "local")
    read_data: float | None = None  # of copies: which share is read back, from 0 to 1; None: what nobody vouches for
    drill: bool = False  # of copies: also restore a sample
    result: Result = field(init=False)
    _snapshot: Snapshot = field(init=False)
    _evidence: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.result = Result(self.job.observer)

    def run(self) -> Result:
        job = self.job
        self._refuse_what_cannot_be()
        # A newer snapshot that is damaged is told among all others, below.
        self._snapshot = newest_readable(job.vault, Result()) or job.vault.snapshots.get("latest")
        self.result.details["snapshot"] = self._snapshot.id
        self._evidence += VaultCheck(job, self._snapshot, self.result).run()
        tell_never_saved(job.profile, self._snapshot, self.result)
        self._evidence += never_saved_evidence(self.result, job.now)
        self._account_rows()
        self.result.done += 1
        for side in SIDES:
            if side in self.against:
                {"old": self._old, "new": self._new, "copy": self._copy}[side]()
        job.vault.evidence.write("verify", self._evidence + job.connections.weaker_settings())
        self.result.details["proven"] = [
            {key: line[key] for key in ("side", "part", "method", "counts", "bytes")} for line in self._evidence if line["type"] == "proof"
        ]
        return self.result

    def _account_rows(self) -> None:
        """What the vault holds of each mailbox, of the profile's and of those that it no longer names."""
        held = {key: Figures(state.entries, state.bytes) for key, state in self._snapshot.parts.items() if state.part.kind == "mail" and state.root}
        missing = [row["part"] for row in self.result.details.get("never_saved", []) if row["part"].startswith("mail/")]
        tell_accounts(self.result, sorted({*held, *missing}), held, side="vault")

    def _refuse_what_cannot_be(self) -> None:
        profile = self.job.profile
        there = {
            "old": bool(profile.old.ssh or profile.old.imap or profile.old.pop3 or profile.local),
            "new": bool(profile.new.ssh or profile.new.imap),
        }
        there["copy"] = bool(profile.copies)
        for side in self.against:
            if not there[side]:
                raise UsageError(f"--against {side}: the profile has no such side", where=str(profile.file))

    def _parts(self, kinds: Collection[str]) -> Iterator[PartState]:
        for state in self._snapshot.parts.values():
            if state.part.kind in kinds and ("mail" if state.part.kind == "sieve" else state.part.kind) in self.only:
                yield state

    def _record(self, tally: Tally[Any], state: PartState) -> None:
        self._evidence.append(tally.evidence(snapshot=self._snapshot.id, manifest=state.root))
        self.result.counts.update({f"{tally.side}_{status}": count for status, count in tally.counts.items()})

    def _tree(self, state: PartState, side: str, check: Callable[[PartWork], Tally[Any] | None]) -> None:
        work = PartWork(state.part, side, self.result)
        tallies: Tallies = {}
        work.work = functools.partial(_into, tallies, work, check)
        work.run()
        self._settled(state, work, tallies)

    def _settled(self, state: PartState, work: PartWork, tallies: Tallies) -> None:
        """The part has been worked on, or has failed: then nothing of it is proven."""
        tally = tallies.get(state.part.id)
        if work.error is not None:
            tally = Tally(work.side, state.part.id)
            tally.counts["unverified"] = state.entries
            if work.optional and isinstance(work.error, NotOffered):  # told as not covered
                return
        if tally is not None:
            self._record(tally, state)

    # -- old ----------------------------------------------------------------------------------------------------------------------------

    def _old(self) -> None:
        accounts = {account.user: account for account in self.job.profile.old_accounts()}
        for state in self._parts(("web", "local")):
            self._tree(state, "old", functools.partial(self._old_part, state))
        filters = {part.id for part in filter_parts(self.job.profile)}
        kept: list[tuple[PartState, Account]] = []
        for state in self._parts(("mail", "sieve")):
            if state.part.name in accounts and (state.part.kind == "mail" or state.part.id in filters):
                kept.append((state, accounts[state.part.name]))
            else:
                self._absent(state)
        self._mailboxes("old", *_by_kind(kept))

    def _old_part(self, state: PartState, work: PartWork) -> Tally[Any] | None:
        job, part = self.job, state.part
        job.connections.check_old_endpoints(web=part.kind == "web", mail=False)
        job.observer.phase(f"{part}: proving against the old server", state.entries, state.bytes)
        volatile = Excludes()
        if part.kind == "web":
            web = next((web for web in job.profile.old.web if web.name == part.name), None)
            if web is None:
                return self._absent(state)
            volatile = Excludes(web.volatile)
            tree: Any = connect_ssh.old_tree(job.connections, web, job.vault.objects.read)
        else:
            local = next((local for local in job.profile.local if local.name == part.name), None)
            if local is None:
                return self._absent(state)
            tree = job.connections.local_tree(local.name, local.path)
        return OldTree(state, TreeRoot.open(job.vault.manifests, state.root), work.result, volatile).run(tree)

    def _absent(self, state: PartState) -> Tally[Any] | None:
        self.job.observer.warn(f"{state.part} is in the vault but no longer in the profile; it was not compared")
        return None

    # -- new ----------------------------------------------------------------------------------------------------------------------------

    def _new(self) -> None:
        profile = self.job.profile
        webs = {web.source: web for web in profile.new.web} if profile.new.ssh else {}
        users = {account.user: account for account in profile.old_accounts()} if profile.new.imap else {}
        for state in self._parts(("web",)):
            if state.part.name in webs:
                self._tree(state, "new", functools.partial(self._new_tree, state, webs[state.part.name]))
        kinds = ("mail", "sieve") if profile.new.imap is not None and profile.new.imap.sieve != "never" else ("mail",)
        self._mailboxes("new", *_by_kind([(state, users[state.part.name]) for state in self._parts(kinds) if state.part.name in users]))

    def _new_tree(self, state: PartState, web: NewWeb, work: PartWork) -> Tally[Any]:
        job, part = self.job, state.part
        job.connections.check_new_endpoints(mail=False)
        job.observer.phase(f"{part}: proving against the new server", state.entries, state.bytes)
        with job.ledger(push_journal(part, web_target(job, web))) as ledger:
            tree = connect_ssh.new_tree(job.connections, part.name, web.path, job.vault.objects.read)
            return NewTree(state, TreeRoot.open(job.vault.manifests, state.root), work.result, ledger, Excludes(web.adapted)).run(tree)

    # -- mail, on both sides ------------------------------------------------------------------------------------------------------------

    def _mailboxes(self, side: str, mailboxes: list[tuple[PartState, Account]], filters: list[tuple[PartState, Account]]) -> None:
        """Each mailbox with its filters. Those whose mailbox is not looked at are looked at by themselves."""
        if side == "new":
            mailboxes = self._pushed(mailboxes)
        names = {state.part.name for state, _ in mailboxes}
        alone = [row for row in filters if row[0].part.name not in names]
        if not mailboxes and not alone:
            return
        connections = self.job.connections
        logins = [account if side == "old" else self.job.profile.new_account_for(account) for _, account in [*mailboxes, *alone]]
        wrong: WrongMachine | None = None
        try:
            (connections.check_old_endpoints if side == "old" else connections.check_new_endpoints)(web=False)
        except WrongMachine as error:
            wrong = error
        pool = connections.accounts_pool(side, f"proving mail against the {side} server", logins)
        works = [connections.account_work(pool, side, login, state.part.name) for (state, _), login in zip([*mailboxes, *alone], logins, strict=True)]
        tallies: Tallies = {}  # each is put there by one thread
        for (state, account), login, work in zip(mailboxes, logins, works, strict=False):
            prove = functools.partial(self._mailbox, state, account, login) if wrong is None else functools.partial(_refuse, wrong)
            work.work = functools.partial(_into, tallies, work, prove)
        by_name = {work.part.name: (work, login) for work, login in zip(works, logins, strict=True)}
        for state, account in filters:
            work, login = by_name[state.part.name]
            look = functools.partial(self._filters, state, account, login) if wrong is None else functools.partial(_refuse, wrong)
            # What could not be pushed anywhere is not covered, rather than unproven.
            optional = side == "new" and not were_pushed(self.job, account)
            follow(work, lambda then, look=look: _into(tallies, then, look), optional=optional)  # type: ignore[misc]
        if filters:
            connections.knock_for_filters(side, [login for work, login in by_name.values() if work.then])
        pool.run(works)
        known: dict[str, Figures] = {}
        for (state, _), work in zip(mailboxes, works, strict=False):
            self.result.add(work.result)
            if isinstance(tally := tallies.get(state.part.id), MailTally) and work.error is None:
                told = tally.as_json()
                self.result.details.setdefault("mail", []).append(told)
                known[state.part.id] = Figures(state.entries, state.bytes, sum(row.get("fresh", 0) for row in told["folders"]))
            self._settled(state, work, tallies)
        for state, _ in filters:
            if then := by_name[state.part.name][0].then:
                self.result.add(then.result)
                self._settled(state, then, tallies)
        tell_accounts(self.result, [state.part.id for state, _ in mailboxes], known, side=side)

    def _pushed(self, mailboxes: list[tuple[PartState, Account]]) -> list[tuple[PartState, Account]]:
        """Those that a push has ever worked on. Of the others nothing can be proven, which is told once, whatever they hold."""
        journals = [self.job.vault.state.journal(push_journal(state.part, mail_target(self.job, account))) for state, account in mailboxes]
        never = [row for row, journal in zip(mailboxes, journals, strict=True) if row[0].entries and not journal.begun]
        for state, _ in never:
            tally: Tally[Any] = Tally("new", state.part.id)
            tally.counts["unverified"] = state.entries
            self._record(tally, state)
            if len(never) < len(mailboxes):
                self.result.fail(Failure("new", state.part.id, b"", "unverified", "nothing of this mailbox was pushed yet", _PUSH))
        if never and len(never) == len(mailboxes):
            self.result.fail(Failure("new", "", b"", "unverified", "no mail was pushed to the new server yet", _PUSH))
        untouched = {state.part.id: Figures(state.entries, state.bytes, 0, "incomplete") for state, _ in never}
        tell_accounts(self.result, list(untouched), untouched, side="new")
        return [row for row in mailboxes if row not in never]

    def _mailbox(self, state: PartState, account: Account, login: Account, work: PartWork) -> MailTally:
        """Runs in a thread of its own, beside others."""
        job, part = self.job, state.part
        work.result.observer.phase(f"{part}: proving against the {work.side} server", state.entries, state.bytes)
        if work.side == "old":
            place = job.connections.old_mailbox(login, part.name, job.vault.objects.read)
            root = MailRoot.open(job.vault.manifests, state.root)
            return OldMail(state, root, job.vault, work.result, job.connections.identity).run(place)
        journal = push_journal(part, mail_target(job, account))
        with job.ledger(journal) as ledger:
            mailbox = job.connections.mailbox("new", login, part.name, job.vault.objects.read)
            root = MailRoot.open(job.vault.manifests, state.root)
            targets = {old: row.new for old, row in decided(job, journal).items()}
            return NewMail(state, root, job.vault, work.result, ledger, targets).run(mailbox)

    def _filters(self, state: PartState, account: Account, login: Account, work: PartWork) -> Tally[Any]:
        """The same."""
        job, part = self.job, state.part
        work.result.observer.phase(f"{part}: proving against the {work.side} server", state.entries, state.bytes)
        root = TreeRoot.open(job.vault.manifests, state.root)
        place = job.connections.filters(work.side, login, part.name, names=names_from(root.meta))
        if work.side == "old":
            return OldTree(state, root, work.result).run(place)
        with job.ledger(push_journal(part, filters_target(job, account))) as ledger:
            place.reach()
            return NewTree(state, root, work.result, ledger).run(place)

    # -- copies -------------------------------------------------------------------------------------------------------------------------

    def _copy(self) -> None:
        from hostbackup.jobs.copies import prove_copy

        for copy in self.job.profile.copies:
            self._evidence += prove_copy(self.job, copy, self._snapshot, self.result, read=self.read_data, drill=self.drill)


def _by_kind(rows: list[tuple[PartState, Account]]) -> tuple[list[tuple[PartState, Account]], list[tuple[PartState, Account]]]:
    """Mailboxes, and filters."""
    return [row for row in rows if row[0].part.kind == "mail"], [row for row in rows if row[0].part.kind == "sieve"]


def _into(tallies: Tallies, work: PartWork, prove: Callable[[PartWork], Tally[Any] | None]) -> None:
    if (tally := prove(work)) is not None:
        tallies[work.part.id] = tally


def _refuse(error: WrongMachine, work: PartWork) -> Tally[Any]:
    raise error
