"""The vault as a whole: its folders, its lock, and how it is opened."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from hostbackup import osal
from hostbackup.errors import Locked, VaultError, VaultTooNew
from hostbackup.vault.evidence import EvidenceLog
from hostbackup.vault.faults import told
from hostbackup.vault.gate import Gate
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.readme import README
from hostbackup.vault.snapshots import Snapshots, timestamp
from hostbackup.vault.state import StateFolder

VERSION = 1
LAYOUT = "hostbackup vault"
FORMAT_FILE = "format.json"
FOLDERS = ("objects", "manifests", "snapshots", "evidence", "state", "incoming", "incoming/manifests", "damaged", "damaged/manifests")
# what a new disk or an interrupted creation leaves in a folder that is otherwise empty
_NOT_CONTENTS = ("lost+found", ".DS_Store", "System Volume Information", "desktop.ini")

Mode = Literal["read", "write", "prune"]


def format_document() -> bytes:
    """The contents of `format.json`, of a vault and of its copies."""
    return (json.dumps({"layout": LAYOUT, "version": VERSION}) + "\n").encode("ascii")


def check_format(data: bytes, where: str) -> None:
    """Raises VaultTooNew or VaultError where these are not the contents of a `format.json` that this program reads."""
    try:
        value = json.loads(data)
        layout, version = value["layout"], value["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise VaultError("this file is damaged", where=where, hint=f"it should hold {format_document().decode().strip()}") from error
    if layout != LAYOUT or not isinstance(version, int):
        raise VaultError("this is no vault of hostbackup", where=where, hint="check the path of the vault in the profile")
    if version > VERSION:
        raise VaultTooNew(
            f"made by a newer hostbackup (layout {version}; this one reads up to {VERSION})", where=where, hint="install a newer hostbackup"
        )


class Vault:
    """An open vault. As a context manager it gives its lock back at the end."""

    def __init__(self, root: Path, mode: Mode, locks: list[osal.FileLock]) -> None:
        self.root = root
        self.mode = mode
        self._locks = locks
        self.incoming = root / "incoming"  # also for a run's own temporary files: what is left there goes at the next start
        held = [lock.fd for lock in locks if lock.fd is not None]
        self.objects = ObjectFolder(root / "objects", root / "incoming", root / "damaged", held=held)
        self.manifests = Manifests(root / "manifests", root / "incoming" / "manifests", root / "damaged" / "manifests")
        self._gate = Gate()
        self.state = StateFolder(root / "state", self._gate)
        self.snapshots = Snapshots(root / "snapshots", self.state, self.manifests, self.flush)
        self.evidence = EvidenceLog(root / "evidence")

    @classmethod
    def open(cls, root: Path, mode: Mode, *, create: bool = False, command: str = "") -> Vault:
        """Opens the vault at `root`.

        Readers share it with one another and with one writer, writers exclude writers, "prune" excludes all. A reader on a read-only file system
        goes without a lock. `create` makes a vault where nothing, or an empty folder, stands. Raises VaultError, VaultTooNew, DiskFull or Locked.
        """
        root = Path(root).expanduser()
        try:
            _arrive(root, create=create)
            locks = _lock(root, mode, command)
        except OSError as error:
            raise told(error, error.filename or root) from error
        vault = cls(root, mode, locks)
        try:
            if mode != "read":
                vault._tidy(adopt=mode == "write")
        except BaseException:
            vault.close()
            raise
        return vault

    def _tidy(self, *, adopt: bool) -> None:
        """Brings back what an interrupted creation or run left undone."""
        try:
            for name in FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            if not (self.root / "README.txt").exists():
                osal.write_durably(self.root / "README.txt", README.encode(), mode=0o400)
            for folder in (self.root / "snapshots", self.root / "evidence", self.root / "state"):
                for path in folder.glob(".*.tmp"):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise told(error, error.filename or self.root) from error
        if adopt:
            self.objects.adopt()
            self.manifests.adopt()

    def flush(self) -> None:
        """After it all objects, then all manifests that were committed are durable."""
        self.objects.flush()
        self.manifests.flush()

    def close(self) -> None:
        """Gives the lock back. May be called twice. A thread that is left behind writes nothing after it: that raises VaultError."""
        self._gate.close()
        self.objects.close()
        self.manifests.close()
        while self._locks:
            self._locks.pop().release()

    def __enter__(self) -> Vault:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _arrive(root: Path, *, create: bool) -> None:
    """Makes sure that a vault which this program can read stands at `root`."""
    where = str(root)
    if not root.is_dir():
        if os.path.lexists(root):
            dangling = "a symlink that leads nowhere" if root.is_symlink() and not root.exists() else "not a folder"
            raise VaultError(f"the vault is {dangling}", where=where, hint="check the path; is the disk mounted?")
        if not create:
            raise VaultError("there is no vault here", where=where, hint="run backup first, or check the path of the vault in the profile")
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        osal.sync_folder(root.parent)
    document = root / FORMAT_FILE
    try:
        data = document.read_bytes()
    except FileNotFoundError:
        found = [name for name in os.listdir(root) if name not in _NOT_CONTENTS and not name.startswith(f".{FORMAT_FILE}.")]  # noqa: PTH208
        if found:
            hint = "give the vault a folder of its own; of a real vault, format.json is missing"
            raise VaultError(f"this folder is not empty and holds no vault (it has {min(found)!r})", where=where, hint=hint) from None
        if not create:
            raise VaultError("there is no vault here, only an empty folder", where=where, hint="run backup first; is the disk mounted?") from None
        with contextlib.suppress(PermissionError):
            root.chmod(0o700)
        # first, so that a creation which is interrupted after it is taken for what it is, and completed by the next run
        osal.write_durably(document, format_document(), mode=0o400)
        data = format_document()
    check_format(data, str(document))


def _lock(root: Path, mode: Mode, command: str) -> list[osal.FileLock]:
    """Takes what the mode needs, or raises Locked."""
    (root / "state").mkdir(mode=0o700, exist_ok=True) if mode != "read" else None
    main, readers = root / "lock", root / "state" / "readers.lock"
    locks: list[osal.FileLock] = []
    try:
        if mode != "read":
            lock = osal.FileLock.take(main, exclusive=True)
            if lock is None:
                raise Locked("another run is at work on this vault", where=str(root), hint=_who(main))
            locks.append(lock)
        shared = osal.FileLock.take(readers, exclusive=mode == "prune") if mode != "read" else _reader(readers)
        if shared is None:
            hint = _who(main) if mode != "prune" else "wait until it has ended"
            raise Locked("the vault is being pruned" if mode != "prune" else "the vault is being read by another run", where=str(root), hint=hint)
        if isinstance(shared, osal.FileLock):
            locks.append(shared)
        if mode != "read":
            locks[0].describe(f"{osal.holder()}command={command} since={timestamp(datetime.now(UTC))}\n")
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    return locks


def _reader(path: Path) -> osal.FileLock | Literal["none"] | None:
    """A shared lock; "none" where the file system lets us write nothing, and so nobody prunes there either."""
    try:
        return osal.FileLock.take(path, exclusive=False)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
            return "none"
        raise


def _who(lock: Path) -> str:
    """What the lock says of its holder, on one line."""
    try:
        text = " ".join(lock.read_text("utf-8", "replace").split())
    except OSError:
        text = ""
    return f"held by {text}" if text else "wait until it has ended"
