"""Opening and locking a vault, its snapshots, its evidence, its journals."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup import osal
from hostbackup.errors import Damaged, Locked, UsageError, VaultError, VaultTooNew
from hostbackup.model import Failure, Part
from hostbackup.vault.gate import Gate
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.snapshots import PartState, Snapshot
from hostbackup.vault.state import Journal, StateFolder, state_name
from hostbackup.vault.vault import FOLDERS, Vault

NOW = datetime.datetime(2026, 11, 25, 3, 15, tzinfo=datetime.UTC)
WEB = Part("web", "public_html")


def create(root: Path) -> Vault:
    return Vault.open(root, "write", create=True, command="test")


def write(vault: Vault, state: str = "complete", *, minute: int = 0, part: Part = WEB, content: str = "x") -> Snapshot:
    root = vault.manifests.put([{"type": "tree", "version": 1, "part": part.id, "note": content}])
    parts = {part.id: PartState(part, root, 3, 10, state=state)}
    return vault.snapshots.write(parts, [], command="backup", exit=0, profile="p", now=NOW + datetime.timedelta(minutes=minute))


# ------------------------------------------------------------ opening


def test_a_new_vault_is_private_and_explains_itself(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "vault"
    with create(root):
        pass
    assert root.stat().st_mode & 0o777 == 0o700
    for name in FOLDERS:
        assert (root / name).stat().st_mode & 0o777 == 0o700
    assert json.loads((root / "format.json").read_text()) == {"layout": "hostbackup vault", "version": 1}
    readme = (root / "README.txt").read_text("utf-8")
    assert "sha256sum -c SHA256SUMS" in readme
    assert "hostbackup restore" in readme
    assert "バックアップ" in readme
    for path in (root / "format.json", root / "README.txt"):
        assert path.stat().st_mode & 0o777 == 0o400


def test_an_empty_folder_becomes_a_vault(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir(mode=0o755)
    (root / "lost+found").mkdir()
    with create(root):
        assert root.stat().st_mode & 0o777 == 0o700


def test_without_a_vault_a_reader_is_told_what_to_do(tmp_path: Path) -> None:
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(VaultError, match="run backup first"):
            Vault.open(root, "read")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["read", "write"])
def test_somebody_elses_folder_is_left_alone(tmp_path: Path, mode: Literal["read", "write"]) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(VaultError, match="not empty and holds no vault"):
        Vault.open(tmp_path, mode, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_is_no_folder_is_no_vault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(VaultError, match="not a folder"):
        create(tmp_path / "file")
    with pytest.raises(VaultError, match="leads nowhere"):
        create(tmp_path / "link")
    (tmp_path / "unmounted").mkdir()
    with create(tmp_path / "link"):
        assert (tmp_path / "unmounted" / "format.json").exists()


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ('{"layout": "hostbackup vault", "version": 2}', VaultTooNew, "newer hostbackup"),
        ('{"layout": "hostbackup vault"', VaultError, "damaged"),
        ('{"layout": "something else", "version": 1}', VaultError, "no vault of hostbackup"),
        ("[]", VaultError, "damaged"),
    ],
)
def test_a_vault_of_another_kind_is_refused(tmp_path: Path, text: str, error: type[VaultError], match: str) -> None:
    (tmp_path / "format.json").write_text(text)
    with pytest.raises(error, match=match):
        create(tmp_path)


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    root = tmp_path / "vault"
    root.mkdir()
    (root / ".format.json.123.tmp").write_text("{")
    with create(root):
        pass
    for name in ("objects", "README.txt"):
        path = root / name
        path.rmdir() if path.is_dir() else path.unlink()
    with create(root):
        assert (root / "objects").is_dir()
        assert (root / "README.txt").exists()


def test_leftovers_of_a_killed_run_are_adopted_or_go(tmp_path: Path) -> None:
    with create(tmp_path / "v"):
        pass
    digest = hashlib.sha256(b"whole").hexdigest()
    (tmp_path / "v" / "incoming" / digest).write_bytes(b"whole")
    (tmp_path / "v" / "incoming" / "x.part").write_bytes(b"torn")
    (tmp_path / "v" / "snapshots" / ".000001-20261125T031500Z.json.77.tmp").write_bytes(b"{")
    with create(tmp_path / "v") as vault:
        assert vault.objects.has(digest)
        assert vault.snapshots.list() == []
        assert [path.name for path in (tmp_path / "v" / "incoming").iterdir()] == ["manifests"]
        assert list((tmp_path / "v" / "snapshots").iterdir()) == []


# ------------------------------------------------------------ the lock

HOLDER = textwrap.dedent(
    """
    import pathlib, sys
    from hostbackup.vault.vault import Vault
    with Vault.open(pathlib.Path(sys.argv[1]), sys.argv[2], command="backup"):
        print("held", flush=True)
        sys.stdin.read()
    """
)

Mode = Literal["read", "write", "prune"]


@pytest.mark.parametrize(
    ("held", "wanted", "refused"),
    [
        ("read", "read", False),
        ("read", "write", False),
        ("read", "prune", True),
        ("write", "read", False),
        ("write", "write", True),
        ("write", "prune", True),
        ("prune", "read", True),
        ("prune", "write", True),
        ("prune", "prune", True),
    ],
)
def test_readers_share_writers_exclude_writers_prune_excludes_all(tmp_path: Path, held: Mode, wanted: Mode, refused: bool) -> None:
    root = tmp_path / "v"
    with create(root):
        pass
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root), held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        if refused:
            with pytest.raises(Locked) as told:
                Vault.open(root, wanted)
            if held != "read":
                assert f"pid={process.pid}" in told.value.hint
                assert "command=backup" in told.value.hint
        else:
            Vault.open(root, wanted).close()
    finally:
        process.kill()
        process.communicate(timeout=30)
    Vault.open(root, wanted).close()  # the lock went with the process


def test_a_refused_prune_lets_go_of_what_it_took(tmp_path: Path) -> None:
    with create(tmp_path / "v"):
        pass
    with Vault.open(tmp_path / "v", "read"), pytest.raises(Locked):
        Vault.open(tmp_path / "v", "prune")
    with create(tmp_path / "v"):
        pass


def test_a_reader_goes_without_a_lock_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "v"):
        pass

    def refuse(path: Path, *, exclusive: bool) -> osal.FileLock | None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(osal.FileLock, "take", refuse)
    with Vault.open(tmp_path / "v", "read") as vault:
        assert vault.snapshots.latest() is None
    with pytest.raises(VaultError, match="read-only"):
        Vault.open(tmp_path / "v", "write")


# ------------------------------------------------------------ snapshots


def test_a_snapshot_comes_back_as_it_was_written(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        part = Part("mail", "taro@example.jp")
        root = vault.manifests.put([{"type": "mail"}])
        shrunk = {"entries_before": 9, "entries_now": 1, "bytes_before": 100, "bytes_now": 4}
        parts = {
            part.id: PartState(part, root, 1, 4, 2, 3, 4, 5, 6, 7, "incomplete", "000001-x", "2 failed", shrunk),
            WEB.id: PartState(WEB, "", state="carried", reason="--only mail"),
        }
        failures = [Failure("old", part.id, b"caf\xe9", "permission", "日本", "ask"), Failure("old", "", b"", "line-cut", "it ended")]
        written = vault.snapshots.write(parts, failures, command="backup", exit=3, profile="p", now=NOW)
        assert written.id == "000001-20261125T031500Z"
        assert vault.snapshots.latest() == written
        assert written.parts == {key: parts[key] for key in sorted(parts)}
        assert written.failures == failures
        path = vault.snapshots.path(written.id)
        assert path.stat().st_mode & 0o777 == 0o400


def test_objects_and_manifests_are_durable_before_the_snapshot(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        receiver = vault.objects.open()
        receiver.write(b"x")
        digest, _ = receiver.commit()
        snapshot = write(vault)
    assert (tmp_path / "v" / "objects" / digest[:2] / digest).exists()
    root = snapshot.parts[WEB.id].root
    assert (tmp_path / "v" / "manifests" / root[:2] / root).exists()


def test_a_snapshot_of_a_manifest_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        with pytest.raises(VaultError, match="not in the vault"):
            vault.snapshots.write({WEB.id: PartState(WEB, "0" * 64)}, [], command="backup", exit=0, profile="p", now=NOW)
        assert vault.snapshots.list() == []


def test_numbers_are_never_given_twice(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        first, second = write(vault), write(vault)
        assert (first.number, second.number) == (1, 2)
        vault.snapshots.remove(second.id)
        assert write(vault).number == 3
        for snapshot_id in vault.snapshots.list():
            vault.snapshots.remove(snapshot_id)
        assert write(vault).number == 4
        vault.state.remove("numbers")
        assert write(vault).number == 5


def test_a_snapshot_is_found_by_number_id_or_beginning(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        with pytest.raises(VaultError, match="there is no snapshot yet"):
            vault.snapshots.get("latest")
        snapshots = [write(vault, minute=number) for number in range(12)]
        assert vault.snapshots.list() == [snapshot.id for snapshot in snapshots]
        for which in ("latest", "12", 12, "000012", "000012-2026", snapshots[11].id):
            assert vault.snapshots.get(which) == snapshots[11]
        assert vault.snapshots.get(1) == snapshots[0]
        with pytest.raises(UsageError, match=r"no snapshot '99'.*there are 000001-20261125T031500Z … 000009-"):
            vault.snapshots.get("99")
        with pytest.raises(UsageError, match="beginning of 12 snapshots"):
            vault.snapshots.get("0000")
        with pytest.raises(UsageError, match="no snapshot ''"):
            vault.snapshots.get("")


def test_the_newest_complete_snapshot_of_a_part_is_found(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        assert vault.snapshots.newest_complete(WEB.id) is None
        complete = write(vault, "complete")
        write(vault, "incomplete")
        write(vault, "carried")
        assert vault.snapshots.newest_complete(WEB.id) == complete
        assert vault.snapshots.newest_complete("web/other") is None


def test_the_snapshots_of_a_part_are_found_and_each_is_read_once_for_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "v") as vault:
        written = [write(vault, minute=number) for number in range(3)]
        damaged = vault.snapshots.path(written[1].id)
        damaged.chmod(0o600)
        damaged.write_text("{}")
        read: list[Path] = []
        really = Path.read_bytes

        def counted(path: Path) -> bytes:
            read.append(path)
            return really(path)

        monkeypatch.setattr(Path, "read_bytes", counted)
        assert list(vault.snapshots.of_part(WEB.id)) == [written[2], written[0]]
        assert len(read) == 3
        for name in range(10):
            assert not list(vault.snapshots.of_part(f"sieve/user{name}"))
        assert read[3:] == [damaged] * 10  # it may have been put right meanwhile
        known = list(vault.snapshots._parts.values())
        assert len(known) == 2
        assert known[0] is known[1], "hundreds of names stand once in memory, however many snapshots have them"
        new = write(vault, minute=7)
        assert next(vault.snapshots.of_part(WEB.id)) == new
        read.clear()
        for _ in range(20):  # hundreds of mailboxes ask for one and the same
            assert next(vault.snapshots.of_part(WEB.id)) == new
        assert not read


@pytest.mark.parametrize("harm", ["flip", "cut", "rename", "newer"])
def test_a_snapshot_that_was_changed_is_damage(tmp_path: Path, harm: str) -> None:
    with create(tmp_path / "v") as vault:
        path = vault.snapshots.path(write(vault).id)
        path.chmod(0o600)
        text = path.read_text()
        if harm == "flip":
            path.write_text(text.replace('"complete"', '"carried"'))
        elif harm == "cut":
            path.write_text(text[:50])
        elif harm == "rename":
            path.rename(path.with_name("000002-20261125T031500Z.json"))
        else:
            path.write_text(text.replace('"format": 1', '"format": 2'))
        with pytest.raises(VaultTooNew if harm == "newer" else Damaged):
            vault.snapshots.latest()


def test_a_time_without_a_zone_is_refused(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault, pytest.raises(ValueError, match="without a zone"):
        vault.snapshots.write({}, [], command="backup", exit=0, profile="p", now=datetime.datetime(2026, 1, 1))


# ------------------------------------------------------------ evidence


def test_evidence_is_a_chain_that_shows_every_change(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        log = vault.evidence
        assert log.head() == ("", "")
        paths = [log.write("verify", [{"type": "proof", "number": number}], NOW) for number in range(3)]
        assert [path.name for path in paths] == [f"00000{number}-20261125T031500Z-verify.jsonl" for number in (1, 2, 3)]
        assert log.head() == (paths[2].name, hashlib.sha256(paths[2].read_bytes()).hexdigest())
        assert log.check_chain() == []
        read = list(log.read())
        assert [lines[1] for _, lines in read] == [{"type": "proof", "number": number} for number in range(3)]
        assert read[1][1][0]["previous"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
        assert read[1][1][0]["previous_name"] == paths[0].name
        whole = paths[1].read_bytes()
        paths[1].chmod(0o600)
        paths[1].write_bytes(whole.replace(b'"number":1,"type":"proof"', b'"number":7,"type":"proof"'))
        assert len(log.check_chain()) == 1
        paths[1].unlink()
        assert log.check_chain()
        paths[1].write_bytes(whole)
        assert log.check_chain() == []
        paths[0].unlink()
        assert log.check_chain()


def test_a_command_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault, pytest.raises(ValueError, match="not a command"):
        vault.evidence.write("../x", [])


# ------------------------------------------------------------ state


@given(st.text(min_size=1, max_size=300))
def test_any_text_names_a_state(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    quoted = state_name(name)
    assert len(quoted.encode()) <= 200
    assert "/" not in quoted
    assert not quoted.startswith(".")


def test_long_names_stay_apart() -> None:
    assert state_name("日" * 100 + "1") != state_name("日" * 100 + "2")


def test_a_document_is_replaced_whole(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.read("pins/old") is None
    state.write("pins/old", {"a": "日本"})
    state.write("pins/old", {"b": 1})
    assert state.read("pins/old") == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["pins%2Fold.json"]
    assert next(tmp_path.iterdir()).stat().st_mode & 0o777 == 0o600
    assert state.documents("pins") == [{"b": 1}]
    next(tmp_path.iterdir()).write_text("{")
    with pytest.raises(VaultError, match="damaged"):
        state.read("pins/old")


def test_a_journal_keeps_its_order_and_can_be_replaced(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    with state.journal("push-new") as journal:
        assert list(journal) == []
        journal.append([{"n": 1}, {"n": 2}])
        journal.append([])
        journal.append([{"n": 3, "name": "a\nb"}])
        journal.sync()
        assert list(journal) == [{"n": 1}, {"n": 2}, {"n": 3, "name": "a\nb"}]
        journal.replace([{"n": 9}])
        journal.append([{"n": 10}])
    assert list(state.journal("push-new")) == [{"n": 9}, {"n": 10}]
    assert [path.path.name for path in state.journals("push")] == ["push-new.jsonl"]
    assert state.journals("resume") == []
    state.journal("push-new").remove()
    assert state.journals() == []


LINES = st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6), max_size=3), min_size=1, max_size=6)


@given(LINES, st.data())
def test_a_journal_torn_anywhere_keeps_all_whole_lines_before_it(lines: list[dict[str, object]], data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "j.jsonl")
        journal.append(lines)
        journal.close()
        whole = journal.path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        journal.path.write_bytes(whole[:cut])
        expected = lines[: whole[:cut].count(b"\n")]
        assert list(journal) == expected
        journal.append([{"after": True}])
        journal.close()
        assert list(journal) == [*expected, {"after": True}]


@pytest.mark.parametrize("rubbish", [b"\0\0\0\0", b'{"n":', b"[1]\n", b"\xff\xfe\n"])
def test_rubbish_at_the_end_is_dropped_and_in_the_middle_is_told(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"n":1}\n' + rubbish)
    assert list(Journal(path)) == [{"n": 1}]
    path.write_bytes(b'{"n":1}\n' + rubbish.rstrip(b"\n") + b'\n{"n":2}\n')
    with pytest.raises(VaultError, match="line 2 of this journal"):
        list(Journal(path))
    with pytest.raises(VaultError, match="line 2 of this journal"):
        Journal(path).append([{"n": 3}])


def test_a_write_that_fails_half_way_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"n": 1}])
    real, calls = os.write, [0]

    def short(fd: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] == 1:
            return real(fd, data[:4])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.write", short)
        with pytest.raises(VaultError, match="disk is full"):
            journal.append([{"n": 2}])
    journal.append([{"n": 3}])
    assert list(journal) == [{"n": 1}, {"n": 3}]


def test_manifests_and_objects_of_one_digest_do_not_meet(tmp_path: Path) -> None:
    with create(tmp_path / "v") as vault:
        digest = vault.manifests.put([{"a": 1}])
        receiver = vault.objects.open()
        receiver.write(b'{"a":1}\n')
        assert receiver.commit()[0] == digest
        vault.flush()
        assert isinstance(vault.manifests, Manifests)
        assert vault.objects.path(digest).read_bytes() == vault.manifests.path(digest).read_bytes()


def test_a_thread_that_is_left_behind_writes_nothing_into_a_closed_vault(tmp_path: Path) -> None:
    vault = Vault.open(tmp_path / "vault", "write", create=True)
    journal = vault.state.journal("resume-mail")
    journal.append([{"key": 1}])
    receiver = vault.objects.open()
    receiver.write(b"half a message")
    kept = vault.manifests.open()
    kept.write(b'{"type":"x"}\n')
    vault.flush()
    vault.close()
    before = {path: path.stat().st_size for path in vault.root.rglob("*") if path.is_file()}
    late: list[Callable[[], object]] = [
        lambda: journal.append([{"key": 2}]),
        journal.sync,
        lambda: journal.replace([]),
        lambda: vault.state.write("identity", {"late": True}),
        lambda: vault.state.journal("push-mail").append([{"key": 3}]),
        receiver.commit,
        kept.commit,
        vault.objects.open,
        vault.flush,
    ]
    for write in late:
        with pytest.raises(VaultError, match="the vault was closed meanwhile"):
            write()
    receiver.abort()
    journal.close()
    assert {path: path.stat().st_size for path in vault.root.rglob("*") if path.is_file()} == before


def test_a_vault_is_not_closed_before_a_write_under_way_has_ended() -> None:
    gate = Gate()
    inside, end = threading.Event(), threading.Event()
    order: list[str] = []

    def write() -> None:
        with gate:
            inside.set()
            end.wait(20)
            order.append("written")

    def close() -> None:
        gate.close()
        order.append("closed")

    writer, closer = threading.Thread(target=write), threading.Thread(target=close)
    writer.start()
    assert inside.wait(20)
    closer.start()
    while True:  # until it is being closed
        try:
            with gate:
                pass
        except VaultError:
            break
    end.set()
    for thread in (writer, closer):
        thread.join(20)
    assert order == ["written", "closed"]
