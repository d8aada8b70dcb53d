"""What a copy is for: a vault rebuilt from it, a key that opens it, a sample that comes back, and proof without any key."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyrage
import pytest

from hostbackup.errors import Exit, UsageError
from hostbackup.jobs.copy_closed import ClosedCopy
from hostbackup.jobs.copy_drill import run_drill, try_key
from hostbackup.jobs.copy_source import CopySource, catalog_path
from hostbackup.jobs.copy_verify import verify_copy
from hostbackup.jobs.restore import FORMATS, Format, restore
from hostbackup.jobs.restore_vault import Rebuilt, rebuild
from hostbackup.jobs.result import Result
from hostbackup.profile import load
from hostbackup.vault.packs.archive import Archive
from hostbackup.vault.packs.catalog import Blob, Catalog
from hostbackup.vault.packs.seal import Identities, Recipients, WrongKey
from hostbackup.vault.vault import Vault
from tests.support.copies import copy, spoil
from tests.support.memory_store import Dying, Killed, MemoryStore
from tests.support.sample_vault import LOCAL, MAIL, WEB, File, keep, make_vault, snapshot, write_tree

PAGE = b"<h1>example</h1>\n"


class Key:
    """A key pair, or none: the copy is in the clear."""

    def __init__(self, folder: Path, *, sealed: bool) -> None:
        self.recipients: Recipients | None = None
        self.identities: Identities | None = None
        if sealed:
            secret = pyrage.x25519.Identity.generate()
            self.file = folder / "key.txt"
            self.file.write_text(f"# a comment\n{secret}\n")
            self.recipients, self.identities = Recipients([str(secret.to_public())]), Identities(self.file)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with make_vault(tmp_path / "vault") as made:
        snapshot(made, (WEB, write_tree(made, WEB, {b"index.html": File(PAGE), b"new": File(b"n" * 100_000)})), minute=1)
        made.evidence.write("verify", [{"type": "proof"}])
        yield made


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Key:
    return Key(tmp_path, sealed=request.param)


@pytest.fixture
def store(vault: Vault, key: Key) -> MemoryStore:
    made = MemoryStore()
    assert copy(vault, made, recipients=key.recipients)[1].exit is Exit.OK
    return made


def packs(store: MemoryStore, key: Key) -> list[Blob]:
    with CopySource(store, key.identities) as source:
        return list(source.archive.catalog.blobs())


def files(root: Path) -> dict[str, bytes]:
    """All that a rebuilt vault has to have."""
    kept = ("objects", "manifests", "snapshots", "evidence")
    return {str(path.relative_to(root)): path.read_bytes() for kind in kept for path in (root / kind).rglob("*") if path.is_file()}


def bring(store: MemoryStore, key: Key, to: Path) -> tuple[Rebuilt, Result]:
    result = Result()
    with CopySource(store, key.identities) as source:
        return rebuild(source, to, result), result


# ------------------------------------------------------------ a whole vault


def test_a_vault_comes_back_byte_by_byte_and_twice_changes_nothing(vault: Vault, store: MemoryStore, key: Key, tmp_path: Path) -> None:
    done, result = bring(store, key, tmp_path / "new")
    assert (result.exit, done.newest, done.existing) == (Exit.OK, vault.snapshots.list()[-1], 0)
    assert files(tmp_path / "new") == files(tmp_path / "vault")
    assert (tmp_path / "new/latest/web/public_html/index.html").read_bytes() == PAGE
    again, _ = bring(store, key, tmp_path / "new")
    assert (again.objects, again.manifests, again.existing) == (0, 0, done.objects + done.manifests)
    with Vault.open(tmp_path / "new", "write") as rebuilt:
        copied, told = copy(rebuilt, store, recipients=key.recipients, identities=key.identities)
        assert (copied.uploaded, told.exit) == (0, Exit.OK)


def test_killed_at_any_read_it_goes_on_and_ends_the_same(
    vault: Vault, store: MemoryStore, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gets = 0
    get = MemoryStore.get

    def dying(self: MemoryStore, name: str, start: int = 0, size: int | None = None) -> BinaryIO:
        nonlocal gets
        gets -= 1
        if gets == 0:
            raise Killed
        return get(self, name, start, size)

    monkeypatch.setattr(MemoryStore, "get", dying)
    tried = 0
    for gets_before in range(1, 40):
        gets = gets_before
        to = tmp_path / f"new{gets_before}"
        try:
            bring(store, key, to)
        except Killed:
            tried += 1
            for name in (to / "snapshots").glob("*.json") if to.exists() else ():
                assert name.read_bytes() == (tmp_path / "vault/snapshots" / name.name).read_bytes()
            gets = 0
            assert bring(store, key, to)[1].exit is Exit.OK
        assert files(to) == files(tmp_path / "vault")
        if gets > 0:
            break
    assert tried > 5


def test_a_snapshot_that_lacks_something_stays_away_and_the_others_come(vault: Vault, store: MemoryStore, key: Key, tmp_path: Path) -> None:
    newest = vault.snapshots.list()[-1]
    spoil(store, keep(vault, b"n" * 100_000)[0], identities=key.identities)
    done, result = bring(store, key, tmp_path / "new")
    assert result.exit is Exit.DAMAGE
    assert newest not in [path.stem for path in (tmp_path / "new/snapshots").iterdir()]
    assert done.newest == ("" if key.identities else vault.snapshots.list()[0])


def test_a_newest_snapshot_that_is_damaged_keeps_no_other_away(vault: Vault, store: MemoryStore, key: Key, tmp_path: Path) -> None:
    older, newest = vault.snapshots.list()
    name = next(name for name in store.objects if name.startswith(f"snapshots/{newest}"))
    store.objects[name] = store.objects[name][:-9]
    done, result = bring(store, key, tmp_path / "new")
    assert (result.exit, [failure.name for failure in result.failures]) == (Exit.DAMAGE, [f"snapshots/{newest}.json".encode()])
    assert ([path.stem for path in (tmp_path / "new/snapshots").iterdir()], done.newest) == ([older], older)
    assert (tmp_path / "new/latest/web/public_html/index.html").exists()


def test_evidence_that_is_damaged_in_the_copy_is_told(vault: Vault, tmp_path: Path) -> None:
    vault.evidence.write("verify", [{"type": "proof"}])
    store, key = MemoryStore(), Key(tmp_path, sealed=False)
    copy(vault, store)
    name = min(name for name in store.objects if name.startswith("evidence/"))
    store.objects[name] = store.objects[name].replace(b"proof", b"proOf")
    result = bring(store, key, tmp_path / "new")[1]
    assert (result.exit, {failure.code for failure in result.failures}) == (Exit.DAMAGE, {"damaged"})


def test_what_lies_in_the_copy_twice_comes_from_where_it_is_whole(vault: Vault, key: Key, tmp_path: Path) -> None:
    store = MemoryStore()
    copy(vault, store, recipients=key.recipients)
    first = {name for name in store.objects if name.startswith("packs/")}
    archive = Archive(store, Catalog(None, store.label), sealed=bool(key.recipients), recipients=key.recipients, identities=key.identities)
    archive.refresh()
    for kind, folder in (("manifests", vault.manifests), ("objects", vault.objects)):  # as a vault does that knows nothing of an encrypted copy
        assert not [one for one in archive.bring(kind, [(digest, size) for digest, size in folder.list() if size < 50_000], folder.read) if one.code]
        archive.commit()
    archive.close()
    again = {name for name in store.objects if name.startswith("packs/")} - first
    assert again
    for name in again:
        store.objects[name] = bytes(len(store.objects[name]))
    result = bring(store, key, tmp_path / "out")[1]
    assert (result.exit, result.failures) == (Exit.OK, [])
    assert files(tmp_path / "out") == files(vault.root)


def test_names_in_a_copy_lead_nowhere(vault: Vault, store: MemoryStore, key: Key, tmp_path: Path) -> None:
    end = ".age" if key.recipients else ""
    some = next(data for name, data in store.objects.items() if name.startswith("evidence/"))
    for name in ("evidence/../../planted", f"evidence/{tmp_path}/planted", "evidence/._000001-20261125T031500Z-verify.jsonl", "snapshots/.DS_Store"):
        store.objects[name + end] = some
    result = bring(store, key, tmp_path / "new" / "out")[1]
    assert (result.exit, result.failures) == (Exit.OK, [])
    assert files(tmp_path / "new" / "out") == files(vault.root)
    assert not list(tmp_path.rglob("planted*"))


def test_copies_to_an_encrypted_copy_go_on_from_a_vault_that_came_back_from_it_without_the_secret_key(vault: Vault, tmp_path: Path) -> None:
    key, store = Key(tmp_path, sealed=True), MemoryStore()
    copy(vault, store, recipients=key.recipients)
    with CopySource(store, key.identities) as source:
        rebuild(source, tmp_path / "new", Result())
    before = dict(store.objects)
    with Vault.open(tmp_path / "new", "write") as new:
        done, result = copy(new, store, recipients=key.recipients)
        assert (done.uploaded, result.exit, store.objects) == (0, Exit.OK, before)
        catalog_path(new, "usb").unlink()
        counts, result = closed(new, store)
    assert (counts[WEB.id], result.exit) == ({"verified": 2}, Exit.OK)


def test_another_vault_is_not_written_into(vault: Vault, store: MemoryStore, key: Key, tmp_path: Path) -> None:
    with Vault.open(tmp_path / "other", "write", create=True) as other:
        snapshot(other, (WEB, write_tree(other, WEB, {})), minute=7)
    before = files(tmp_path / "other")
    with pytest.raises(UsageError, match="another vault"):
        bring(store, key, tmp_path / "other")
    assert files(tmp_path / "other") == before


# ------------------------------------------------------------ files and mail


@pytest.mark.parametrize("format", FORMATS)
def test_what_lies_in_a_pack_is_fetched_together(
    store: MemoryStore, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    fetched: list[str] = []
    get = MemoryStore.get

    def counted(self: MemoryStore, name: str, start: int = 0, size: int | None = None) -> BinaryIO:
        fetched.append(name)
        return get(self, name, start, size)

    with CopySource(store, key.identities) as source:
        monkeypatch.setattr(MemoryStore, "get", counted)
        result = Result()
        restore(source, result, to=tmp_path / "out", selection=["mail"], snapshot="1", format=format)
    assert result.exit is Exit.OK
    contents = {blob.key for blob in packs(store, key) if blob.kind == "objects"}
    times = len([name for name in fetched if name in contents])
    assert times == 1 if key.identities else times <= 3, "five messages in three folders: a stretch of the pack for each, or the whole pack once"


# ------------------------------------------------------------ proof


def proven(source: CopySource, *, read: float | None = None) -> tuple[dict[str, dict[str, int]], Result]:
    result = Result()
    return {line["part"]: line["counts"] for line in verify_copy(source, result, name="usb", read=read)}, result


def closed(vault: Vault, store: MemoryStore) -> tuple[dict[str, dict[str, int]], Result]:
    with ClosedCopy(store, vault, "usb") as source:
        return proven(source)


def test_an_encrypted_copy_is_proven_without_its_secret_key(vault: Vault, tmp_path: Path) -> None:
    key, store = Key(tmp_path, sealed=True), MemoryStore()
    copy(vault, store, recipients=key.recipients)
    counts, result = closed(vault, store)
    assert (counts[WEB.id], result.exit) == ({"verified": 2}, Exit.OK)
    spoil(store, vault.snapshots.get("latest").parts[WEB.id].root, kind="manifests", identities=key.identities)
    assert closed(vault, store)[1].exit is Exit.DAMAGE


def test_damage_in_an_encrypted_copy_is_found_without_its_secret_key(vault: Vault, tmp_path: Path) -> None:
    key, store = Key(tmp_path, sealed=True), MemoryStore()
    copy(vault, store, recipients=key.recipients)
    spoil(store, keep(vault, PAGE)[0], identities=key.identities)
    counts, result = closed(vault, store)
    assert (counts[WEB.id], result.exit) == ({"different": 2}, Exit.DAMAGE)


@pytest.mark.parametrize("number", [0, 1])
def test_an_encrypted_snapshot_that_is_not_as_it_went_there_is_damage_without_its_secret_key(vault: Vault, tmp_path: Path, number: int) -> None:
    store, key = MemoryStore(), Key(tmp_path, sealed=True)
    copy(vault, store, recipients=key.recipients)
    name = f"snapshots/{vault.snapshots.list()[number]}.json"
    store.objects[f"{name}.age"] = b""
    lines, result = closed(vault, store)
    assert (result.exit, [(failure.name, failure.code) for failure in result.failures]) == (Exit.DAMAGE, [(name.encode(), "damaged")])
    assert bool(lines) is (number == 0)  # of the newest, nothing can be said to be restorable
    assert copy(vault, store, repair=True, recipients=key.recipients)[1].exit is Exit.OK
    assert closed(vault, store)[1].exit is Exit.OK


def test_killed_after_any_put_an_encrypted_copy_is_proven_without_its_secret_key_once_it_is_whole(vault: Vault, tmp_path: Path) -> None:
    key = Key(tmp_path, sealed=True)
    for step in range(40):
        store = MemoryStore(f"memory {step}")
        dying = Dying(store, step, done=True)
        with contextlib.suppress(Killed):
            copy(vault, dying, name=f"usb{step}", recipients=key.recipients)
        if dying.lived:
            break
        assert copy(vault, store, name=f"usb{step}", recipients=key.recipients)[1].exit is Exit.OK
        result = Result()
        with ClosedCopy(store, vault, f"usb{step}") as source:
            assert verify_copy(source, result, name="usb")
        assert (step, result.exit, result.failures) == (step, Exit.OK, [])
    assert step > 5


def test_where_nobody_knows_what_is_in_an_encrypted_copy_it_is_unproven_and_not_damaged(vault: Vault, tmp_path: Path) -> None:
    key, store = Key(tmp_path, sealed=True), MemoryStore()
    copy(vault, store, recipients=key.recipients)
    catalog_path(vault, "usb").unlink()
    counts, result = closed(vault, store)
    assert (counts, result.exit, [failure.code for failure in result.failures]) == ({}, Exit.INCOMPLETE, ["unverified"])
    assert "--identity" in result.failures[0].hint


def test_what_was_neither_read_nor_vouched_for_is_unproven_and_told_once_a_part(vault: Vault, store: MemoryStore, key: Key) -> None:
    with CopySource(store, key.identities) as source:
        counts, result = proven(source, read=0.0)
        assert counts[WEB.id] == {"unverified": 2}
        told = [failure.part for failure in result.failures if "snapshot" not in failure.reason]
        assert (result.exit, told.count(WEB.id), {failure.code for failure in result.failures}) == (Exit.INCOMPLETE, 1, {"unverified"})
        counts, result = proven(source, read=1.0)
        assert (counts[WEB.id], result.exit) == ({"verified": 2}, Exit.OK)


def test_a_share_of_few_packs_is_at_least_one(vault: Vault, tmp_path: Path) -> None:
    store = MemoryStore()
    copy(vault, store)
    for _ in range(20):
        with CopySource(store) as source:
            counts, _ = proven(source, read=0.001)
        assert sum(part.get("verified", 0) for part in counts.values()) > 0


def test_a_damaged_index_is_told_and_everything_is_found_all_the_same(vault: Vault, store: MemoryStore, key: Key) -> None:
    [index] = [name for name in store.objects if name.startswith("index/")]
    store.objects[index] = store.objects[index][:-1]
    with CopySource(store, key.identities) as source:
        counts, result = proven(source)
    assert (counts[WEB.id], result.exit) == ({"verified": 2}, Exit.DAMAGE)
    assert [failure.name.decode() for failure in result.failures] == [index]


# ------------------------------------------------------------ the key


def test_the_key_is_tried_and_what_it_opened_is_on_record(vault: Vault, tmp_path: Path) -> None:
    key, store, result = Key(tmp_path, sealed=True), MemoryStore(), Result()
    copy(vault, store, recipients=key.recipients)
    assert key.identities is not None
    with CopySource(store, key.identities) as source:
        line = try_key(source, key.identities, result, name="usb")
    assert (line["snapshot"], result.exit) == (vault.snapshots.list()[-1], Exit.OK)
    assert line["public"] == line["recipients"]
    assert {name.partition("/")[0] for name in line["opened"]} == {"packs"}
    assert "SECRET" not in str(line).upper().replace("RECOVERY", "")


def test_a_pack_that_does_not_open_any_more_is_damage(vault: Vault, tmp_path: Path) -> None:
    key, store, result = Key(tmp_path, sealed=True), MemoryStore(), Result()
    copy(vault, store, recipients=key.recipients)
    spoil(store, keep(vault, PAGE)[0], identities=key.identities)
    assert key.identities is not None
    with CopySource(store, key.identities) as source:
        try_key(source, key.identities, result, name="usb")
    assert result.exit is Exit.DAMAGE


def test_another_key_opens_nothing_and_says_so(vault: Vault, tmp_path: Path) -> None:
    key, store = Key(tmp_path, sealed=True), MemoryStore()
    copy(vault, store, recipients=key.recipients)
    other = Key(tmp_path, sealed=True)
    before = dict(store.objects)
    with pytest.raises(WrongKey, match="does not open"):
        CopySource(store, other.identities)
    with pytest.raises(UsageError, match="encrypted"):
        CopySource(store)
    assert store.objects == before


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_an_ssh_key_opens_what_was_encrypted_to_it(vault: Vault, tmp_path: Path, kind: str) -> None:
    for name in ("one", "two"):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment", "-f", tmp_path / name], check=True)
    public = (tmp_path / "one.pub").read_text().strip()
    (tmp_path / "p.toml").write_text(f'vault = "v"\n[[copy]]\npath = "x"\nencrypt_to = ["{public}"]\n')
    [wanted] = load(tmp_path / "p.toml").copies
    store = MemoryStore()
    copy(vault, store, recipients=Recipients(wanted.encrypt_to))
    with CopySource(store, Identities(tmp_path / "one")) as source:
        assert proven(source)[1].exit is Exit.OK
    with pytest.raises(WrongKey, match="two"):
        CopySource(store, Identities(tmp_path / "two"))


def test_a_key_file_may_have_a_passphrase(tmp_path: Path) -> None:
    secret = pyrage.x25519.Identity.generate()
    path = tmp_path / "key.age"
    path.write_bytes(pyrage.passphrase.encrypt(f"{secret}\n".encode(), "正しい馬"))
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "正しい馬"

    assert Identities(path, answer).publics == [str(secret.to_public())]
    assert len(asked) == 1
    with pytest.raises(UsageError, match="passphrase"):
        Identities(path, lambda _: "wrong")
    with pytest.raises(UsageError, match="nobody is there"):
        Identities(path)


# ------------------------------------------------------------ a sample that comes back


def test_a_file_and_a_mailbox_come_back_from_the_copy_alone(vault: Vault, store: MemoryStore, key: Key) -> None:
    older = vault.snapshots.list()[0]
    del store.objects[next(name for name in store.objects if name.startswith("snapshots/") and older not in name)]
    chosen = set()
    with CopySource(store, key.identities) as source:
        for seed in map(str, range(8)):
            result = Result()
            lines = list(run_drill(source, result, name="usb", seed=seed))
            assert (result.exit, [line["restored"] for line in lines]) == (Exit.OK, [1, 5])
            assert lines[1]["part"] == MAIL.id
            assert all(line["bytes"] > 0 and line["method"] == "bucket-reread" for line in lines)
            again = run_drill(source, Result(), name="usb", seed=seed)
            assert [line | {"time": ""} for line in again] == [line | {"time": ""} for line in lines]
            chosen.add((lines[0]["part"], lines[0].get("name", lines[0].get("name_b64"))))
    assert {part for part, _ in chosen} == {WEB.id, LOCAL.id}


@pytest.mark.parametrize("name", [b"subscriptions", b"dovecot-keywords", b"hostbackup-names.jsonl", b"a%20b [*] \xff.html"])
def test_a_sample_of_any_name_comes_back(tmp_path: Path, name: bytes) -> None:
    store, result = MemoryStore(), Result()
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, {name: File(PAGE)})))
        copy(vault, store)
    with CopySource(store) as source:
        [line] = run_drill(source, result, name="usb", seed="s")
    assert (result.exit, result.failures, line["restored"]) == (Exit.OK, [], 1)


def test_a_sample_that_does_not_come_back_is_damage(vault: Vault, store: MemoryStore, key: Key) -> None:
    with CopySource(store, key.identities) as source:
        digests = [
            member.digest for blob in source.archive.catalog.blobs() if blob.kind == "objects" for member in source.archive.catalog.members(blob.key)
        ]
    for digest in digests:
        spoil(store, digest, identities=key.identities)
        if key.identities:
            break
    result = Result()
    with CopySource(store, key.identities) as source:
        lines = list(run_drill(source, result, name="usb", seed="s"))
    assert result.exit is Exit.DAMAGE
    assert all(line["restored"] == 0 for line in lines)


def test_no_sample_is_taken_from_what_cannot_be_read(vault: Vault, tmp_path: Path) -> None:
    key, store, result = Key(tmp_path, sealed=True), MemoryStore(), Result()
    copy(vault, store, recipients=key.recipients)
    with ClosedCopy(store, vault, "usb") as source:
        assert list(run_drill(source, result, name="usb", seed="s")) == []
    assert (result.exit, [failure.code for failure in result.failures]) == (Exit.INCOMPLETE, ["not-restored"])
