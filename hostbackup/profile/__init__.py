"""One TOML file a customer: where the old server is, where everything goes, what the contract says.

`load` reads, validates and cross-checks it; a profile that it returns needs no further checking. Unknown keys, wrong types and files that are
not there are ProfileError, every one of them listed.
"""

from __future__ import annotations

from hostbackup.profile.copies import BucketCopy, PathCopy
from hostbackup.profile.leaving import Contract, Domain
from hostbackup.profile.load import find, load, parse
from hostbackup.profile.mail import Imap, MailAccount, MailRules, Pop3
from hostbackup.profile.root import Profile
from hostbackup.profile.sections import New, Old, Sync
from hostbackup.profile.trees import Local, NewWeb, Ssh, Web

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
