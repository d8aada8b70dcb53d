"""Copies, in the clear and encrypted, that are cut off, harmed and given other keys: what was brought once can be had, and the next run mends it."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import Damaged, Exit, UsageError, VaultError
from hostbackup.jobs.copy_source import CopySource, catalog_path
from hostbackup.vault.packs.seal import WrongKey
from hostbackup.vault.stores import Outcome, Upload
from hostbackup.vault.vault import Vault
from tests.support.copies import PLAIN, Keys, copy, held, restorable, stored
from tests.support.memory_store import Dying, Killed, MemoryStore, Wrapped
from tests.support.sample_vault import SITE, WEB, File, keep, make_vault, snapshot, write_tree


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with make_vault(tmp_path / "vault") as made:
        yield made


@pytest.fixture(params=["plain", "encrypted"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Keys:
    return PLAIN if request.param == "plain" else Keys.made(tmp_path)


def bring(vault: Vault, store: MemoryStore | Wrapped, keys: Keys, *, repair: bool = False, secret: bool = False) -> int:
    """How many contents and files went, without a failure. The secret key is not at hand unless said so, as in an unattended run."""
    done, result = copy(vault, store, recipients=keys.recipients, identities=keys.identities if secret else None, repair=repair)
    assert result.failures == []
    return done.uploaded


def names(store: MemoryStore, folder: str) -> list[str]:
    return sorted(key for key in store.objects if key.startswith(folder))


def check(vault: Vault, store: MemoryStore, keys: Keys) -> None:
    """The copy has all, and can be read from it alone."""
    assert restorable(store, keys) == vault.snapshots.list()
    assert stored(store, keys) >= held(vault)


# ------------------------------------------------------------ cut off


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_killed_at_any_put_it_goes_on_by_the_public_key_alone(vault: Vault, keys: Keys, done: bool) -> None:
    snapshot(vault, (WEB, write_tree(vault, WEB, SITE | {b"new": File(b"new")})), minute=1)
    step = 0
    while True:
        catalog_path(vault, "usb").unlink(missing_ok=True)
        vault.state.remove("copy-usb")
        store = MemoryStore()
        dying = Dying(store, step, done=done)
        try:
            bring(vault, dying, keys)
        except Killed:
            if "format.json" in store.objects:
                restorable(store, keys)
        if dying.lived:
            break
        bring(vault, store, keys)
        check(vault, store, keys)
        assert len(names(store, "packs/")) == 2, "what had arrived is known again, and nothing is there twice"
        assert bring(vault, store, keys) == 0
        step += 1
    assert step >= 7


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_repair_that_is_killed_at_any_put_or_delete_is_gone_on_with(vault: Vault, keys: Keys, done: bool) -> None:
    whole = MemoryStore()
    bring(vault, whole, keys)
    known = catalog_path(vault, "usb").read_bytes()
    step = 0
    while True:
        catalog_path(vault, "usb").write_bytes(known)
        store = MemoryStore()
        store.objects.update(whole.objects)
        for key in names(store, "packs/"):
            store.objects[key] = store.objects[key][:-700] + b"\xff" + store.objects[key][-699:]
        dying = Dying(store, step, done=done)
        with contextlib.suppress(Killed):
            bring(vault, dying, keys, repair=True)
        if dying.lived:
            break
        bring(vault, store, keys, repair=True)
        check(vault, store, keys)
        step += 1
    assert step >= 3


# ------------------------------------------------------------ harmed


def test_a_lost_index_is_made_again(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    bring(vault, store, keys)
    for key in names(store, "index/"):
        del store.objects[key]
    check(vault, store, keys)
    bring(vault, store, keys)
    assert names(store, "index/")
    assert len(names(store, "packs/")) == 2
    check(vault, store, keys)


@pytest.mark.parametrize("cut", [0, 60, -1])
def test_a_damaged_index_is_told_and_a_repair_takes_it_away(vault: Vault, keys: Keys, cut: int) -> None:
    store = MemoryStore()
    bring(vault, store, keys)
    [index] = names(store, "index/")
    store.objects[index] = store.objects[index][:cut]
    check(vault, store, keys)
    catalog_path(vault, "usb").unlink()
    bring(vault, store, keys, repair=True, secret=True)
    assert index not in store.objects
    assert names(store, "index/")
    check(vault, store, keys)
    assert bring(vault, store, keys) == 0


def test_a_pack_that_was_cut_is_sent_again_without_being_asked(vault: Vault, keys: Keys) -> None:
    store = MemoryStore()
    bring(vault, store, keys)
    for key in names(store, "packs/"):
        store.objects[key] = store.objects[key][: len(store.objects[key]) // 2]
    bring(vault, store, keys)
    check(vault, store, keys)


def test_what_is_whole_in_a_cut_pack_can_be_had_though_nobody_else_has_it(vault: Vault) -> None:
    store = MemoryStore()
    bring(vault, store, PLAIN)
    [pack] = [key for key in names(store, "packs/") if store.objects[key].startswith(b"objects/")]
    store.objects[pack] = store.objects[pack][: len(store.objects[pack]) // 2]
    had = 0
    with CopySource(store) as source:
        for digest, _ in vault.objects.list():
            try:
                with source.objects.read(digest) as stream:
                    stream.read()
                had += 1
            except Damaged:
                continue
    assert 1 < had < len(list(vault.objects.list()))


def test_what_is_whole_in_a_damaged_pack_can_be_had_though_the_index_is_lost(vault: Vault) -> None:
    store = MemoryStore()
    bring(vault, store, PLAIN)
    for key in [*names(store, "index/"), *names(store, "snapshots/")]:
        del store.objects[key]
    for key in names(store, "packs/"):
        store.objects[key] = b"\xff" * 513 + store.objects[key][513:]
    assert len(stored(store)) == len(held(vault)) - 2
    catalog_path(vault, "usb").unlink()
    bring(vault, store, PLAIN)
    check(vault, store, PLAIN)


def test_a_damaged_object_of_the_vault_does_not_spoil_its_pack(vault: Vault, keys: Keys) -> None:
    digest, size = keep(vault, b"<h1>example</h1>\n")
    path = vault.objects.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"X" * size)
    store = MemoryStore()
    done, result = copy(vault, store, recipients=keys.recipients)
    assert (result.exit, done.snapshots) == (Exit.DAMAGE, [])
    assert stored(store, keys) == held(vault)


@pytest.mark.parametrize("folder", ["packs/", "index/"])
def test_what_the_store_refuses_keeps_the_snapshot_back_and_comes_next_time(vault: Vault, keys: Keys, folder: str) -> None:
    store = MemoryStore()

    def refuse(item: Upload) -> Outcome | None:
        return Outcome(item.key, item.size, "protocol", "no") if item.key.startswith(folder) else None

    try:
        _, result = copy(vault, Wrapped(store, refuse), recipients=keys.recipients)
        assert result.exit is Exit.INCOMPLETE
    except VaultError as error:
        assert (folder, "index" in error.reason) == ("index/", True)
    assert names(store, "snapshots/") == []
    bring(vault, store, keys)
    check(vault, store, keys)
    assert len(names(store, "packs/")) == 2


# ------------------------------------------------------------ what this side knows of it


@pytest.mark.parametrize("harm", ["lost", "damaged", "old"])
def test_what_is_known_of_a_copy_may_be_lost_damaged_or_old(vault: Vault, keys: Keys, harm: str) -> None:
    store = MemoryStore()
    bring(vault, store, keys)
    catalog = catalog_path(vault, "usb")
    old = catalog.read_bytes()
    snapshot(vault, (WEB, write_tree(vault, WEB, SITE | {b"new": File(b"new")})), minute=1)
    bring(vault, store, keys)
    if harm == "lost":
        catalog.unlink()
    else:
        catalog.write_bytes(old if harm == "old" else b"\xff" * 5000)
    assert bring(vault, store, keys, secret=True) == 0
    check(vault, store, keys)


def test_without_catalog_and_secret_key_everything_goes_again_once(vault: Vault, tmp_path: Path) -> None:
    keys = Keys.made(tmp_path)
    store = MemoryStore()
    bring(vault, store, keys)
    catalog_path(vault, "usb").unlink()
    assert bring(vault, store, keys) == len(held(vault))
    assert bring(vault, store, keys) == 0
    check(vault, store, keys)


def test_a_disk_that_is_mounted_elsewhere_is_known_again(vault: Vault, keys: Keys) -> None:
    store = MemoryStore("/media/usb")
    bring(vault, store, keys)
    elsewhere = MemoryStore("/media/usb1")
    elsewhere.objects = store.objects
    bring(vault, elsewhere, keys)
    assert len(names(store, "packs/")) == 2
    check(vault, elsewhere, keys)


# ------------------------------------------------------------ sizes


def test_contents_at_the_limits_come_whole(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostbackup.vault.packs.bring.SMALL", 2000)
    monkeypatch.setattr("hostbackup.vault.packs.bring.PACK_BYTES", 4000)
    sizes = (0, 1, 63, 64, 1999, 2000, 2001, 1998, 2)
    with Vault.open(tmp_path / "limits", "write", create=True) as vault:
        files = {b"%d" % size: File(random.Random(size).randbytes(size)) for size in sizes}
        snapshot(vault, (WEB, write_tree(vault, WEB, files)))
        store = MemoryStore()
        bring(vault, store, keys)
        check(vault, store, keys)
        assert bring(vault, store, keys) == 0


# ------------------------------------------------------------ copies of version 1


def test_a_copy_of_version_1_is_read_gone_on_with_and_repaired(vault: Vault) -> None:
    store = MemoryStore()
    store.objects["format.json"] = b'{"layout": "hostbackup vault", "version": 1}\n'
    for kind, folder in (("objects", vault.objects), ("manifests", vault.manifests)):
        for digest, _ in folder.list():
            with folder.read(digest) as stream:
                store.objects[f"{kind}/{digest[:2]}/{digest}"] = stream.read()
    [first] = vault.snapshots.list()
    store.objects[f"snapshots/{first}.json"] = vault.snapshots.path(first).read_bytes()
    check(vault, store, PLAIN)
    snapshot(vault, (WEB, write_tree(vault, WEB, SITE | {b"new": File(b"new")})), minute=1)
    assert bring(vault, store, PLAIN) == 4
    assert json.loads(store.objects["format.json"])["version"] == 2
    check(vault, store, PLAIN)
    harmed, cut = [key for key in names(store, "objects/") if len(store.objects[key]) > 2][:2]
    store.objects[harmed] = b"X" * len(store.objects[harmed])
    store.objects[cut] = store.objects[cut][:1]
    bring(vault, store, PLAIN)
    assert stored(store) >= held(vault)
    bring(vault, store, PLAIN, repair=True)
    assert harmed not in store.objects, "what it held is in a pack now"
    check(vault, store, PLAIN)


# ------------------------------------------------------------ keys


def test_a_copy_is_opened_by_its_own_key_alone(vault: Vault, tmp_path: Path) -> None:
    keys, other = Keys.made(tmp_path), Keys.made(tmp_path, "other")
    store = MemoryStore()
    bring(vault, store, keys)
    before = dict(store.objects)
    with pytest.raises(UsageError, match="encrypted"):
        CopySource(store)
    with pytest.raises(WrongKey, match=r"other\.txt"):
        CopySource(store, other.identities)
    assert store.objects == before
    secrets = b"".join(store.objects.values())
    assert b"index.html" not in secrets
    assert b"<h1>example" not in secrets


def test_new_recipients_are_for_what_comes_now(vault: Vault, tmp_path: Path) -> None:
    old, new = Keys.made(tmp_path), Keys.made(tmp_path, "new")
    store = MemoryStore()
    bring(vault, store, old)
    snapshot(vault, (WEB, write_tree(vault, WEB, SITE | {b"new": File(b"new")})), minute=1)
    bring(vault, store, new)
    assert old.recipients is not None
    assert new.recipients is not None
    assert json.loads(store.objects["format.json"])["recipients"] == list(new.recipients.texts)
    for keys in (old, new):
        with pytest.raises(WrongKey):
            restorable(store, keys)


@pytest.mark.parametrize("sealed_first", [True, False])
def test_a_copy_is_never_half_encrypted(vault: Vault, tmp_path: Path, sealed_first: bool) -> None:
    keys = Keys.made(tmp_path)
    first, then = (keys, PLAIN) if sealed_first else (PLAIN, keys)
    store = MemoryStore()
    bring(vault, store, first)
    before = dict(store.objects)
    with pytest.raises(UsageError, match="encrypt_to"):
        bring(vault, store, then)
    assert store.objects == before
    check(vault, store, first)
