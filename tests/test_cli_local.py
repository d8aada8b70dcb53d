"""The whole command line over a local folder: what needs no server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from hostbackup.osal import FileLock
from tests.support.cli import command, hostbackup, write_profile

PROFILE = 'name = "move"\nvault = "vault"\n[[local]]\npath = "site"\n'


@pytest.fixture
def move(tmp_path: Path) -> Path:
    """A folder with a profile and a small site: odd names, a link, an empty folder, an empty file."""
    site = tmp_path / "site"
    (site / "画像").mkdir(parents=True)
    (site / "leer").mkdir()
    (site / "index.html").write_text("<p>ようこそ</p>")
    (site / "画像" / "a b.txt").write_text("spaces")
    (site / "new\nline").write_text("odd")
    Path(os.fsdecode(os.fsencode(site) + b"/\x83e\x83X\x83g.txt")).write_text("Shift_JIS name")
    (site / "empty").touch()
    (site / "link").symlink_to("index.html")
    (site / "dangling").symlink_to("/etc/passwd-not-there")
    for path in [*site.rglob("*"), site]:
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    write_profile(tmp_path, PROFILE)
    return tmp_path


def test_a_backup_shows_in_latest_as_ordinary_files(move: Path) -> None:
    ran = hostbackup("backup", "move.toml", "--json", cwd=move)
    assert ran.exit == 0, ran.err
    compared = subprocess.run(["diff", "-r", "--no-dereference", "site", "vault/latest/local/site"], cwd=move, capture_output=True, check=False)
    assert compared.returncode == 0, compared.stdout
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=move / "vault" / "latest", capture_output=True, check=False)
    assert sums.returncode == 0, sums.stdout
    assert (move / "vault/latest/local/site/index.html").stat().st_mtime == 1_700_000_000


def test_a_second_run_reads_nothing_and_adds_little(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    before = sum(path.lstat().st_size for path in (move / "vault").rglob("*"))
    ran = hostbackup("backup", "move.toml", "--json", cwd=move)
    after = sum(path.lstat().st_size for path in (move / "vault").rglob("*"))
    assert (ran.exit, ran.json["counts"].get("read", 0)) == (0, 0)
    assert after - before < 20_000
    assert len(list((move / "vault/snapshots").iterdir())) == 2


def test_a_part_whose_manifest_is_damaged_keeps_no_other_from_being_proven(move: Path) -> None:
    (move / "other").mkdir()
    (move / "other" / "file").write_text("other")
    write_profile(move, PROFILE + '[[local]]\npath = "other"\n')
    hostbackup("backup", "move.toml", cwd=move)
    [snapshot] = (move / "vault/snapshots").iterdir()
    root = json.loads(snapshot.read_text())["parts"]["local/other"]["root"]
    manifest = move / "vault/manifests" / root[:2] / root
    manifest.chmod(0o600)
    manifest.write_text("{}")
    ran = hostbackup("verify", "move.toml", "--against", "old", "--json", cwd=move)
    assert (ran.exit, ran.json["counts"]["old_verified"] > 5, ran.json["counts"]["old_unverified"]) == (4, True, 1)
    assert {(row["side"], row["part"]) for row in ran.json["failures"]} >= {("old", "local/other")}
    assert len(list((move / "vault/evidence").glob("*-verify.jsonl"))) == 1


def test_the_json_document_has_the_promised_keys(move: Path) -> None:
    document = hostbackup("backup", "move.toml", "--json", cwd=move).json
    assert {"version", "command", "profile", "exit", "started", "finished", "counts", "failures"} <= set(document)
    assert (document["command"], document["profile"], document["exit"]) == ("backup", "move", 0)


def test_a_vanished_file_leaves_latest_and_stays_listed(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    (move / "site/画像/a b.txt").unlink()
    assert hostbackup("backup", "move.toml", cwd=move).exit == 0
    assert not (move / "vault/latest/local/site/画像/a b.txt").exists()
    rows = hostbackup("ls", "move.toml", "local/site", "--vanished", "--json", cwd=move).json["entries"]
    [gone] = [row for row in rows if row.get("vanished")]
    assert gone["name"] == "画像/a b.txt"
    changes = hostbackup("diff", "move.toml", "--json", cwd=move).json["differences"]
    assert {(row["action"], row["name"]) for row in changes if row["action"] == "removed"} == {("removed", "画像/a b.txt")}


def test_checksum_finds_a_change_that_kept_size_and_time(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    page = move / "site/index.html"
    stat = page.stat()
    page.write_text("<p>さようなら</p>"[: len("<p>ようこそ</p>")])
    page.write_bytes(page.read_bytes()[: stat.st_size].ljust(stat.st_size, b"x"))
    os.utime(page, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hostbackup("backup", "move.toml", "--json", cwd=move).json["counts"].get("read", 0) == 0
    assert hostbackup("verify", "move.toml", "--against", "old", cwd=move).exit == 4
    assert hostbackup("backup", "move.toml", "--checksum", "--json", cwd=move).json["counts"]["read"] == 1
    assert hostbackup("verify", "move.toml", "--against", "old", cwd=move).exit == 0


def test_a_change_since_the_snapshot_is_unverified_and_not_damage(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    (move / "site/index.html").write_text("newer and longer than before")
    (move / "site/empty").unlink()
    (move / "site/added").write_text("new")
    ran = hostbackup("verify", "move.toml", "--against", "old", "--json", cwd=move)
    assert ran.exit == 3
    assert {row["name"] for row in ran.json["failures"]} >= {"index.html", "empty", "added"}
    assert {row["code"] for row in ran.json["failures"]} == {"changed-since"}


def test_a_flipped_bit_is_set_aside_told_and_fetched_again(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    victim = next(path for path in (move / "vault/objects").rglob("*") if path.is_file() and path.stat().st_size > 3)
    victim.chmod(0o600)
    victim.write_bytes(b"\0" + victim.read_bytes()[1:])
    ran = hostbackup("verify", "move.toml", "--json", cwd=move)
    assert ran.exit == 4
    assert victim.name in json.dumps(ran.json["failures"])
    assert not victim.exists()
    assert any(victim.name in path.name for path in (move / "vault/damaged").rglob("*"))
    assert hostbackup("backup", "move.toml", cwd=move).exit == 0
    assert hostbackup("verify", "move.toml", cwd=move).exit == 0


def test_a_suspicious_shrinking_is_flagged_until_accepted(move: Path) -> None:
    for number in range(20):
        (move / f"site/page{number}.html").write_text(str(number))
    hostbackup("backup", "move.toml", cwd=move)
    for number in range(20):
        (move / f"site/page{number}.html").unlink()
    first = hostbackup("backup", "move.toml", "--json", cwd=move)
    assert (first.exit, [row["code"] for row in first.json["failures"]]) == (3, ["shrunk"])
    assert hostbackup("backup", "move.toml", cwd=move).exit == 3
    assert hostbackup("backup", "move.toml", "--accept-shrink", "local/site", cwd=move).exit == 0
    assert hostbackup("backup", "move.toml", cwd=move).exit == 0


def test_a_dry_run_shows_the_plan_and_writes_no_snapshot(move: Path) -> None:
    ran = hostbackup("backup", "move.toml", "--dry-run", "--json", cwd=move)
    assert ran.exit == 0
    assert "index.html" in {row.get("name") for row in ran.json["plan"]}
    assert not (move / "vault").exists()
    hostbackup("backup", "move.toml", cwd=move)
    (move / "site/index.html").write_text("newer")
    before = sorted(str(path) for path in (move / "vault").rglob("*"))
    lock = FileLock.take(move / "vault/lock", exclusive=True)
    assert lock is not None
    again = hostbackup("backup", "move.toml", "--dry-run", "--json", cwd=move)
    lock.release()
    assert (again.exit, [row["name"] for row in again.json["plan"]]) == (0, ["index.html"])
    assert sorted(str(path) for path in (move / "vault").rglob("*")) == before


def test_another_run_is_refused_while_one_holds_the_lock(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    lock = FileLock.take(move / "vault/lock", exclusive=True)
    assert lock is not None
    try:
        ran = hostbackup("backup", "move.toml", "--json", cwd=move)
        assert (ran.exit, ran.json["exit"]) == (7, 7)
        assert hostbackup("ls", "move.toml", cwd=move).exit == 0
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ('name = "move"\nvault = "vault"\nvalt = 1\n', "valt"),
        ('name = "move"\nvault = 3\n', "vault"),
        ('name = "move"\nvault = "vault"\n[[local]]\npath = \n', "move.toml:4"),
        ('name = "move"\nvault = "vault"\n[old.ssh]\nhost = "x"\nuser = "u"\npassword = { env = "HB_NOT_SET" }\n', "HB_NOT_SET"),
    ],
)
def test_a_bad_profile_is_wrong_usage_in_words(tmp_path: Path, profile: str, told: str) -> None:
    write_profile(tmp_path, profile)
    ran = hostbackup("backup", "move.toml", "--json", cwd=tmp_path)
    assert ran.exit == 2
    assert told in ran.err
    assert ran.json["exit"] == 2
    assert not (tmp_path / "vault").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("backup",), ("backup", "nowhere.toml"), ("backup", "move.toml", "--only", "cake"), ("restore", "move.toml")]
)
def test_wrong_usage_ends_in_2(move: Path, arguments: tuple[str, ...]) -> None:
    assert hostbackup(*arguments, cwd=move).exit == 2


def test_a_missing_folder_fails_and_writes_no_snapshot(tmp_path: Path) -> None:
    write_profile(tmp_path, 'name = "move"\nvault = "vault"\n[[local]]\npath = "gone"\nname = "gone"\n')
    ran = hostbackup("backup", "move.toml", "--json", cwd=tmp_path)
    assert ran.exit in (1, 2)
    assert "gone" in ran.err
    assert not list((tmp_path / "vault").glob("snapshots/*"))


def test_a_vault_made_by_a_newer_version_is_refused(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    document = move / "vault/format.json"
    document.chmod(0o600)
    document.write_text('{"layout": "hostbackup vault", "version": 99}')
    ran = hostbackup("backup", "move.toml", "--json", cwd=move)
    assert ran.exit == 1
    assert "newer" in ran.err


def test_a_folder_that_is_no_vault_is_not_written_to(move: Path) -> None:
    (move / "vault").mkdir()
    (move / "vault/precious.txt").write_text("mine")
    assert hostbackup("backup", "move.toml", cwd=move).exit == 1
    assert [path.name for path in (move / "vault").iterdir()] == ["precious.txt"]


def test_a_copy_whose_disk_is_not_mounted_fails_and_is_not_made(move: Path) -> None:
    write_profile(move, PROFILE + '[[copy]]\npath = "usb"\n')
    hostbackup("backup", "move.toml", cwd=move)
    ran = hostbackup("copy", "move.toml", "--json", cwd=move)
    assert ran.exit == 1
    assert "mounted" in ran.reasons
    assert not (move / "usb").exists()


def test_sync_does_the_steps_in_order(move: Path) -> None:
    (move / "usb").mkdir()
    write_profile(move, PROFILE + '[[copy]]\npath = "usb"\n')
    ran = hostbackup("sync", "move.toml", "--json", cwd=move)
    assert ran.exit == 0, ran.err
    assert [(step["step"], step["exit"]) for step in ran.json["steps"]] == [("backup", 0), ("verify", 0), ("copy", 0)]
    assert list((move / "usb/snapshots").iterdir())


def test_progress_stays_off_a_pipe_and_quiet_says_nothing(move: Path) -> None:
    ran = hostbackup("backup", "move.toml", "--quiet", cwd=move)
    assert (ran.exit, ran.out, ran.err) == (0, "", "")


def test_a_log_file_gets_what_happened(move: Path) -> None:
    hostbackup("backup", "move.toml", "--log-file", "run.log", cwd=move)
    text = (move / "run.log").read_text()
    assert "local/site" in text


def test_the_schema_is_the_schema_and_with_json_a_document(move: Path) -> None:
    assert hostbackup("schema", cwd=move).out == json.dumps(hostbackup("schema", "--json", cwd=move).json["schema"], indent=2) + "\n"


@pytest.mark.parametrize("full", [False, True])
def test_an_output_that_cannot_be_written_does_not_decide_how_a_backup_ends(move: Path, full: bool) -> None:
    with Path("/dev/full").open("w") as nowhere:
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command("backup", "move.toml")] if not full else command("backup", "move.toml"),
            cwd=move,
            stdout=nowhere,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_that_the_terminal_cannot_show_are_escaped(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    ran = hostbackup("ls", "move.toml", "local/site", cwd=move, env={"PYTHONIOENCODING": "cp1252"})
    assert (ran.exit, "\\u753b\\u50cf/a b.txt" in ran.out) == (0, True)


def test_special_files_are_told(move: Path) -> None:
    os.mkfifo(move / "site/pipe")
    ran = hostbackup("backup", "move.toml", cwd=move)
    assert (ran.exit, "1 socket, pipe or device listed and not backed up" in ran.out) == (0, True)


def test_a_profile_that_names_nothing_to_back_up_is_wrong_usage(tmp_path: Path) -> None:
    write_profile(tmp_path, 'vault = "vault"\n')
    assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 2


def test_a_snapshot_that_there_is_not_is_wrong_usage(move: Path) -> None:
    hostbackup("backup", "move.toml", cwd=move)
    assert [hostbackup(*words, cwd=move).exit for words in (("ls", "move.toml", "--snapshot", "99"), ("diff", "move.toml", "1", "99"))] == [2, 2]


def test_sync_refuses_a_step_that_there_is_not_before_it_does_any(move: Path) -> None:
    write_profile(move, PROFILE + '[sync]\nsteps = ["backup", "dns"]\n')
    ran = hostbackup("sync", "move.toml", cwd=move)
    assert (ran.exit, "dns" in ran.err) == (2, True)
    assert not list((move / "vault").glob("snapshots/*"))


def test_sync_goes_on_when_a_copy_fails_and_ends_incomplete(move: Path) -> None:
    write_profile(move, PROFILE + '[[copy]]\npath = "usb"\n[sync]\nsteps = ["check", "backup", "copy", "verify"]\n')
    ran = hostbackup("sync", "move.toml", "--json", cwd=move)
    assert ran.exit == 3
    assert [(step["step"], step["exit"]) for step in ran.json["steps"]] == [("check", 3), ("backup", 0), ("copy", 1), ("verify", 0)]


def test_a_damaged_snapshot_is_listed_as_damage(move: Path) -> None:
    for _ in range(2):
        hostbackup("backup", "move.toml", cwd=move)
    first = sorted((move / "vault/snapshots").iterdir())[0]
    first.chmod(0o600)
    first.write_text("{")
    ran = hostbackup("snapshots", "move.toml", "--json", cwd=move)
    assert (ran.exit, len(ran.json["snapshots"]), ran.json["counts"]["snapshots"]) == (4, 2, 2)
    assert hostbackup("ls", "move.toml", cwd=move).exit == 0


def test_a_mirror_of_nothing_is_refused(move: Path) -> None:
    (move / "usb").mkdir()
    write_profile(move, PROFILE + '[[copy]]\npath = "usb"\nmode = "mirror"\n')
    hostbackup("backup", "move.toml", cwd=move)
    ran = hostbackup("copy", "move.toml", "--json", cwd=move)
    assert (ran.exit, "no web tree" in ran.reasons) == (2, True)
    assert [path.name for path in (move / "usb").iterdir()] == ["incoming"]
