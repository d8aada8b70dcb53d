"""What a server describes against what is expected of it, as far as SFTP version 3 can tell: whole seconds, in 32 bits without a sign."""

from __future__ import annotations

from hostbackup.model import Entry, Kind, Write
from hostbackup.protocols.sftp.packets import Attrs


def as_expected(item: Write[Entry], there: Attrs) -> bool:
    """Whether what is to be replaced still is what the caller looked at, as far as version 3 tells."""
    said = item.expected
    if said is None:
        return True
    size = there.size if there.kind is Kind.FILE else 0
    return (there.kind, size, there.mtime) == (said.kind, said.size, said.mtime_ns // 1_000_000_000)


def sendable(mtime_ns: int) -> int:
    """The time that version 3 can carry (unsigned seconds in 32 bits) and that is nearest: one before 1970 becomes 1970, not 2106."""
    return min(max(mtime_ns // 1_000_000_000, 0), (1 << 32) - 1)


def as_wanted(wanted: Entry, there: Attrs) -> bool:
    """Whether a look after a rename shows what was renamed, as far as version 3 tells."""
    return (
        there.kind is Kind.FILE
        and there.size == wanted.size
        and there.mtime is not None
        and (there.mtime - sendable(wanted.mtime_ns)) % (1 << 32) == 0
    )
