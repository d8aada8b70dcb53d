"""What a server means when it does not take a message: response codes of RFC 3501, 4469, 5530, 7889 and 9208 as this project's own."""

from __future__ import annotations

import enum

from hostbackup.protocols.imap.framer import Answer
from hostbackup.protocols.imap.throttle import wait_told
from hostbackup.protocols.imap.wire import plain

_CODES = {
    "TOOBIG": "too-big",
    "OVERQUOTA": "over-quota",
    "TRYCREATE": "folder-missing",
    "NONEXISTENT": "folder-missing",
    "NOPERM": "permission",
    "INUSE": "for-now",
    "UNAVAILABLE": "for-now",
    "THROTTLED": "for-now",
}
HINTS = {
    "too-big": "the new server takes no message of this size: ask its provider for more, then run `push` again; it is safe in the vault",
    "refused": "all others go on; if the new server's provider lifts what keeps it out, `push` tries it again; it is safe in the vault",
    "over-quota": "give the mailbox more room there, then run `push` again",
    "in-doubt": "run `push` again: it looks for the message before it appends it",
    "cut-short": "run `push` again: it looks for the message before it appends it",
    "in-part": "run `push` again: it looks for the message before it appends it",
    "folder-missing": "run `push` again: it makes the folder",
    "permission": "let this user write to the folder there, or map it to another one by [mail] folders",
    "for-now": "run `push` again later",
    "damaged": "run `verify`",
    "nul": "`restore` has it out of the vault as a file",
}
SECONDS_AT_MOST = 900.0  # a wait that a server asks for is kept up to here


class Reach(enum.Enum):
    """Whom a refusal is about."""

    MESSAGE = "one of those that were sent"
    FOLDER = "all that goes to the folder"
    ACCOUNT = "all that goes to the account"
    MOMENT = "nobody for good: later it may be taken"


_REACH = {"over-quota": Reach.ACCOUNT, "folder-missing": Reach.FOLDER, "permission": Reach.FOLDER, "for-now": Reach.MOMENT}


def code_of(answer: Answer) -> str:
    """Of a NO or BAD; "refused" where the server gives no reason that is known.

    A wait in the text is a reason without a code. `LIMIT` without one is no matter of time: Dovecot says so of a message that is too large.
    """
    code = _CODES.get(answer.code)
    if code is None and wait_told(answer.text) is not None:
        return "for-now"
    return code or "refused"


def reach(code: str) -> Reach:
    return _REACH.get(code, Reach.MESSAGE)


def reason_of(answer: Answer) -> str:
    return f"the server does not take it: {answer.status} {plain(answer.text) or 'no reason given'}"
