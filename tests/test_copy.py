"""Copies of a vault: brought up to date, interrupted, proven from the copy alone, repaired both ways."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import Damaged, Exit, PlaceMissing, UsageError, VaultError, VaultTooNew
from hostbackup.jobs.copy import CopyRun
from hostbackup.jobs.copy_fetch import fetch_missing
from hostbackup.jobs.copy_source import CopySource, catalog_path, open_copy
from hostbackup.jobs.copy_verify import verify_copy
from hostbackup.jobs.references import Broken, is_needed, walk
from hostbackup.jobs.result import Result
from hostbackup.vault import tree
from hostbackup.vault.bucket import BucketStore
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.packs.seal import Identities, Recipients
from hostbackup.vault.stores import Outcome, Store, Upload
from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.vault import Vault
from tests.support.copies import copy, spoil
from tests.support.memory_store import Killed, MemoryStore, Wrapped, dies_after
from tests.support.s3 import S3Server, moto_server, rclone_server
from tests.support.sample_vault import LOCAL, MAIL, SITE, WEB, File, keep, make_vault, snapshot, write_tree


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with make_vault(tmp_path / "vault") as made:
        yield made


def stored(store: MemoryStore) -> set[tuple[str, str]]:
    """Kind and digest of everything in packs and beside them."""
    with CopySource(store) as source:
        catalog = source.archive.catalog
        return {(blob.kind, member.digest) for blob in catalog.blobs() for member in catalog.members(blob.key)}


def held(vault: Vault) -> set[tuple[str, str]]:
    folders = (("objects", vault.objects), ("manifests", vault.manifests))
    return {(kind, digest) for kind, folder in folders for digest, _ in folder.list()}


def needed(source: CopySource | Vault) -> set[str]:
    """The digests of all contents of the newest snapshot, vanished ones included."""
    found: set[str] = set()
    for state in source.snapshots.get("latest").parts.values():
        for record in walk(source.manifests, state):
            assert not isinstance(record, Broken)
            if is_needed(record, history=True):
                found.add(record.digest)
    return found


def test_a_copy_holds_all_and_is_read_with_nothing_else(vault: Vault, tmp_path: Path) -> None:
    vault.evidence.write("verify", [{"type": "proof"}])
    (tmp_path / "usb").mkdir()
    copied, result = copy(vault, FolderStore(tmp_path / "usb"))
    assert (result.exit, result.failures) == (Exit.OK, [])
    ids = vault.snapshots.list()
    assert (copied.snapshots, copied.snapshot) == (ids, ids[-1])
    vault.close()
    (tmp_path / "vault").rename(tmp_path / "burnt")
    with open_copy(str(tmp_path / "usb")) as source:
        assert source.snapshots.list() == ids
        digests = needed(source)
        assert len(digests) > 8
        for digest in digests:
            with source.objects.read(digest) as stream:
                assert stream.read() == (tmp_path / "burnt" / "objects" / digest[:2] / digest).read_bytes()
    assert len(list((tmp_path / "usb" / "evidence").iterdir())) == 1
    assert json.loads((tmp_path / "usb" / "format.json").read_bytes()) == {"layout": "hostbackup copy", "version": 2}


def test_a_second_copy_sends_nothing(vault: Vault) -> None:
    store = MemoryStore()
    first, _ = copy(vault, store)
    store.puts.clear()
    second, result = copy(vault, store)
    assert (store.puts, second.uploaded, second.snapshots, result.exit) == ([], 0, [], Exit.OK)
    assert second.skipped == len(held(vault))
    assert first.uploaded == len(held(vault)) + 1  # the snapshot


def test_a_new_snapshot_sends_only_what_is_new(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    store.puts.clear()
    changed = SITE | {b"index.html": File(b"<h1>new</h1>\n")}
    snapshot(vault, (WEB, write_tree(vault, WEB, changed)), minute=1)
    copied, _ = copy(vault, store)
    kinds = [key.partition("/")[0] for key in store.puts]
    assert kinds == ["packs", "packs", "index", "snapshots"]
    assert copied.uploaded == 4  # a page, the folder's manifest and the root, and the snapshot
    assert copied.snapshot == vault.snapshots.list()[-1]
    with CopySource(store) as source:
        assert needed(source) == needed(vault)


def test_a_copy_killed_at_any_upload_is_whole_as_far_as_it_goes_and_goes_on(vault: Vault) -> None:
    snapshot(vault, (WEB, write_tree(vault, WEB, SITE | {b"new": File(b"new")})), minute=1)
    vault.evidence.write("verify", [])
    whole = MemoryStore()
    copy(vault, whole)
    for puts in range(len(whole.puts)):
        store = MemoryStore(f"killed after {puts}")
        with pytest.raises(Killed):
            copy(vault, dies_after(store, puts))
        if f"snapshots/{vault.snapshots.list()[-1]}.json" in store.objects:
            with CopySource(store) as source:
                assert {("objects", digest) for digest in needed(source)} <= stored(store)
        sent = len(store.puts)
        assert copy(vault, store)[1].exit is Exit.OK
        assert store.objects == whole.objects
        assert len(store.puts) - sent == len(whole.puts) - puts + (puts == 1), "what was there is not sent again, but the README of an unborn copy"
        catalog_path(vault, "usb").unlink()
        assert copy(vault, store)[0].uploaded == 0, "what this side knew of the copy is found out again"


def test_the_snapshot_goes_after_everything_it_needs_and_evidence_last(vault: Vault) -> None:
    vault.evidence.write("verify", [])
    store = MemoryStore()
    copy(vault, store)
    kinds = [key.partition("/")[0] for key in store.puts]
    assert kinds == ["README.txt", "format.json", "packs", "packs", "index", "snapshots", "evidence"]


def first_pack(item: Upload) -> bool:
    return item.key.startswith("packs/") and item.open().read(8) == b"objects/"


def test_an_object_that_is_refused_keeps_its_snapshot_back_and_is_named(vault: Vault) -> None:
    store = MemoryStore()
    refuse = Wrapped(store, lambda item: Outcome(item.key, item.size, "protocol", "the store said 418") if first_pack(item) else None)
    copied, result = copy(vault, refuse)
    assert (copied.snapshots, copied.snapshot, result.exit) == ([], "", Exit.INCOMPLETE)
    named = [failure for failure in result.failures if failure.name == b"index.html"]
    assert [(failure.side, failure.part, failure.code) for failure in named] == [("copy:usb", WEB.id, "not-copied")]
    assert "418" in named[0].reason
    assert f"snapshots/{vault.snapshots.list()[-1]}.json" not in store.objects
    again, result = copy(vault, store)
    assert (again.snapshots, result.exit) == (vault.snapshots.list(), Exit.OK)


def test_a_manifest_that_is_refused_keeps_its_snapshot_back(vault: Vault) -> None:
    store = MemoryStore()
    refuse = Wrapped(store, lambda item: Outcome(item.key, item.size, "protocol", "no") if item.key.startswith("packs/") and store.puts[2:] else None)
    copied, result = copy(vault, refuse)
    assert (copied.snapshots, result.exit) == ([], Exit.INCOMPLETE)


def test_a_damaged_object_is_not_sent_but_set_aside_and_said(vault: Vault, tmp_path: Path) -> None:
    digest, size = keep(vault, b"<h1>example</h1>\n")
    path = vault.objects.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"X" * size)
    store = MemoryStore()
    copied, result = copy(vault, store)
    assert result.exit is Exit.DAMAGE
    assert ("objects", digest) not in stored(store)
    assert not vault.objects.has(digest)
    assert [found.name for found in (tmp_path / "vault" / "damaged").glob(f"{digest}.*[0-9]")] == [f"{digest}.1"]
    assert {failure.side for failure in result.failures} == {"vault", "copy:usb"}
    assert copied.snapshots == []
    assert stored(store) == held(vault)


def test_what_the_vault_lost_but_the_copy_has_does_not_keep_a_snapshot_back(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    digest, _ = keep(vault, b"<h1>example</h1>\n")
    snapshot(vault, (WEB, write_tree(vault, WEB, SITE | {b"new": File(b"new")})), minute=1)
    vault.objects.path(digest).unlink()
    copied, result = copy(vault, store)
    assert (len(copied.snapshots), result.exit) == (1, Exit.OK)


def test_what_neither_has_is_named(vault: Vault) -> None:
    digest, _ = keep(vault, b"<h1>example</h1>\n")
    vault.flush()
    vault.objects.path(digest).unlink()
    copied, result = copy(vault, MemoryStore())
    assert (copied.snapshots, result.exit) == ([], Exit.DAMAGE)
    assert [failure.name for failure in result.failures] == [b"index.html"]


_PROGRAM = """
import sys
from pathlib import Path
from hostbackup.jobs.copy import CopyRun
from hostbackup.jobs.result import Result
from hostbackup.vault import disk
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.packs.seal import Identities, Recipients
from hostbackup.vault.packs import archive
from hostbackup.vault.vault import Vault
disk._BATCH_FILES = 2
archive._MOST = 50
with Vault.open(Path(sys.argv[1]), "write") as vault, CopyRun(vault, FolderStore(Path(sys.argv[2])), Result(), name="usb") as run:
    run.run()
"""


def test_a_process_that_is_killed_leaves_only_whole_objects_under_their_names(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as made:
        snapshot(made, (WEB, write_tree(made, WEB, {b"%d" % n: File(b"file %d " % n * 2000) for n in range(1500)})))
    disk = tmp_path / "usb"
    disk.mkdir()
    for wanted in (1, 8, 16):
        process = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(tmp_path / "vault"), str(disk)])
        deadline = time.monotonic() + 60
        while sum(1 for _ in FolderStore(disk).list("packs/")) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        for listed in FolderStore(disk).list("packs/"):
            assert hashlib.sha256((disk / listed.key).read_bytes()).hexdigest() == (disk / listed.key).stem
    with Vault.open(tmp_path / "vault", "write") as vault:
        copied, result = copy(vault, FolderStore(disk))
        assert (result.failures, copied.skipped >= 750) == ([], True)
        with CopySource(FolderStore(disk)) as source:
            assert needed(source) == needed(vault)
    assert [path.name for path in (disk / "incoming").iterdir()] == ["lock"]


# ------------------------------------------------------------ what else may be there


def test_a_copy_that_somebody_else_began_meanwhile_is_not_overwritten(vault: Vault, keys: tuple[Recipients, Identities], tmp_path: Path) -> None:
    store = MemoryStore()
    with CopyRun(vault, store, Result(), name="usb") as run:
        with make_vault(tmp_path / "other") as other:
            copy(other, store, recipients=keys[0])
        before = dict(store.objects)
        with pytest.raises(UsageError, match="is encrypted"):
            run.run()
    assert store.objects == before


def test_a_folder_with_other_files_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "usb" / "写真").mkdir(parents=True)
    (tmp_path / "usb" / "写真" / "a.jpg").write_bytes(b"x")
    with pytest.raises(VaultError, match="other files"):
        copy(vault, FolderStore(tmp_path / "usb"))
    assert [path.name for path in (tmp_path / "usb").iterdir()] == ["写真"]


def test_a_copy_by_a_newer_program_is_left_alone(vault: Vault) -> None:
    store = MemoryStore()
    store.objects["format.json"] = b'{"layout": "hostbackup vault", "version": 99}'
    with pytest.raises(VaultTooNew):
        copy(vault, store)
    with pytest.raises(VaultTooNew):
        CopySource(store)
    assert len(store.objects) == 1


@pytest.mark.parametrize("data", [b"[" * 200_000, b"", b"[]", b'{"layout": ["x"], "version": 2}', b'{"layout": "hostbackup copy", "version": "2"}'])
def test_a_format_file_of_nonsense_is_one_clear_error(data: bytes) -> None:
    store = MemoryStore()
    store.objects["format.json"] = data
    with pytest.raises(VaultError):
        CopySource(store)


def test_two_vaults_do_not_share_a_copy(vault: Vault, tmp_path: Path) -> None:
    store = MemoryStore()
    copy(vault, store)
    before = dict(store.objects)
    with Vault.open(tmp_path / "other", "write", create=True) as other:
        snapshot(other, (WEB, write_tree(other, WEB, SITE)), minute=5)
        with pytest.raises(VaultError, match="another vault"):
            copy(other, store)
    assert store.objects == before


def test_a_disk_that_is_not_mounted_is_no_new_copy(vault: Vault, tmp_path: Path) -> None:
    disk = tmp_path / "usb"
    disk.mkdir()
    copy(vault, FolderStore(disk))
    disk.rename(tmp_path / "unplugged")
    disk.mkdir()  # the mount point stays
    with pytest.raises(PlaceMissing, match="mounted"):
        copy(vault, FolderStore(disk))
    assert list(disk.iterdir()) == []


def test_what_is_on_the_copy_alone_stays_there(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    digest = hashlib.sha256(b"of a pruned snapshot").hexdigest()
    store.objects[f"objects/{digest[:2]}/{digest}"] = b"of a pruned snapshot"
    store.objects["evidence/000009-20200101T000000Z-verify.jsonl"] = b"{}"
    before = dict(store.objects)
    assert copy(vault, store)[1].exit is Exit.OK
    assert store.objects == before


def test_evidence_that_differs_is_not_overwritten(vault: Vault) -> None:
    store = MemoryStore()
    name = vault.evidence.write("verify", [{"a": 1}]).name
    copy(vault, store)
    store.objects[f"evidence/{name}"] = b"forged"
    _, result = copy(vault, store)
    assert (result.exit, [failure.code for failure in result.failures]) == (Exit.DAMAGE, ["conflict"])
    assert store.objects[f"evidence/{name}"] == b"forged"


def test_evidence_of_the_copy_follows_it(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    with CopyRun(vault, store, Result(), name="usb") as run:
        run.run()
        vault.evidence.write("copy", [])
        assert run.evidence() == 1
        assert run.evidence() == 0


# ------------------------------------------------------------ proof


def prove(store: Store) -> tuple[dict[str, dict[str, int]], Result]:
    result = Result()
    with CopySource(store) as source:
        lines = verify_copy(source, result, name="usb")
    return {line["part"]: line["counts"] for line in lines}, result


def test_a_whole_copy_is_proven_entry_by_entry(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    counts, result = prove(store)
    assert (result.exit, result.failures) == (Exit.OK, [])
    assert counts == {WEB.id: {"verified": 7}, MAIL.id: {"verified": 5}, LOCAL.id: {"verified": 1}}


def test_each_damaged_or_missing_object_is_named_with_its_entries(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    logo, _ = keep(vault, bytes(range(256)) * 40)
    page, _ = keep(vault, b"<h1>example</h1>\n")
    spoil(store, logo)
    spoil(store, page)
    counts, result = prove(store)
    assert counts[WEB.id] == {"verified": 4, "different": 3}
    assert sorted((failure.name, failure.code) for failure in result.failures) == [
        (b"img/copy of logo.png", "different"),
        (b"img/logo.png", "different"),
        (b"index.html", "different"),
    ]
    assert result.exit is Exit.DAMAGE


def test_a_damaged_manifest_is_damage_and_the_rest_is_proven(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    root = vault.snapshots.get("latest").parts[LOCAL.id].root
    spoil(store, root, kind="manifests")
    counts, result = prove(store)
    assert result.exit is Exit.DAMAGE
    assert counts[LOCAL.id] == {"different": 1}
    assert counts[MAIL.id] == {"verified": 5}


def test_a_snapshot_that_was_not_copied_is_said_and_the_newest_proven(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    newer = snapshot(vault, (WEB, write_tree(vault, WEB, {b"x": File(b"x")})), minute=1)
    result = Result()
    with CopySource(store) as source:
        lines = verify_copy(source, result, name="usb", snapshot=newer.id)
    assert {line["snapshot"] for line in lines} == {vault.snapshots.list()[0]}
    assert result.exit is Exit.INCOMPLETE
    assert "run `copy`" in result.failures[0].hint


def test_a_vanished_message_is_proven_too_and_told_when_it_is_lost(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    gone, _ = keep(vault, b"Subject: gone\r\n\r\n")
    spoil(store, gone)
    counts, result = prove(store)
    assert counts[MAIL.id] == {"verified": 5, "different": 1}
    assert [failure.name for failure in result.failures] == [b"INBOX UID 3"]


def test_a_pack_that_was_lost_is_damage_and_each_entry_in_it_is_named(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    with CopySource(store) as source:
        [pack] = [blob.key for blob in source.archive.catalog.blobs() if blob.kind == "objects"]
    del store.objects[pack]
    counts, result = prove(store)
    # vanished ones are counted where they are lost
    assert counts == {WEB.id: {"missing": 8}, MAIL.id: {"missing": 6}, LOCAL.id: {"missing": 1}}
    assert result.exit is Exit.DAMAGE


# ------------------------------------------------------------ repair


def test_repair_replaces_what_is_damaged_in_the_copy(vault: Vault) -> None:
    store = MemoryStore()
    vault.evidence.write("verify", [{"a": 1}])
    copy(vault, store)
    good = dict(store.objects)
    for prefix in ("packs/", "snapshots/", "evidence/"):
        for key in [key for key in store.objects if key.startswith(prefix)]:
            store.objects[key] = b"\0" + store.objects[key][1:]
    copied, result = copy(vault, store, repair=True)
    assert (result.exit, result.failures) == (Exit.OK, [])
    assert copied.repaired == len(held(vault))
    assert {key: data for key, data in store.objects.items() if not key.startswith("index/")} == {
        key: data for key, data in good.items() if not key.startswith("index/")
    }
    assert prove(store)[1].exit is Exit.OK


def test_repair_says_what_nobody_has_whole(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    store.objects["objects/00/00" + "0" * 62] = b"rotten"
    _, result = copy(vault, store, repair=True)
    assert (result.exit, [failure.code for failure in result.failures]) == (Exit.DAMAGE, ["damaged"])


def test_the_vault_gets_back_what_it_lost(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "usb").mkdir()
    copy(vault, FolderStore(tmp_path / "usb"))
    before = {
        path.relative_to(tmp_path / "vault"): path.read_bytes() for kind in ("objects", "manifests") for path in _files(tmp_path / "vault" / kind)
    }
    for kind in ("objects", "manifests"):
        for path in _files(tmp_path / "vault" / kind)[::2]:
            path.unlink()
    short = _files(tmp_path / "vault" / "objects")[0]
    short.chmod(0o600)
    short.write_bytes(b"")
    result = Result()
    with CopySource(FolderStore(tmp_path / "usb")) as source:
        fetched = fetch_missing(vault, source, result, name="usb")
    assert (result.exit, result.failures) == (Exit.OK, [])
    live = needed(vault)
    for name, data in before.items():
        if "manifests" in name.parts or name.name in live:
            assert (tmp_path / "vault" / name).read_bytes() == data
    assert fetched.manifests > 0
    assert fetched.objects > 0


@pytest.mark.parametrize("lost", [True, False])
def test_the_vault_gets_back_an_index_of_a_large_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    for name, value in (("INDEX_REFS", 8), ("_INDEX_AVERAGE", 4), ("_INDEX_LARGEST", 8)):
        monkeypatch.setattr(tree, name, value)
    with make_vault(tmp_path / "vault") as vault:
        large = {b"d%02d/file" % number: File(b"%d" % number) for number in range(40)}
        snapshot(vault, (WEB, write_tree(vault, WEB, large)), minute=1)
        store = MemoryStore()
        copy(vault, store)
        root = TreeRoot.open(vault.manifests, vault.snapshots.get("latest").parts[WEB.id].root)
        indexes = list(root.indexes())
        assert indexes
        for digest in indexes:
            path = vault.manifests.path(digest)
            if lost:
                path.unlink()
            else:
                path.chmod(0o600)
                path.write_bytes(b"{}")
        vault.objects.path(hashlib.sha256(b"7").hexdigest()).unlink()
        result = Result()
        with CopySource(store) as source:
            fetched = fetch_missing(vault, source, result, name="usb")
        assert (result.exit, result.failures) == (Exit.OK, [])
        assert (fetched.objects, fetched.manifests) == (1, len(indexes))
        assert all(good for _, good, _ in vault.manifests.prove(indexes))


def test_a_copy_that_is_damaged_too_gives_the_vault_nothing(vault: Vault) -> None:
    store = MemoryStore()
    copy(vault, store)
    digest, _ = keep(vault, b"<h1>example</h1>\n")
    vault.objects.path(digest).unlink()
    spoil(store, digest)
    result = Result()
    with CopySource(store) as source:
        fetch_missing(vault, source, result, name="usb")
        with pytest.raises(Damaged), source.objects.read(digest) as stream:
            stream.read()
    assert not vault.objects.has(digest)
    assert [(failure.name, failure.code) for failure in result.failures] == [(b"index.html", "damaged")]
    assert result.exit is Exit.DAMAGE


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------ real servers


@pytest.fixture(scope="module", params=["moto", "rclone"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    made = moto_server(checks_sha256=True) if request.param == "moto" else rclone_server(tmp_path_factory.mktemp("rclone"))
    with made as running:
        yield running


def test_a_copy_in_a_bucket_is_made_proven_and_read(server: S3Server, vault: Vault) -> None:
    server.make_bucket("copies")
    target = server.target("copies", "example.jp")
    store = BucketStore(target)
    assert copy(vault, store)[1].exit is Exit.OK
    assert copy(vault, store)[0].uploaded == 0
    counts, result = prove(store)
    assert counts[WEB.id] == {"verified": 7}
    assert result.exit is Exit.OK
    with open_copy("s3://copies/example.jp", target) as source:
        assert needed(source) == needed(vault)


def test_a_bucket_that_does_not_exist_is_one_clear_error(server: S3Server, vault: Vault) -> None:
    with pytest.raises(PlaceMissing, match="no bucket nowhere"):
        copy(vault, BucketStore(server.target("nowhere", "x")))


def test_a_url_without_a_copy_is_one_clear_error(server: S3Server) -> None:
    server.make_bucket("bare")
    with pytest.raises(VaultError, match="no copy"):
        open_copy("s3://bare/x", server.target("bare"))


# ------------------------------------------------------------ encrypted


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Recipients, Identities]:
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "key.txt").write_text(f"{identity}\n")
    return Recipients([str(identity.to_public())]), Identities(tmp_path / "key.txt")


def test_repair_without_the_secret_key_writes_small_files_again_that_nobody_can_compare(vault: Vault, keys: tuple[Recipients, Identities]) -> None:
    recipients, identities = keys
    store = MemoryStore()
    copy(vault, store, recipients=recipients)
    [key] = [key for key in store.objects if key.startswith("snapshots/")]
    store.objects[key] = store.objects[key][:-1] + b"\0"
    with CopySource(store, identities) as source, pytest.raises(Damaged):
        source.snapshots.get("latest")
    assert copy(vault, store, recipients=recipients, repair=True)[1].exit is Exit.OK
    with CopySource(store, identities) as source:
        assert source.snapshots.get("latest") == vault.snapshots.get("latest")
