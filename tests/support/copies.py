"""Copies of a vault in tests: made, looked into, and harmed content by content."""

from __future__ import annotations

from hostbackup.jobs.copy import Copied, CopyRun
from hostbackup.jobs.copy_source import CopySource
from hostbackup.jobs.result import Result
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.packs.catalog import Found
from hostbackup.vault.packs.seal import Identities, Recipients
from hostbackup.vault.stores import Store
from hostbackup.vault.vault import Vault
from tests.support.memory_store import MemoryStore


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
