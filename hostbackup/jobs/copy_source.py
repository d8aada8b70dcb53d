"""A copy of a vault, read with nothing but the copy: the same `objects`, `manifests` and `snapshots` that a vault has."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from hostbackup.errors import Damaged, HostbackupError, UsageError, VaultError
from hostbackup.vault import pool
from hostbackup.vault.faults import told
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.packs.archive import Archive
from hostbackup.vault.packs.catalog import Catalog
from hostbackup.vault.packs.format import Format, format_document, parse_format
from hostbackup.vault.packs.look import Listing
from hostbackup.vault.packs.seal import Identities
from hostbackup.vault.snapshots import Snapshot, Snapshots, parse_snapshot
from hostbackup.vault.state import StateFolder, state_name
from hostbackup.vault.stores import Absent, Store
from hostbackup.vault.vault import FORMAT_FILE, Vault

if TYPE_CHECKING:
    from hostbackup.protocols.s3 import S3Target

_WORKERS = 16
_FORESEEN = 2048  # contents that are asked for together
T = TypeVar("T")


def read_format(store: Store) -> Format:
    """What a copy says of itself. Raises Absent where it says nothing, VaultTooNew, or VaultError where that is no copy's."""
    with store.get(FORMAT_FILE) as stream:
        return parse_format(stream.read(1 << 20), f"{store.label}/{FORMAT_FILE}")


def catalog_path(vault: Vault, name: str) -> Path:
    """Where a vault keeps what it knows of its copy `name`."""
    return vault.state.folder / f"{state_name(f'copy-{name}')}.sqlite"


def restored_catalog_path(vault: Vault) -> Path:
    """Where a vault that was rebuilt from an encrypted copy keeps what was known of that copy then: its name in a profile is not known yet."""
    return vault.state.folder / "restored-catalog.sqlite"


def open_catalog(vault: Vault, name: str, label: str, *, sealed: bool) -> Catalog:
    """What the vault knows of its copy `name`. Of an encrypted one, that which it was rebuilt with where there is nothing newer.

    Raises VaultError or DiskFull.
    """
    path, restored = catalog_path(vault, name), restored_catalog_path(vault)
    alone = vault.mode != "read"
    if sealed and alone and not path.exists() and restored.exists():
        part = path.with_name(f".{path.name}.tmp")
        try:
            shutil.copyfile(restored, part)
            part.replace(path)
        except OSError as error:
            raise told(error, path) from error
    return Catalog(path, label, alone=alone)


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

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def read(self, digest: str) -> BinaryIO:
        """The object's bytes; the stream raises Damaged at its end if they are not those of the digest. Raises Damaged where it is missing."""
        try:
            return self._archive.read("objects", digest)
        except Absent as error:
            raise Damaged("the copy has lost this object", where=error.where, hint="run `copy --repair`") from error

    def expect(self, digests: Sequence[str]) -> list[int]:
        """They will be read soon. Their numbers in the order in which they are best read."""
        return self._archive.expect("objects", digests)


def foreseen(contents: Contents, items: Iterable[T], digest: Callable[[T], str], *, ordered: bool = False) -> Iterator[T]:
    """The same items. Where their contents lie in a copy, it is told of many at a time before they are read, and they come in its order.

    `ordered`: they keep their own.
    """
    if not isinstance(contents, CopyObjects):
        yield from items
        return
    source = iter(items)
    while some := list(islice(source, _FORESEEN)):
        best = contents.expect([digest(item) for item in some])
        yield from some if ordered else (some[number] for number in best)


class CopyManifests(Manifests):
    """The manifests in a copy, fetched once each into a folder of this machine."""

    def __init__(self, archive: Archive, cache: Path) -> None:
        folders = [cache / name for name in ("manifests", "incoming", "damaged")]
        for folder in folders:
            folder.mkdir(mode=0o700)
        super().__init__(*folders)
        self._archive = archive

    def read(self, digest: str) -> BinaryIO:
        path = Path(self.where(digest))
        if not path.exists():
            self._fetch(digest)
        return path.open("rb")

    def _fetch(self, digest: str) -> None:
        try:
            with self._archive.read("manifests", digest) as stream:
                data = stream.read()
        except Absent as error:
            raise Damaged("the copy has lost this manifest", where=error.where, hint="run `copy --repair`") from error
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
                self._fetch(digest)
            except Damaged:
                return

        lacking = [digest for digest in digests if not Path(self.where(digest)).exists()]
        order = self._archive.expect("manifests", lacking)
        for _ in pool.each(fetch, (lacking[number] for number in order), workers=_WORKERS):
            pass


def warm(manifests: Manifests, digests: Iterable[str]) -> None:
    """Lets manifests that lie far away come together. Those of a vault are at hand."""
    if isinstance(manifests, CopyManifests):
        manifests.warm(digests)


class CopySnapshots(Snapshots):
    """The snapshots in a copy; nothing is written."""

    def __init__(self, archive: Archive, listing: Listing, manifests: Manifests, cache: Path) -> None:
        super().__init__(cache / "snapshots", StateFolder(cache / "state"), manifests, lambda: None)
        self._archive = archive
        self._names = sorted(listing.snapshots, key=lambda name: (int(name.partition("-")[0]), name))

    def get(self, which: str | int) -> Snapshot:
        label = self._archive.store.label
        if not self._names:
            raise VaultError("this copy has no snapshot yet: it was begun and never finished", where=label, hint="run `copy`")
        try:
            return super().get(which)
        except VaultError as error:
            if error.where == str(self.folder):  # a folder of this machine that nobody knows
                error.where = label
            raise

    def list(self) -> list[str]:
        return list(self._names)

    def bytes(self, snapshot_id: str) -> bytes:
        """The snapshot's file as it stands in the copy. Raises Damaged."""
        return self._archive.read_file(f"snapshots/{snapshot_id}.json")

    def _load(self, snapshot_id: str) -> Snapshot:
        where = f"{self._archive.store.label}/snapshots/{snapshot_id}.json"
        snapshot = parse_snapshot(self.bytes(snapshot_id), where)
        if snapshot.id != snapshot_id:
            raise Damaged(f"this file says it is snapshot {snapshot.id}", where=where, hint="give it back its name")
        return snapshot


class CopySource:
    """An open copy. A context manager; what it fetched is removed at the end."""

    def __init__(self, store: Store, identities: Identities | None = None) -> None:
        """Raises what the store raises, VaultTooNew, VaultError where there is no copy, UsageError for an encrypted one without a secret key."""
        self.store = store
        self.format = copy_format(store)
        if self.format.sealed and identities is None:
            hint = f"give the file with a secret key of {' or '.join(self.format.recipients)}: --identity FILE"
            raise UsageError("this copy is encrypted", where=store.label, hint=hint)
        self.archive = Archive(store, Catalog(None, store.label), sealed=self.format.sealed, identities=identities)
        cache = Path(tempfile.mkdtemp(prefix="hostbackup-copy-"))
        self._forget = weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        try:
            self.listing = self.archive.refresh()
        except BaseException:
            self.close()
            raise
        self.objects: Contents = CopyObjects(self.archive)
        self.manifests: Manifests = CopyManifests(self.archive, cache)
        self.snapshots = CopySnapshots(self.archive, self.listing, self.manifests, cache)

    def close(self) -> None:
        """Also closes the store. May be called twice."""
        self._forget()
        self.archive.close()
        self.store.close()

    def __enter__(self) -> CopySource:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def copy_format(store: Store) -> Format:
    """Raises VaultError where `store` holds no copy, VaultTooNew where a newer program made it."""
    try:
        return read_format(store)
    except Absent as error:
        if next(iter(store.list("snapshots/")), None) is not None:
            hint = f"run `copy --repair`; or put a file {FORMAT_FILE} there that holds {format_document().decode().strip()}"
            raise VaultError(f"{FORMAT_FILE} of this copy is missing", where=store.label, hint=hint) from error
        hint = (
            "nothing was copied there yet: run `copy`"
            if next(iter(store.list()), None) is None
            else "check the bucket's prefix, or the path; a mirror is none"
        )
        raise VaultError("there is no copy of a vault here", where=store.label, hint=hint) from error


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
    return BucketStore(dataclasses.replace(target, bucket=bucket, prefix=prefix))


def open_copy(where: str, target: S3Target | None = None, identities: Identities | None = None) -> CopySource:
    """The copy at a URL or path, see `open_store`."""
    store = open_store(where, target)
    try:
        return CopySource(store, identities)
    except HostbackupError:
        store.close()
        raise
