"""Brings a vault's contents, manifests, snapshots and evidence to a copy: what it lacks, in this order, and nothing is deleted there.

A snapshot goes last, and only once everything it needs is there and the copy's index says where; so a copy that was interrupted anywhere is whole
as far as it goes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from hostbackup.errors import Damaged, Exit, PlaceMissing, UsageError, VaultError
from hostbackup.jobs.copy_repair import replace_damaged
from hostbackup.jobs.copy_source import open_catalog, read_format
from hostbackup.jobs.references import Broken, is_needed, open_root, segment_digests, walk
from hostbackup.jobs.result import Result
from hostbackup.model import Failure
from hostbackup.vault.faults import told
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.packs.archive import Archive
from hostbackup.vault.packs.bring import Brought
from hostbackup.vault.packs.format import VERSION, Format, format_document, readme
from hostbackup.vault.packs.look import Listing
from hostbackup.vault.packs.pack import PACK_BYTES
from hostbackup.vault.packs.seal import END, Identities, Recipients
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.stores import Absent, Outcome, Store, Upload
from hostbackup.vault.vault import FORMAT_FILE, Vault

_TOGETHER = 2000  # records looked up together
_LEFT_BY_A_KILLED_BEGINNING = ("README.txt", "checksum-probe", "locks")


@dataclass(slots=True)
class Copied:
    """What one `copy` did. `snapshot`: the newest one the copy has, "" where it has none."""

    uploaded: int = 0  # contents, manifests and small files
    bytes: int = 0  # of them, as they are in the vault
    skipped: int = 0  # contents and manifests that were there
    repaired: int = 0  # of those uploaded, the ones that stood there damaged
    snapshots: list[str] = field(default_factory=list)  # that came there now
    snapshot: str = ""


class CopyRun:
    """Brings a copy up to date with the vault. A context manager; use `run()`, then `evidence()` for what was written since.

    `repair`: what lies there is proven first and replaced where damaged. `recipients`: the copy is encrypted to them; with `identities` it can be
    read here too. Entries that fail are in `result`. Raises what ends the store as a whole, and VaultError or VaultTooNew where it holds something
    else. The vault should be open for writing: damaged objects that are met are set aside then.
    """

    def __init__(
        self,
        vault: Vault,
        store: Store,
        result: Result,
        *,
        name: str,
        repair: bool = False,
        recipients: Recipients | None = None,
        identities: Identities | None = None,
    ) -> None:
        self._vault = vault
        self._store = store
        self._result = result
        self._name = name
        self._side = f"copy:{name}"
        self._repair = repair
        self._failed: dict[str, Brought] = {}  # by digest
        self._failed_manifests: set[str] = set()
        self._done = Copied()
        self._recipients = recipients.texts if recipients else ()
        self._found = self._agreed()
        catalog = open_catalog(vault, name, store.label, sealed=recipients is not None)
        self.archive = Archive(store, catalog, sealed=recipients is not None, recipients=recipients, identities=identities)
        self._listing = Listing()

    def __enter__(self) -> CopyRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def run(self) -> Copied:
        self._arrive()
        self._listing = self.look()
        self._store.tidy()
        self._vault.objects.look_anew()
        if self._repair:
            self._done.repaired = replace_damaged(self.archive, self._vault, self._result, name=self._name)
        for kind, folder in (("objects", self._vault.objects), ("manifests", self._vault.manifests)):
            self._bring(kind, folder)
        self.archive.commit()
        if self._repair:
            self._tell_each(self.archive.forget_indexes(self._listing.damaged))
        self._bring_snapshots(self._listing.snapshots)
        self.evidence()
        return self._done

    # -- arriving -----------------------------------------------------------------------------------------------------------------------

    def _agreed(self) -> Format | None:
        """What the copy says of itself; None where nothing is there that says anything. Raises UsageError where it is not as the profile wants it."""
        try:
            found = read_format(self._store)
        except Absent:
            self._refuse_strangers()
            return None
        if found.sealed is not bool(self._recipients):
            raise _otherwise(self._store.label, sealed=found.sealed)
        return found

    def _arrive(self) -> None:
        """Makes sure that the store holds a copy, or begins one."""
        if self._found is None:
            self._found = self._agreed()  # once more, now that nobody else can write there: somebody may have begun one meanwhile
        if self._found is None:
            self._say_what_it_is()
        elif (self._found.version, self._found.recipients) != (VERSION, self._recipients):
            if self._found.sealed and set(self._found.recipients) != set(self._recipients):
                told_to = ", ".join(self._found.recipients)
                self._result.observer.warn(f"{self._side}: what is there stays encrypted to {told_to}; only what comes now is for the new recipients")
            self._say_what_it_is()
        if self._vault.mode == "write" and not self._known:
            self._vault.state.write(f"copy-{self._name}", {"target": self._store.label})

    @property
    def _known(self) -> bool:
        """Whether this vault was copied there before."""
        return self._vault.state.read(f"copy-{self._name}") == {"target": self._store.label}

    def _refuse_strangers(self) -> None:
        """Raises VaultError or PlaceMissing where this is no place to begin a copy at."""
        label = self._store.label
        foreign = next((listed for listed in self._store.list() if listed.key.partition("/")[0] not in _LEFT_BY_A_KILLED_BEGINNING), None)
        if foreign is not None:
            if set(self._vault.snapshots.list()) & set(_snapshot_names(self._store)):
                raise VaultError(f"{FORMAT_FILE} of this copy is missing", where=label, hint="run `copy --repair`")
            hint = "give the copy an empty folder, or a prefix of its own"
            raise VaultError(f"this holds other files ({foreign.key[:100]!r}) and no copy", where=label, hint=hint)
        if self._known:
            hint = f"is the right disk mounted? To begin a new copy there, give it another name than {self._name!r} in the profile"
            raise PlaceMissing("there was a copy here, and now there is nothing", where=label, hint=hint)

    def _say_what_it_is(self) -> None:
        readme_text = readme(sealed=bool(self._recipients))
        _put_plainly(self._store, ("README.txt", readme_text), (FORMAT_FILE, format_document(self._recipients)))

    def look(self) -> Listing:
        """Takes in what stands in the copy."""
        listing = self.archive.refresh()
        _refuse_another_vault(self._vault.snapshots.list(), listing.snapshots, self._store.label)
        for error in listing.damaged.values():
            self._result.observer.warn(f"{error.where}: {error.reason}; what it listed was found by reading the packs")
        if listing.closed:
            self._result.observer.warn(
                f"{self._side}: {listing.closed} files there are encrypted and unknown to this vault; what they may hold is sent again"
                " (copy --identity FILE would read them)"
            )
        return listing

    # -- contents and manifests ---------------------------------------------------------------------------------------------------------

    def _bring(self, kind: str, folder: ObjectFolder) -> None:
        observer = self._result.observer
        observer.phase(f"{self._side}: comparing {kind}")
        there, number, size = self.archive.catalog.want(kind, folder.list())
        self._done.skipped += there
        observer.phase(f"{self._side}: copying {kind}", number, size)
        for brought in self.archive.bring(kind, self._in_order(kind, size), folder.read):
            observer.advance(1, brought.size)
            if not brought.code:
                self._done.uploaded += 1
                self._done.bytes += brought.size
            else:
                self._failed[brought.digest] = brought
                if kind == "manifests":
                    self._failed_manifests.add(brought.digest)
                self._tell(kind, folder, brought)

    def _in_order(self, kind: str, size: int) -> Iterator[tuple[str, int]]:
        """What is wanted, as far as possible in the order in which somebody will restore it: then whole packs are of use to him."""
        catalog = self.archive.catalog
        if kind == "objects" and size > PACK_BYTES:
            for snapshot_id in reversed(self._vault.snapshots.list()):
                try:
                    snapshot = self._vault.snapshots.get(snapshot_id)
                except Damaged:  # told when it is its turn to be copied
                    continue
                for state in snapshot.parts.values():
                    records = walk(self._vault.manifests, state) if state.root else iter(())
                    yield from catalog.claim(kind, (one.digest for one in records if not isinstance(one, Broken) and one.digest))
                break
        yield from catalog.claim_rest(kind)

    def _tell(self, kind: str, folder: ObjectFolder, brought: Brought) -> None:
        name = f"{kind}/{brought.digest}".encode()
        if brought.code not in ("source-damaged", "damaged"):
            self._result.fail(Failure(self._side, "", name, brought.code, brought.reason, brought.hint))
            return
        [(_, whole, reason)] = folder.prove([brought.digest])
        if not whole and reason != "missing" and self._vault.mode == "write":
            folder.set_aside(brought.digest, f"found while copying to {self._name}: {reason}")
        hint = "run backup to fetch it again, or `copy --repair` to bring it from another copy"
        self._result.fail(Failure("vault", "", name, "damaged", reason or brought.reason, hint), Exit.DAMAGE)

    # -- snapshots ----------------------------------------------------------------------------------------------------------------------

    def _bring_snapshots(self, there: Sequence[str]) -> None:
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
        failed = self._put_files((f"snapshots/{snapshot_id}.json", self._vault.snapshots.path(snapshot_id)) for snapshot_id in ready)
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
        """Whether all that a snapshot needs is in the copy now. What the newest lacks is told entry by entry, of others that they lack something."""
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
        """Each entry whose contents, or whose manifest, the copy has not got: its name, why, and what that means."""
        manifests = self._vault.manifests
        records = walk(manifests, state, base)
        while some := list(islice(records, _TOGETHER)):
            needed = {one.digest for one in some if not isinstance(one, Broken) and is_needed(one, history=history)}
            lacking = needed - self.archive.catalog.there("objects", needed)
            for record in some:
                if isinstance(record, Broken):
                    yield record.label, f"its manifest: {record.error.reason}", Exit.DAMAGE
                elif record.digest not in lacking or not is_needed(record, history=history):
                    continue
                elif record.digest in self._failed:
                    yield record.item.label, self._failed[record.digest].reason, Exit.INCOMPLETE
                else:
                    yield record.item.label, "the vault has lost its contents", Exit.DAMAGE
        if self._failed_manifests:
            for digest in open_root(manifests, state).manifests():
                if digest in self._failed_manifests:
                    yield b"", f"its manifest {digest}: {self._failed[digest].reason}", Exit.INCOMPLETE

    def _tell_each(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if not outcome.ok:
                self._result.fail(Failure(self._side, "", outcome.key.encode(), outcome.code, outcome.reason, outcome.hint))

    # -- small files --------------------------------------------------------------------------------------------------------------------

    def evidence(self) -> int:
        """Brings evidence there that the copy lacks. How many files.

        It is only ever added: a file that is there in another length is left alone, and told. On repair what differs there is replaced, but only
        where this side's own chain is unbroken: else the copy's may be the good one.
        """
        repair = self._repair and not self._vault.evidence.check_chain()
        there = self._listing.evidence
        wanted: list[tuple[str, Path]] = []
        for name in self._vault.evidence.names():
            key, path = f"evidence/{name}", self._vault.evidence.folder / name
            if name not in there or (repair and self._differs(key, path)):
                wanted.append((key, path))
            elif not self.archive.sealed and there[name] != len(_bytes(path)):
                reason = "the copy has other evidence under this name"
                self._result.fail(Failure(self._side, "", key.encode(), "conflict", reason, "one of them was changed: run `verify`"), Exit.DAMAGE)
        failed = self._put_files(wanted)
        there.update({path.name: len(_bytes(path)) for key, path in wanted if key not in failed})
        return len(wanted) - len(failed)

    def _differs(self, name: str, path: Path) -> bool:
        if not self.archive.readable:  # what cannot be compared is written again
            return True
        try:
            return self.archive.read_file(name) != _bytes(path)
        except Damaged:
            return True

    def _put_files(self, files: Iterable[tuple[str, Path]]) -> set[str]:
        """Stores small files of the vault; the names of those that failed, told."""
        failed: set[str] = set()
        for outcome in self._store.put(self.archive.file(name, _bytes(path)) for name, path in files):
            if outcome.ok:
                self._done.uploaded += 1
                self._done.bytes += outcome.size
            else:
                failed.add(self.archive.name_of(outcome.key))
                self._result.fail(Failure(self._side, "", outcome.key.encode(), outcome.code, outcome.reason, outcome.hint))
        return failed


def restore_format(vault: Vault, store: Store, result: Result, *, name: str, recipients: Recipients | None = None) -> None:
    """Writes `format.json` again in a copy of this vault that lost only that. Does nothing where it stands, or where this is no such copy."""
    if any(listed.key == FORMAT_FILE for listed in store.list(FORMAT_FILE)):
        return
    there = _snapshot_names(store)
    if not set(there) & set(vault.snapshots.list()):
        return
    _refuse_another_vault(vault.snapshots.list(), there, store.label)
    sealed = any(listed.key.endswith(END) for listed in store.list("snapshots/"))
    if sealed is not (recipients is not None):
        raise _otherwise(store.label, sealed=sealed)
    _put_plainly(store, (FORMAT_FILE, format_document(recipients.texts if recipients else ())))
    result.observer.note(f"copy:{name}: {FORMAT_FILE} was missing and was written again")


def _otherwise(label: str, *, sealed: bool) -> UsageError:
    """A copy that is not as the profile wants it."""
    what, key = ("is encrypted", "has no encrypt_to") if sealed else ("is not encrypted", "has encrypt_to")
    hint = "give the copy a prefix or folder of its own, or correct the profile"
    return UsageError(f"this copy {what}, and the profile {key} for it", where=label, hint=hint)


def _put_plainly(store: Store, *files: tuple[str, bytes]) -> None:
    """Stores what says what a copy is, one after the other."""
    for key, data in files:
        opened: Callable[[], io.BytesIO] = partial(io.BytesIO, data)
        for outcome in store.put([Upload(key, len(data), hashlib.sha256(data).hexdigest(), opened)]):
            if not outcome.ok:
                raise VaultError(f"the copy could not be begun: {outcome.reason}", where=f"{store.label}/{outcome.key}", hint=outcome.hint)


def _snapshot_names(store: Store) -> list[str]:
    return [listed.key.removeprefix("snapshots/").removesuffix(END).removesuffix(".json") for listed in store.list("snapshots/")]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise told(error, path) from error


def _number(snapshot_id: str) -> tuple[int, str]:
    number = snapshot_id.partition("-")[0]
    return (int(number) if number.isdecimal() else 0), snapshot_id


def _refuse_another_vault(ours: list[str], there: Sequence[str], label: str) -> None:
    """Two vaults in one place would both be hard to read. Snapshots tell them apart: a number is given once, at one time."""
    mine = {_number(one)[0]: one for one in ours}
    newest = max(mine, default=0)
    for other in there:
        number = _number(other)[0]
        if mine.get(number, other) != other or number > newest:
            hint = "give this copy another prefix or folder; to bring a lost vault back, restore it from the copy first"
            raise VaultError(f"this is the copy of another vault: its snapshot {other} was never made here", where=label, hint=hint)
