"""One TOML file a customer: where the old server is, where everything goes, what the contract says.

`load` reads, validates and cross-checks it; a profile that it returns needs no further checking. Unknown keys, wrong types and files that are
not there are ProfileError, every one of them listed.
"""

from __future__ import annotations

from hostbackup.profile.load import find, load, parse
from hostbackup.profile.root import Profile
from hostbackup.profile.sections import (
    BucketCopy,
    Contract,
    Domain,
    Imap,
    Local,
    MailAccount,
    MailRules,
    New,
    NewWeb,
    Old,
    PathCopy,
    Pop3,
    Ssh,
    Sync,
    Web,
)

__all__ = [
    "BucketCopy",
    "Contract",
    "Domain",
    "Imap",
    "Local",
    "MailAccount",
    "MailRules",
    "New",
    "NewWeb",
    "Old",
    "PathCopy",
    "Pop3",
    "Profile",
    "Ssh",
    "Sync",
    "Web",
    "find",
    "load",
    "parse",
]
