"""Pruning a copy: what nothing needs goes, what is needed stays whole."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import Exit
from hostbackup.jobs.copy import CopyRun
from hostbackup.jobs.copy_prune import CopyPrune, Freed
from hostbackup.jobs.copy_source import CopySource
from hostbackup.jobs.copy_verify import verify_copy
from hostbackup.jobs.result import Result
from hostbackup.vault.prune import apply_prune, plan_prune
from hostbackup.vault.stores import Store
from hostbackup.vault.vault import Vault
from tests.support.copies import copy
from tests.support.memory_store import MemoryStore
from tests.support.sample_vault import WEB, File, make_vault, snapshot, write_tree


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    make_vault(tmp_path / "vault").close()
    with Vault.open(tmp_path / "vault", "prune") as opened:
        yield opened


def prune(vault: Vault, store: Store, *, apply: bool = True) -> Freed:
    """Keeps the newest snapshot, in the vault and in the copy."""
    plan = plan_prune(vault, keep_last=1, keep_daily=0, keep_weekly=0, keep_monthly=0)
    kept = set(vault.snapshots.list()) - set(plan.remove)
    if apply:
        apply_prune(vault, plan)
    result = Result()
    with CopyRun(vault, store, result, name="usb") as run:
        pruning = CopyPrune(run.archive, vault, plan, kept, result, name="usb", retained=datetime.timedelta())
        freed = pruning.run(run.look(), apply=apply)
    assert result.failures == []
    return freed


def proven(store: Store) -> Exit:
    result = Result()
    with CopySource(store) as source:
        verify_copy(source, result, name="usb")
    return result.exit


@pytest.mark.parametrize("size", [1, 5, 3000])
def test_a_pack_of_a_few_small_files_that_are_needed_is_kept(vault: Vault, size: int) -> None:
    store = MemoryStore()
    copy(vault, store)
    snapshot(vault, (WEB, write_tree(vault, WEB, {b"new": File(b"n" * size)})), minute=1)
    copy(vault, store)
    for _ in range(2):
        prune(vault, store)
        assert proven(store) is Exit.OK
