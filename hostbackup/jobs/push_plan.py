"""What a push would do to a web tree on the new host: a three-way comparison of snapshot, journal and target.

The journal (`state/`) holds, for each path, what was last written there and how the target then described it. Nothing on the target is deleted,
and nothing that somebody else changed is overwritten without being asked.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostbackup.jobs.keys import name_key
from hostbackup.jobs.ledger import Ledger, Record
from hostbackup.model import Claim, Entry, Kind, Proof, Status, Stored
from hostbackup.places.base import Place
from hostbackup.places.exclude import Excludes

_GROUP = 1024


class Action(enum.StrEnum):
    CREATE = "create"
    UPDATE = "update"
    EQUAL = "equal"
    ADOPT = "adopt"  # equal already, though the journal did not know
    THEIRS = "changed-at-new-side"
    CONFLICT = "conflict"
    OVERWRITE = "overwrite"
    ADAPTED = "adapted"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the plan. `there` is what the target holds now, None where nothing."""

    action: Action
    source: Stored[Entry]
    there: Entry | None = None
    reason: str = ""


@dataclass(slots=True)
class _Pair:
    source: Stored[Entry]
    there: Entry | None
    written: Record | None
    equal: bool = False  # proven by bytes

    @property
    def doubtful(self) -> bool:
        """Whether only the bytes can tell: a file there that is not as the journal left it, of a size that does not rule equality out."""
        there = self.there
        if there is None or there.kind is not Kind.FILE or self.source.item.kind is not Kind.FILE or _as_written(there, self.written):
            return False
        return there.size == self.source.size or _in_doubt(there, self.written)


@dataclass(slots=True)
class Comparer:
    """Decides entry by entry; where only the bytes can tell, it asks the target for proof, many at a time."""

    target: Place[Entry]
    ledger: Ledger
    adapted: Excludes
    overwrite: Excludes
    shrunk: bool = False  # the source lost much at once: nothing is updated until somebody accepts that

    def steps(self, pairs: Iterable[tuple[Stored[Entry], Entry | None]]) -> Iterator[Step]:
        """The plan for these entries, in their order, each with what stands at its path on the target."""
        pairs = iter(pairs)
        while group := [_Pair(source, there, self.ledger.get(name_key(source.item.path))) for source, there in itertools.islice(pairs, _GROUP)]:
            self._prove(group)
            for pair in group:
                yield self._decide(pair.source, pair.there, pair.written, equal=pair.equal or _alike(pair.source, pair.there, pair.written))

    def _prove(self, group: list[_Pair]) -> None:
        """Where metadata cannot decide, asks the target for the digest: against the source, then against what a killed push was about to write."""
        doubtful = [(pair, pair.there) for pair in group if pair.there is not None and pair.doubtful]
        equal = self._proven((there, pair.source.digest, pair.source.size) for pair, there in doubtful if there.size == pair.source.size)
        intents = ((there, pair.written) for pair, there in doubtful if _in_doubt(there, pair.written))
        ours = self._proven((there, written["digest"], written["size"]) for there, written in intents if written is not None)
        for pair, there in doubtful:
            pair.equal = there.path in equal
            if there.path in ours and pair.written is not None:
                pair.written = {**pair.written, "state": "done", "mtime_ns": there.mtime_ns}

    def _proven(self, claims: Iterable[tuple[Entry, str, int]]) -> set[bytes]:
        asked = [Claim(entry, digest, size) for entry, digest, size in claims]
        if not asked:
            return set()
        proofs: Iterator[Proof[Entry]] = self.target.prove(asked)
        return {proof.claim.item.path for proof in proofs if proof.status is Status.VERIFIED}

    def _decide(self, source: Stored[Entry], there: Entry | None, written: Record | None, *, equal: bool) -> Step:
        path, kind = source.item.path, source.item.kind
        if there is None:
            return Step(Action.CREATE, source)
        if equal:
            return Step(Action.EQUAL if _as_written(there, written) else Action.ADOPT, source, there)
        if kind is Kind.DIR or there.kind is Kind.DIR:
            return Step(Action.CONFLICT, source, there, f"a {_word(there.kind)} stands where the old server has a {_word(kind)}")
        if self.adapted.covers(path, False):
            return Step(Action.ADAPTED, source, there, "differs, as expected")
        if _as_written(there, written):
            if self.shrunk:
                return Step(Action.BLOCKED, source, there, "its part shrank suspiciously")
            return Step(Action.UPDATE, source, there)
        if written and written["state"] == "done" and _source_as_written(source, written):
            return Step(Action.THEIRS, source, there, "changed on the new server since it was pushed")
        if self.overwrite.covers(path, False):
            return Step(Action.OVERWRITE, source, there)
        reason = "changed on both servers" if written else "was on the new server before and differs"
        return Step(Action.CONFLICT, source, there, reason)


def journal_record(source: Stored[Entry], there: Entry, state: str, before: Record | None = None) -> Record:
    """A journal line: what was (or, with state "intent", is about to be) written, and how the target describes it.

    An intent carries the last finished record, which holds as long as the write did not happen.
    """
    if before is not None and before["state"] == "intent":
        before = before["before"]
    return {
        "key": name_key(source.item.path),
        "state": state,
        "kind": source.item.kind.value,
        "digest": source.digest,
        "target": name_key(source.item.target),
        "size": there.size,
        "mtime_ns": there.mtime_ns,
        "before": before if state == "intent" else None,
    }


def _as_written(there: Entry, written: Record | None) -> bool:
    """Whether the target still is as the journal last left it."""
    if written and written["state"] == "intent":
        written = written["before"]
    if not written or written["kind"] != there.kind.value:
        return False
    if there.kind is Kind.LINK:
        return bool(written["target"] == name_key(there.target))
    return there.kind is Kind.DIR or bool(written["size"] == there.size and written["mtime_ns"] == there.mtime_ns)


def _in_doubt(there: Entry, written: Record | None) -> bool:
    return bool(written and written["state"] == "intent" and written["kind"] == there.kind.value and written["size"] == there.size)


def _source_as_written(source: Stored[Entry], written: Record) -> bool:
    return bool(written["digest"] == source.digest and written["target"] == name_key(source.item.target))


def _alike(source: Stored[Entry], there: Entry | None, written: Record | None) -> bool:
    """Equality that needs no bytes: folders, links, and files that are as the journal wrote them from this very source."""
    if there is None or there.kind is not source.item.kind:
        return False
    if there.kind is Kind.LINK:
        return there.target == source.item.target
    if there.kind is Kind.FILE:
        return written is not None and _as_written(there, written) and _source_as_written(source, written)
    return there.kind is Kind.DIR


def _word(kind: Kind) -> str:
    return {Kind.FILE: "file", Kind.DIR: "folder", Kind.LINK: "symlink", Kind.OTHER: "special file"}[kind]
