"""latest/: equals the snapshot, shares what it can, mends itself, and lets nothing lead out of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostbackup import osal
from hostbackup.errors import DiskFull
from hostbackup.model import Entry, Failure, Folder, Kind, Observer, Stored
from hostbackup.vault import fill, safe
from hostbackup.vault.safe import SafeFolder
from hostbackup.vault.snapshots import Snapshot
from hostbackup.vault.sums import Sums
from hostbackup.vault.tree import TreeWriter
from hostbackup.vault.vault import Vault
from hostbackup.vault.view import Method, build_view, verify_view
from tests.support.sample_vault import BY_HAND, INBOX, LOCAL, MAIL, MAILBOX, SITE, WEB, File, Mail, snapshot, write_mail, write_tree

NS = 1_000_000_000


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "v", "write", create=True, command="test") as opened:
        yield opened


def sample(vault: Vault, minute: int = 0, site: dict[bytes, File] = SITE) -> Snapshot:
    parts = (WEB, write_tree(vault, WEB, site)), (MAIL, write_mail(vault, MAIL, MAILBOX, b"INBOX.")), (LOCAL, write_tree(vault, LOCAL, BY_HAND))
    return snapshot(vault, *parts, minute=minute)


def build(vault: Vault, method: Method = "link", which: Snapshot | None = None) -> list[Failure]:
    newest = which or vault.snapshots.latest()
    assert newest is not None
    return build_view(vault, newest, None, method, Observer())


def latest(vault: Vault) -> Path:
    return vault.root / "latest"


def at(vault: Vault, path: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(latest(vault)) + b"/" + path))


def contents(root: Path) -> dict[bytes, tuple[str, bytes | str, int, int]]:
    """Every path below: kind, contents or target, mtime (but of folders and of files that only the view has), mode."""
    found: dict[bytes, tuple[str, bytes | str, int, int]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        name = os.fsencode(path.relative_to(root))
        if path.is_symlink():
            found[name] = "link", str(path.readlink()), info.st_mtime_ns, 0
        elif path.is_dir():
            found[name] = "dir", "", 0, stat.S_IMODE(info.st_mode)
        else:
            ours = path.name in ("SHA256SUMS", "dovecot-keywords", "subscriptions")
            found[name] = "file", path.read_bytes(), 0 if ours else info.st_mtime_ns, stat.S_IMODE(info.st_mode)
    return found


def check_sums(vault: Vault) -> None:
    """sha256sum is content, and every regular file is listed, in order."""
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=latest(vault), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    listed = [line for line in (latest(vault) / "SHA256SUMS").read_bytes().split(b"\n") if line]
    files = [path for path, (kind, *_) in contents(latest(vault)).items() if kind == "file" and path != b"SHA256SUMS"]
    assert len(listed) == len(files)


def test_it_shows_the_trees_as_they_were(vault: Vault) -> None:
    sample(vault)
    assert build(vault) == []
    found = contents(latest(vault))
    for path, file in SITE.items():
        shown = found.get(b"web/public_html/" + path)
        if file.vanished or file.failed:
            assert shown is None
        elif file.target:
            assert shown == ("link", os.fsdecode(file.target), file.mtime_ns, 0)
        elif file.data is None:
            assert shown == ("dir", "", 0, 0o700)
            assert at(vault, b"web/public_html/" + path).stat().st_mtime_ns == file.mtime_ns
        else:
            assert shown == ("file", file.data, file.mtime_ns, 0o400)
    assert found[b"local/by-hand/dump.sql"][1] == BY_HAND[b"dump.sql"].data
    check_sums(vault)


def test_it_shows_mailboxes_as_maildirs(vault: Vault) -> None:
    sample(vault)
    build(vault)
    box = latest(vault) / "mail" / "taro@example.jp"
    assert sorted(path.name for path in box.iterdir()) == sorted(
        ["cur", "new", "tmp", ".Sent", ".&kAFP4W4IMH8-.2026&XnQ-", "dovecot-keywords", "subscriptions"]
    )
    shown = sorted(path.name.partition(".")[2] for path in (box / "cur").iterdir())
    digest = [hashlib.sha256(mail.data).hexdigest()[:12] for _, mails in MAILBOX for mail in mails]
    assert shown == sorted([f"V7U1.{digest[0]}:2,Sa", f"V7U2.{digest[1]}:2,", f"V7U4200.{digest[3]}:2,F"])
    first = next((box / "cur").glob("*U1.*"))
    assert first.stat().st_mtime == int(first.name.partition(".")[0]) == 1782841465
    assert (box / "dovecot-keywords").read_text() == "0 $Label1\n"
    assert (box / "subscriptions").read_text() == "INBOX\nSent\n"
    for maildir in (box, box / ".Sent"):
        assert [list((maildir / name).iterdir()) for name in ("new", "tmp")] == [[], []]


def test_it_opens_in_a_library_that_knows_maildirs(vault: Vault) -> None:
    import mailbox

    sample(vault)
    build(vault)
    box = mailbox.Maildir(latest(vault) / "mail" / "taro@example.jp", create=False)
    assert len(box) == 3
    assert sorted(box.list_folders()) == ["&kAFP4W4IMH8-.2026&XnQ-", "Sent"]
    assert [message.get_flags() for message in box.get_folder("Sent")] == ["S"]


def test_files_share_the_space_of_their_objects(vault: Vault) -> None:
    sample(vault)
    build(vault)
    shown = at(vault, b"web/public_html/index.html")
    assert shown.stat().st_ino == vault.objects.path(hashlib.sha256(shown.read_bytes()).hexdigest()).stat().st_ino


def test_two_files_of_one_content_keep_their_own_dates(vault: Vault) -> None:
    sample(vault)
    build(vault)
    first, second = at(vault, b"web/public_html/img/logo.png"), at(vault, b"web/public_html/img/copy of logo.png")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert second.stat().st_mtime_ns == 1_700_000_000_000_000_000
    stamps = {path: path.stat().st_ino for path in (first, second)}
    build(vault)
    assert {path: path.stat().st_ino for path in (first, second)} == stamps


def test_an_unchanged_view_is_not_touched(vault: Vault) -> None:
    sample(vault)
    build(vault)
    before = {path: path.lstat().st_ctime_ns for path in latest(vault).rglob("*")} | {latest(vault): latest(vault).stat().st_ctime_ns}
    build(vault)
    sample(vault, minute=1)
    build(vault)
    assert {path: path.lstat().st_ctime_ns for path in before} == before


def test_a_change_of_the_site_changes_the_view(vault: Vault) -> None:
    sample(vault)
    build(vault)
    changed = {path: file for path, file in SITE.items() if path not in (b"img/logo.png", b"current", b"emptydir")}
    changed |= {
        b"index.html": File(b"new", mtime_ns=5 * NS),
        b"current": File(b"a file now"),
        b"emptydir": File(target=b"img"),
        b"empty.txt/inside": File(b"a folder now"),
    }
    del changed[b"empty.txt"]
    sample(vault, 1, changed)
    assert build(vault) == []
    found = contents(latest(vault) / "web" / "public_html")
    assert found[b"index.html"] == ("file", b"new", 5 * NS, 0o400)
    assert found[b"current"][:2] == ("file", b"a file now")
    assert found[b"emptydir"][:2] == ("link", "img")
    assert found[b"empty.txt/inside"][:2] == ("file", b"a folder now")
    assert b"img/logo.png" not in found
    check_sums(vault)


def test_a_date_that_changes_is_taken_over_without_copying(vault: Vault) -> None:
    sample(vault)
    build(vault)
    path = at(vault, b"web/public_html/index.html")
    inode = path.stat().st_ino
    sample(vault, 1, SITE | {b"index.html": dataclasses.replace(SITE[b"index.html"], mtime_ns=9 * NS)})
    build(vault)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (inode, 9 * NS)


def unlink(path: Path) -> None:
    path.unlink()


def overwrite(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"somebody's own words")


def same_size(path: Path) -> None:
    info, data = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(data[::-1])
    os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))
    path.chmod(0o400)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def link_instead(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("harm", [unlink, overwrite, same_size, folder_instead, link_instead])
@pytest.mark.parametrize("method", ["link", "copy"])
def test_what_somebody_did_to_it_is_mended(vault: Vault, harm: Callable[[Path], None], method: Method) -> None:
    sample(vault)
    build(vault, method)
    before = contents(latest(vault))
    harm(at(vault, b"web/public_html/index.html"))
    harm(next((latest(vault) / "mail" / "taro@example.jp" / "cur").iterdir()))
    harm(latest(vault) / "SHA256SUMS")
    wrong = [path for path, good, _ in verify_view(vault, Observer()) if not good]
    assert wrong
    assert build(vault, method) == []
    assert contents(latest(vault)) == before
    check_sums(vault)
    assert all(good for _, good, _ in verify_view(vault, Observer()))


def test_strangers_leave_and_nothing_outside_is_touched(vault: Vault, tmp_path: Path) -> None:
    sample(vault)
    build(vault)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    before = contents(latest(vault))
    web = latest(vault) / "web"
    (latest(vault) / "stranger").mkdir()
    (web / "other").symlink_to(outside)
    (web / "public_html" / "notes.txt").write_text("x")
    (web / "public_html" / "out").symlink_to(outside)
    (latest(vault) / "mail" / "taro@example.jp" / "new" / "1").write_text("x")
    subprocess.run(["rm", "-r", web / "public_html" / "img"], check=True)
    (web / "public_html" / "img").symlink_to(outside)
    build(vault)
    assert contents(latest(vault)) == before
    assert (outside / "precious").read_text() == "x"
    assert [path.name for path in outside.iterdir()] == ["precious"]


@pytest.mark.parametrize("top", ["latest", "latest/web", "latest/web/public_html", "latest/mail/taro@example.jp/cur"])
def test_a_folder_that_became_a_symlink_is_replaced_not_followed(vault: Vault, tmp_path: Path, top: str) -> None:
    sample(vault)
    build(vault)
    before = contents(latest(vault))
    outside = tmp_path / "outside"
    (vault.root / top).rename(outside)
    kept = contents(outside)
    (vault.root / top).symlink_to(outside)
    build(vault)
    assert contents(latest(vault)) == before
    assert contents(outside) == kept
    assert not (vault.root / top).is_symlink()


def test_the_folders_are_private_again_after_somebody_opened_them(vault: Vault) -> None:
    sample(vault)
    build(vault)
    at(vault, b"web/public_html/img").chmod(0o755)
    build(vault)
    assert at(vault, b"web/public_html/img").stat().st_mode & 0o777 == 0o700


def test_writing_through_a_link_is_found_out_and_the_rest_stands(vault: Vault) -> None:
    sample(vault)
    build(vault)
    path = at(vault, b"web/public_html/index.html")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"example", b"tampered")[:17])
    [failure] = build(vault)
    assert (failure.side, failure.code, failure.name) == ("vault", "damaged", b"index.html")
    assert not path.exists()
    assert not vault.objects.has(digest)
    assert (vault.root / "damaged" / f"{digest}.1").exists()
    check_sums(vault)


def test_a_link_to_what_was_set_aside_is_replaced_by_the_good_bytes(vault: Vault) -> None:
    sample(vault)
    build(vault)
    path = at(vault, b"web/public_html/index.html")
    good = path.read_bytes()
    mtime_ns = path.stat().st_mtime_ns
    path.chmod(0o600)
    path.write_bytes(b"X" * len(good))
    os.utime(path, ns=(mtime_ns, mtime_ns))
    digest = hashlib.sha256(good).hexdigest()
    vault.objects.set_aside(digest, "verify found it")
    sample(vault, 1)  # brings the object again
    assert build(vault) == []
    assert path.read_bytes() == good
    check_sums(vault)


def test_a_lost_object_is_told_and_the_rest_is_shown(vault: Vault) -> None:
    taken = sample(vault)
    vault.objects.path(hashlib.sha256(b"<h1>example</h1>\n").hexdigest()).unlink()
    [failure] = build(vault, which=taken)
    assert (failure.side, failure.part, failure.name, failure.code) == ("vault", "web/public_html", b"index.html", "damaged")
    assert at(vault, b"web/public_html/img/logo.png").exists()
    check_sums(vault)


def test_a_damaged_manifest_costs_its_part_only(vault: Vault) -> None:
    taken = sample(vault)
    path = vault.manifests.path(taken.parts[WEB.id].root)
    path.chmod(0o600)
    path.write_bytes(b"{}\n")
    [failure] = build(vault)
    assert (failure.part, failure.code) == (WEB.id, "damaged")
    assert (latest(vault) / "local" / "by-hand" / "dump.sql").exists()
    check_sums(vault)


def test_where_links_are_not_to_be_had_files_are_copied(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)

    def refuse(self: SafeFolder, source: str, name: bytes) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(SafeFolder, "hard_link", refuse)
    assert build(vault) == []
    assert at(vault, b"web/public_html/index.html").stat().st_nlink == 1
    check_sums(vault)


def test_copies_share_nothing(vault: Vault) -> None:
    sample(vault)
    build(vault, "link")
    build(vault, "copy")
    assert {path.stat().st_nlink for path in latest(vault).rglob("*") if path.is_file() and not path.is_symlink()} == {1}
    check_sums(vault)
    build(vault, "link")
    assert at(vault, b"web/public_html/index.html").stat().st_nlink == 2


def test_without_a_view_there_is_none(vault: Vault) -> None:
    sample(vault)
    build(vault)
    assert build(vault, "none") == []
    assert not latest(vault).exists()
    assert list(verify_view(vault, Observer())) == []


def test_where_a_colon_is_refused_flags_follow_a_semicolon(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    probe = fill.Abilities.probe
    monkeypatch.setattr(fill.Abilities, "probe", lambda folder: dataclasses.replace(probe(folder), colon=False))
    build(vault)
    names = [path.name for path in (latest(vault) / "mail" / "taro@example.jp" / "cur").iterdir()]
    assert all(";2," in name and ":" not in name for name in names)


def test_a_file_system_with_coarse_dates_is_not_rewritten_each_time(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    probe = fill.Abilities.probe
    monkeypatch.setattr(fill.Abilities, "probe", lambda folder: dataclasses.replace(probe(folder), tolerance_ns=2 * NS))
    build(vault)
    path = at(vault, b"web/public_html/img/logo.png")
    os.utime(path, ns=(1_600_000_000 * NS,) * 2)
    changed = path.stat().st_ctime_ns
    build(vault)
    assert path.stat().st_ctime_ns == changed


def test_an_entry_that_the_file_system_refuses_is_told(vault: Vault) -> None:
    long = "長".encode() * 100
    write = write_tree(vault, WEB, {long: File(b"x"), b"ok": File(b"y"), b"far": File(mtime_ns=2**70)})
    snapshot(vault, (WEB, write))
    [failure] = build(vault)
    assert (failure.side, failure.code, failure.name) == ("view", "refused", long)
    assert "name too long" in failure.reason
    assert at(vault, b"web/public_html/ok").read_bytes() == b"y"
    check_sums(vault)


def test_a_full_disk_ends_it(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)

    def refuse(self: SafeFolder, source: str, name: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafeFolder, "hard_link", refuse)
    with pytest.raises(DiskFull):
        build(vault)
    monkeypatch.undo()
    assert build(vault) == []
    check_sums(vault)


def test_folders_that_no_manifest_shows_are_told_not_followed(vault: Vault, tmp_path: Path) -> None:
    writer = TreeWriter(vault.manifests, WEB, {})
    receiver = vault.objects.open()
    receiver.write(b"x")
    digest, size = receiver.commit()
    top = [Entry(b"a", Kind.LINK, 0, NS, 0o777, os.fsencode(tmp_path)), Entry(b"b", Kind.FILE, 1, NS, 0o644)]
    writer.add(b"", [Stored(top[0]), Stored(top[1], digest, size)])
    writer.add(b"a", [Stored(Entry(b"a/planted", Kind.FILE, 1, NS, 0o644), digest, size)])
    snapshot(vault, (WEB, writer.finish()))
    [failure] = build(vault)
    assert (failure.code, failure.name) == ("no-folder", b"a")
    assert not (tmp_path / "planted").exists()
    check_sums(vault)


def test_names_with_newlines_backslashes_and_other_bytes_pass_sha256sum(vault: Vault) -> None:
    names = [b"new\nline", b"back\\slash", b"re\rturn", b"caf\xe9", b" lead", b"\\n", b"-rf", b"*", "名前".encode(), b"tab\t"]
    snapshot(vault, (WEB, write_tree(vault, WEB, {name: File(b"content of " + name) for name in names})))
    assert build(vault) == []
    check_sums(vault)
    assert all(good for _, good, _ in verify_view(vault, Observer()))


def test_a_folder_gone_from_the_server_leaves_the_view_with_its_mail(vault: Vault) -> None:
    gone = Folder(b"INBOX.Old", b".", ("\\NonExistent",), uidvalidity=7)
    empty = Folder(b"INBOX.Empty", b".", uidvalidity=7)
    folders = [(INBOX, [Mail(1, b"x")]), (gone, [Mail(1, b"y", vanished="20260101T000000Z")]), (empty, [])]
    snapshot(vault, (MAIL, write_mail(vault, MAIL, folders, b"INBOX.")))
    build(vault)
    box = latest(vault) / "mail" / "taro@example.jp"
    assert sorted(path.name for path in box.iterdir() if path.name.startswith(".")) == [".Empty"]
    check_sums(vault)


def test_a_part_that_left_the_profile_leaves_the_view(vault: Vault) -> None:
    sample(vault)
    build(vault)
    snapshot(vault, (LOCAL, write_tree(vault, LOCAL, BY_HAND)), minute=1)
    build(vault)
    assert sorted(path.name for path in latest(vault).iterdir()) == ["SHA256SUMS", "local"]


def test_more_lines_than_memory_holds_are_sorted_too(tmp_path: Path) -> None:
    few, many = Sums(tmp_path, held=7), Sums(tmp_path)
    for number in range(100):
        for sums in (few, many):
            sums.add(f"{number:064x}", b"%d\n" % (number * 7919 % 101))
    lines = list(few.lines())
    assert lines == list(many.lines())
    assert len(lines) == 100
    few.close()
    assert list(tmp_path.iterdir()) == []


def test_a_reflinked_file_is_its_own(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(source: int, target: int) -> bool:
        os.lseek(source, 0, os.SEEK_SET)
        while data := os.read(source, 65536):
            os.write(target, data)
        return True

    monkeypatch.setattr(osal, "reflink", clone)
    sample(vault)
    assert build(vault) == []
    assert at(vault, b"web/public_html/index.html").stat().st_nlink == 1
    check_sums(vault)
    stamps = {path: path.lstat().st_ctime_ns for path in latest(vault).rglob("*")}
    build(vault)
    assert {path: path.lstat().st_ctime_ns for path in stamps} == stamps


def test_copies_of_a_build_that_did_not_end_are_read_before_they_are_believed(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(vault)
    build(vault, "copy")
    at(vault, b"web/public_html/index.html").unlink()
    real = Sums.replace

    def killed(self: Sums, folder: SafeFolder) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sums, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        build(vault, "copy")
    monkeypatch.setattr(Sums, "replace", real)
    same_size(at(vault, b"web/public_html/index.html"))  # as a power cut may leave it
    assert build(vault, "copy") == []
    check_sums(vault)


def test_folders_deeper_than_are_held_open_at_once_are_laid_out_and_mended(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe, "_HELD_OPEN", 3)
    deep = [b"/".join([b"d"] * depth) for depth in range(1, 9)]
    files = {path + b"/" + name: File(path) for path in deep for name in (b"a", b"z/a")}
    snapshot(vault, (WEB, write_tree(vault, WEB, files)))
    assert build(vault) == []
    before = contents(latest(vault))
    assert {path for path in before if before[path][0] == "file"} == {b"SHA256SUMS"} | {b"web/public_html/" + path for path in files}
    at(vault, b"web/public_html/" + deep[-1] + b"/z/a").unlink()
    at(vault, b"web/public_html/" + deep[3] + b"/z/strange").touch()
    assert build(vault) == []
    assert contents(latest(vault)) == before
    check_sums(vault)
