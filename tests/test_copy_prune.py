"""Pruning reaches the copies: what is needed stays, what is not goes, and whatever a copy shows can be restored from it alone."""

from __future__ import annotations

import dataclasses
import datetime
import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from hostbackup.errors import Exit
from hostbackup.jobs import copy_prune
from hostbackup.jobs.copy_source import CopySource, catalog_path
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.prune import PrunePlan, apply_prune, plan_prune
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.stores import Outcome, Upload
from hostbackup.vault.vault import Vault
from tests.support.cli import hostbackup, write_profile
from tests.support.copies import PLAIN, Keys, copy, held, prune, restorable, stored
from tests.support.memory_store import Dying, Killed, MemoryStore, Wrapped
from tests.support.sample_vault import WEB, File, write_tree

FUTURE = "29990101T000000Z"


@pytest.fixture(params=["plain", "encrypted"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Keys:
    return PLAIN if request.param == "plain" else Keys.made(tmp_path)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "vault", "write", create=True):
        pass
    with Vault.open(tmp_path / "vault", "prune", command="prune") as opened:
        yield opened


def noise(seed: int, size: int = 400) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(seed).randbytes(size)


def take(vault: Vault, files: dict[bytes, bytes], day: int) -> str:
    tree = write_tree(vault, WEB, {name: File(data) for name, data in files.items()})
    now = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC) + datetime.timedelta(days=day)
    return vault.snapshots.write({WEB.id: PartState.of(WEB, tree)}, [], command="backup", exit=0, profile="p", now=now).id


def plan(vault: Vault, last: int = 1) -> PrunePlan:
    return plan_prune(vault, keep_last=last, keep_daily=0, keep_weekly=0, keep_monthly=0)


def history(vault: Vault, store: MemoryStore, keys: Keys) -> None:
    """Three snapshots, copied one by one: four files that stay, and a pack's worth that goes with each."""
    for day in range(3):
        passing = {b"old%d-%d" % (day, number): noise(100 * day + number) for number in range(7)}
        take(vault, {b"stays%d" % number: noise(1000 + number) for number in range(4)} | passing, day)
        copy(vault, store, recipients=keys.recipients, identities=keys.identities)


def packs(store: MemoryStore) -> set[str]:
    return {key for key in store.objects if key.startswith("packs/")}


def test_what_a_kept_snapshot_needs_stays_and_what_none_needs_goes(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    history(vault, store, keys)
    before = packs(store)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    freed, result = prune(vault, store, chosen, keys)
    assert (result.exit, result.failures) == (Exit.OK, [])
    assert restorable(store, keys) == vault.snapshots.list()
    assert freed.snapshots == 2
    assert freed.dropped >= 1
    assert freed.rewritten >= 1
    assert freed.guarded == 0
    assert stored(store, keys) == held(vault)
    assert not before <= packs(store)
    copied, result = copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    assert (copied.uploaded, result.exit) == (0, Exit.OK)
    store.puts.clear()
    again, _ = prune(vault, store, chosen, keys)
    assert (dataclasses.asdict(again), store.puts) == ({"snapshots": 0, "dropped": 0, "rewritten": 0, "bytes": 0, "guarded": 0}, [])


def test_a_pack_that_is_less_than_half_waste_is_left_as_it_is(vault: Vault) -> None:
    store = MemoryStore()
    take(vault, {b"%d" % number: noise(number) for number in range(10)}, 0)
    copy(vault, store)
    take(vault, {b"%d" % number: noise(number) for number in range(6)}, 1)
    copy(vault, store)
    [of_objects] = [key for key in packs(store) if store.objects[key].startswith(b"objects/")]
    chosen = plan(vault)
    apply_prune(vault, chosen)
    freed, _ = prune(vault, store, chosen)
    assert (freed.dropped, freed.rewritten) == (1, 0)  # the manifests of the first snapshot went
    assert of_objects in store.objects
    assert restorable(store) == vault.snapshots.list()


@pytest.mark.parametrize("size", [1, 5, 3000])
def test_a_pack_of_small_files_that_are_needed_is_kept(vault: Vault, size: int) -> None:
    store = MemoryStore()
    take(vault, {b"%d" % number: noise(number, size) for number in range(50)}, 0)
    copy(vault, store)
    before = packs(store)
    for _ in range(2):
        freed, _ = prune(vault, store, plan(vault))
        assert (freed.dropped, freed.rewritten, packs(store)) == (0, 0, before)
        assert restorable(store) == vault.snapshots.list()


def alone(store: MemoryStore, keys: Keys) -> list[str]:
    """Keys of the objects that lie on their own."""
    with CopySource(store, keys.identities) as source:
        return [blob.key for blob in source.archive.catalog.blobs() if blob.kind == "objects" and not blob.key.startswith("packs/")]


def test_large_contents_go_whole(vault: Vault, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostbackup.vault.packs.bring.SMALL", 300)
    store = MemoryStore()
    history(vault, store, keys)
    assert len(alone(store, keys)) == 4 + 3 * 7
    chosen = plan(vault)
    apply_prune(vault, chosen)
    freed, _ = prune(vault, store, chosen, keys)
    assert len(alone(store, keys)) == 4 + 7
    assert freed.dropped >= 14
    assert restorable(store, keys) == vault.snapshots.list()
    assert stored(store, keys) == held(vault)


def test_a_dry_run_tells_the_same_and_changes_nothing(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    history(vault, store, keys)
    before = dict(store.objects)
    chosen = plan(vault)
    told, result = prune(vault, store, chosen, keys, apply=False)
    assert (store.objects, result.exit) == (before, Exit.OK)
    apply_prune(vault, chosen)
    done, _ = prune(vault, store, chosen, keys)
    assert dataclasses.asdict(told) == dataclasses.asdict(done)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_killed_at_any_put_or_delete_all_that_shows_is_restorable_and_the_next_run_finishes(
    vault: Vault, keys: Keys, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_prune, "_INDEXES", 2)
    whole = MemoryStore("whole")
    history(vault, whole, keys)
    catalog = catalog_path(vault, "usb")
    known, chosen = catalog.read_bytes(), plan(vault)
    apply_prune(vault, chosen)
    step = 0
    while True:
        store = MemoryStore("whole")
        store.objects.update(whole.objects)
        catalog.write_bytes(known)
        catalog.with_name(f"{catalog.name}-journal").unlink(missing_ok=True)
        dying = Dying(store, step, done=done)
        try:
            prune(vault, dying, chosen, keys)
        except Killed:
            assert set(restorable(store, keys)) >= set(vault.snapshots.list())
        if dying.lived:
            break
        _, result = prune(vault, store, plan(vault), keys, pruned=chosen.remove)
        assert result.failures == []
        assert restorable(store, keys) == vault.snapshots.list()
        assert stored(store, keys) == held(vault)
        assert copy(vault, store, recipients=keys.recipients, identities=keys.identities)[0].uploaded == 0
        step += 1
    assert step > 8


# ------------------------------------------------------------ what may not go


class Guarding(Wrapped):
    """A store that lets nobody delete what was put there while `guard` was set, and notes what is tried."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner, lambda _item: None)
        self.guard = ""
        self.tried: list[str] = []
        self.kept: set[str] = set()

    def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
        for outcome in self.inner.put(items, at_once=at_once):
            if self.guard:
                self.kept.add(outcome.key)
            yield dataclasses.replace(outcome, until=self.guard)

    def delete(self, keys: Iterable[str]) -> Iterator[Outcome]:
        for key in keys:
            self.tried.append(key)
            if key in self.kept:
                yield Outcome(key, code="refused", reason="it is locked")
            else:
                yield from self.inner.delete([key])


def test_what_the_store_guards_is_not_even_tried(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    guarding = Guarding(store)
    guarding.guard = FUTURE
    for day in range(2):
        take(vault, {b"stays": noise(1), b"goes": noise(10 + day)}, day)
        copy(vault, guarding, recipients=keys.recipients, identities=keys.identities)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    before = packs(store)
    far = datetime.timedelta(days=300_000)
    freed, result = prune(vault, guarding, chosen, keys, retained=far)
    assert (guarding.tried, result.failures) == ([], [])
    assert freed.snapshots == freed.dropped == freed.rewritten == 0
    assert packs(store) == before


def test_what_nobody_told_the_end_of_the_guard_of_is_guarded_too(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    store.now = time.time()
    take(vault, {b"stays": noise(1), b"goes": noise(2)}, 0)
    copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    take(vault, {b"stays": noise(1)}, 1)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    before = packs(store)
    for name in [name for name in store.objects if name.startswith("snapshots/")]:  # as where its own guard has ended
        del store.objects[name]
    freed, _ = prune(vault, store, chosen, keys, retained=datetime.timedelta(days=30))
    assert freed.dropped == freed.rewritten == 0
    assert freed.guarded
    assert before <= packs(store)
    assert prune(vault, store, chosen, keys)[0].dropped


def test_a_snapshot_that_cannot_go_keeps_what_it_needs(vault: Vault) -> None:
    store = MemoryStore()
    guarding = Guarding(store)
    old = take(vault, {b"stays": noise(1), b"goes": noise(2)}, 0)
    copy(vault, guarding)
    guarding.kept.add(f"snapshots/{old}.json")  # nobody may delete it; its packs would go
    take(vault, {b"stays": noise(1)}, 1)
    copy(vault, guarding)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    freed, result = prune(vault, guarding, chosen)
    assert [(failure.name, failure.code) for failure in result.failures] == [(f"snapshots/{old}.json".encode(), "refused")]
    assert (freed.snapshots, freed.dropped) == (0, 0)
    assert restorable(store) == [old, *vault.snapshots.list()]


def test_without_the_secret_key_nothing_is_freed_beside_a_snapshot_that_stays(vault: Vault, tmp_path: Path) -> None:
    keys = Keys.made(tmp_path)
    public = Keys(keys.recipients)
    store = MemoryStore()
    history(vault, store, public)
    before = packs(store)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    lost = set(chosen.remove[:1])
    chosen.remove = chosen.remove[1:]  # the first went, and nobody knows of a prune that let it go
    freed, result = prune(vault, store, chosen, public)
    assert (freed.snapshots, freed.dropped, result.exit) == (1, 0, Exit.OK)
    assert packs(store) == before
    assert set(restorable(store, keys)) == lost | set(vault.snapshots.list())


def test_a_snapshot_that_the_vault_lost_is_not_pruned_in_the_copy(vault: Vault) -> None:
    store = MemoryStore()
    history(vault, store, PLAIN)
    lost = vault.snapshots.list()[1]
    vault.snapshots.path(lost).unlink()
    chosen = plan(vault)
    apply_prune(vault, chosen)
    prune(vault, store, chosen)
    assert restorable(store) == [lost, *vault.snapshots.list()]


def test_the_public_key_alone_prunes(vault: Vault, tmp_path: Path) -> None:
    keys = Keys.made(tmp_path)
    public = Keys(keys.recipients)
    store = MemoryStore()
    history(vault, store, public)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    freed, result = prune(vault, store, chosen, public)
    assert result.failures == []
    assert (freed.snapshots, freed.rewritten > 0, freed.dropped > 0) == (2, True, True)
    assert restorable(store, keys) == vault.snapshots.list()
    assert stored(store, keys) == held(vault)


def test_contents_that_the_vault_lost_are_packed_anew_from_the_copy(vault: Vault) -> None:
    store = MemoryStore()
    history(vault, store, PLAIN)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    lost, _ = next(iter(vault.objects.list()))
    vault.objects.path(lost).unlink()
    prune(vault, store, chosen)
    assert restorable(store) == vault.snapshots.list()


def test_contents_that_cannot_be_packed_anew_stay_in_the_old_pack(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    history(vault, store, keys)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    refuse = Wrapped(store, lambda item: Outcome(item.key, item.size, "protocol", "no") if item.key.startswith("packs/") else None)
    prune(vault, refuse, chosen, keys)
    assert restorable(store, keys) == vault.snapshots.list()


# ------------------------------------------------------------ the index


def test_many_index_files_become_one(vault: Vault, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_prune, "_INDEXES", 3)
    store = MemoryStore()
    for day in range(5):
        take(vault, {b"%d" % number: noise(number) for number in range(day + 1)}, day)
        copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    assert sum(key.startswith("index/") for key in store.objects) == 5
    prune(vault, store, plan(vault, last=9), keys)
    assert sum(key.startswith("index/") for key in store.objects) == 1
    assert restorable(store, keys) == vault.snapshots.list()
    assert stored(store, keys) == held(vault)
    assert copy(vault, store, recipients=keys.recipients, identities=keys.identities)[0].uploaded == 0


def test_what_went_and_comes_back_is_in_the_copy_again(vault: Vault, keys: Keys) -> None:
    """The pack has the same name then: an old index says that it went, a new one that it is there."""
    store = MemoryStore()
    take(vault, {b"page": noise(1)}, 0)
    copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    take(vault, {b"other": noise(2)}, 1)
    copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    chosen = plan(vault)
    apply_prune(vault, chosen)
    prune(vault, store, chosen, keys)
    take(vault, {b"page": noise(1)}, 2)
    copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    assert restorable(store, keys) == vault.snapshots.list()
    assert stored(store, keys) == held(vault)
    indexes = sorted(key for key in store.objects if key.startswith("index/"))
    catalog_path(vault, "usb").unlink()
    hidden = {key: store.objects.pop(key) for key in indexes[-2:-1]}  # the one that says it went is not told of at first
    copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    store.objects.update(hidden)
    copy(vault, store, recipients=keys.recipients, identities=keys.identities)
    assert restorable(store, keys) == vault.snapshots.list()
    prune(vault, store, plan(vault, last=2), keys)
    assert restorable(store, keys) == vault.snapshots.list()


# ------------------------------------------------------------ the command line

KEEP_ONE = ("--keep-last", "1", "--keep-daily", "0", "--keep-weekly", "0", "--keep-monthly", "0", "--json")


@pytest.fixture(params=["plain", "encrypted"])
def move(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Keys]:
    keys = PLAIN if request.param == "plain" else Keys.made(tmp_path)
    sealed = f'encrypt_to = ["{keys.recipients.texts[0]}"]\n' if keys.recipients else ""
    for name in ("site", "usb"):
        (tmp_path / name).mkdir()
    write_profile(tmp_path, f'vault = "vault"\n[[local]]\npath = "site"\n[[copy]]\nname = "usb"\npath = "usb"\n{sealed}')
    for number in range(3):
        (tmp_path / "site/stays").write_bytes(noise(7))
        (tmp_path / "site/changes").write_bytes(noise(number, 3000))
        assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 0
        if number < 2:
            assert hostbackup("copy", "move.toml", cwd=tmp_path).exit == 0
    return tmp_path, keys


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_dry_run_by_the_command_line_changes_neither_vault_nor_copy(move: tuple[Path, Keys]) -> None:
    root, _ = move
    before = files(root / "vault"), files(root / "usb")
    ran = hostbackup("prune", "move.toml", "--copies", *KEEP_ONE, cwd=root)
    assert (ran.exit, len(ran.json["go"]), ran.json["copies"]["usb"]["snapshots"]) == (0, 2, 2)
    assert (files(root / "vault"), files(root / "usb")) == before


def test_prune_by_the_command_line_frees_vault_and_copy_and_brings_the_copy_up_to_date_before(move: tuple[Path, Keys]) -> None:
    root, keys = move
    ran = hostbackup("prune", "move.toml", "--copies", "--apply", *KEEP_ONE, cwd=root)
    assert (ran.exit, ran.json["failures"]) == (0, [])
    [newest] = [path.stem for path in (root / "vault/snapshots").iterdir()]
    assert ran.json["copies"]["usb"]["snapshots"] == 2
    assert restorable(FolderStore(root / "usb"), keys) == [newest]
    with Vault.open(root / "vault", "read") as vault:
        assert stored(FolderStore(root / "usb"), keys) == held(vault)
    if keys is PLAIN:
        assert hostbackup("verify", "move.toml", "--against", "copy", cwd=root).exit == 0


def test_what_vanished_leaves_vault_and_copy_and_both_stay_whole(move: tuple[Path, Keys]) -> None:
    root, keys = move
    (root / "site/stays").unlink()
    assert hostbackup("backup", "move.toml", cwd=root).exit == 0
    ran = hostbackup("prune", "move.toml", "--copies", "--apply", "--vanished-before", "2999-01-01", *KEEP_ONE, cwd=root)
    assert (ran.exit, ran.json["failures"]) == (0, [])
    with Vault.open(root / "vault", "read") as vault:
        assert restorable(FolderStore(root / "usb"), keys) == vault.snapshots.list()
        assert stored(FolderStore(root / "usb"), keys) == held(vault)


def test_a_copy_that_cannot_be_brought_up_to_date_keeps_what_it_has(move: tuple[Path, Keys]) -> None:
    root, keys = move
    newest = max((root / "vault/snapshots").iterdir())
    state = json.loads(newest.read_text())["parts"]["local/site"]["root"]
    (root / "vault/manifests" / state[:2] / state).chmod(0o600)
    shown = restorable(FolderStore(root / "usb"), keys)
    (root / "usb/format.json").write_text("{")
    ran = hostbackup("prune", "move.toml", "--copies", "--apply", *KEEP_ONE, cwd=root)
    assert ran.exit in (1, 3)
    assert len(shown) == 2
    assert sum(path.is_file() for path in (root / "usb/snapshots").iterdir()) == 2


@pytest.mark.parametrize("command", [("copy",), ("copy", "--repair"), ("prune", "--copies", "--apply", *KEEP_ONE)], ids=["copy", "repair", "prune"])
def test_a_wrong_secret_key_for_one_copy_holds_up_no_other(tmp_path: Path, command: tuple[str, ...]) -> None:
    keys, other = Keys.made(tmp_path), Keys.made(tmp_path, "other")
    assert keys.recipients
    assert other.identities
    for name in ("site", "sealed", "usb"):
        (tmp_path / name).mkdir()
    sealed = f'encrypt_to = ["{keys.recipients.texts[0]}"]\nidentity = "other.txt"\n'
    copies = f'[[copy]]\nname = "sealed"\npath = "sealed"\n{sealed}[[copy]]\nname = "usb"\npath = "usb"\n'
    write_profile(tmp_path, f'vault = "vault"\n[[local]]\npath = "site"\n{copies}')
    (tmp_path / "site/page").write_bytes(noise(1))
    assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 0
    assert hostbackup("copy", "move.toml", cwd=tmp_path).exit == 0
    for path in (tmp_path / "vault/state").glob("*.sqlite*"):
        path.unlink()
    (tmp_path / "site/page").write_bytes(noise(2))
    assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 0
    ran = hostbackup(command[0], "move.toml", *command[1:], "--json", cwd=tmp_path)
    assert (ran.exit, [(one["side"], one["code"]) for one in ran.json["failures"]]) == (3, [("copy:sealed", "wrong-key")])
    with Vault.open(tmp_path / "vault", "read") as vault:
        assert vault.snapshots.list()[-1] in restorable(FolderStore(tmp_path / "usb"))
