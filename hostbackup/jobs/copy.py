"""Brings a vault's objects, manifests, snapshots and evidence to a store: what the store lacks, in this order, and nothing is deleted there.

A snapshot goes last, and only once everything it needs is there; so a copy that was interrupted anywhere is whole as far as it goes.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hostbackup.errors import Damaged, Exit, PlaceMissing, VaultError
from hostbackup.jobs.copy_source import listed_digests, object_key, read_small
from hostbackup.jobs.references import Broken, is_needed, open_root, segment_digests, walk
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Status
from hostbackup.vault.faults import told
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.stores import Absent, Outcome, Store, Upload, Wanted
from hostbackup.vault.vault import FORMAT_FILE, Vault, check_format, format_document

_README = b"""\
This is a copy of a hostbackup vault, for the day when everything else is gone. To get files and mail out of it:

    hostbackup restore --from THIS-FOLDER-OR-BUCKET --to SOME-FOLDER

It can be read without hostbackup too: objects/ holds the contents of every file and message under the SHA-256 of its bytes,
manifests/ says which name belongs to which contents, snapshots/ what there was at which time. The format is described in
hostbackup's docs/vault-format.md. Do not change or delete anything here.
"""
_LEFT_BY_A_KILLED_BEGINNING = ("README.txt", "checksum-probe")


@dataclass(slots=True)
class Copied:
    """What one `copy` did. `snapshot`: the newest one the copy has, "" where it has none."""

    uploaded: int = 0  # files of all kinds
    bytes: int = 0
    skipped: int = 0  # objects and manifests that were there
    repaired: int = 0  # of those uploaded, the ones that stood there damaged
    snapshots: list[str] = field(default_factory=list)  # that came there now
    snapshot: str = ""


class _Pending:
    """Digests and sizes in 40 bytes each."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._sizes = array("Q")
        self.bytes = 0

    def add(self, digest: str, size: int) -> None:
        self._digests += bytes.fromhex(digest)
        self._sizes.append(size)
        self.bytes += size

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for number, size in enumerate(self._sizes):
            yield self._digests[32 * number : 32 * number + 32].hex(), size


def copy_vault(vault: Vault, store: Store, result: Result, *, name: str, repair: bool = False, read: bool = False) -> Copied:
    """Brings the store up to date with the vault. `repair`: what lies there is proven first and replaced where damaged (`read`: by reading it all).

    Entries that fail are in `result`. Raises what ends the store as a whole, and VaultError or VaultTooNew where it holds something else. The vault
    should be open for writing: damaged objects that are met are set aside then.
    """
    return _Copy(vault, store, result, name, repair=repair, read=read).run()


def restore_format(vault: Vault, store: Store, result: Result, *, name: str) -> None:
    """Writes `format.json` again in a copy of this vault that lost only that. Does nothing where it stands, or where this is no such copy."""
    if any(True for _ in store.list(FORMAT_FILE)):
        return
    there = [listed.key.removeprefix("snapshots/").removesuffix(".json") for listed in store.list("snapshots/")]
    if not set(there) & set(vault.snapshots.list()):
        return
    _refuse_another_vault(vault.snapshots.list(), there, store.label)
    for outcome in store.put([_small(FORMAT_FILE, format_document())]):
        if not outcome.ok:
            raise VaultError(f"{FORMAT_FILE} is missing and could not be written: {outcome.reason}", where=store.label, hint=outcome.hint)
    result.observer.note(f"copy:{name}: {FORMAT_FILE} was missing and was written again")


def copy_evidence(vault: Vault, store: Store, result: Result, *, name: str) -> int:
    """Brings evidence there that it lacks, such as that of the copy itself. How many files."""
    return _Copy(vault, store, result, name).evidence()


class _Copy:
    def __init__(self, vault: Vault, store: Store, result: Result, name: str, *, repair: bool = False, read: bool = False) -> None:
        self._vault = vault
        self._store = store
        self._result = result
        self._name = name
        self._side = f"copy:{name}"
        self._repair = repair
        self._read = read
        self._failed: dict[str, Outcome] = {}  # by digest
        self._failed_manifests: set[str] = set()
        self._done = Copied()

    def run(self) -> Copied:
        there = self._arrive()
        self._store.tidy()
        self._vault.objects.look_anew()
        for kind, folder in (("objects", self._vault.objects), ("manifests", self._vault.manifests)):
            self._bring(kind, folder)
        self._bring_snapshots(there)
        self.evidence()
        return self._done

    # -- arriving -----------------------------------------------------------------------------------------------------------------------

    def _arrive(self) -> list[str]:
        """Makes sure that the store holds a copy of this vault, or begins one. The ids of the snapshots it has."""
        label, state = self._store.label, f"copy-{self._name}"
        try:
            check_format(read_small(self._store, FORMAT_FILE), f"{label}/{FORMAT_FILE}")
        except Absent:
            self._begin(label, known=self._vault.state.read(state) == {"target": label})
        if self._vault.mode == "write" and self._vault.state.read(state) != {"target": label}:
            self._vault.state.write(state, {"target": label})
        there = sorted(listed.key.removeprefix("snapshots/").removesuffix(".json") for listed in self._store.list("snapshots/"))
        _refuse_another_vault(self._vault.snapshots.list(), there, label)
        return there

    def _begin(self, label: str, *, known: bool) -> None:
        foreign = next((listed for listed in self._store.list() if listed.key not in _LEFT_BY_A_KILLED_BEGINNING), None)
        if foreign is not None:
            if set(self._vault.snapshots.list()) & {listed.key[len("snapshots/") : -len(".json")] for listed in self._store.list("snapshots/")}:
                raise VaultError(f"{FORMAT_FILE} of this copy is missing", where=label, hint="run `copy --repair`")
            hint = "give the copy an empty folder, or a prefix of its own"
            raise VaultError(f"this holds other files ({foreign.key[:100]!r}) and no copy", where=label, hint=hint)
        if known:
            hint = f"is the right disk mounted? To begin a new copy there, give it another name than {self._name!r} in the profile"
            raise PlaceMissing("there was a copy here, and now there is nothing", where=label, hint=hint)
        for item in (_small("README.txt", _README), _small(FORMAT_FILE, format_document())):
            for outcome in self._store.put([item]):
                if not outcome.ok:
                    raise VaultError(f"the copy could not be begun: {outcome.reason}", where=f"{label}/{outcome.key}", hint=outcome.hint)

    # -- objects and manifests ----------------------------------------------------------------------------------------------------------

    def _bring(self, kind: str, folder: ObjectFolder) -> None:
        observer = self._result.observer
        observer.phase(f"{self._side}: comparing {kind}")
        pending = self._plan(kind, folder)
        observer.phase(f"{self._side}: copying {kind}", len(pending), pending.bytes)

        def uploads() -> Iterator[Upload]:
            for digest, size in pending:
                yield Upload(object_key(kind, digest), size, digest, partial(folder.read, digest))

        for outcome in self._store.put(uploads()):
            observer.advance(1, outcome.size)
            if outcome.ok:
                self._done.uploaded += 1
                self._done.bytes += outcome.size
            else:
                self._failed[outcome.key[-64:]] = outcome
                if kind == "manifests":
                    self._failed_manifests.add(outcome.key[-64:])
                self._tell(kind, folder, outcome)

    def _plan(self, kind: str, folder: ObjectFolder) -> _Pending:
        """What has to go up: what the store lacks or has in another length and, on repair, what is damaged there."""
        pending = _Pending()
        alike = self._compare(kind, folder, pending)
        if not self._repair:
            self._done.skipped += sum(1 for _ in alike)
            return pending
        for proven in self._store.prove(alike, read=self._read):
            if proven.status is Status.VERIFIED:
                self._done.skipped += 1
            elif proven.status is Status.FAILED:
                self._result.fail(Failure(self._side, "", proven.wanted.key.encode(), "failed", proven.reason))
            elif folder.has(proven.wanted.digest):
                self._result.observer.note(f"{self._side}: {proven.wanted.key} is damaged ({proven.reason}); copied again")
                self._done.repaired += 1
                pending.add(proven.wanted.digest, proven.wanted.size)
            else:
                hint = "neither the vault nor this copy has it whole: try another copy"
                self._result.fail(Failure(self._side, "", proven.wanted.key.encode(), "damaged", proven.reason, hint), Exit.DAMAGE)
        return pending

    def _compare(self, kind: str, folder: ObjectFolder, pending: _Pending) -> Iterator[Wanted]:
        """Walks both listings side by side, in flat memory. Gives what is in the store in the right length, and on repair what is only there.

        A store that does not list in order costs time, not safety: what is not met in its place counts as lacking.
        """
        there = listed_digests(self._store, kind)
        other = next(there, None)
        for digest, size in folder.list():
            while other is not None and other[0] < digest:
                if self._repair:
                    yield Wanted(object_key(kind, other[0]), *other)
                other = next(there, None)
            if other is not None and other[0] == digest:
                if other[1] == size:
                    yield Wanted(object_key(kind, digest), digest, size)
                else:
                    pending.add(digest, size)
                other = next(there, None)
            else:
                pending.add(digest, size)
        if self._repair:
            for digest, size in there if other is None else _with(other, there):
                yield Wanted(object_key(kind, digest), digest, size)

    def _tell(self, kind: str, folder: ObjectFolder, outcome: Outcome) -> None:
        digest = outcome.key[-64:]
        if outcome.code not in ("source-damaged", "damaged"):
            self._result.fail(Failure(self._side, "", outcome.key.encode(), outcome.code, outcome.reason, outcome.hint))
            return
        [(_, whole, reason)] = folder.prove([digest])
        if not whole and reason != "missing" and self._vault.mode == "write":
            folder.set_aside(digest, f"found while copying to {self._name}: {reason}")
        hint = "run backup to fetch it again, or `copy --repair` to bring it from another copy"
        self._result.fail(Failure("vault", "", f"{kind}/{digest}".encode(), "damaged", reason or outcome.reason, hint), Exit.DAMAGE)

    # -- snapshots ----------------------------------------------------------------------------------------------------------------------

    def _bring_snapshots(self, there: list[str]) -> None:
        ours = self._vault.snapshots.list()
        have = set(there)
        self._result.observer.phase(f"{self._side}: checking snapshots", sum(1 for one in ours if one not in have))
        base = frozenset() if self._failed or self._repair else self._checked_segments([one for one in ours if one in have])
        ready: list[str] = []
        for snapshot_id in ours:
            if snapshot_id in have and not (self._repair and self._differs(f"snapshots/{snapshot_id}.json", self._vault.snapshots.path(snapshot_id))):
                continue
            if self._is_whole(snapshot_id, base, newest=snapshot_id == ours[-1]):
                ready.append(snapshot_id)
        paths = ((f"snapshots/{snapshot_id}.json", self._vault.snapshots.path(snapshot_id)) for snapshot_id in ready)
        failed = self._put_files(paths)
        self._done.snapshots = [one for one in ready if f"snapshots/{one}.json" not in failed and one not in have]
        self._done.snapshot = max((*there, *self._done.snapshots), key=_number, default="")

    def _checked_segments(self, copied: list[str]) -> frozenset[str]:
        """Segments of the newest snapshot that is there already: what they need is there too."""
        if not copied:
            return frozenset()
        try:
            snapshot = self._vault.snapshots.get(copied[-1])
        except Damaged:
            return frozenset()
        return segment_digests(self._vault.manifests, snapshot.parts.values())

    def _is_whole(self, snapshot_id: str, base: frozenset[str], *, newest: bool) -> bool:
        """Whether all that a snapshot needs is in the store now. What the newest lacks is told entry by entry, of others that they lack something."""
        name = f"snapshots/{snapshot_id}".encode()
        try:
            snapshot = self._vault.snapshots.get(snapshot_id)
        except Damaged as error:
            if not any(failure.side == "vault" and failure.name.endswith(snapshot_id.encode()) for failure in self._result.failures):
                self._result.fail(Failure("vault", "", name, "damaged", error.reason, error.hint), Exit.DAMAGE)
            return False
        lacking = 0
        for state in snapshot.parts.values():
            for label, why, code in self._lacking(state, base, history=newest) if state.root else ():
                lacking += 1
                if newest:
                    reason = f"snapshot {snapshot_id} was not copied for want of this: {why}"
                    self._result.fail(Failure(self._side, state.part.id, label, "not-copied", reason), code)
        if lacking and not newest:
            self._result.fail(Failure(self._side, "", name, "not-copied", f"{lacking} of its entries could not be copied"))
        self._result.observer.advance(1)
        return not lacking

    def _lacking(self, state: PartState, base: frozenset[str], *, history: bool) -> Iterator[tuple[bytes, str, Exit]]:
        """Each entry whose contents, or whose manifest, the store has not got: its name, why, and what that means."""
        manifests = self._vault.manifests
        for record in walk(manifests, state, base):
            if isinstance(record, Broken):
                yield record.label, f"its manifest: {record.error.reason}", Exit.DAMAGE
            elif record.digest in self._failed:
                yield record.item.label, self._failed[record.digest].reason, Exit.INCOMPLETE
            elif is_needed(record, history=history) and not self._has(record.digest, record.size):
                yield record.item.label, "the vault has lost its contents", Exit.DAMAGE
        if self._failed_manifests:
            for digest in open_root(manifests, state).manifests():
                if digest in self._failed_manifests:
                    yield b"", f"its manifest {digest}: {self._failed[digest].reason}", Exit.INCOMPLETE

    def _has(self, digest: str, size: int) -> bool:
        if self._vault.objects.has(digest):
            return True
        key = object_key("objects", digest)
        return any((listed.key, listed.size) == (key, size) for listed in self._store.list(key))

    # -- small files --------------------------------------------------------------------------------------------------------------------

    def evidence(self) -> int:
        """Evidence is only ever added: a file that is there in another length is left alone, and told.

        On repair what differs there is replaced, but only where this side's own chain is unbroken: else the copy's may be the good one.
        """
        repair = self._repair and not self._vault.evidence.check_chain()
        there = {listed.key: listed.size for listed in self._store.list("evidence/")}
        wanted: list[tuple[str, Path]] = []
        for name in self._vault.evidence.names():
            key, path = f"evidence/{name}", self._vault.evidence.folder / name
            if key not in there or (repair and self._differs(key, path)):
                wanted.append((key, path))
            elif there[key] != len(_bytes(path)):
                reason = "the copy has other evidence under this name"
                self._result.fail(Failure(self._side, "", key.encode(), "conflict", reason, "one of them was changed: run `verify`"), Exit.DAMAGE)
        return len(wanted) - len(self._put_files(wanted))

    def _differs(self, key: str, path: Path) -> bool:
        try:
            return read_small(self._store, key) != _bytes(path)
        except Damaged:
            return True

    def _put_files(self, files: Iterable[tuple[str, Path]]) -> set[str]:
        """Stores small files of the vault; the keys of those that failed, told."""
        failed: set[str] = set()
        for outcome in self._store.put(_small(key, _bytes(path)) for key, path in files):
            if outcome.ok:
                self._done.uploaded += 1
                self._done.bytes += outcome.size
            else:
                failed.add(outcome.key)
                self._result.fail(Failure(self._side, "", outcome.key.encode(), outcome.code, outcome.reason, outcome.hint))
        return failed


def _with(first: tuple[str, int], rest: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    yield first
    yield from rest


def _small(key: str, data: bytes) -> Upload:
    opened: Callable[[], io.BytesIO] = partial(io.BytesIO, data)
    return Upload(key, len(data), hashlib.sha256(data).hexdigest(), opened)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise told(error, path) from error


def _number(snapshot_id: str) -> tuple[int, str]:
    number = snapshot_id.partition("-")[0]
    return (int(number) if number.isdecimal() else 0), snapshot_id


def _refuse_another_vault(ours: list[str], there: list[str], label: str) -> None:
    """Two vaults in one place would both be hard to read. Snapshots tell them apart: a number is given once, at one time."""
    mine = {_number(one)[0]: one for one in ours}
    newest = max(mine, default=0)
    for other in there:
        number = _number(other)[0]
        if mine.get(number, other) != other or number > newest:
            hint = "give this copy another prefix or folder; to bring a lost vault back, restore it from the copy first"
            raise VaultError(f"this is the copy of another vault: its snapshot {other} was never made here", where=label, hint=hint)


def has_snapshot(store: Store, snapshot_id: str) -> bool:
    """Whether a snapshot was copied whole."""
    key = f"snapshots/{snapshot_id}.json"
    return any(listed.key == key for listed in store.list(key))
