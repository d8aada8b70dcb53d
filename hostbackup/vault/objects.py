"""Contents by digest: one read-only file each, written so that only durable bytes ever stand under a name.

A file is `<random>.part` in `incoming/` while it is written, and `<digest>` there once whole; a small one, whose digest is known before its file is
begun, is `<digest>` from the start, and a start believes none that it has not hashed. Now and then all whole ones are synced in one go and only then
renamed to `objects/ab/<digest>`. One sync for many files costs a fraction of one sync each.

Where there are many, a process beside this one makes and names them (`hostbackup.vault.writer`), and a thread sees to the syncs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from hostbackup import osal
from hostbackup.errors import VaultError
from hostbackup.interrupts import later
from hostbackup.vault.faults import told
from hostbackup.vault.hashing import hash_file, is_digest
from hostbackup.vault.large import LARGE, LargeReceiver
from hostbackup.vault.partial import Origin, Partials
from hostbackup.vault.receiver import ObjectReceiver
from hostbackup.vault.standing import StandingObjects
from hostbackup.vault.writer import BEGIN, Writer, worth_it

SYNC_BYTES = 256 * 1024 * 1024
SYNC_SECONDS = 10.0
_PATIENCE = 300.0  # seconds that a flush waits for a small object under way: a disk may stall, but not for ever
_BELIEVED = 1 << 50  # a file said to be this large says nothing of the disk: what really comes will tell


class ObjectFolder(StandingObjects):
    """A folder of objects, with the folders beside it where they arrive and where damaged ones go. All three on one file system.

    Receivers may be used from several threads at once. `held`: descriptors that stay open as long as anybody writes here, which a process beside this
    one may do then; without them (None) none does.
    """

    def __init__(self, objects: Path, incoming: Path, damaged: Path, *, held: Sequence[int] | None = None) -> None:
        super().__init__(objects, damaged)
        self.incoming = incoming
        self.partials = Partials(incoming)
        self._parts = f"{os.fspath(incoming)}{os.sep}{secrets.token_hex(8)}-"
        self._arriving = f"{os.fspath(incoming)}{os.sep}"
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # the dicts, the sets and the counters
        self._written = threading.Condition(self._lock)  # one of `_writing` is whole, or was given up
        self._settling = threading.Lock()  # one sync at a time
        self._pending: dict[str, int] = {}  # whole in incoming/, not synced
        self._moving: dict[str, int] = {}  # being synced and renamed right now
        self._writing: set[str] = set()  # under their digest, not whole yet
        self._relied: set[str] = set()  # those for which others of the same bytes were dropped
        self._pending_bytes = 0
        self._pending_since = 0.0
        self._touched: set[str] = set()  # shards that got names since the last flush
        self._shards: set[str] = set()
        self._broken: VaultError | None = None
        self._beside = False  # a thread settles, or is about to
        self._held = held or ()
        self._alone = BEGIN if held is not None and worth_it() else -1  # objects to come before the writer is begun; below 0: it never is
        self._writer: Writer | None = None

    # ------------------------------------------------------------ writing

    def open(self, size_hint: int = 0) -> ObjectReceiver | LargeReceiver:
        """A receiver for one object. Raises DiskFull at once where `size_hint` bytes cannot fit."""
        if size_hint >= LARGE:
            return self.large(size_hint)
        self._make_room(size_hint)
        return ObjectReceiver(self)

    def large(self, size_hint: int) -> LargeReceiver:
        """The same, for what is large."""
        self._make_room(size_hint)
        try:
            return LargeReceiver(self)
        except OSError as error:
            raise told(error, self.incoming, size_hint) from error

    def resume(self, origin: Origin) -> LargeReceiver:
        """A receiver for the contents of a file, after what an earlier one of the same origin left behind. Raises as `open`."""
        try:
            receiver = LargeReceiver(self, origin)
        except OSError as error:
            raise told(error, self.incoming, origin.size) from error
        try:
            self._make_room(origin.size - receiver.received)
        except VaultError:
            receiver.suspend()
            raise
        return receiver

    def _make_room(self, size: int) -> None:
        if self._broken:
            raise self._broken
        if SYNC_BYTES // 4 < size < _BELIEVED and size > osal.free_bytes(self.incoming):
            raise told(OSError(28, "no space left"), self.incoming, size)

    def part_name(self) -> str:
        return f"{self._parts}{next(self._numbers)}.part"

    def whole_name(self, digest: str) -> str:
        """Where an object whose digest is known goes, so that it need not be renamed once it is whole: a start hashes whatever it finds there.

        Two that are the same, written at the same time, do not meet: the second gets a name of its own.
        """
        with self._lock:
            if digest in self._writing or digest in self._pending or digest in self._moving:
                return self.part_name()
            self._writing.add(digest)
        return self._arriving + digest

    def gave_up(self, part: str) -> bool:
        """What was to be written there is not. Whether the file is still the caller's: False where `take` had it.

        Where another one of the same bytes was dropped for it, nothing more can be relied on.
        """
        digest = part.rpartition(os.sep)[2]
        with self._lock:
            if digest not in self._writing:
                return not is_digest(digest)
            self._writing.discard(digest)
            self._written.notify_all()
            if digest in self._relied and self._broken is None:
                self._broken = VaultError("an object could not be written", where=part, hint="is the disk full or damaged?")
            return True

    def stands(self, digest: str, size: int) -> bool:
        """Whether these bytes need not be stored again. An object of the wrong length is damaged: it makes room for the good bytes."""
        if digest in self._pending or digest in self._moving:
            return True
        if self.inode(digest) is None:
            return False
        try:
            standing = os.stat(self._at(digest), follow_symlinks=False)  # noqa: PTH116 - str paths: this runs once an object
        except OSError:
            return False
        if standing.st_size == size:
            return True
        self.set_aside(digest, f"{standing.st_size} bytes long where {size} were stored")
        return False

    def hand_over(self, digest: str, data: bytearray) -> bool:
        """Has the writer make an object of `data`, which did not stand a moment ago. False where the caller has to do it.

        Raises DiskFull or VaultError, also for what was handed over before.
        """
        if self._writer is None:
            self._alone -= self._alone > 0
            if self._alone:
                return False
        with later, self._lock:
            if self._broken:
                raise self._broken
            if digest in self._writing or (self._writer is None and not self._begin()):
                return False
            assert self._writer is not None
            if digest in self._pending or digest in self._moving:
                return True
            due = self._await(digest, len(data))
            try:
                self._writer.write(digest, data)
            except (OSError, VaultError) as error:
                self._broken = self._broken or (told(error, self.incoming, len(data)) if isinstance(error, OSError) else error)
                raise self._broken from error
        if due:
            self._settle_soon()
        return True

    def _begin(self) -> bool:
        """Begins the writer; whether that was to be had. Where it was not, nobody tries again."""
        if self._alone < 0:
            return False
        try:
            self._writer = Writer(self.incoming, self.folder, self._held)
        except (OSError, VaultError):
            self._alone = -1
        return self._writer is not None

    def _await(self, digest: str, size: int) -> bool:
        """The object is pending from now on. Whether it is time to settle."""
        now = time.monotonic()
        if not self._pending:
            self._pending_since = now
        self._pending[digest] = size
        self._pending_bytes += size
        return self._pending_bytes >= SYNC_BYTES or now - self._pending_since >= SYNC_SECONDS

    def take(self, part: str, digest: str, size: int, *, new: bool = False, seal: bool = False) -> None:
        """Makes the whole file `part` a pending object, or drops it where the object stands. `new`: it did not stand a moment ago.

        Should it stand since, it is replaced by the same bytes. `seal`: it can be written to yet, and must stay so until it has its name.
        """
        with self._lock:
            if self._broken:
                raise self._broken
            named = part == self._arriving + digest
            if named:
                known = False
                self._writing.discard(digest)
                self._relied.discard(digest)
                self._written.notify_all()
            elif digest in self._writing:
                known = True
                self._relied.add(digest)
            else:
                known = digest in self._pending or digest in self._moving if new else self.stands(digest, size)
            if not known:
                if not named:
                    os.rename(part, self._arriving + digest)  # noqa: PTH104
                if seal:
                    os.chmod(self._arriving + digest, 0o400)  # noqa: PTH101
                due = self._await(digest, size)
        if known:
            os.unlink(part)  # noqa: PTH108
        elif due:
            self._settle_soon()

    def _settle_soon(self) -> None:
        """Settles beside what goes on, where there is a writer and it is not too far behind."""
        if self._writer is None or self._pending_bytes >= 2 * SYNC_BYTES:
            self._settle()
        elif not self._beside:
            self._beside = True
            try:
                threading.Thread(target=self._settle_beside, name="settle", daemon=True).start()
            except RuntimeError:  # this user may have no more of them
                self._settle_beside()

    def _settle_beside(self) -> None:
        try:
            with contextlib.suppress(VaultError):  # whoever comes next is told
                self._settle()
        finally:
            self._beside = False

    def _settle(self) -> None:
        """Syncs what is pending and gives it its name. What an interrupt leaves without one is pending again."""
        with self._settling:
            done = whole = False
            try:
                with self._lock:
                    if self._broken:
                        raise self._broken
                    batch = self._moving = self._pending
                    self._pending = {}
                    self._pending_bytes = 0
                if batch:
                    if self._writer is not None:
                        self._writer.settle()
                    whole = True
                    self._make_durable(batch)
                    self._name(batch)
                done = True
            except VaultError as error:
                self._broken = self._broken or error
                raise
            except OSError as error:
                self._broken = self._broken or told(error, self.folder, sum(batch.values()))
                raise self._broken from error
            finally:
                with later, self._lock:
                    if not done and self._writer is not None and isinstance(self._writer.broken, VaultError):
                        self._broken = self._broken or self._writer.broken
                    if not done and self._broken is None:
                        left = {digest: size for digest, size in self._moving.items() if not whole or os.path.lexists(self._arriving + digest)}
                        self._pending |= left
                        self._pending_bytes = sum(self._pending.values())
                    self._moving = {}

    def _make_durable(self, batch: Iterable[str]) -> None:
        try:
            if not osal.sync_tree(self.incoming):
                for digest in batch:
                    osal.sync_file(self.incoming / digest)
        except OSError as error:
            self._disbelieve(error, batch)
            raise

    def _disbelieve(self, error: OSError, batch: Iterable[str] = ()) -> None:
        """After a failed sync the system may call pages clean although the disk never got them, those of what came since too: nothing of it may be
        adopted later, and nothing more comes."""
        with self._lock:
            self._broken = self._broken or told(error, self.incoming)
        if self._writer is not None:
            self._writer.close()
        names = set(batch)
        with contextlib.suppress(OSError):
            names.update(filter(is_digest, os.listdir(self.incoming)))  # noqa: PTH208
        for name in names:
            with contextlib.suppress(OSError):
                (self.incoming / name).unlink()

    def _name(self, batch: Iterable[str]) -> None:
        shards = {digest[:2] for digest in batch}
        for shard in shards - self._shards:
            (self.folder / shard).mkdir(mode=0o700, exist_ok=True)
        self._shards |= shards
        self._touched |= shards
        try:
            if self._writer is not None:
                self._writer.name(batch)
            else:
                for digest in batch:
                    os.rename(self._arriving + digest, self._at(digest))  # noqa: PTH104
        finally:
            for shard in shards:
                self._shelves.forget(shard)

    def flush_soon(self) -> None:
        """Begins what `flush` will wait for, where something can go on beside it."""
        if self._writer is not None and self._pending:
            self._settle_soon()

    def flush(self) -> None:
        """After it every committed object is durable under its name, also where another thread is writing it yet. Raises DiskFull or VaultError."""
        with self._lock:
            relied = self._relied & self._writing
            if not self._written.wait_for(lambda: self._relied.isdisjoint(relied) or self._broken, _PATIENCE):
                self._broken = VaultError("an object is being written and does not end", where=os.fspath(self.incoming))
        self._settle()
        with self._settling:
            if not self._touched:
                return
            try:
                if not osal.sync_tree(self.folder):
                    for shard in sorted(self._touched):
                        osal.sync_folder(self.folder / shard)
                    osal.sync_folder(self.folder)
            except OSError as error:
                self._disbelieve(error)
                assert self._broken is not None
                raise self._broken from error
            self._touched.clear()

    def adopt(self) -> int:
        """Takes over what an earlier run left in incoming/: whole objects get their names. How many were taken.

        What had come of large files stays, as long as somebody may come back for it; all else goes.
        """
        taken = 0
        try:
            with os.scandir(self.incoming) as found:
                leftovers = sorted(entry.name for entry in found if entry.is_file(follow_symlinks=False))
            kept = self.partials.kept(leftovers)
            for name in leftovers:
                if name in kept:
                    continue
                path = self.incoming / name
                size = path.stat().st_size
                if is_digest(name) and not self.stands(name, size) and hash_file(path)[0] == name:
                    path.chmod(0o400)  # a kill may have come before that
                    with self._lock:
                        self._pending[name] = size
                        self._pending_since = time.monotonic()
                    taken += 1
                elif name not in self._pending:
                    path.unlink()
        except OSError as error:
            raise told(error, self.incoming) from error
        if taken:
            self.flush()
        return taken

    # ------------------------------------------------------------ what is there

    def has(self, digest: str) -> bool:
        return digest in self._pending or digest in self._moving or self.inode(digest) is not None

    def _standing(self, digest: str) -> str:
        path = self.where(digest)
        if digest in self._pending or digest in self._moving:
            self._settle()
        return path

    def remove(self, digest: str) -> int:
        """Frees an object; its size in bytes, 0 where there was none. For prune alone, which also syncs."""
        path = Path(self.where(digest))
        try:
            size = path.lstat().st_size
            path.unlink()
            self._shelves.forget(digest[:2])
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise told(error, path) from error
        self._touched.add(digest[:2])
        return size

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Ends what runs beside, and takes nothing more. Nothing is settled by it: `flush` does that. Harmless when repeated."""
        with self._settling:
            with self._lock:
                writer, self._writer, self._alone = self._writer, None, -1
                self._broken = self._broken or VaultError("the vault was closed meanwhile", where=os.fspath(self.folder), hint="run it again")
            if writer is not None:
                writer.close()
