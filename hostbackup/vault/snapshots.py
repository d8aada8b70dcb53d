"""Snapshots: one JSON document a finished run, written last and never changed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hostbackup
from hostbackup import osal
from hostbackup.errors import Damaged, UsageError, VaultError, VaultTooNew
from hostbackup.model import Failure, Part, name_from_json
from hostbackup.vault.faults import told
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.records import PartTotals, canonical, nonsense
from hostbackup.vault.state import StateFolder

FORMAT = 1
STATES = ("complete", "incomplete", "carried")
_ID = re.compile(r"(\d{6,})-(\d{8}T\d{6}Z)\Z")
_COUNTER = "numbers"


def is_snapshot_id(text: str) -> bool:
    """Whether a snapshot can be called so."""
    return _ID.match(text) is not None


def timestamp(now: datetime) -> str:
    """`20261125T031500Z`. Raises ValueError for a time without a zone."""
    if now.tzinfo is None:
        raise ValueError("a time without a zone")
    return now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


@dataclass(frozen=True, slots=True)
class PartState:
    """One part inside a snapshot. Counters are those of its manifest."""

    part: Part
    root: str  # digest of the root manifest, "" where the part was never read
    entries: int = 0  # files or messages whose contents are stored
    bytes: int = 0
    folders: int = 0
    links: int = 0
    failed: int = 0
    stale: int = 0
    vanished: int = 0
    racy: int = 0
    state: str = "complete"  # "complete", "incomplete" or "carried"
    carried_from: str = ""  # id of the snapshot of the run that read it last
    reason: str = ""  # why incomplete or carried
    shrunk: dict[str, int] | None = None  # suspicious shrinking: entries_before, entries_now, bytes_before, bytes_now; kept until accepted

    @classmethod
    def of(
        cls,
        part: Part,
        totals: PartTotals,
        *,
        state: str = "complete",
        carried_from: str = "",
        reason: str = "",
        shrunk: dict[str, int] | None = None,
    ) -> PartState:
        """The state of a part whose manifest was just written."""
        return cls(part, totals.root, *totals.numbers(), state, carried_from, reason, shrunk)

    def as_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _PART_KEYS}
        return {name: value for name, value in values.items() if value not in (0, "", None) or name in ("root", "state", "entries", "bytes")}

    @classmethod
    def from_json(cls, part_id: str, value: Mapping[str, Any]) -> PartState:
        if value["state"] not in STATES:
            raise ValueError(f"a part in the state {value['state']!r}")
        return cls(Part.parse(part_id), **{name: value[name] for name in _PART_KEYS if name in value})


_PART_KEYS = tuple(item.name for item in fields(PartState) if item.name != "part")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the vault held when one run had finished."""

    number: int
    id: str  # 000123-20261125T031500Z
    time: str  # 20261125T031500Z
    command: str
    exit: int
    profile: str
    tool: str
    format: int
    parts: dict[str, PartState]  # by Part.id
    failures: list[Failure] = field(default_factory=list)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "type": "snapshot",
            "format": self.format,
            "number": self.number,
            "id": self.id,
            "time": self.time,
            "command": self.command,
            "exit": self.exit,
            "profile": self.profile,
            "tool": self.tool,
            "parts": {part_id: state.as_json() for part_id, state in self.parts.items()},
            "failures": [failure.as_json() for failure in self.failures],
            **({"note": self.note} if self.note else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Snapshot:
        """Raises KeyError, ValueError or TypeError where the document is no snapshot."""
        parts = {part_id: PartState.from_json(part_id, state) for part_id, state in value["parts"].items()}
        failures = [
            Failure(told["side"], told["part"], name_from_json(told), told["code"], told["reason"], told.get("hint", ""))
            for told in value["failures"]
        ]
        plain = {name: value[name] for name in ("number", "id", "time", "command", "exit", "profile", "tool", "format")}
        return cls(parts=parts, failures=failures, note=value.get("note", ""), **plain)


def seal(value: dict[str, Any]) -> str:
    """The digest that a snapshot carries of itself: SHA-256 of its canonical JSON line without the key `sha256`."""
    return hashlib.sha256(canonical({name: item for name, item in value.items() if name != "sha256"})).hexdigest()


def parse_snapshot(data: bytes, where: str) -> Snapshot:
    """A snapshot from the bytes of its file. Raises Damaged, or VaultTooNew."""
    hint = "an older snapshot may be whole: see `snapshots`; a copy may have this one"
    try:
        value = json.loads(data)
        if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > FORMAT:
            raise VaultTooNew(f"a snapshot of format {value['format']}", where=where, hint="use a newer hostbackup")
        if seal(value) != value["sha256"]:
            raise Damaged("this snapshot is not what was written", where=where, hint=hint)
        return Snapshot.from_json(value)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"this snapshot cannot be read: {nonsense(error)}", where=where, hint=hint) from error


class Snapshots:
    """`snapshots/`: read by anybody, written by the one who holds the vault's lock."""

    def __init__(self, folder: Path, state: StateFolder, manifests: Manifests, flush: Callable[[], None]) -> None:
        self.folder = folder
        self._state = state
        self._manifests = manifests
        self._flush = flush
        self._recent: Snapshot | None = None  # the last that was asked for by a part: the next part wants the same one
        self._parts: dict[str, frozenset[str]] = {}  # by id, of those that were read: what a snapshot holds never changes
        self._sets: dict[frozenset[str], frozenset[str]] = {}  # each once: thousands of snapshots of the same hundreds of mailboxes have one

    def list(self) -> list[str]:
        """All ids, oldest first."""
        try:
            names = [path.name.removesuffix(".json") for path in self.folder.iterdir() if path.name.endswith(".json")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise told(error, self.folder) from error
        return sorted((name for name in names if _ID.match(name)), key=lambda name: (int(name.partition("-")[0]), name))

    def path(self, snapshot_id: str) -> Path:
        return self.folder / f"{snapshot_id}.json"

    def latest(self) -> Snapshot | None:
        """The newest one; None in an empty vault. Raises Damaged where it cannot be read."""
        ids = self.list()
        return self._load(ids[-1]) if ids else None

    def get(self, which: str | int) -> Snapshot:
        """By `latest`, number, id, or the beginning of an id that only one has.

        Raises UsageError where there is none such, VaultError where there is none at all.
        """
        text = str(which)
        if _ID.fullmatch(text) and self.path(text).exists():
            return self._load(text)
        ids = self.list()
        if text == "latest":
            found = ids[-1:]
        elif text.isdecimal() and (by_number := [one for one in ids if int(one.partition("-")[0]) == int(text)]):
            found = by_number
        else:
            found = [one for one in ids if text and one.startswith(text)]
        if len(found) == 1:
            return self._load(found[0])
        if found:
            raise UsageError(
                f"{text!r} is the beginning of {len(found)} snapshots: {_some(found)}", where=str(self.folder), hint="give more of the id"
            )
        if not ids:
            raise VaultError("there is no snapshot yet", where=str(self.folder), hint="run backup first")
        raise UsageError(f"no snapshot {text!r}", where=str(self.folder), hint=f"there are {_some(ids)}")

    def _load(self, snapshot_id: str) -> Snapshot:
        path = self.path(snapshot_id)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise told(error, path) from error
        snapshot = parse_snapshot(data, str(path))
        if snapshot.id != snapshot_id:
            raise Damaged(f"this file says it is snapshot {snapshot.id}", where=str(path), hint="give it back its name")
        parts = frozenset(map(sys.intern, snapshot.parts))
        self._parts[snapshot_id] = self._sets.setdefault(parts, parts)
        return snapshot

    def of_part(self, part_id: str) -> Iterator[Snapshot]:
        """Those that have the part, newest first; damaged ones are left out. However many parts are asked for, each snapshot is read once for what it
        has.
        """
        for snapshot_id in reversed(self.list()):
            if part_id in self._parts.get(snapshot_id, (part_id,)):
                recent = self._recent
                try:
                    snapshot = recent if recent is not None and recent.id == snapshot_id else self._load(snapshot_id)
                except Damaged:
                    continue
                self._recent = snapshot
                if part_id in snapshot.parts:
                    yield snapshot

    def newest_complete(self, part_id: str) -> Snapshot | None:
        """The newest snapshot of a run that read the whole part without a failure; None where there is none."""
        for snapshot_id in reversed(self.list()):
            snapshot = self._load(snapshot_id)
            state = snapshot.parts.get(part_id)
            if state is not None and state.state == "complete":
                return snapshot
        return None

    def _next_number(self) -> int:
        """Never one that was given before, also where that snapshot was pruned. Kept in `state/` before the snapshot is written."""
        ids = self.list()
        highest = int(ids[-1].partition("-")[0]) if ids else 0
        known = self._state.read(_COUNTER) or {}
        number = max(highest, int(known.get("snapshot", 0))) + 1
        self._state.write(_COUNTER, {**known, "snapshot": number})
        return number

    def write(
        self,
        parts: Mapping[str, PartState],
        failures: Sequence[Failure],
        *,
        command: str,
        exit: int,
        profile: str,
        now: datetime,
        note: str = "",
    ) -> Snapshot:
        """Makes objects and manifests durable, then the snapshot. Raises VaultError where a root manifest is missing, DiskFull, …"""
        self._flush()
        for part_id, state in parts.items():
            if part_id != state.part.id:
                raise ValueError(f"{state.part.id} under the name {part_id}")
            if state.root and not self._manifests.has(state.root):
                raise VaultError(f"the manifest of {part_id} is not in the vault", where=self._manifests.where(state.root), hint="run verify")
        number, time = self._next_number(), timestamp(now)
        tool = f"hostbackup {hostbackup.__version__}"
        ordered = {part_id: parts[part_id] for part_id in sorted(parts)}
        snapshot = Snapshot(number, f"{number:06d}-{time}", time, command, int(exit), profile, tool, FORMAT, ordered, list(failures), note)
        value = snapshot.as_json()
        value["sha256"] = seal(value)
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
        path = self.path(snapshot.id)
        try:
            osal.write_durably(path, text.encode("utf-8", "backslashreplace"), mode=0o400)
        except OSError as error:
            raise told(error, path, len(text)) from error
        return snapshot

    def put_back(self, snapshot_id: str, data: bytes, damaged: Path, reason: str) -> None:
        """Replaces a damaged snapshot by its own bytes from elsewhere, which the caller has checked. What stood there goes to `damaged`."""
        path = self.path(snapshot_id)
        try:
            damaged.mkdir(mode=0o700, parents=True, exist_ok=True)
            target = next(aside for n in itertools.count(1) if not os.path.lexists(aside := damaged / f"{path.name}.{n}"))
            osal.write_durably(target, path.read_bytes(), mode=0o400)
            when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            text = f"what: snapshots/{path.name}\nwhen: {when}\nwhy: {reason}\n"
            osal.write_durably(target.with_name(f"{target.name}.txt"), text.encode("utf-8", "backslashreplace"), mode=0o400)
            osal.write_durably(path, data, mode=0o400)  # last: until then the damaged one stands in both places
        except OSError as error:
            raise told(error, path, len(data)) from error

    def remove(self, snapshot_id: str) -> None:
        """For prune alone, which also syncs the folder."""
        try:
            self.path(snapshot_id).unlink(missing_ok=True)
        except OSError as error:
            raise told(error, self.path(snapshot_id)) from error


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids) if len(ids) <= 6 else f"{ids[0]} … {', '.join(ids[-4:])}"
