"""A copy of a vault, read with nothing but the copy: the same names, `objects`, `manifests` and `snapshots`, that a vault has.

What a copy holds, in a bucket or in a folder, are the vault's own files under the same names:

    format.json  README.txt  objects/ab/abcd…  manifests/ab/abcd…  snapshots/N-TIME.json  evidence/N-TIME-COMMAND.jsonl
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol

from hostbackup.errors import Damaged, HostbackupError, UsageError, VaultError
from hostbackup.vault import pool
from hostbackup.vault.faults import told
from hostbackup.vault.hashing import is_digest
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.snapshots import Snapshot, Snapshots, parse_snapshot
from hostbackup.vault.state import StateFolder
from hostbackup.vault.stores import Absent, Store, checked
from hostbackup.vault.vault import FORMAT_FILE, check_format, format_document

if TYPE_CHECKING:
    from hostbackup.protocols.s3 import S3Target

_WORKERS = 16
_SMALL = 64 << 20  # bytes; no manifest or snapshot is larger


def object_key(kind: str, digest: str) -> str:
    """Where an object (`kind` "objects") or a manifest ("manifests") lies in a copy."""
    if not is_digest(digest):
        raise VaultError(f"not a SHA-256 digest: {digest[:80]!r}")
    return f"{kind}/{digest[:2]}/{digest}"


def key_digest(key: str) -> str:
    """The inverse of `object_key`; "" where the key is none of an object."""
    digest = key[-64:]
    return digest if is_digest(digest) and key.endswith(f"/{digest[:2]}/{digest}") else ""


def read_small(store: Store, key: str) -> bytes:
    """A whole small object. Raises Absent."""
    with store.get(key) as stream:
        data = stream.read(_SMALL + 1)
    if len(data) > _SMALL:
        raise Damaged("this file cannot be so large", where=f"{store.label}/{key}")
    return data


class Contents(Protocol):
    """Objects that can be read by digest: a vault's, or a copy's."""

    def read(self, digest: str) -> BinaryIO: ...


class Source(Protocol):
    """What a restore reads from: a Vault or a CopySource."""

    @property
    def objects(self) -> Contents: ...

    @property
    def manifests(self) -> Manifests: ...

    @property
    def snapshots(self) -> Snapshots: ...


class CopyObjects:
    """The contents in a copy."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, digest: str) -> BinaryIO:
        """The object's bytes; the stream raises Damaged at its end if they are not those of the digest. Raises Damaged where it is missing."""
        key = object_key("objects", digest)
        try:
            return checked(self._store.get(key), digest, f"{self._store.label}/{key}")
        except Absent as error:
            raise Damaged("the copy has lost this object", where=f"{self._store.label}/{key}", hint="run `copy --repair`") from error


class CopyManifests(Manifests):
    """The manifests in a copy, fetched once each into a folder of this machine."""

    def __init__(self, store: Store, cache: Path) -> None:
        folders = [cache / name for name in ("manifests", "incoming", "damaged")]
        for folder in folders:
            folder.mkdir(mode=0o700)
        super().__init__(*folders)
        self._store = store

    def read(self, digest: str) -> BinaryIO:
        path = Path(self.where(digest))
        if not path.exists():
            self._fetch(digest)
        return path.open("rb")

    def _fetch(self, digest: str) -> None:
        key = object_key("manifests", digest)
        try:
            with checked(self._store.get(key), digest, f"{self._store.label}/{key}") as stream:
                data = stream.read()
        except Absent as error:
            raise Damaged("the copy has lost this manifest", where=f"{self._store.label}/{key}", hint="run `copy --repair`") from error
        path = Path(self.where(digest))
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            part = path.with_name(f"{digest}.{threading.get_ident()}.part")
            part.write_bytes(data)
            part.replace(path)
        except OSError as error:
            raise told(error, path, len(data)) from error

    def warm(self, digests: Iterable[str]) -> None:
        """Fetches many at once. What fails here fails again, and is told, when it is read."""

        def fetch(digest: str) -> None:
            try:
                if not Path(self.where(digest)).exists():
                    self._fetch(digest)
            except Damaged:
                return

        for _ in pool.each(fetch, digests, workers=_WORKERS):
            pass


def warm(manifests: Manifests, digests: Iterable[str]) -> None:
    """Lets manifests that lie far away come together. Those of a vault are at hand."""
    if isinstance(manifests, CopyManifests):
        manifests.warm(digests)


class CopySnapshots(Snapshots):
    """The snapshots in a copy; nothing is written."""

    def __init__(self, store: Store, manifests: Manifests, cache: Path) -> None:
        super().__init__(cache / "snapshots", StateFolder(cache / "state"), manifests, lambda: None)
        self._store = store

    def get(self, which: str | int) -> Snapshot:
        label = self._store.label
        if not self.list():
            raise VaultError("this copy has no snapshot yet: it was begun and never finished", where=label, hint="run `copy`")
        try:
            return super().get(which)
        except VaultError as error:
            if error.where == str(self.folder):  # a folder of this machine that nobody knows
                error.where = label
            raise

    def list(self) -> list[str]:
        names = [listed.key.removeprefix("snapshots/").removesuffix(".json") for listed in self._store.list("snapshots/")]
        return sorted((name for name in names if name.partition("-")[0].isdecimal()), key=lambda name: (int(name.partition("-")[0]), name))

    def _load(self, snapshot_id: str) -> Snapshot:
        where = f"{self._store.label}/snapshots/{snapshot_id}.json"
        snapshot = parse_snapshot(read_small(self._store, f"snapshots/{snapshot_id}.json"), where)
        if snapshot.id != snapshot_id:
            raise Damaged(f"this file says it is snapshot {snapshot.id}", where=where, hint="give it back its name")
        return snapshot


class CopySource:
    """An open copy. A context manager; what it fetched is removed at the end."""

    def __init__(self, store: Store) -> None:
        """Raises what the store raises, VaultTooNew, or VaultError where there is no copy."""
        self.store = store
        check_copy(store)
        cache = Path(tempfile.mkdtemp(prefix="hostbackup-copy-"))
        self._forget = weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        self.objects: Contents = CopyObjects(store)
        self.manifests: Manifests = CopyManifests(store, cache)
        self.snapshots: Snapshots = CopySnapshots(store, self.manifests, cache)

    def close(self) -> None:
        """Also closes the store. May be called twice."""
        self._forget()
        self.store.close()

    def __enter__(self) -> CopySource:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_copy(store: Store) -> None:
    """Raises VaultError where `store` holds no copy, VaultTooNew where a newer program made it."""
    try:
        data = read_small(store, FORMAT_FILE)
    except Absent as error:
        if next(store.list("snapshots/"), None) is not None:
            hint = f"run `copy --repair`; or put a file {FORMAT_FILE} there that holds {format_document().decode().strip()}"
            raise VaultError(f"{FORMAT_FILE} of this copy is missing", where=store.label, hint=hint) from error
        hint = "nothing was copied there yet: run `copy`" if next(store.list(), None) is None else "check the bucket's prefix, or the path"
        raise VaultError("there is no copy of a vault here", where=store.label, hint=hint) from error
    check_format(data, f"{store.label}/{FORMAT_FILE}")


def open_store(where: str, target: S3Target | None = None) -> Store:
    """The store that a URL (`s3://bucket/prefix`) or a path names. `target` gives endpoint and keys; its bucket and prefix are not looked at."""
    if "://" not in where:
        from hostbackup.vault.disk import FolderStore

        return FolderStore(Path(where).expanduser())
    scheme, _, rest = where.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise UsageError(f"{where!r} names no copy", hint="give s3://bucket/prefix, or the path of a folder")
    from hostbackup.protocols.s3 import S3Target
    from hostbackup.vault.bucket import BucketStore

    if target is None:
        return BucketStore(S3Target(bucket, prefix))
    return BucketStore(S3Target(bucket, prefix, target.endpoint, target.access_key, target.secret_key, target.region))


def open_copy(where: str, target: S3Target | None = None) -> CopySource:
    """The copy at a URL or path, see `open_store`."""
    store = open_store(where, target)
    try:
        return CopySource(store)
    except HostbackupError:
        store.close()
        raise


def listed_digests(store: Store, kind: str) -> Iterator[tuple[str, int]]:
    """Digests and sizes of the objects (or manifests) that lie in a copy, ascending."""
    for listed in store.list(f"{kind}/"):
        digest = key_digest(listed.key)
        if digest:
            yield digest, listed.size
