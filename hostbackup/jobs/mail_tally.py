"""Proofs of one mailbox added up folder by folder, on both sides, and every exception as a person needs it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import Exit
from hostbackup.jobs.mail_archive import Archive
from hostbackup.jobs.proofs import EXIT_OF, Tally
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Message, Proof, Status, Stored, name_json
from hostbackup.protocols.imap.names import display

ALIKE = 1000  # messages of one folder told one by one for the same simple reason; the rest of them in one line
_LISTED = 10_000  # changes by users listed one by one
_KINDS = 100  # different alterations told apart


@dataclass(slots=True)
class FolderRow:
    """One folder of the snapshot and the one that it leads to (on the old side there is none)."""

    old: bytes
    new: bytes = b""
    messages: int = 0  # in the snapshot, without those that vanished
    there: int | None = None  # on the server now; None where there is no such folder
    pushed: int = 0
    proven: Counter[str] = field(default_factory=Counter)  # by tier
    changed: Counter[str] = field(default_factory=Counter)  # by what users did
    missing: int = 0
    different: int = 0
    unproven: int = 0
    not_pushed: int = 0
    fresh: int = 0  # on the old server, and not in the snapshot
    uidvalidity: int = 0
    uidnext: int = 0
    unseen: int = 0  # numbers that the old server gave since the snapshot to messages that nobody saw

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = name_json(self.old, "old") | (name_json(self.new, "new") if self.new else {})
        figures = ("messages", "there", "pushed", "missing", "different", "unproven", "not_pushed", "fresh", "uidvalidity", "uidnext", "unseen")
        told |= {name: getattr(self, name) for name in figures if getattr(self, name) or name in ("messages", "there")}
        return told | {name: dict(counts) for name, counts in (("proven", self.proven), ("changed", self.changed)) if counts}


@dataclass(slots=True)
class MailTally(Tally[Message]):
    """A tally with a row for each folder. Exceptions have the message's subject and its file in the vault beside the reason."""

    rows: dict[tuple[bytes, bytes], FolderRow] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    altered: Counter[tuple[str, str]] = field(default_factory=Counter)  # (tier, in words): messages
    _alike: Counter[tuple[bytes, str]] = field(default_factory=Counter)

    def row(self, old: bytes, new: bytes = b"") -> FolderRow:
        found = self.rows.get((old, new))
        if found is None:
            found = self.rows[old, new] = FolderRow(old, new)
        return found

    def verified(self, proof: Proof[Message], row: FolderRow) -> None:
        self.add(proof)
        row.proven[proof.tier or "raw"] += 1  # a place that knows no tiers compares all bytes
        self.alteration(proof)

    def alteration(self, proof: Proof[Message]) -> None:
        """Counts what the server made of a message, in the kinds that there are."""
        if proof.altered:
            kind = proof.tier, proof.altered
            self.altered[kind if kind in self.altered or len(self.altered) < _KINDS else (proof.tier, "otherwise")] += 1

    def changed(self, row: FolderRow, record: Stored[Message], kind: str, now: Message | None = None) -> None:
        """What a user did to a message: `moved` (to where it stands `now`), `flags`, `gone`."""
        row.changed[kind] += 1
        if kind != "flags":
            self.counts["changed-since-proof"] += 1
        if len(self.changes) < _LISTED:
            to = name_json(now.folder, "to") if kind == "moved" and now is not None else {}
            self.changes.append({**name_json(record.item.label), "kind": kind, **to})

    def tell(
        self,
        result: Result,
        archive: Archive,
        record: Stored[Message],
        failure: Failure,
        status: Status,
        *,
        new: Message | None = None,
        exit_code: Exit | None = None,
    ) -> None:
        """Adds an exception: to the counts, to the evidence, and to what the command lists. `new`: where it was put on the new server, whose numbers
        are others than those of the old one, by which `failure` calls it."""
        self.counts[status.value] += 1
        subject, path = archive.subject(record), archive.path(record)
        item = record.item
        told: dict[str, Any] = {**name_json(failure.name), "status": status.value, "reason": failure.reason}
        told |= {**name_json(item.folder, "old"), "old_uid": item.uid}
        if new is not None:
            told |= {**name_json(new.folder, "new"), "new_uid": new.uid}
        told |= {"subject": subject} if subject else {}
        told |= name_json(path, "path") if path else {}
        self.exceptions.append(told)
        if new is not None and new.uid:
            failure = dataclasses.replace(failure, reason=f"{failure.reason}; on the new server it is {display(new.folder)} UID {new.uid}")
        result.fail(described(failure, subject, path), exit_code or EXIT_OF[status])

    def tell_alike(self, result: Result, archive: Archive, record: Stored[Message], failure: Failure, status: Status) -> None:
        """As `tell`, for a reason that whole folders may have: after many of them one line stands for the rest."""
        self._alike[record.item.folder, failure.reason] += 1
        if self._alike[record.item.folder, failure.reason] <= ALIKE:
            self.tell(result, archive, record, failure, status)
        else:
            self.counts[status.value] += 1

    def close_alike(self, result: Result, code: str, status: Status) -> None:
        """Tells of the rests."""
        for (folder, reason), count in self._alike.items():
            if count > ALIKE:
                failure = Failure(self.side, self.part, folder, code, f"and {count - ALIKE:,} more messages of this folder: {reason}")
                self.exception(folder, status, failure.reason)
                result.fail(failure, EXIT_OF[status])
        self._alike.clear()

    def _folders(self) -> list[dict[str, Any]]:
        return [row.as_json() for _, row in sorted(self.rows.items(), key=lambda pair: (pair[0][0] != b"INBOX", pair[0]))]

    def _altered(self) -> list[dict[str, Any]]:
        return [{"tier": tier, "reason": reason, "messages": count} for (tier, reason), count in self.altered.most_common()]

    def evidence(self, *, snapshot: str, manifest: str) -> dict[str, Any]:
        line = Tally.evidence(self, snapshot=snapshot, manifest=manifest)
        return line | {"tiers": self.tiers(), "folders": self._folders(), "altered": self._altered(), "changed": self.changes}

    def tiers(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for row in self.rows.values():
            total.update(row.proven)
        return dict(total)

    def as_json(self) -> dict[str, Any]:
        """One account of `--json`."""
        told = {"side": self.side, "part": self.part, "tiers": self.tiers(), "folders": self._folders()}
        return told | {"altered": self._altered(), "changed": self.changes, "exceptions": self.exceptions}


def described(failure: Failure, subject: str, path: bytes) -> Failure:
    """With the message's subject, and its file in the vault, as far as there are any."""
    reason = f"{failure.reason.rstrip('.')}; subject: {subject}" if subject else failure.reason
    hints = [failure.hint, "in the vault: " + path.decode("utf-8", "backslashreplace") if path else ""]
    return Failure(failure.side, failure.part, failure.name, failure.code, reason, "; ".join(hint for hint in hints if hint))
