"""A mirror: the newest snapshot's web trees as plain files under plain names, in a bucket that serves them or on a disk to be browsed.

It is no copy of the vault, and nothing can be restored from it: no history, no mail, no proof of anything but the bytes that stand there. Nothing is
deleted unless that is asked for, and nothing that somebody else put or changed there is touched.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from hostbackup.errors import Damaged, Exit, UsageError, VaultError
from hostbackup.jobs.coverage import never_saved, unlisted
from hostbackup.jobs.mirror_judge import Action, Judge, Judged
from hostbackup.jobs.mirror_names import Keys
from hostbackup.jobs.mirror_plan import plan
from hostbackup.jobs.mirror_state import Held, MirrorState, Row
from hostbackup.jobs.mirror_types import content_type
from hostbackup.jobs.result import Result
from hostbackup.jobs.shrink import shrunk_failure
from hostbackup.model import Failure, Part, Status, name_json
from hostbackup.vault import pool
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.stores import Outcome, Store, Upload, Wanted, mark
from hostbackup.vault.vault import FORMAT_FILE, Vault

_TELL = 256  # outcomes noted at a time: what is not noted yet when a run dies is looked at by the next
_WRITES = (Action.PUT, Action.UPDATE, Action.REPAIR)
_REPAIR = "run `copy --repair`"


@dataclass(slots=True)
class Mirrored:
    """What one run did, in files. `vanished`: ours, gone from the snapshot, and left there."""

    uploaded: int = 0
    skipped: int = 0  # that stood there as they should
    repaired: int = 0  # of those uploaded
    updated: int = 0  # of those uploaded
    adopted: int = 0  # of those skipped: put there by somebody else, or by a run that is not on record
    deleted: int = 0
    vanished: int = 0
    left_alone: int = 0
    conflicts: int = 0
    links: int = 0  # never mirrored
    special: int = 0
    bytes: int = 0  # that went up

    def counts(self) -> dict[str, int]:
        return {key: value for key, value in asdict(self).items() if key != "bytes"}


@dataclass(slots=True)
class Tree:
    """One web tree that is mirrored: what the snapshot says of it, its number in the state, and where it begins in the mirror."""

    state: PartState
    number: int
    prefix: str

    @property
    def part(self) -> Part:
        return self.state.part

    def path(self, row: Row) -> bytes:
        return row.odd or row.key[len(self.prefix) :].encode()


@dataclass(slots=True)
class Mirror:
    """Use: `run()`, while the store is held. `expected`: the trees that the profile has.

    Raises what ends the store as a whole, VaultError where it holds a copy of a vault, and UsageError for a tree that no mirror can have.
    """

    vault: Vault
    store: Store
    snapshot: Snapshot
    state: MirrorState
    keys: Keys
    result: Result
    name: str
    expected: Sequence[Part] = ()
    delete: bool = False
    repair: bool = False
    done: Mirrored = field(default_factory=Mirrored)
    _tidied: bool = False
    _told: set[Failure] = field(default_factory=set)  # by those that came before, in the same run

    def run(self) -> Mirrored:
        refuse_copy(self.store)
        self._told = set(self.result.failures)
        if self.state.damaged is not None:
            self.result.observer.warn(f"what was known of mirror {self.name} was damaged ({self.state.damaged}): what stands there is compared anew")
        trees = self._trees()
        self._tell_clashes(trees)
        for tree in trees:
            self.result.observer.phase(f"{self._side}: comparing {tree.part}", tree.state.entries)
            self.state.note_listing(self.store.list(tree.prefix))
            self._tell_asides(tree)
        for tree in trees:
            self._gone(tree)
            if self.repair:
                self._prove(tree)
            self._bring(tree)
        return self.done

    @property
    def _side(self) -> str:
        return f"copy:{self.name}"

    def _fail_once(self, failure: Failure, exit_code: Exit = Exit.INCOMPLETE) -> None:
        """For what is the vault's trouble, and every mirror's."""
        if failure not in self._told:
            self.result.fail(failure, exit_code)

    def _fail(self, part: Part, name: bytes, code: str, reason: str, hint: str = "") -> None:
        self.result.fail(Failure(self._side, part.id, name, code, reason, hint))

    # -- plan ---------------------------------------------------------------------------------------------------------------------------

    def _trees(self) -> list[Tree]:
        """What is to be mirrored, planned. What cannot be is told."""
        for failure in never_saved(self.snapshot, self.expected):
            self._fail_once(failure)
        trees: list[Tree] = []
        states = [state for state in self.snapshot.parts.values() if state.part.kind == "web" and state.root]
        if not states and not self.expected:
            hint = "a mirror holds web trees: [[old.web]] in the profile, and a `backup` of them"
            raise UsageError("there is no web tree to mirror", where=f"snapshot {self.snapshot.id}", hint=hint)
        begins = {state.part.id: self.keys.prefix(state.part) for state in states}  # all, before anything is done
        _refuse_alike(begins, self.keys)
        for state in states:
            if state.shrunk is not None:
                self.result.fail(shrunk_failure(self._side, state.part))
                continue
            try:
                trees.append(Tree(state, plan(self.state, self.keys, self.vault.manifests, state), begins[state.part.id]))
                for failure in unlisted(self.vault.snapshots, self.vault.manifests, self.snapshot, state):
                    self._fail_once(failure)
            except Damaged as error:
                self._fail_once(Failure("vault", state.part.id, b"", error.code, error.reason, error.hint or _REPAIR), Exit.DAMAGE)
        return trees

    def _tell_clashes(self, trees: list[Tree]) -> None:
        """Files that would have one key: none of them is mirrored, since whoever looks could not tell which it is."""
        by_number = {tree.number: tree for tree in trees}
        for key, odd, number in self.state.clashes(None if self.keys.tells_case else self.keys.folded):
            if (tree := by_number.get(number)) is not None:
                path = odd or key[len(tree.prefix) :].encode()
                self._fail(tree.part, path, "collision", f"another file of the tree would be {key!r} in the mirror too", "rename one of them")

    def _tell_asides(self, tree: Tree) -> None:
        observer, details = self.result.observer, self.result.details
        for path, what, reason in self.state.asides(tree.number):
            shown = path.decode("utf-8", "backslashreplace")
            if what in ("link", "special"):
                self.done.links += what == "link"
                self.done.special += what == "special"
                observer.note(f"{self._side}: {tree.part}/{shown} is a {'symlink' if what == 'link' else 'special file'}: not mirrored")
            elif what == "stale":
                row = {"copy": self.name, "part": tree.part.id, **name_json(path), "reason": reason}
                details.setdefault("stale", []).append(row)
                observer.note(f"{self._side}: {tree.part}/{shown}: only an earlier version is in the vault: {reason}")
            elif what == "failed":
                self._fail_once(Failure("vault", tree.part.id, path, "failed", reason, "run `backup` again, then `copy`"))
            else:
                self._fail(tree.part, path, what, reason, "give it a shorter name, or the mirror a shorter `prefix`")
        for key, path in self.state.mapped(tree.number):
            details.setdefault("renamed", []).append({"copy": self.name, "part": tree.part.id, **name_json(path), "key": key})

    # -- what is gone -------------------------------------------------------------------------------------------------------------------

    def _gone(self, tree: Tree) -> None:
        for rows in self.state.gone(tree.prefix):
            absent = [row.key for row in rows if row.there_size is None or not (row.have or row.intent)]
            standing = [row for row in rows if row.there_size is not None and (row.have or row.intent)]
            if self.delete:
                judged = list(self._judged(standing))
                for one in judged:
                    if one.action in (Action.THEIRS, Action.CONFLICT):
                        self._leave(tree, one, "is gone from the old server, and was changed in the mirror")
                    elif one.action is Action.FAILED:
                        self._fail(tree.part, tree.path(one.row), "failed", one.reason, one.hint)
                absent += [one.row.key for one in judged if one.action is Action.FORGET]
                absent += self._delete(tree, [one.row.key for one in judged if one.action is Action.DELETE])
            else:
                self.done.vanished += len(standing)
            self.state.forget(absent)

    def _delete(self, tree: Tree, keys: list[str]) -> Iterator[str]:
        """The keys that are gone now."""
        for outcome in self.store.delete(keys):
            if outcome.ok:
                self.done.deleted += 1
                yield outcome.key
            else:
                self._fail(tree.part, outcome.key[len(tree.prefix) :].encode(), outcome.code, outcome.reason, outcome.hint)

    # -- what is there ------------------------------------------------------------------------------------------------------------------

    def _prove(self, tree: Tree) -> None:
        """Finds what is ours, listed as we left it, and damaged."""
        self.result.observer.phase(f"{self._side}: proving {tree.part}", tree.state.entries, tree.state.bytes)
        alike = (row for rows in self.state.alike(tree.number) for row in rows)
        wanted = (Wanted(row.key, row.want, row.want_size, self.state.find(row.key).checksum) for row in alike)
        damaged: list[str] = []
        for proven in self.store.prove(wanted):
            self.result.observer.advance(1, proven.wanted.size)
            if proven.status is Status.FAILED:
                self._fail(tree.part, proven.wanted.key[len(tree.prefix) :].encode(), "failed", proven.reason)
            elif proven.status is not Status.VERIFIED:
                damaged.append(proven.wanted.key)
        self.state.redo(damaged)

    def _bring(self, tree: Tree) -> None:
        same = self.state.same(tree.number)
        self.done.skipped += same
        self.result.observer.phase(f"{self._side}: mirroring {tree.part}", tree.state.entries - same)
        under_way: dict[str, Judged] = {}
        noted: list[Held] = []
        try:
            for outcome in self.store.put(self._uploads(tree, under_way)):
                self._put(tree, under_way.pop(outcome.key), outcome, noted)
                if len(noted) >= _TELL:
                    self.state.hold(noted)
                    noted.clear()
        finally:
            self.state.hold(noted)

    def _uploads(self, tree: Tree, under_way: dict[str, Judged]) -> Iterator[Upload]:
        for rows in self.state.differing(tree.number):
            writes: list[Judged] = []
            adopted: list[Held] = []
            seen: list[Row] = []
            for one in self._judged(rows):
                row = one.row
                if one.action in _WRITES:
                    writes.append(one)
                elif one.action is Action.ADOPT:
                    adopted.append(Held(row.key, row.want, row.want_size, row.there_mark))
                    self.done.adopted += row.have != row.want
                    self.done.skipped += 1
                elif one.action is Action.FAILED:
                    self._fail(tree.part, tree.path(row), "failed", one.reason, one.hint)
                else:
                    self._leave(tree, one, one.reason)
                    seen += [row] if one.looked else []
                self.result.observer.advance(entries=one.action not in _WRITES)
            self.state.hold(adopted)
            self.state.see(seen)
            self.state.intend(one.row for one in writes)
            if writes and not self._tidied:
                self.store.tidy()
                self._tidied = True
            for one in writes:
                under_way[one.row.key] = one
                yield self._upload(one.row)

    def _judged(self, rows: list[Row]) -> Iterator[Judged]:
        judge = Judge(self.store, self.vault.objects.read)
        far = [row for row in rows if row.there_size is not None]
        for row in rows:
            if row.there_size is None:
                yield judge(row)
        if far:
            yield from pool.each(judge, far, workers=2 if isinstance(self.store, FolderStore) else 16)

    def _upload(self, row: Row) -> Upload:
        seconds, rest = divmod(row.mtime_ns, 10**9)
        facts = (("mode", f"{row.mode:04o}"), ("mtime", f"{seconds}.{rest:09d}" if rest else str(seconds)), ("sha256", row.want))
        return Upload(
            row.key,
            row.want_size,
            row.want,
            functools.partial(self.vault.objects.read, row.want),
            content_type=content_type(row.key),
            metadata=facts,
            lasting=False,  # it is replaced when the tree changes
            mtime_ns=row.mtime_ns,
        )

    def _put(self, tree: Tree, judged: Judged, outcome: Outcome, noted: list[Held]) -> None:
        row = judged.row
        self.result.observer.advance(1, outcome.size)
        if outcome.ok:
            self.done.uploaded += 1
            self.done.bytes += outcome.size
            self.done.updated += judged.action is Action.UPDATE
            self.done.repaired += judged.action is Action.REPAIR
            noted.append(Held(row.key, row.want, row.want_size, mark(outcome), outcome.checksum))
        elif outcome.code in ("source-damaged", "damaged"):
            self._tell_damage(tree, row, outcome)
        else:
            hint = outcome.hint or ("`copy --delete-vanished` takes it away if it is ours" if outcome.code == "in-the-way" else "")
            self._fail(tree.part, tree.path(row), outcome.code, outcome.reason, hint)

    def _tell_damage(self, tree: Tree, row: Row, outcome: Outcome) -> None:
        objects = self.vault.objects
        [(_, whole, reason)] = objects.prove([row.want])
        if not whole and reason != "missing" and self.vault.mode == "write":
            objects.set_aside(row.want, f"found while copying to {self.name}: {reason}")
        hint = "run backup to fetch it again, or `copy --repair` to bring it from a copy of the vault"
        self.result.fail(Failure("vault", tree.part.id, tree.path(row), "damaged", reason or outcome.reason, hint), Exit.DAMAGE)

    def _leave(self, tree: Tree, judged: Judged, reason: str) -> None:
        path = tree.path(judged.row)
        if judged.action is Action.CONFLICT:
            self.done.conflicts += 1
            hint = "compare the two by hand; take away the one in the mirror to have it brought anew"
            self._fail(tree.part, path, "conflict", reason, hint)
            return
        self.done.left_alone += 1
        row = {"copy": self.name, "part": tree.part.id, **name_json(path), "action": judged.action.value, "reason": reason}
        self.result.details.setdefault("left_alone", []).append(row)
        self.result.observer.note(f"left alone: {self._side}: {tree.part}/{path.decode('utf-8', 'backslashreplace')}: {reason}")


def refuse_copy(store: Store) -> None:
    """Raises VaultError where the store holds a copy of a vault: plain files would be lost among its own."""
    if any(listed.key == FORMAT_FILE for listed in store.list(FORMAT_FILE)):
        hint = "give the mirror a prefix or a folder of its own"
        raise VaultError("this holds a copy of a vault", where=store.label, hint=hint)


def _refuse_alike(begins: dict[str, str], keys: Keys) -> None:
    taken: dict[bytes, str] = {}
    for part, prefix in begins.items():
        other = taken.setdefault(keys.folded(prefix), part)
        if other != part:
            reason = f"{part} and {other} would be one folder in the mirror"
            raise UsageError(reason, where=part, hint="give one of them another `name` in the profile")
