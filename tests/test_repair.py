"""What was lost or damaged on this side is brought back from what is left: the vault, or a copy of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from hostbackup.errors import Damaged
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.records import entry_record, nonsense
from hostbackup.vault.snapshots import parse_snapshot
from tests.support.cli import hostbackup, write_profile
from tests.support.copies import spoil

PROFILE = 'vault = "vault"\n[[local]]\npath = "site"\n[[copy]]\nname = "usb"\npath = "usb"\n'


@pytest.fixture
def move(tmp_path: Path) -> Path:
    """A folder with a profile, a vault with one snapshot of two files, and a copy of it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "usb").mkdir()
    (tmp_path / "site/a").write_text("hello")
    (tmp_path / "site/b").write_text("there")
    for path in (tmp_path / "site/a", tmp_path / "site/b", tmp_path / "site"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    write_profile(tmp_path, PROFILE)
    assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 0
    assert hostbackup("copy", "move.toml", cwd=tmp_path).exit == 0
    return tmp_path


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def snapshots(root: Path) -> list[Path]:
    return sorted((root / "snapshots").iterdir())


# ---------------------------------------------------------------- latest/


def test_verify_lays_a_wrong_view_out_anew_although_the_source_is_gone(move: Path) -> None:
    shutil.rmtree(move / "site")
    (move / "vault/latest/local/site/a").unlink()
    found = hostbackup("verify", "move.toml", "--json", cwd=move)
    assert found.exit == 4
    assert (move / "vault/latest/local/site/a").read_text() == "hello"
    assert hostbackup("verify", "move.toml", cwd=move).exit == 0


def test_a_backup_that_can_read_nothing_still_puts_the_view_right(move: Path) -> None:
    shutil.rmtree(move / "site")
    (move / "vault/latest/local/site/a").unlink()
    assert hostbackup("backup", "move.toml", cwd=move).exit == 1
    assert (move / "vault/latest/local/site/a").read_text() == "hello"
    assert len(snapshots(move / "vault")) == 1


def test_copy_repair_lays_the_view_out_with_what_it_brought_back(move: Path) -> None:
    shutil.rmtree(move / "site")
    state = json.loads((move / "vault/state/view.json").read_text())
    [lost] = [path for path in (move / "vault/objects").rglob("*") if path.is_file() and path.read_bytes() == b"hello"]
    lost.unlink()
    (move / "vault/latest/local/site/a").unlink()
    assert state["trusted"]
    ran = hostbackup("copy", "move.toml", "--repair", "--json", cwd=move)
    assert ran.exit == 0, ran.out
    assert (move / "vault/latest/local/site/a").read_text() == "hello"
    assert hostbackup("verify", "move.toml", cwd=move).exit == 0


@pytest.mark.parametrize("text", ["{", "[]", ""])
@pytest.mark.parametrize("command", ["verify", "backup"])
def test_what_is_known_of_the_view_may_be_lost(move: Path, text: str, command: str) -> None:
    (move / "vault/state/view.json").write_text(text)
    (move / "vault/latest/local/site/a").unlink()
    assert hostbackup(command, "move.toml", cwd=move).exit == 0
    assert (move / "vault/latest/local/site/a").read_text() == "hello"
    assert hostbackup("verify", "move.toml", cwd=move).exit == 0


# ---------------------------------------------------------------- snapshots


def test_copy_repair_brings_a_damaged_snapshot_back(move: Path) -> None:
    (move / "site/c").write_text("new")
    hostbackup("backup", "move.toml", cwd=move)
    hostbackup("copy", "move.toml", cwd=move)
    newest = snapshots(move / "vault")[-1]
    whole = newest.read_bytes()
    overwrite(newest, whole[:50])
    ran = hostbackup("copy", "move.toml", "--repair", "--json", cwd=move)
    assert (ran.exit, ran.json["failures"]) == (0, [])
    assert newest.read_bytes() == whole
    assert (move / "vault/damaged" / f"{newest.name}.1").read_bytes() == whole[:50]
    assert hostbackup("verify", "move.toml", cwd=move).exit == 0


def test_a_damaged_snapshot_that_no_copy_has_whole_is_told_once(move: Path) -> None:
    (move / "site/c").write_text("new")
    hostbackup("backup", "move.toml", cwd=move)
    newest = snapshots(move / "vault")[-1]
    overwrite(newest, b"{")
    for options in ([], ["--repair"]):
        ran = hostbackup("copy", "move.toml", "--json", *options, cwd=move)
        told = [row for row in ran.json["failures"] if newest.stem in row["name"]]
        assert (ran.exit, len(told)) == (4, 1), ran.out
        assert newest.read_bytes() == b"{"
        assert ran.json["snapshot"] == snapshots(move / "vault")[0].stem


# ---------------------------------------------------------------- manifests and evidence


def test_a_backup_writes_a_damaged_manifest_again_although_its_digest_is_the_same(move: Path) -> None:
    state = json.loads(snapshots(move / "vault")[0].read_text())["parts"]["local/site"]
    root = move / "vault/manifests" / state["root"][:2] / state["root"]
    whole = root.read_bytes()
    overwrite(root, whole.replace(b"site", b"sits"))
    assert hostbackup("backup", "move.toml", cwd=move).exit == 4
    assert root.read_bytes() == whole
    assert len(list((move / "vault/damaged/manifests").glob(f"{state['root']}*"))) == 2
    assert hostbackup("verify", "move.toml", cwd=move).exit == 0


def test_torn_evidence_is_found_and_nothing_is_pruned_on_its_word(move: Path) -> None:
    newest = sorted((move / "vault/evidence").iterdir())[-1]
    overwrite(newest, newest.read_bytes()[:-20])
    for options in ([], ["--apply"]):
        pruned = hostbackup("prune", "move.toml", "--json", "--keep-last", "1", *options, cwd=move)
        assert pruned.exit == 4
        assert [row["name"] for row in pruned.json["failures"]] == [f"evidence/{newest.name}"]
        assert pruned.json["frozen"]
    verified = hostbackup("verify", "move.toml", "--json", cwd=move)
    assert verified.exit == 4
    assert newest.name in verified.reasons


# ---------------------------------------------------------------- copies


def test_repairing_a_copy_never_replaces_its_evidence_by_torn_evidence(move: Path) -> None:
    first = sorted((move / "vault/evidence").iterdir())[0]
    good = (move / "usb/evidence" / first.name).read_bytes()
    overwrite(first, good[:-20])
    ran = hostbackup("copy", "move.toml", "--repair", "--json", cwd=move)
    assert (ran.exit, (move / "usb/evidence" / first.name).read_bytes() == good) == (4, True)


def test_what_only_an_older_snapshot_needs_is_proven_in_the_copy_too(move: Path) -> None:
    old = snapshots(move / "vault")[0].stem
    (move / "site/a").write_text("changed since")
    hostbackup("backup", "move.toml", cwd=move)
    hostbackup("copy", "move.toml", cwd=move)
    assert hostbackup("verify", "move.toml", "--against", "copy", cwd=move).exit == 0
    spoil(FolderStore(move / "usb"), hashlib.sha256(b"hello").hexdigest())
    ran = hostbackup("verify", "move.toml", "--against", "copy", "--json", cwd=move)
    assert ran.exit == 4
    [failure] = ran.json["failures"]
    assert (failure["side"], failure["part"], failure["name"]) == ("copy:usb", "local/site", "a")
    assert old in failure["reason"]


def test_a_copy_on_the_disk_of_the_vault_is_said_not_to_be_off_machine(move: Path) -> None:
    assert "same disk" in hostbackup("copy", "move.toml", cwd=move).err


def test_a_copy_that_lost_its_format_file_says_so_and_gets_it_back(move: Path) -> None:
    lost = move / "usb/format.json"
    whole = lost.read_bytes()
    lost.unlink()
    for arguments in (["restore", "--from", str(move / "usb"), "--to", "out"], ["copy", "move.toml"]):
        ran = hostbackup(*arguments, cwd=move)
        assert ran.exit == 1
        assert "format.json of this copy is missing" in ran.err
        assert "copy --repair" in ran.err
    assert hostbackup("copy", "move.toml", "--repair", cwd=move).exit == 0
    assert lost.read_bytes() == whole
    assert hostbackup("verify", "move.toml", "--against", "copy", cwd=move).exit == 0


def test_a_folder_of_other_files_is_not_taken_for_a_copy_by_a_repair(move: Path) -> None:
    shutil.rmtree(move / "usb")
    (move / "usb").mkdir()
    (move / "usb/holiday.jpg").touch()
    assert hostbackup("copy", "move.toml", "--repair", cwd=move).exit == 1
    assert [path.name for path in (move / "usb").iterdir() if path.name != "incoming"] == ["holiday.jpg"]


def test_a_copy_without_a_snapshot_is_named_with_what_to_do(move: Path) -> None:
    shutil.rmtree(move / "usb/snapshots")
    ran = hostbackup("restore", "--from", str(move / "usb"), "--to", "out", cwd=move)
    assert (ran.exit, str(move / "usb") in ran.err, "run `copy`" in ran.err, "backup first" in ran.err) == (1, True, True, False)
    assert "/tmp/hostbackup-copy" not in ran.err


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"sha256": 1}', b"\xff\xfe", b'{"parts": 3}'])
def test_what_is_damaged_is_told_without_the_words_of_python(data: bytes) -> None:
    with pytest.raises(Damaged) as snapshot:
        parse_snapshot(data, "here")
    assert not re.search(r"Error|codec|b'|object|subscript", str(snapshot.value))
    with pytest.raises(Damaged) as entry:
        try:
            entry_record({"name": "..", "kind": "file"}, b"")
        except ValueError as error:
            raise Damaged(nonsense(error)) from error
    assert str(entry.value) == "not a name: .."
