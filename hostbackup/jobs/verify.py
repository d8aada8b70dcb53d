"""Proves what the vault holds, against itself and against every other side that is asked for, and records the evidence."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import ConnectionFailed, NotOffered, PlaceMissing, SecretError, UsageError, WrongMachine
from hostbackup.jobs.context import Job, push_journal
from hostbackup.jobs.filters import filter_parts, filters_target
from hostbackup.jobs.history import newest_readable
from hostbackup.jobs.mail_tally import MailTally
from hostbackup.jobs.proofs import Tally
from hostbackup.jobs.push import folders_decided, mail_target, web_target
from hostbackup.jobs.result import Result
from hostbackup.jobs.verify_live import NewTree, OldTree
from hostbackup.jobs.verify_mail import NewMail, OldMail
from hostbackup.jobs.verify_vault import VaultCheck
from hostbackup.model import Part
from hostbackup.places.exclude import Excludes
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.tree import TreeRoot

SIDES = ("old", "new", "copy")


@dataclass(slots=True)
class Verify:
    """Use: `run()`. The vault and its view are always re-read; `against` names further sides."""

    job: Job
    against: Collection[str] = ()
    only: Collection[str] = ("web", "mail", "local")
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
        self.result.done += 1
        for side in SIDES:
            if side in self.against:
                {"old": self._old, "new": self._new, "copy": self._copy}[side]()
        job.vault.evidence.write("verify", self._evidence + job.connections.weaker_settings())
        self.result.details["proven"] = [
            {key: line[key] for key in ("side", "part", "method", "counts", "bytes")} for line in self._evidence if line["type"] == "proof"
        ]
        return self.result

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

    def _guarded(self, state: PartState, side: str, check: Any) -> None:
        try:
            tally = check()
        except (ConnectionFailed, PlaceMissing, SecretError, WrongMachine) as error:
            if isinstance(error, NotOffered) and side == "new":
                self.result.not_covered(error, side=side, part=state.part.id)
                return
            self.result.fail_part(error, side=side, part=state.part.id)
            failed: Tally[Any] = Tally(side, state.part.id)
            failed.counts["unverified"] = state.entries
            self._record(failed, state)
        else:
            if tally is not None:
                self._record(tally, state)

    # -- old ----------------------------------------------------------------------------------------------------------------------------

    def _old(self) -> None:
        for state in self._parts(("web", "local", "mail", "sieve")):
            self._guarded(state, "old", lambda state=state: self._old_part(state))

    def _old_part(self, state: PartState) -> Tally[Any] | None:
        job, part = self.job, state.part
        job.connections.check_old_endpoints(web=part.kind == "web", mail=part.kind in ("mail", "sieve"))
        job.observer.phase(f"{part}: proving against the old server", state.entries, state.bytes)
        if part.kind in ("mail", "sieve"):
            account = next((account for account in job.profile.old_accounts() if account.user == part.name), None)
            if account is None or part not in (*job.mail_parts, *filter_parts(job)):
                return self._absent(state)
            if part.kind == "sieve":
                filters = job.connections.filters("old", account, part.name)
                return OldTree(state, TreeRoot.open(job.vault.manifests, state.root), self.result).run(filters)
            mailbox = job.connections.old_mailbox(account, part.name, job.vault.objects.read)
            root = MailRoot.open(job.vault.manifests, state.root)
            return self._shown(OldMail(state, root, job.vault, self.result, job.connections.identity).run(mailbox))
        volatile = Excludes()
        if part.kind == "web":
            web = next((web for web in job.profile.old.web if web.name == part.name), None)
            if web is None:
                return self._absent(state)
            volatile = Excludes(web.volatile)
            tree: Any = job.connections.old_tree(web, job.vault.objects.read)
        else:
            local = next((local for local in job.profile.local if local.name == part.name), None)
            if local is None:
                return self._absent(state)
            tree = job.connections.local_tree(local.name, local.path)
        return OldTree(state, TreeRoot.open(job.vault.manifests, state.root), self.result, volatile).run(tree)

    def _absent(self, state: PartState) -> Tally[Any] | None:
        self.job.observer.warn(f"{state.part} is in the vault but no longer in the profile; it was not compared")
        return None

    # -- new ----------------------------------------------------------------------------------------------------------------------------

    def _new(self) -> None:
        profile = self.job.profile
        webs = {Part("web", web.source).id: web for web in profile.new.web} if profile.new.ssh else {}
        kinds = ("mail",) if profile.new.imap is None or profile.new.imap.sieve == "never" else ("mail", "sieve")
        users = {Part(kind, account.user).id: account for account in profile.old_accounts() for kind in kinds} if profile.new.imap else {}
        for state in self._parts(("web", "mail", "sieve")):
            if state.part.id in webs or state.part.id in users:
                self._guarded(state, "new", lambda state=state: self._new_part(state, webs.get(state.part.id), users.get(state.part.id)))

    def _new_part(self, state: PartState, web: Any, account: Any) -> Tally[Any]:
        job, part = self.job, state.part
        job.connections.check_new_endpoints(web=part.kind == "web", mail=part.kind in ("mail", "sieve"))
        job.observer.phase(f"{part}: proving against the new server", state.entries, state.bytes)
        if web is not None:
            with job.ledger(push_journal(part, web_target(job, web))) as ledger:
                tree = job.connections.new_tree(part.name, web.path, job.vault.objects.read)
                return NewTree(state, TreeRoot.open(job.vault.manifests, state.root), self.result, ledger, Excludes(web.adapted)).run(tree)
        if part.kind == "sieve":
            with job.ledger(push_journal(part, filters_target(job, account))) as ledger:
                filters = job.connections.filters("new", job.profile.new_account_for(account), part.name)
                filters.reach()  # what could not be pushed anywhere is not covered, rather than unproven
                return NewTree(state, TreeRoot.open(job.vault.manifests, state.root), self.result, ledger).run(filters)
        journal = push_journal(part, mail_target(job, account))
        with job.ledger(journal) as ledger:
            mailbox = job.connections.mailbox("new", job.profile.new_account_for(account), part.name, job.vault.objects.read)
            root = MailRoot.open(job.vault.manifests, state.root)
            return self._shown(NewMail(state, root, job.vault, self.result, ledger, folders_decided(job, journal)).run(mailbox))

    def _shown(self, tally: MailTally) -> MailTally:
        self.result.details.setdefault("mail", []).append(tally.as_json())
        return tally

    # -- copies -------------------------------------------------------------------------------------------------------------------------

    def _copy(self) -> None:
        from hostbackup.jobs.copies import prove_copy

        for copy in self.job.profile.copies:
            self._evidence += prove_copy(self.job, copy, self._snapshot, self.result)
