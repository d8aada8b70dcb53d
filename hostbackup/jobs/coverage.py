"""The provider's list of mailboxes against the accounts that a run knows: what nobody thought of is lost with the old server."""

from __future__ import annotations

from typing import Any

from hostbackup.accounts import mailbox_key
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Part
from hostbackup.profile import Profile

_HINT = "add it to the accounts; where it logs in by another name, write that into the list"


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
