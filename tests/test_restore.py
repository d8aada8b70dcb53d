"""Restores: trees as they were, mail in three formats, selections, names that a file system refuses, and whatever is in the way."""

from __future__ import annotations

import calendar
import dataclasses
import errno
import hashlib
import imaplib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup import osal
from hostbackup.errors import DiskFull, Exit, Locked, UsageError
from hostbackup.jobs.copy_source import CopySource, Source, open_copy
from hostbackup.jobs.restore import FORMATS, Format, restore
from hostbackup.jobs.restore_names import Names, decode
from hostbackup.jobs.restore_run import Restored
from hostbackup.jobs.result import Result
from hostbackup.model import Folder, Observer, Part
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.layout import internaldate_epoch
from hostbackup.vault.safe import SafeFolder
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.vault import Vault
from tests.support.copies import copy, spoil
from tests.support.dovecot import INBOX_DOT, dovecot
from tests.support.memory_store import MemoryStore
from tests.support.sample_vault import (
    BY_HAND,
    LOCAL,
    MAIL,
    MAILBOX,
    NOW,
    SITE,
    WEB,
    File,
    Mail,
    keep,
    make_vault,
    snapshot,
    state_of,
    write_mail,
    write_tree,
)

EXFAT = Names(windows=True, utf8=True, case=False)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with make_vault(tmp_path / "vault") as made:
        yield made


def bring(source: Source, to: Path, *selection: str, format: Format = "tree", **options: object) -> tuple[Restored, Result]:
    result = Result()
    done = restore(source, result, to=to, selection=selection, format=format, **options)  # type: ignore[arg-type]
    return done, result


def reasons(result: Result) -> dict[bytes, str]:
    return {failure.name: failure.code for failure in result.failures}


def tree_of(folder: Path) -> dict[bytes, tuple[int, int, bytes]]:
    """Type and mode, mtime (0 for what has none to keep), and contents or target, of everything below a folder."""
    found: dict[bytes, tuple[int, int, bytes]] = {}
    root = os.fsencode(folder)
    for above, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(os.fsdecode(above)) / os.fsdecode(name)
            stats = path.lstat()
            data = b""
            if stat.S_ISLNK(stats.st_mode):
                data = os.fsencode(path.readlink())
            elif stat.S_ISREG(stats.st_mode):
                data = path.read_bytes()
            found[os.fsencode(path.relative_to(folder))] = stats.st_mode, stats.st_mtime_ns, data
    return found


# ------------------------------------------------------------ trees


def test_a_tree_comes_back_with_modes_times_and_links(vault: Vault, tmp_path: Path) -> None:
    done, result = bring(vault, tmp_path / "out", "web/public_html")
    found = tree_of(tmp_path / "out" / "web" / "public_html")
    live = {path: file for path, file in SITE.items() if not file.vanished and not file.failed}
    assert set(live) <= set(found)
    for path, file in live.items():
        mode, mtime_ns, data = found[path]
        assert data == (file.target or file.data or b"")
        assert mtime_ns == file.mtime_ns
        if not file.target:
            assert stat.S_IMODE(mode) == file.mode
    assert stat.S_IMODE(found[b"img"][0]) == 0o755
    assert b"gone.html" not in found
    assert reasons(result) == {b"unread.txt": "not-stored"}
    assert result.exit is Exit.INCOMPLETE
    assert (done.files, done.links) == (7, 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["web"], "nothing of the restore itself stays"


def test_everything_is_laid_out_as_latest_is(vault: Vault, tmp_path: Path) -> None:
    from hostbackup.vault.view import build_view

    build_view(vault, vault.snapshots.get("latest"), None, "copy", Observer())
    bring(vault, tmp_path / "out")
    view = {path: data for path, (_, _, data) in tree_of(tmp_path / "vault" / "latest").items() if path != b"SHA256SUMS"}
    assert {path: data for path, (_, _, data) in tree_of(tmp_path / "out").items()} == view


def test_a_second_restore_leaves_what_is_equal(vault: Vault, tmp_path: Path) -> None:
    bring(vault, tmp_path / "out")
    before = {path: os.lstat(tmp_path / "out" / os.fsdecode(path)).st_ino for path in tree_of(tmp_path / "out")}
    done, result = bring(vault, tmp_path / "out")
    assert (done.files, done.links, done.bytes) == (0, 0, 0)
    assert done.existing > 10
    assert reasons(result) == {b"unread.txt": "not-stored"}
    after = {path: os.lstat(tmp_path / "out" / os.fsdecode(path)).st_ino for path in tree_of(tmp_path / "out")}
    subscriptions = b"mail/taro@example.jp/subscriptions"
    assert {path: number for path, number in after.items() if path != subscriptions} == {
        path: number for path, number in before.items() if path != subscriptions
    }


def test_nothing_that_stands_there_is_overwritten(vault: Vault, tmp_path: Path) -> None:
    site = tmp_path / "out" / "web" / "public_html"
    (site / "img").mkdir(parents=True)
    (site / "index.html").write_bytes(b"mine")
    (site / "img" / "logo.png").mkdir()
    (site / "empty.txt").symlink_to("index.html")
    (site / "current").write_bytes(b"a file where a link should be")
    (site / "cgi-bin").write_bytes(b"a file where a folder should be")
    before = tree_of(site)
    _, result = bring(vault, tmp_path / "out", "web")
    codes = reasons(result)
    for name in (b"index.html", b"img/logo.png", b"empty.txt", b"current", b"cgi-bin", b"cgi-bin/run.cgi"):
        assert codes[name] == "exists"
    after = tree_of(site)
    for name in (b"index.html", b"empty.txt", b"current", b"cgi-bin"):
        assert after[name] == before[name]
    assert after[b"img/copy of logo.png"][2] == SITE[b"img/copy of logo.png"].data
    assert result.exit is Exit.INCOMPLETE


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("planted", ["file", "symlink"])
def test_what_stands_where_a_part_should_keeps_back_that_part_only(vault: Vault, tmp_path: Path, format: Format, planted: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for part in (WEB, MAIL):
        there = tmp_path / "out" / part.id
        there.parent.mkdir(parents=True)
        if planted == "file":
            there.write_bytes(b"mine")
        else:
            there.symlink_to(outside)
    _, result = bring(vault, tmp_path / "out", format=format)
    told = sorted((failure.part, failure.name, failure.code) for failure in result.failures)
    assert told == [(MAIL.id, b"", "exists"), (WEB.id, b"", "exists")]
    assert result.exit is Exit.INCOMPLETE
    assert (tmp_path / "out" / LOCAL.id / "dump.sql").read_bytes() == BY_HAND[b"dump.sql"].data
    assert list(outside.iterdir()) == []
    if planted == "file":
        assert (tmp_path / "out" / WEB.id).read_bytes() == b"mine"


@pytest.mark.parametrize("asked", [(), ("web/public_html/img/logo.png",)], ids=["whole", "one file"])
def test_the_top_folder_of_a_tree_comes_back_with_mode_and_time(tmp_path: Path, asked: tuple[str, ...]) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, SITE, File(mode=0o555, mtime_ns=1_500_000_000_987_654_321))))
        bring(vault, tmp_path / "out", *asked)
    found = (tmp_path / "out" / WEB.id).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o555, 1_500_000_000_987_654_321)


@pytest.mark.parametrize("root", [None, "0755", {}, {"mode": "rwx"}, {"mode": 0, "mtime_ns": 0}, {"mode": True}, {"mtime_ns": None}])
def test_a_top_folder_of_which_nothing_is_told_is_for_its_owner(tmp_path: Path, root: object) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        totals = write_tree(vault, WEB, {b"a": File(b"a")})
        header, *refs = vault.manifests.get(totals.root)
        odd = vault.manifests.put([{**header, "meta": {"root": root}}, *refs])
        snapshot(vault, (WEB, dataclasses.replace(totals, root=odd)))
        _, result = bring(vault, tmp_path / "out")
    assert result.exit is Exit.OK
    assert stat.S_IMODE((tmp_path / "out" / WEB.id).stat().st_mode) == 0o700


def test_a_top_folder_from_beyond_time_is_restored_and_shown(tmp_path: Path) -> None:
    from hostbackup.vault.view import build_view

    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        made = snapshot(vault, (WEB, write_tree(vault, WEB, {b"a": File(b"a")}, File(mtime_ns=10**30))))
        assert build_view(vault, made, None, "copy", Observer()) == []
        _, result = bring(vault, tmp_path / "out")
    assert result.exit is Exit.OK
    assert (tmp_path / "out" / WEB.id / "a").read_bytes() == b"a"


def test_a_planted_symlink_leads_nowhere(vault: Vault, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    site = tmp_path / "out" / "web" / "public_html"
    site.mkdir(parents=True)
    (site / "img").symlink_to(outside)
    _, result = bring(vault, tmp_path / "out", "web")
    assert list(outside.iterdir()) == []
    assert reasons(result)[b"img/logo.png"] == "exists"


def test_a_hostile_manifest_leads_nowhere(tmp_path: Path) -> None:
    hostile = {b"a": File(target=str(tmp_path / "outside").encode()), b"b": File(b"fine")}
    (tmp_path / "outside").mkdir()
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        totals = write_tree(vault, WEB, hostile)
        lines = list(vault.manifests.get(totals.root))
        digest, size = keep(vault, b"evil")
        entry = {"name": "x", "kind": "file", "size": size, "digest": digest}
        inner = vault.manifests.put([entry])
        through = vault.manifests.put([*lines, {"type": "segment", "digest": inner, "folder": "a", "entries": 1, "bytes": size}])
        bad_name = vault.manifests.put([{**entry, "name": "../../outside/x"}])
        dotted = vault.manifests.put([lines[0], {"type": "segment", "digest": bad_name, "folder": "", "entries": 1, "bytes": size}])
        for minute, root in enumerate((through, dotted)):
            from dataclasses import replace

            snapshot(vault, (WEB, replace(totals, root=root)), minute=minute)
            _, result = bring(vault, tmp_path / f"out{minute}")
            assert result.exit is not Exit.OK
            assert list((tmp_path / "outside").iterdir()) == []
            assert not (tmp_path / "outside" / "x").exists()


def test_a_damaged_object_is_told_and_not_written(vault: Vault, tmp_path: Path) -> None:
    digest, size = keep(vault, b"<h1>example</h1>\n")
    path = vault.objects.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"X" * size)
    _, result = bring(vault, tmp_path / "out")
    assert reasons(result)[b"index.html"] == "damaged"
    assert result.exit is Exit.DAMAGE
    assert not (tmp_path / "out" / "web" / "public_html" / "index.html").exists()
    assert (tmp_path / "out" / "web" / "public_html" / "img" / "logo.png").exists()


def test_a_damaged_manifest_keeps_only_its_own_folder_back(vault: Vault, tmp_path: Path) -> None:
    from hostbackup.vault.tree import TreeRoot

    tree = TreeRoot.open(vault.manifests, vault.snapshots.get("latest").parts[WEB.id].root)
    [ref] = tree.refs(b"img")
    path = vault.manifests.path(ref.digest)
    path.chmod(0o600)
    path.write_bytes(b"{}\n")
    _, result = bring(vault, tmp_path / "out", "web")
    assert reasons(result)[b"img"] == "damaged"
    assert (tmp_path / "out" / "web" / "public_html" / "index.html").exists()


def test_a_full_disk_ends_the_restore_and_leaves_no_half_file(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.write

    def full(fd: int, data: bytes) -> int:
        if bytes(data[:5]) == b"CREAT":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        bring(vault, tmp_path / "out", "local")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["local", "by-hand"]


def test_two_restores_do_not_write_to_one_folder_at_once(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "out" / ".hostbackup-restoring").mkdir(parents=True)
    lock = osal.FileLock.take(tmp_path / "out" / ".hostbackup-restoring" / "lock", exclusive=True)
    assert lock is not None
    with pytest.raises(Locked):
        bring(vault, tmp_path / "out")
    lock.release()
    bring(vault, tmp_path / "out")


def test_what_a_killed_restore_left_is_cleared_away(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "out" / ".hostbackup-restoring").mkdir(parents=True)
    (tmp_path / "out" / ".hostbackup-restoring" / "abc-1.part").write_bytes(b"half")
    bring(vault, tmp_path / "out", "local")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["local"]


def test_a_restore_into_the_vault_or_onto_a_file_is_wrong_usage(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for to in (vault.root / "latest" / "x", vault.root, tmp_path / "file"):
        with pytest.raises(UsageError):
            bring(vault, to)
    (tmp_path / "usb").mkdir()
    copy(vault, FolderStore(tmp_path / "usb"))
    with open_copy(str(tmp_path / "usb")) as source, pytest.raises(UsageError):
        bring(source, tmp_path / "usb" / "out")


def test_vanished_entries_come_only_when_asked_for(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vanished"):
        bring(vault, tmp_path / "out", "web/public_html/gone.html")
    bring(vault, tmp_path / "out", "web/public_html/gone.html", vanished=True)
    assert (tmp_path / "out" / "web" / "public_html" / "gone.html").read_bytes() == b"was here"
    bring(vault, tmp_path / "all", vanished=True)
    assert len(list((tmp_path / "all" / "mail" / "taro@example.jp" / "cur").iterdir())) == 4


def test_any_snapshot_can_be_asked_for(vault: Vault, tmp_path: Path) -> None:
    first = vault.snapshots.list()[0]
    snapshot(vault, (WEB, write_tree(vault, WEB, {b"index.html": File(b"new")})), minute=1)
    bring(vault, tmp_path / "new", "web")
    bring(vault, tmp_path / "old", "web", snapshot=first)
    assert (tmp_path / "new" / "web" / "public_html" / "index.html").read_bytes() == b"new"
    assert (tmp_path / "old" / "web" / "public_html" / "index.html").read_bytes() == SITE[b"index.html"].data
    with pytest.raises(UsageError, match="no snapshot"):
        bring(vault, tmp_path / "none", snapshot="77")


# ------------------------------------------------------------ selections


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("local", {"local/by-hand/dump.sql"}),
        ("web/public_html/img", {"web/public_html/img/logo.png", "web/public_html/img/copy of logo.png"}),
        ("web/public_html/img/", {"web/public_html/img/logo.png", "web/public_html/img/copy of logo.png"}),
        ("latest/web/public_html/img/logo.png", {"web/public_html/img/logo.png"}),
        ("web/public_html/img/copy%20of%20logo.png", {"web/public_html/img/copy of logo.png"}),
        ("public_html/empty.txt", {"web/public_html/empty.txt"}),
        ("web/public_html/会社案内", {"web/public_html/会社案内/地図.html"}),
        ("web/public_html/%E4%BC%9A%E7%A4%BE%E6%A1%88%E5%86%85", {"web/public_html/会社案内/地図.html"}),
        ("mail/taro@example.jp/Sent", {"mail/taro@example.jp/.Sent/cur/1"}),
        ("mail/taro@example.jp/INBOX.Sent", {"mail/taro@example.jp/.Sent/cur/1"}),
        ("mail/taro%40example.jp/.Sent", {"mail/taro@example.jp/.Sent/cur/1"}),
        ("taro@example.jp/送信/2026年", {"mail/taro@example.jp/.&kAFP4Q-.2026&XnQ-/cur/2"}),
        ("mail/taro@example.jp/送信", {"mail/taro@example.jp/.&kAFP4Q-.2026&XnQ-/cur/2", "mail/taro@example.jp/.&kAFP4Q-/cur/"}),
        ("mail/taro@example.jp/INBOX", {f"mail/taro@example.jp/cur/{uid}" for uid in (1, 2, 4200)}),
    ],
)
def test_a_selection_may_be_written_in_many_ways(tmp_path: Path, asked: str, expected: set[str]) -> None:
    japanese = [Folder(b"INBOX.&kAFP4Q-", b".", uidvalidity=7), Folder(b"INBOX.&kAFP4Q-.2026&XnQ-", b".", uidvalidity=7)]
    folders = [*MAILBOX[:2], (japanese[0], []), (japanese[1], [Mail(2, b"Subject: x\r\n\r\n")])]
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        parts = ((WEB, write_tree(vault, WEB, SITE)), (MAIL, write_mail(vault, MAIL, folders)), (LOCAL, write_tree(vault, LOCAL, BY_HAND)))
        snapshot(vault, *parts)
        bring(vault, tmp_path / "out", asked)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    mails = {
        path.partition("/cur/")[0] + "/cur/" + path.partition("/cur/")[2].partition("U")[2].partition(".")[0] for path in found if "/cur/" in path
    }
    plain = {path for path in found if "/cur/" not in path and not path.endswith(("subscriptions", "dovecot-keywords"))}
    assert plain | mails == {path for path in expected if not path.endswith("/")}
    for path in expected:
        assert (tmp_path / "out" / path).parent.is_dir()


def test_one_message_is_selected_by_its_file_in_latest(vault: Vault, tmp_path: Path) -> None:
    bring(vault, tmp_path / "all", "mail")
    [file] = [path for path in (tmp_path / "all" / "mail" / "taro@example.jp" / "cur").iterdir() if "U2." in path.name]
    bring(vault, tmp_path / "one", f"latest/mail/taro@example.jp/cur/{file.name}")
    assert [path.name for path in (tmp_path / "one" / "mail" / "taro@example.jp" / "cur").iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("web/nothing", "web/public_html"),
        ("web/public_html/img/none.png", "img/logo.png"),
        ("web/public_html/none/none.png", "index.html"),
        ("mail/taro@example.jp/Nowhere", "INBOX, Sent"),
        ("nonsense", "mail/taro@example.jp"),
    ],
)
def test_a_selection_that_is_not_there_says_what_is(vault: Vault, tmp_path: Path, asked: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        bring(vault, tmp_path / "out", asked)
    assert hint in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_name_that_two_parts_have_must_be_given_with_its_kind(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        twin = Part("local", "public_html")
        snapshot(vault, (WEB, write_tree(vault, WEB, {b"a": File(b"w")})), (twin, write_tree(vault, twin, {b"a": File(b"l")})))
        with pytest.raises(UsageError, match="more than one") as caught:
            bring(vault, tmp_path / "out", "public_html/a")
        assert "local/public_html, web/public_html" in caught.value.hint
        bring(vault, tmp_path / "out", "local/public_html/a")
    assert (tmp_path / "out" / "local" / "public_html" / "a").read_bytes() == b"l"


# ------------------------------------------------------------ names


ODD: dict[bytes, File] = {
    b"a:b?.txt": File(b"1"),
    b"a%3Ab%3F.txt": File(b"2"),
    b"README": File(b"3"),
    b"Readme": File(b"4"),
    b"readme": File(b"5"),
    b"NUL.txt": File(b"6"),
    b"dot.": File(b"7"),
    b"tab\there": File(b"8"),
    b"caf\xe9": File(b"9"),
    b"back\\slash": File(b"10"),
    b"dir:1/inner*.txt": File(b"11"),
    "名前".encode(): File(b"12"),
    b"x" * 255: File(b"13"),
    b"link?": File(target=b"a:b?.txt"),
}


def mapping(folder: Path) -> dict[bytes, bytes]:
    """Path below `folder` to original path, by the list of mapped names."""
    told: dict[bytes, bytes] = {}
    for line in (folder / "hostbackup-names.jsonl").read_bytes().splitlines():
        record = json.loads(line)
        told[record["path"].encode()] = _bytes(record, "original")
    found: dict[bytes, bytes] = {}
    for path in tree_of(folder):
        parts = path.split(b"/")
        found[path] = b"/".join(told.get(b"/".join(parts[: number + 1]), part) for number, part in enumerate(parts))
    return found


def _bytes(record: dict[str, str], key: str) -> bytes:
    import base64

    return base64.b64decode(record[f"{key}_b64"]) if f"{key}_b64" in record else record[key].encode()


@pytest.mark.parametrize("names", [EXFAT, Names(ascii=True), Names(utf8=True, case=False)])
def test_names_that_a_file_system_refuses_are_mapped_listed_and_found_again(tmp_path: Path, names: Names) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, ODD)))
        done, result = bring(vault, tmp_path / "out", names=names)
        assert result.failures == []
        assert bring(vault, tmp_path / "out", names=names)[1].failures == []
    originals = mapping(tmp_path / "out")
    contents = {path: data for path, (mode, _, data) in tree_of(tmp_path / "out").items() if not stat.S_ISDIR(mode)}
    lead = b"web/public_html/"
    assert {originals[path].removeprefix(lead): data for path, data in contents.items() if path.startswith(lead)} == {
        path: file.target or file.data for path, file in ODD.items()
    }
    for path in contents:
        for part in path.split(b"/"):
            assert names.fit(decode(part) if b"%" in part else part) is not None
            if names.windows:
                assert not set(part) & set(b'<>:"|?*\\') and not part.endswith((b".", b" "))
            if names.ascii:
                assert part.isascii()
            if names.utf8:
                part.decode("utf-8")
    if not names.case:
        folded = [path.decode().casefold() for path in contents]
        assert len(set(folded)) == len(folded)
    assert set(done.mapped) == {os.fsdecode(path) for path, original in originals.items() if path.rpartition(b"/")[2] != original.rpartition(b"/")[2]}


def test_a_name_is_mapped_alike_whether_alone_or_among_all(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, ODD)))
        bring(vault, tmp_path / "all", names=EXFAT)
        bring(vault, tmp_path / "one", "web/public_html/readme", names=EXFAT)
    [alone] = [path for path, (mode, _, _) in tree_of(tmp_path / "one" / "web").items() if stat.S_ISREG(mode)]
    assert tree_of(tmp_path / "all" / "web")[alone][2] == b"5"


def test_a_plain_name_stays_as_it_is() -> None:
    for name in (b"100%25.txt", "日本語 %E3.html".encode(), b"caf\xe9", b"a:b"):
        assert Names().fit(name) == name


def test_a_name_that_is_refused_in_spite_of_the_probe_is_escaped(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked, made = os.link, os.mkdir

    def link(source: bytes, target: bytes, **options: int) -> None:
        if not target.isascii():
            raise OSError(errno.EILSEQ, "Invalid or incomplete multibyte or wide character")
        linked(source, target, **options)  # type: ignore[arg-type]

    def mkdir(path: bytes, mode: int = 0o777, **options: int) -> None:
        if isinstance(path, bytes) and not path.isascii():
            raise OSError(errno.EILSEQ, "Invalid or incomplete multibyte or wide character")
        made(path, mode, **options)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "mkdir", mkdir)
    for _ in range(2):
        done, result = bring(vault, tmp_path / "out", "web")
        assert reasons(result) == {b"unread.txt": "not-stored"}
    site = tmp_path / "out" / "web" / "public_html"
    assert (site / "%E4%BC%9A%E7%A4%BE%E6%A1%88%E5%86%85" / "%E5%9C%B0%E5%9B%B3.html").read_bytes() == "地図".encode()
    assert done.mapped["web/public_html/caf%E9"] == "caf\udce9"


def test_the_names_file_keeps_what_earlier_restores_mapped(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, ODD)))
        for asked in ("web/public_html/NUL.txt", "web/public_html/dot.", "web/public_html/dot."):
            bring(vault, tmp_path / "out", asked, names=EXFAT)
    lines = (tmp_path / "out" / "hostbackup-names.jsonl").read_text().splitlines()
    assert [json.loads(line)["original"] for line in lines] == ["NUL.txt", "dot."]


def test_a_real_file_system_is_found_out(tmp_path: Path) -> None:
    assert Names.probe(tmp_path) == Names()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ mail


def messages_of(vault: Vault) -> dict[int, bytes]:
    return {mail.uid: mail.data for mail in MAILBOX[0][1] if not mail.vanished}


def test_a_maildir_holds_each_message_byte_for_byte(vault: Vault, tmp_path: Path) -> None:
    bring(vault, tmp_path / "out", "mail")
    home = tmp_path / "out" / "mail" / "taro@example.jp"
    found = {int(path.name.partition("U")[2].partition(".")[0]): path for path in (home / "cur").iterdir()}
    assert {uid: path.read_bytes() for uid, path in found.items()} == messages_of(vault)
    assert found[1].name.endswith(":2,Sa")
    assert found[1].stat().st_mtime == 1782841465
    assert (home / "dovecot-keywords").read_bytes() == b"0 $Label1\n"
    assert sorted((home / "subscriptions").read_text().split()) == ["INBOX", "Sent"]
    for folder in (home, home / ".Sent"):
        assert all((folder / name).is_dir() for name in ("cur", "new", "tmp"))


def test_a_maildir_on_a_file_system_without_colons_uses_semicolons(vault: Vault, tmp_path: Path) -> None:
    done, _ = bring(vault, tmp_path / "out", "mail", names=EXFAT)
    names = [path.name for path in (tmp_path / "out" / "mail" / "taro@example.jp" / "cur").iterdir()]
    assert all(";2," in name and ":" not in name for name in names)
    assert done.mapped == {}


def test_eml_files_are_the_messages_themselves(vault: Vault, tmp_path: Path) -> None:
    done, result = bring(vault, tmp_path / "out", "mail", format="eml")
    assert (done.files, result.failures) == (5, [])
    home = tmp_path / "out" / "mail" / "taro@example.jp"
    assert sorted(path.name for path in (home / "INBOX").iterdir()) == [
        "2026-07-01 0244 two (2).eml",
        "2026-07-01 0244 こ (1).eml",
        "undated bare LF (4200).eml",
    ]
    assert {int(re.findall(r"\d+", path.stem)[-1]): path.read_bytes() for path in (home / "INBOX").glob("*.eml")} == messages_of(vault)
    [japanese] = (home / "送信済み" / "2026年").iterdir()
    assert japanese.read_bytes() == MAILBOX[2][1][0].data
    records = {(record["folder"], record["uid"]): record for record in map(json.loads, (home / "flags.jsonl").read_text().splitlines())}
    assert records["INBOX", 1]["flags"] == ["$Label1", "\\Seen"]
    assert records["INBOX", 4200]["internaldate"] == "31-Jun-2026 00:00:00 +0000"
    assert records["INBOX", 1]["sha256"] == hashlib.sha256((home / records["INBOX", 1]["file"]).read_bytes()).hexdigest()
    again, result = bring(vault, tmp_path / "out", "mail", format="eml")
    assert (again.files, result.failures) == (0, [])


def test_mail_folders_with_hostile_names_stay_inside(tmp_path: Path) -> None:
    folders = [(Folder(name, b"/", uidvalidity=1), [Mail(1, b"x", uidvalidity=1)]) for name in (b"..", b"../..", b"a/../../b", b"/abs", b"a\0b", b"")]
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (MAIL, write_mail(vault, MAIL, folders, b"")))
        for number, format in enumerate(FORMATS):
            to = tmp_path / "deep" / "er" / f"out{number}"
            _, result = bring(vault, to, format=format)
            assert result.failures == []
            assert len([path for path in to.rglob("*") if path.is_file() and path.stat().st_size and "jsonl" not in path.name]) >= 6
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == ["out0", "out1", "out2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "vault"]


def test_dovecot_opens_a_restored_maildir_with_all_its_folders_flags_and_dates(vault: Vault, tmp_path: Path) -> None:
    bring(vault, tmp_path / "out", "mail")
    with dovecot(INBOX_DOT) as server:
        home = server.maildir("taro@example.test")
        shutil.copytree(tmp_path / "out" / "mail" / "taro@example.jp", home)
        for path in (home, home.parent, *home.rglob("*")):
            shutil.chown(path, "nobody" if os.geteuid() == 0 else None, os.getegid() if os.geteuid() else "nogroup")
        client = imaplib.IMAP4("127.0.0.1", server.ports["plain"])
        client.login("taro@example.test", server.users["taro@example.test"])
        names = {folder.name for folder, _ in MAILBOX}
        assert names <= {line.rpartition(b" ")[2].strip(b'"') for line in client.list()[1] if isinstance(line, bytes)}
        assert {line.rpartition(b" ")[2].strip(b'"') for line in client.lsub()[1] if isinstance(line, bytes)} == {b"INBOX", b"INBOX.Sent"}
        for folder, mails in MAILBOX:
            client.select(folder.name.decode(), readonly=True)
            answer = client.fetch("1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")[1]
            live = [mail for mail in mails if not mail.vanished]
            found = {part[1].replace(b"\r\n", b"\n"): part[0] for part in answer if isinstance(part, tuple)}
            assert set(found) == {mail.data.replace(b"\r\n", b"\n") for mail in live}
            for mail in live:
                told = found[mail.data.replace(b"\r\n", b"\n")]
                assert set(imaplib.ParseFlags(told)) - {b"\\Recent"} == {flag.encode() for flag in mail.flags}
                when = imaplib.Internaldate2tuple(told)
                assert when is not None
                assert calendar.timegm(time.gmtime(time.mktime(when))) == internaldate_epoch(mail.internaldate)
        client.logout()


# ------------------------------------------------------------ from a copy


def test_a_copy_alone_restores_the_same(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "usb").mkdir()
    copy(vault, FolderStore(tmp_path / "usb"))
    for format in FORMATS:
        bring(vault, tmp_path / f"a-{format}", format=format)
        with open_copy(str(tmp_path / "usb")) as source:
            _, result = bring(source, tmp_path / f"b-{format}", format=format)
        assert reasons(result) == {b"unread.txt": "not-stored"}
        ours, theirs = tree_of(tmp_path / f"a-{format}"), tree_of(tmp_path / f"b-{format}")
        assert {path: (mode, data) for path, (mode, _, data) in ours.items()} == {path: (mode, data) for path, (mode, _, data) in theirs.items()}


def test_a_damaged_copy_is_told_and_not_written(vault: Vault, tmp_path: Path) -> None:
    store = MemoryStore()
    copy(vault, store, name="m")
    for data in (b"<h1>example</h1>\n", BY_HAND[b"dump.sql"].data or b""):
        spoil(store, keep(vault, data)[0])
    with CopySource(store) as source:
        _, result = bring(source, tmp_path / "out")
    assert reasons(result) == {b"index.html": "damaged", b"dump.sql": "damaged", b"unread.txt": "not-stored"}
    assert result.exit is Exit.DAMAGE
    assert not (tmp_path / "out" / "web" / "public_html" / "index.html").exists()


def test_a_file_system_without_modes_gets_the_bytes_and_one_warning(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Warned(Observer):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    for name in ("chmod", "fchmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    result = Result(Warned())
    restore(vault, result, to=tmp_path / "out", selection=["web/public_html/img", "local"])
    assert result.failures == []
    assert isinstance(result.observer, Warned)
    assert len(result.observer.warnings) == 1


def test_a_part_that_was_never_read_is_told(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        totals = write_tree(vault, WEB, {b"a": File(b"a")})
        unread = PartState(MAIL, "", state="incomplete", reason="login refused")
        vault.snapshots.write({WEB.id: state_of(WEB, totals), MAIL.id: unread}, [], command="backup", exit=3, profile="x", now=NOW)
        _, result = bring(vault, tmp_path / "out")
    assert [(failure.part, failure.code) for failure in result.failures] == [(MAIL.id, "not-stored")]
    assert "login refused" in result.failures[0].reason
    assert (tmp_path / "out" / "web" / "public_html" / "a").exists()


def test_setuid_does_not_make_programs_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Observer, "warn", lambda _, text: warnings.append(text))
    with Vault.open(tmp_path / "vault", "write", create=True) as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, {b"bin/tool": File(b"x", mode=0o6755), b"plain": File(b"y", mode=0o755)})))
        _, result = bring(vault, tmp_path / "out")
        _, again = bring(vault, tmp_path / "out")
    assert result.details["without_setuid"] == [{"name": "web/public_html/bin/tool"}]
    [warning] = warnings
    assert warning.startswith("1 file was restored without setuid")
    assert warning.endswith(": web/public_html/bin/tool")
    assert again.details["without_setuid"] == [], "what stood there already lost nothing"
    assert stat.S_IMODE((tmp_path / "out" / "web" / "public_html" / "bin" / "tool").stat().st_mode) == 0o755


def test_a_file_system_without_links_is_written_to_all_the_same(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    bring(vault, tmp_path / "out")
    _, result = bring(vault, tmp_path / "out")
    assert reasons(result) == {b"unread.txt": "not-stored"}
    assert (tmp_path / "out" / "web" / "public_html" / "index.html").read_bytes() == SITE[b"index.html"].data


def test_without_openat_the_same_is_restored(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hostbackup.vault import safe

    bring(vault, tmp_path / "a")
    monkeypatch.setattr(safe, "_BY_FD", False)
    with SafeFolder.open(tmp_path) as folder:
        assert folder.fd is None
    _, result = bring(vault, tmp_path / "b", "mail", "local", "web/public_html/img")
    assert result.failures == []
    ours, theirs = tree_of(tmp_path / "a"), tree_of(tmp_path / "b")
    assert {path: ours[path][2] for path in theirs} == {path: data for path, (_, _, data) in theirs.items()}
