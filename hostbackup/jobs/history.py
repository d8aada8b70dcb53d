"""What earlier runs left to compare with, also where the disk damaged some of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from hostbackup.errors import Damaged, Exit
from hostbackup.jobs.result import Result
from hostbackup.model import Failure, Part
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.snapshots import Snapshot
from hostbackup.vault.vault import Vault

_HINT = "`copy --repair` may bring it back from a copy"

Root = TypeVar("Root")


def newest_readable(vault: Vault, result: Result) -> Snapshot | None:
    """The newest snapshot that is whole; newer ones that are not are told as damage. None in a vault without any."""
    for name in reversed(vault.snapshots.list()):
        try:
            return vault.snapshots.get(name)
        except Damaged as error:
            tell_damage(result, "", f"snapshot {name}".encode(), error)
    return None


def bases(vault: Vault, part: Part, result: Result, open_root: Callable[[Manifests, str], Root]) -> Iterator[Root | None]:
    """What a backup of the part can be compared with: its newest manifest, and where the caller finds that damaged, older ones, at last nothing.

    Damaged manifests are set aside before the next is given: else a new one with the same contents would be taken to stand already.
    """
    tried = set()
    for snapshot in vault.snapshots.of_part(part.id):  # of damaged ones tells `newest_readable`
        state = snapshot.parts[part.id]
        if not state.root or state.root in tried:
            continue
        tried.add(state.root)
        try:
            yield open_root(vault.manifests, state.root)
        except Damaged as error:
            tell_damage(result, part.id, f"manifest of snapshot {snapshot.id}".encode(), error)
        set_aside_damaged(vault)  # the caller comes back here only where it found some
    yield None


def set_aside_damaged(vault: Vault) -> None:
    """Re-reads all manifests, and makes room for those that are not what was written. Nothing, in a vault that is only read."""
    if vault.mode != "write":
        return
    for digest, good, reason in vault.manifests.prove(digest for digest, _ in vault.manifests.list()):
        if not good and reason != "missing":
            vault.manifests.set_aside(digest, reason)


def tell_damage(result: Result, part: str, name: bytes, error: Damaged) -> None:
    """Damage of what earlier runs left: this run goes on without it."""
    reason = f"{error.where}: {error.reason}" if error.where else error.reason
    result.fail(Failure("vault", part, name, error.code, reason, error.hint or _HINT), Exit.DAMAGE)
