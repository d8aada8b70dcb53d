"""What a push would do to a web tree on the new host: a three-way comparison of snapshot, journal and target.

The journal (`state/`) holds, for each path, what was last written there and how the target then described it. Nothing on the target is deleted,
and nothing that somebody else changed is overwritten without being asked.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

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
    ATTRIBUTES = "attributes"  # the contents are equal; mode or time changed at the old server alone


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the plan. `there` is what the target holds now, None where nothing."""

    action: Action
    source: Stored[Entry]
    there: Entry | None = None
    reason: str = ""
    killed: bool = False  # an earlier push was killed while it wrote this


@dataclass(slots=True)
class _Pair:
    """One path: what the snapshot has, what the target has, and what the journal knows. What the bytes tell is noted in the last two."""

    source: Stored[Entry]
    there: Entry | None
    written: Record | None
    killed: bool = False  # the journal knows of a write that may or may not have happened, or that was not kept as it was sent
    equal: bool = False
    touched: bool = False  # its bytes are not those the journal tells of, though size and time are

    @property
    def ours(self) -> bool:
        """Whether the target holds what the journal says we left there."""
        return self.there is not None and not self.touched and _as_written(self.there, self.written)


@dataclass(slots=True)
class Comparer:
    """Decides entry by entry; where only the bytes can tell, it asks the target for proof, many at a time."""

    target: Place[Entry]
    ledger: Ledger
    adapted: Excludes
    overwrite: Excludes
    shrunk: bool = False  # the source lost much at once: nothing is updated until somebody accepts that
    gone_stays: bool = False  # what was pushed and is not there any more was taken away by somebody who does not want it back

    def steps(self, pairs: Iterable[tuple[Stored[Entry], Entry | None]]) -> Iterator[Step]:
        """The plan for these entries, in their order, each with what stands at its path on the target."""
        pairs = iter(pairs)
        while group := [self._pair(source, there) for source, there in itertools.islice(pairs, _GROUP)]:
            self._prove([(pair, pair.there) for pair in group if pair.there is not None])
            for pair in group:
                yield self._decide(pair)

    def _pair(self, source: Stored[Entry], there: Entry | None) -> _Pair:
        written = self.ledger.get(name_key(source.item.path))
        return _Pair(source, there, written, killed=written is not None and written["state"] == "intent")

    def _prove(self, pairs: list[tuple[_Pair, Entry]]) -> None:
        """Where metadata cannot decide, asks the target: is it the source's, what a killed push was about to write, what we are about to replace."""
        for pair, there in pairs:
            if there.kind is Kind.LINK and _in_doubt(there, pair.written) and pair.written is not None:
                pair.written = {**pair.written, "state": "done"}
            pair.equal = _alike(pair.source, there, pair.written)
        files = [(pair, there) for pair, there in pairs if there.kind is Kind.FILE and not pair.equal]
        same_size = [(pair, there) for pair, there in files if pair.source.item.kind is Kind.FILE and pair.source.size == there.size]
        equal = self._proven((there, pair.source.digest, pair.source.size) for pair, there in same_size)
        for pair, there in same_size:
            pair.equal = there.path in equal
        files = [(pair, there) for pair, there in files if not pair.equal]
        doubted = [(pair, there, written) for pair, there in files if (written := pair.written) is not None and _in_doubt(there, written)]
        written_by_us = self._proven((there, written["digest"], written["size"]) for _, there, written in doubted)
        for pair, there, written in doubted:
            if there.path in written_by_us:
                pair.written = {**written, "state": "done", "mtime_ns": there.mtime_ns}
        kept = [(pair, there, last) for pair, there in files if pair.ours and (last := finished(pair.written)) and there.path not in written_by_us]
        untouched = self._proven((there, last["digest"], last["size"]) for _, there, last in kept)
        for pair, there, _ in kept:
            pair.touched = there.path not in untouched

    def _proven(self, claims: Iterable[tuple[Entry, str, int]]) -> set[bytes]:
        asked = [Claim(entry, digest, size) for entry, digest, size in claims]
        if not asked:
            return set()
        proofs: Iterator[Proof[Entry]] = self.target.prove(asked)
        return {proof.claim.item.path for proof in proofs if proof.status is Status.VERIFIED}

    def _decide(self, pair: _Pair) -> Step:
        source, there, written = pair.source, pair.there, pair.written
        path, kind = source.item.path, source.item.kind
        if there is None:
            return self._absent(pair)
        if pair.equal and pair.killed and kind is Kind.DIR and finished(written) is None:
            return Step(Action.CREATE, source, there)  # a push was killed before it gave the folder its mode and time
        if pair.equal and kind is not Kind.LINK:
            dressed = dress(source.item, there, finished(written))
            if dressed is None:
                return Step(Action.THEIRS, source, there, "its mode or time was changed on both servers; its contents are equal")
            if dressed != there:
                return Step(
                    Action.BLOCKED if self.shrunk else Action.ATTRIBUTES, source, there, "its part shrank suspiciously" if self.shrunk else ""
                )
        if pair.equal:
            return Step(Action.ADOPT if pair.killed or not pair.ours else Action.EQUAL, source, there, killed=pair.killed)
        if kind is Kind.DIR or there.kind is Kind.DIR:
            return Step(Action.CONFLICT, source, there, f"a {_word(there.kind)} stands where the old server has a {_word(kind)}")
        if self.adapted.covers(path, False):
            return Step(Action.ADAPTED, source, there, "differs, as expected")
        if pair.ours:
            if self.shrunk:
                return Step(Action.BLOCKED, source, there, "its part shrank suspiciously")
            return Step(Action.UPDATE, source, there)
        last = finished(written)
        if last and written and written["state"] == "done" and _source_as_written(source, written):
            return Step(Action.THEIRS, source, there, "changed on the new server since it was pushed")
        if self.overwrite.covers(path, False):
            return Step(Action.OVERWRITE, source, there)
        if pair.killed:
            reason = "is not what an earlier push sent: the new server keeps it otherwise, or somebody changed it there"
        else:
            reason = "changed on both servers" if last else "was on the new server before and differs"
        return Step(Action.CONFLICT, source, there, reason)

    def _absent(self, pair: _Pair) -> Step:
        source, last = pair.source, finished(pair.written)
        if not self.gone_stays or last is None or self.overwrite.covers(source.item.path, False):
            return Step(Action.CREATE, source)
        if _source_as_written(source, last):
            return Step(Action.THEIRS, source, reason="was taken away on the new server since it was pushed")
        return Step(Action.CONFLICT, source, reason="changed on the old server, and was taken away on the new one")


def journal_record(source: Stored[Entry], there: Entry, state: str, before: Record | None = None) -> Record:
    """A journal line: what was (or, with state "intent", is about to be) written, and how the target describes it.

    An intent carries the last finished record, which holds as long as the write did not happen.
    """
    return {
        "key": name_key(source.item.path),
        "state": state,
        "kind": source.item.kind.value,
        "digest": source.digest,
        "target": name_key(source.item.target),
        "size": there.size,
        "mtime_ns": there.mtime_ns,
        "mode": there.mode,
        "source": [source.item.mode, source.item.mtime_ns],
        "before": finished(before) if state == "intent" else None,
    }


def dress(source: Entry, there: Entry, last: Record | None) -> Entry | None:
    """What the target's entry, whose contents are equal, should be as to mode and time: each as the old server has it, where it changed there and is
    on the target as the last push left it. None where one was changed on both sides, each in its way.

    A folder's time changes with what is put into it: where both changed that one, it stays as it is.
    """
    if last is None or "source" not in last:
        return there
    mode, mtime_ns = there.mode, there.mtime_ns
    source_mode, source_mtime_ns = last["source"]
    if source.mode and source.mode not in (source_mode, mode):
        if mode != last["mode"]:
            return None
        mode = source.mode
    if source.mtime_ns and source.mtime_ns not in (source_mtime_ns, mtime_ns):
        if mtime_ns == last["mtime_ns"]:
            mtime_ns = source.mtime_ns
        elif there.kind is not Kind.DIR:
            return None
    return replace(there, mode=mode, mtime_ns=mtime_ns)


def finished(written: Record | None) -> Record | None:
    """The last record of a write that is known to have happened."""
    before: Record | None = written["before"] if written and written["state"] == "intent" else written
    return before


def _as_written(there: Entry, written: Record | None) -> bool:
    """Whether the target still is as the journal last left it, as far as metadata tell."""
    written = finished(written)
    if not written or written["kind"] != there.kind.value:
        return False
    if there.kind is Kind.LINK:
        return bool(written["target"] == name_key(there.target))
    return there.kind is Kind.DIR or bool(written["size"] == there.size and written["mtime_ns"] == there.mtime_ns)


def _in_doubt(there: Entry, written: Record | None) -> bool:
    """Whether a push that was killed may have written what is there."""
    if not written or written["state"] != "intent" or written["kind"] != there.kind.value:
        return False
    return bool(written["target"] == name_key(there.target) if there.kind is Kind.LINK else written["size"] == there.size)


def _source_as_written(source: Stored[Entry], written: Record) -> bool:
    return bool(written["digest"] == source.digest and written["target"] == name_key(source.item.target))


def _alike(source: Stored[Entry], there: Entry | None, written: Record | None) -> bool:
    """Equality that needs no bytes: folders, links, and files that are as the journal wrote them from this very source."""
    if there is None or there.kind is not source.item.kind:
        return False
    if there.kind is Kind.LINK:
        return there.target == source.item.target
    if there.kind is Kind.FILE:
        last = finished(written)
        return last is not None and _as_written(there, last) and _source_as_written(source, last)
    return there.kind is Kind.DIR


def _word(kind: Kind) -> str:
    return {Kind.FILE: "file", Kind.DIR: "folder", Kind.LINK: "symlink", Kind.OTHER: "special file"}[kind]
