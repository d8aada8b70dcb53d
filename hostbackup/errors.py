"""What can go wrong, as one tree, with the exit code of each beside it.

    HostbackupError                      exit 1
    ├── UsageError                       exit 2   wrong options
    │   ├── ProfileError                          the profile: which key, what was expected
    │   ├── SecretError                           a secret that is missing or unreadable
    │   │   └── NotCovered                        a mailbox whose password nobody knows
    │   └── AccountsError                         the accounts CSV: which line, which column
    ├── ConnectionFailed                 exit 1   a server could not be used at all
    │   ├── NameNotResolved
    │   ├── Unreachable                           closed port, no route, time-out while connecting
    │   │   ├── ServerBusy                        it is there, and takes no more logins for now
    │   │   │   └── MailboxInUse                  of one mailbox, which somebody else holds
    │   │   └── NotOffered                        of a service that a server need not have: told, and no failure
    │   ├── HostKeyUnknown
    │   ├── HostKeyChanged
    │   ├── CertificateRefused
    │   ├── LoginRefused                          never tried again
    │   ├── LineCut                               the connection ended or froze in mid-work
    │   └── ProtocolBroken                        the server said something the RFC does not allow
    ├── WrongMachine                     exit 1   an old section that leads to the new server
    ├── PlaceMissing                     exit 1   a path, bucket or disk that is not there
    ├── VaultError                       exit 1
    │   ├── VaultTooNew
    │   └── DiskFull
    ├── Damaged                          exit 4   bytes that are not what they were
    └── Locked                           exit 7

An error that concerns one entry is not raised but told: a `hostbackup.model.Failure` in an outcome.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Exit(enum.IntEnum):
    """Exit codes of every command (the contract, section 4.3)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    DAMAGE = 4
    NO = 5
    UNKNOWN = 6
    LOCKED = 7
    INTERRUPTED = 130


_PRECEDENCE = (
    Exit.INTERRUPTED,
    Exit.LOCKED,
    Exit.USAGE,
    Exit.FAILED,
    Exit.DAMAGE,
    Exit.INCOMPLETE,
)


def worst(codes: Iterable[int]) -> Exit:
    """The exit code to end with where several apply: 130, 7, 2, 1, 4, 3, else 0."""
    seen = set(codes)
    return next((code for code in _PRECEDENCE if code in seen), Exit.OK)


class HostbackupError(Exception):
    """Something that ends a command or a part of it, in words for a person.

    `reason` says what happened, `where` to what (a host, a file and key, an entry), `hint` what to do next.
    `code` is stable and meant for programs.
    """

    exit: Exit = Exit.FAILED
    code: str = "failed"

    def __init__(self, reason: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.reason}" if self.where else self.reason
        return f"{text} ({self.hint})" if self.hint else text


class WrongValue(ValueError):
    """A value of a profile that is not as it must be: one sentence for people, without a secret. Becomes a ProfileError with its line and key."""


class UsageError(HostbackupError):
    exit = Exit.USAGE
    code = "usage"


class ProfileError(UsageError):
    code = "profile"


class SecretError(UsageError):
    code = "secret"


class NotCovered(SecretError):
    """A mailbox whose password nobody knows: everything else goes on without it."""

    code = "not-covered"


class AccountsError(UsageError):
    code = "accounts"


class ConnectionFailed(HostbackupError):
    code = "connection"


class NameNotResolved(ConnectionFailed):
    code = "name-not-resolved"


class Unreachable(ConnectionFailed):
    code = "unreachable"


class NotOffered(Unreachable):
    code = "not-offered"


class ServerBusy(Unreachable):
    """The server is there and takes no more logins for now: too many connections, or a trouble of its own. Says nothing about the password."""

    code = "busy"


class MailboxInUse(ServerBusy):
    """Somebody else holds this one mailbox, or had it a moment ago. Says nothing about how many connections the server bears."""

    code = "in-use"


class HostKeyUnknown(ConnectionFailed):
    code = "host-key-unknown"


class HostKeyChanged(ConnectionFailed):
    code = "host-key-changed"


class CertificateRefused(ConnectionFailed):
    code = "certificate"


class LoginRefused(ConnectionFailed):
    code = "login-refused"


class LineCut(ConnectionFailed):
    code = "line-cut"


class ProtocolBroken(ConnectionFailed):
    code = "protocol"


class WrongMachine(HostbackupError):
    code = "wrong-machine"


class PlaceMissing(HostbackupError):
    code = "missing"


class VaultError(HostbackupError):
    code = "vault"


class VaultTooNew(VaultError):
    code = "vault-too-new"


class DiskFull(VaultError):
    code = "disk-full"


class Damaged(HostbackupError):
    exit = Exit.DAMAGE
    code = "damaged"


class Locked(HostbackupError):
    exit = Exit.LOCKED
    code = "locked"
