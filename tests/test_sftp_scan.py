"""A web tree on a real sshd: scanned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostbackup.errors import PlaceMissing
from hostbackup.model import Claim, Entry, Kind, Status
from tests.support.sink import HashSink, MemorySink
from tests.support.sites import ODD_NAMES, Opener, entries, files, path_of, put
from tests.support.sshd import Sshd, sshd, throwaway_user

pytest_plugins = ["tests.support.sites"]


def test_a_scan_tells_kinds_sizes_modes_times_and_link_targets(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"sub/deep/file", b"12345")
    (tmp_path / "sub/deep/file").chmod(0o640)
    (tmp_path / "sub/deep").chmod(0o2750)
    path_of(tmp_path, b"sub/link").symlink_to(os.fsdecode(b"../\xff where?"))
    os.mkfifo(tmp_path / "fifo")
    os.utime(tmp_path, (1_500_000_000, 1_500_000_000))
    tree = open_tree(server, tmp_path)
    seen = entries(tree)
    assert seen[b"sub/deep/file"] == Entry(b"sub/deep/file", Kind.FILE, 5, 1_700_000_000 * 10**9, 0o640)
    assert (seen[b"sub/deep"].kind, seen[b"sub/deep"].mode) == (Kind.DIR, 0o2750)
    assert (seen[b"sub/link"].kind, seen[b"sub/link"].target) == (Kind.LINK, b"../\xff where?")
    assert seen[b"fifo"].kind is Kind.OTHER
    assert set(seen) == {b"sub", b"sub/deep", b"sub/deep/file", b"sub/link", b"fifo"}
    assert tree.root_entry is not None
    assert tree.root_entry.mtime_ns == 1_500_000_000 * 10**9


def test_odd_names_come_in_and_are_read_and_proven_byte_by_byte(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for name in ODD_NAMES:
        put(tmp_path, name, b"contents of " + name)
        put(tmp_path, b"in " + name[:200] + b"/" + name, b"deeper " + name)
    tree = open_tree(server, tmp_path)
    found = files(tree)
    assert {entry.path for entry in found} == {*ODD_NAMES, *(b"in " + name[:200] + b"/" + name for name in ODD_NAMES)}
    sink = MemorySink()
    reads = list(tree.read(found, sink))
    assert len(reads) == len(found)
    for read in reads:
        assert read.failure is None
        name = read.item.path.rpartition(b"/")[2]
        assert sink.contents[read.digest] == (b"deeper " if b"/" in read.item.path else b"contents of ") + name
    proofs = list(tree.prove(Claim(read.item, read.digest, read.size) for read in reads))
    assert {proof.status for proof in proofs} == {Status.VERIFIED}
    assert len(proofs) == len(found)


def test_a_root_may_be_a_symlink_or_relative_to_the_login_folder(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"real/a", b"1")
    (tmp_path / "alias").symlink_to("real")
    assert set(entries(open_tree(with_shell, tmp_path / "alias"))) == {b"a"}
    relative = os.path.relpath(tmp_path / "real", with_shell.home)
    assert set(entries(open_tree(with_shell, relative))) == {b"a"}


def test_symlink_loops_are_listed_and_never_followed(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "etc").symlink_to("/etc")
    seen = entries(open_tree(server, tmp_path))
    assert {path: entry.kind for path, entry in seen.items()} == {b"dir": Kind.DIR, b"dir/up": Kind.LINK, b"self": Kind.LINK, b"etc": Kind.LINK}


def test_a_missing_root_and_one_that_is_a_file_are_told(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"file", b"1")
    for name, reason in (("none", "no such folder"), ("file", "not a folder")):
        with pytest.raises(PlaceMissing, match=reason):
            list(open_tree(server, tmp_path / name).scan())
        with pytest.raises(PlaceMissing):
            list(open_tree(server, tmp_path / name).read([], HashSink()))


def test_excluded_names_are_left_out_and_excluded_folders_not_entered(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for name in (b"keep.txt", b"x.log", b"sub/x.log", b"sub/keep", b"cache/a", b"sub/cache/b"):
        put(tmp_path, name, b"1")
    seen = entries(open_tree(server, tmp_path, exclude=["cache/", "*.log"]))
    assert set(seen) == {b"keep.txt", b"sub", b"sub/keep"}


def test_a_folder_of_thousands_is_listed_whole(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for number in range(3000):
        (tmp_path / f"n{number}").touch()
    assert len(entries(open_tree(server, tmp_path))) == 3000


def test_what_a_login_may_not_see_is_told_and_the_rest_comes(open_tree: Opener) -> None:
    with throwaway_user() as user, sshd(user=user.name) as server:
        root = user.home / "site"
        put(root, b"open/a", b"1")
        put(root, b"shut/b", b"2")
        put(root, b"secret", b"3")
        (root / "secret").chmod(0o600)
        (root / "shut").chmod(0o700)
        tree = open_tree(server, "site")
        listings = {listing.container: listing for listing in tree.scan()}
        shut = listings[b"shut"].failure
        assert shut is not None
        assert (shut.code, shut.name, shut.side, shut.part) == ("permission", b"shut", "old", "web/site")
        assert [item.path for item in listings[b"open"].items] == [b"open/a"]
        wanted = [item for listing in listings.values() for item in listing.items if item.kind is Kind.FILE]
        reads = {read.asked.path: read for read in tree.read(wanted, HashSink())}
        assert reads[b"open/a"].failure is None
        refused = reads[b"secret"].failure
        assert refused is not None
        assert (refused.code, reads[b"secret"].digest) == ("permission", "")
        proofs = list(tree.prove([Claim(reads[b"secret"].item, "0" * 64, 1)]))
        assert proofs[0].status is Status.FAILED
