"""What the builders of latest/ share."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from hostbackup.model import Failure, Folder, Observer, Part
from hostbackup.vault.faults import told
from hostbackup.vault.fill import Filler
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.safe import is_in_the_way
from hostbackup.vault.sums import Sums
from hostbackup.vault.view_prints import Prints

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(slots=True)
class Build:
    """One build of the view."""

    filler: Filler
    sums: Sums
    observer: Observer
    colon: str  # between a message's name and its flags: `:`, or `;` where that is refused
    tolerance_ns: int
    prints: Prints | None = None  # of the build before, where they can be gone by
    untouched: set[bytes] = field(default_factory=set)  # mail folders (`mail/USER/.Folder`) that stand as they are
    mail: list[tuple[Part, MailRoot, Folder, bytes]] = field(default_factory=list)  # every mail folder that is shown, and its name
    failures: list[Failure] = field(default_factory=list)


def refused(error: OSError | ValueError, part: Part, label: bytes) -> Failure:
    """The failure to tell where the local file system refuses an entry. Raises DiskFull where it has no room for anything."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise told(error, "latest/") from error
    reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and is_in_the_way(error):
        reason = "something else bears the name of this folder"
    hint = "it is whole in the vault; only latest/ cannot show it. `restore` brings it, under another name if need be"
    return Failure("view", part.id, label, "refused", f"this file system refuses it: {reason}", hint)
