"""Copies of a vault in tests, in the clear or encrypted: made, looked into, and harmed content by content."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyrage

from hostbackup.jobs.copy import Copied, CopyRun
from hostbackup.jobs.copy_prune import CopyPrune, Freed
from hostbackup.jobs.copy_source import CopySource
from hostbackup.jobs.references import Broken, is_needed, walk
from hostbackup.jobs.result import Result
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.packs.catalog import Found
from hostbackup.vault.packs.seal import Identities, Recipients
from hostbackup.vault.prune import PrunePlan
from hostbackup.vault.stores import Store
from hostbackup.vault.vault import Vault
from tests.support.memory_store import MemoryStore


@dataclass(frozen=True)
class Keys:
    """What a copy is made and read with: nothing for one in the clear."""

    recipients: Recipients | None = None
    identities: Identities | None = None

    @property
    def end(self) -> str:
        """What names of encrypted files end in."""
        return ".age" if self.recipients else ""

    @classmethod
    def made(cls, folder: Path, name: str = "key") -> Keys:
        """A key pair; the secret one stands in `folder`."""
        secret = pyrage.x25519.Identity.generate()
        file = folder / f"{name}.txt"
        file.write_text(f"# created by a test\n# public key: {secret.to_public()}\n{secret}\n")
        file.chmod(0o600)
        return cls(Recipients([str(secret.to_public())]), Identities(file))


PLAIN = Keys()


def copy(
    vault: Vault,
    store: Store,
    *,
    name: str = "usb",
    repair: bool = False,
    recipients: Recipients | None = None,
    identities: Identities | None = None,
) -> tuple[Copied, Result]:
    """What one `copy` did, and what it told."""
    result = Result()
    with CopyRun(vault, store, result, name=name, repair=repair, recipients=recipients, identities=identities) as run:
        return run.run(), result


def prune(
    vault: Vault,
    store: Store,
    plan: PrunePlan,
    keys: Keys = PLAIN,
    *,
    apply: bool = True,
    pruned: Collection[str] = (),
    retained: datetime.timedelta = datetime.timedelta(),
) -> tuple[Freed, Result]:
    """What pruning the copy did after the vault was pruned by `plan`, and what it told."""
    result = Result()
    with CopyRun(vault, store, result, name="usb", recipients=keys.recipients, identities=keys.identities) as run:
        listing = run.look()
        gone = {*plan.remove, *pruned}
        kept = set(vault.snapshots.list()) - set(plan.remove)
        pruning = CopyPrune(run.archive, vault, plan, result, kept=kept, pruned=gone, name="usb", retained=retained)
        return pruning.run(listing, apply=apply), result


def places(store: Store, digest: str, *, kind: str = "objects", identities: Identities | None = None) -> list[Found]:
    """Where a content lies in a copy."""
    with CopySource(store, identities) as source:
        return source.archive.catalog.find(kind, digest)


def spoil(store: MemoryStore | FolderStore, digest: str, *, kind: str = "objects", identities: Identities | None = None) -> None:
    """Flips a bit in a content, wherever it lies. Of what is encrypted, in the file that holds it."""
    for blob, member in places(store, digest, kind=kind, identities=identities):
        data = bytearray(store.objects[blob.key] if isinstance(store, MemoryStore) else (store.root / blob.key).read_bytes())
        data[member.offset if not blob.key.endswith(".age") else len(data) // 2] ^= 1
        if isinstance(store, MemoryStore):
            store.objects[blob.key] = bytes(data)
        else:
            (store.root / blob.key).write_bytes(data)


def needed(source: CopySource | Vault, snapshot: str = "latest") -> set[str]:
    """The digests of all contents of a snapshot; of the newest, vanished ones too."""
    found: set[str] = set()
    history = snapshot in ("latest", source.snapshots.list()[-1])
    for state in source.snapshots.get(snapshot).parts.values():
        for record in walk(source.manifests, state):
            assert not isinstance(record, Broken), record
            if is_needed(record, history=history):
                found.add(record.digest)
    return found


def stored(store: Store, keys: Keys = PLAIN) -> set[tuple[str, str]]:
    """Kind and digest of everything in packs and beside them, as the copy alone tells."""
    with CopySource(store, keys.identities) as source:
        catalog = source.archive.catalog
        return {(blob.kind, member.digest) for blob in catalog.blobs() for member in catalog.members(blob.key)}


def held(vault: Vault) -> set[tuple[str, str]]:
    """Kind and digest of everything in a vault."""
    folders = (("objects", vault.objects), ("manifests", vault.manifests))
    return {(kind, digest) for kind, folder in folders for digest, _ in folder.list()}


def restorable(store: Store, keys: Keys = PLAIN) -> list[str]:
    """Every snapshot that the copy shows, each of which can be read from it alone, to the last byte."""
    with CopySource(store, keys.identities) as source:
        shown = source.snapshots.list()
        for snapshot_id in shown:
            for digest in needed(source, snapshot_id):
                with source.objects.read(digest) as stream:
                    stream.read()  # checked against its digest
        return shown
