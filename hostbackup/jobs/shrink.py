"""Whether a part lost so much at once that somebody should look before anything relies on it.

An emptied web root, a wiped mailbox and a server that lists half of its files look alike from outside; octoDNS's 30 % is the mark here too.
"""

from __future__ import annotations

from hostbackup.model import Failure, Part
from hostbackup.vault.records import PartTotals
from hostbackup.vault.snapshots import PartState

_ENTRIES_LOST = 0.3
_ENTRIES_AT_LEAST = 5
_BYTES_LEFT = 0.2
_BYTES_AT_LEAST = 1_000_000


def shrunk_failure(side: str, part: Part, name: bytes = b"") -> Failure:
    """For what is not brought to `side` because the part, or the entry `name` of it, is of a part that shrank."""
    return Failure(side, part.id, name, "shrunk", "its part shrank suspiciously", f"look at the old server, then `--accept-shrink {part.id}`")


def shrunk(before: PartState | None, now: PartTotals) -> dict[str, int] | None:
    """The figures to flag a part with, or None. An earlier flag stays, with its own baseline, until accepted or until what was missing is back."""
    if before is None:
        return None
    entries, size = before.entries, before.bytes
    if before.shrunk:
        entries, size = before.shrunk["entries_before"], before.shrunk["bytes_before"]
    lost = entries - now.entries
    fewer = (entries and not now.entries) or (lost >= _ENTRIES_AT_LEAST and lost > entries * _ENTRIES_LOST)
    smaller = size >= _BYTES_AT_LEAST and now.bytes < size * _BYTES_LEFT
    if not fewer and not smaller:
        return None
    return {"entries_before": entries, "entries_now": now.entries, "bytes_before": size, "bytes_now": now.bytes}
