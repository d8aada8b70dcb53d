"""How a bucket behaves is found out once and kept in the vault's state: a copy that has little to do need not ask again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hostbackup.errors import VaultError

if TYPE_CHECKING:
    from hostbackup.protocols.s3 import Facts
    from hostbackup.vault.state import StateFolder
    from hostbackup.vault.stores import Store


def _name(copy: str) -> str:
    return f"store-{copy}"


def known(state: StateFolder | None, copy: str, place: str) -> Facts:
    """What is known of a copy's bucket. Nothing, where the profile has led elsewhere since."""
    from hostbackup.protocols.s3 import Facts

    kept = None
    if state is not None:
        with contextlib.suppress(VaultError):  # damaged: found out again
            kept = state.read(_name(copy))
    return Facts.from_json(kept, place)


def keep(state: StateFolder, copy: str, store: Store) -> None:
    """Keeps what was found out about a copy's bucket, if it is one and anything new was. Raises VaultError, DiskFull."""
    from hostbackup.protocols.s3 import Facts
    from hostbackup.vault.bucket import BucketStore

    if isinstance(store, BucketStore) and store.facts not in (Facts(store.facts.place), known(state, copy, store.facts.place)):
        state.write(_name(copy), store.facts.to_json())
