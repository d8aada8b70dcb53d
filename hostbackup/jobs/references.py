"""Which objects a snapshot needs, entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hostbackup.errors import Damaged
from hostbackup.jobs.copy_source import warm
from hostbackup.model import Entry, Message, Stored
from hostbackup.vault.mailbox import MailRoot, RangeRef
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.tree import SegmentRef, TreeRoot

AnyStored = Stored[Entry] | Stored[Message]
_AHEAD = 256  # segments asked for together where they lie far away


@dataclass(frozen=True, slots=True)
class Segment:
    """Some records of one container, as one manifest lists them."""

    container: bytes  # a folder's path, or a mail folder's wire name
    digests: tuple[str, ...]  # of its manifests
    ref: SegmentRef | RangeRef


def open_root(manifests: Manifests, state: PartState) -> TreeRoot | MailRoot:
    """Raises Damaged."""
    kind = MailRoot if state.part.kind == "mail" else TreeRoot
    return kind.open(manifests, state.root)


def segments(root: TreeRoot | MailRoot) -> Iterator[Segment]:
    """All segments of a part in order. Raises Damaged where an index manifest is."""
    if isinstance(root, TreeRoot):
        for ref in root.segments():
            yield Segment(ref.folder, (ref.digest,), ref)
    else:
        for folder in root.folders():
            for _, _, span in root.ranges(folder.name):
                yield Segment(folder.name, (span.messages, span.flags) if span.flags else (span.messages,), span)


def records(root: TreeRoot | MailRoot, segment: Segment) -> Iterator[AnyStored]:
    """The records of one segment, vanished ones included. Raises Damaged."""
    if isinstance(root, TreeRoot):
        assert isinstance(segment.ref, SegmentRef)
        yield from root.segment(segment.ref)
    else:
        assert isinstance(segment.ref, RangeRef)
        yield from root.segment(segment.container, segment.ref)


def warmed(manifests: Manifests, found: Iterable[Segment]) -> Iterator[Segment]:
    """The same segments, each group of them fetched together before its first is given."""
    source = iter(found)
    while group := list(islice(source, _AHEAD)):
        warm(manifests, (digest for segment in group for digest in segment.digests))
        yield from group


@dataclass(frozen=True, slots=True)
class Broken:
    """A manifest that cannot be read: what it lists is unknown."""

    label: bytes
    digest: str
    error: Damaged


def walk(manifests: Manifests, state: PartState, known: frozenset[str] = frozenset()) -> Iterator[AnyStored | Broken]:
    """Every record of a part, vanished ones included, but those in segments whose first manifest is in `known`.

    A manifest that cannot be read is told in its place, and the walk goes on with the next.
    """
    try:
        root = open_root(manifests, state)
        found = warmed(manifests, (segment for segment in segments(root) if segment.digests[0] not in known))
        for segment in found:
            try:
                yield from list(records(root, segment))
            except Damaged as error:
                yield Broken(segment.container, segment.digests[0], error)
    except Damaged as error:
        yield Broken(b"", state.root, error)


def segment_digests(manifests: Manifests, states: Iterable[PartState]) -> frozenset[str]:
    """The first manifest of every segment of these parts. Parts that cannot be read have none."""
    found: set[str] = set()
    for state in states:
        if not state.root:
            continue
        try:
            found.update(segment.digests[0] for segment in segments(open_root(manifests, state)))
        except Damaged:
            continue
    return frozenset(found)


def is_needed(record: Stored[Any], *, history: bool = False) -> bool:
    """Whether the vault must have the record's contents. `history`: also those of vanished entries.

    That holds for the newest snapshot. What an older one tells of vanished entries may have been pruned.
    """
    return bool(record.digest) and (history or not record.vanished)
