"""An encrypted copy where no secret key is at hand: proven by what the vault knows of it, without reading a word."""

from __future__ import annotations

from hostbackup.errors import Damaged
from hostbackup.jobs.copy_source import CopyObjects, CopySnapshots, CopySource, copy_format, open_catalog
from hostbackup.vault.packs.archive import Archive
from hostbackup.vault.stores import Store
from hostbackup.vault.vault import Vault


class ClosedCopy(CopySource):
    """Its files have the sizes and digests that the vault noted when it wrote them; what they hold stands in the vault's own manifests.

    The store is the caller's to close.
    """

    def __init__(self, store: Store, vault: Vault, name: str) -> None:
        """Raises what the store raises, VaultTooNew, or VaultError where there is no copy."""
        self.store = store
        self.format = copy_format(store)
        self.archive = Archive(store, open_catalog(vault, name, store.label, sealed=True), sealed=True)
        try:
            self.listing = self.archive.refresh()
        except BaseException:
            self.close()
            raise
        self.objects = CopyObjects(self.archive)
        self.manifests = vault.manifests
        self.snapshots = _VaultSnapshots(self, vault)

    def close(self) -> None:
        self.archive.close()


class _VaultSnapshots(CopySnapshots):
    """The vault's own files of those snapshots that the copy lists."""

    def __init__(self, copy: ClosedCopy, vault: Vault) -> None:
        super().__init__(copy.archive, copy.listing, vault.manifests, vault.snapshots.folder.parent)
        self._vault = vault

    def bytes(self, snapshot_id: str) -> bytes:
        try:
            return self._vault.snapshots.path(snapshot_id).read_bytes()
        except FileNotFoundError as error:
            raise Damaged("the vault does not have this snapshot, and that of the copy is encrypted", where=snapshot_id) from error
