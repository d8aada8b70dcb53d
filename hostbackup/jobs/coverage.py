"""What is not in a backup although it should be: what nobody thought of, or nobody could read, is lost with the old server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hostbackup.accounts import mailbox_key
from hostbackup.errors import UsageError
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Kind, Part
from hostbackup.profile import Profile

if TYPE_CHECKING:
    from hostbackup.vault.manifests import Manifests
    from hostbackup.vault.snapshots import PartState, Snapshot, Snapshots

_HINT = "add it to the accounts; where it logs in by another name, write that into the list"
_MESSAGE = re.compile(rb" UID \d+\Z")


def tell_coverage(profile: Profile, result: Result) -> None:
    """Each mailbox of `[mail] expected` that no account stands for is a failure. Accounts that the list does not have are noted: it may be old."""
    expected = profile.expected_mailboxes()
    if expected is None:
        return
    accounts = {mailbox_key(account.user): account.user for account in profile.old_accounts()}
    listed = {mailbox_key(name) for name in expected}
    missing = [name for name in expected if mailbox_key(name) not in accounts]
    unlisted = [user for key, user in accounts.items() if key not in listed]
    for name in missing:
        reason = "the provider's list has this mailbox, and no account of the profile is called so"
        result.fail(Failure("old", Part("mail", name).id, b"", "not-covered", reason, _HINT))
    for user in unlisted:
        result.observer.note(f"mail/{user}: this account is not in the provider's list of mailboxes")
    result.details["expected"] = {"mailboxes": len(expected), "missing": missing, "unlisted": unlisted}


def coverage_evidence(result: Result, now: str) -> list[dict[str, Any]]:
    """What `tell_coverage` found, for the evidence; nothing where there is no list."""
    found = result.details.get("expected")
    return [{"type": "mailboxes", **found, "time": now}] if found else []


def parts_of(profile: Profile) -> list[Part]:
    """What a backup of the profile brings, without filters, which not every server offers. Raises AccountsError or ProfileError."""
    mailboxes = [Part("mail", account.user) for account in profile.old_accounts()]
    return [*(Part("web", web.name) for web in profile.old.web), *mailboxes, *(Part("local", local.name) for local in profile.local)]


def filter_parts(profile: Profile) -> list[Part]:
    """Those of the old server's mailboxes, unless the profile leaves them out or they come over POP3."""
    section = profile.old.imap
    if section is None or section.sieve == "never":
        return []
    return [Part("sieve", account.user) for account in profile.old_accounts() if account.protocol == "imap"]


def never_saved(snapshot: Snapshot, parts: Iterable[Part]) -> Iterator[Failure]:
    """A failure for each of `parts` that the snapshot does not hold, with the reason that the run told which wrote it."""
    reasons = {failure.part: failure for failure in reversed(snapshot.failures) if not failure.name}
    for part in parts:
        state = snapshot.parts.get(part.id)
        if state is not None and state.root:
            continue
        told = reasons.get(part.id)
        why = told.reason if told else state.reason if state is not None else ""
        reason = f"it was never backed up: {why}" if why else f"it was never backed up: snapshot {snapshot.id} does not hold it"
        yield Failure("vault", part.id, b"", "not-covered", reason, (told.hint if told else "") or "run `backup`")


def lost_parts(snapshot: Snapshot) -> list[Part]:
    """The parts that the run which wrote the snapshot wanted and that it does not hold."""
    failed = dict.fromkeys(failure.part for failure in snapshot.failures if failure.side == "old" and not failure.name)
    parts = []
    for name in failed:
        try:
            parts.append(Part.parse(name))
        except ValueError:  # a section of the profile
            continue
    return [part for part in parts if part.id not in snapshot.parts or not snapshot.parts[part.id].root]


def unlisted(snapshots: Snapshots, manifests: Manifests, snapshot: Snapshot, state: PartState) -> Iterator[Failure]:
    """The folders of a part that could not be listed whole by the run that read it: what they hold is not even in the manifest.

    Raises Damaged where the part's manifest is.
    """
    from hostbackup.jobs.references import open_root
    from hostbackup.vault.tree import TreeRoot

    if state.carried_from:
        try:
            snapshot = snapshots.get(state.carried_from)
        except UsageError:  # pruned
            return
    told = [failure for failure in snapshot.failures if failure.side == "old" and failure.part == state.part.id and failure.name]
    root = open_root(manifests, state) if told else None
    for failure in told:
        if isinstance(root, TreeRoot):
            record = root.find(failure.name)
            whole = record is not None and record.item.kind is not Kind.DIR
        else:
            whole = _MESSAGE.search(failure.name) is not None
        if not whole:
            reason = f"it could not be listed whole when it was backed up: {failure.reason}"
            yield Failure("vault", state.part.id, failure.name, "not-stored", reason, failure.hint or "run `backup` again")


def lost_filters(profile: Profile, snapshot: Snapshot) -> list[Part]:
    """Filters that the run which wrote the snapshot could not get, and that are still wanted. Where a server has none, there is nothing to lose."""
    wanted = {part.id for part in filter_parts(profile)}
    return [part for part in lost_parts(snapshot) if part.id in wanted]


def tell_never_saved(profile: Profile, snapshot: Snapshot, result: Result) -> None:
    """A failure for what the profile names now and the snapshot does not hold, and for mailboxes on the provider's list without an account."""
    try:
        missing = list(never_saved(snapshot, [*parts_of(profile), *lost_filters(profile, snapshot)]))
        tell_coverage(profile, result)
    except UsageError as error:  # the list of accounts may be gone where nothing but the vault is looked at
        reason = f"whether every mailbox was backed up is not known: {error.where}: {error.reason}"
        result.fail(Failure("vault", "", b"", error.code, reason, error.hint))
        return
    for failure in missing:
        result.fail(failure)
        result.details.setdefault("never_saved", []).append({"part": failure.part, "reason": failure.reason})


def never_saved_evidence(result: Result, now: str) -> list[dict[str, Any]]:
    """What `tell_never_saved` found, for the evidence."""
    rows = [{"type": "never-saved", **row, "time": now} for row in result.details.get("never_saved", [])]
    return rows + coverage_evidence(result, now)
