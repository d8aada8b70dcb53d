"""A web tree on a real sshd, with a shell and without: scan, read, write, prove."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostbackup.errors import HostKeyUnknown, LineCut, LoginRefused, PlaceMissing, Unreachable
from hostbackup.model import Claim, Entry, Kind, Listing, Method, Part, Proof, Read, Status, Write, Written
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols import ssh
from hostbackup.protocols.sftp.client import SocketChannel
from hostbackup.protocols.sftp.packets import Framer, Type
from hostbackup.protocols.ssh_session import SshSession
from tests.support.sink import HashSink, MemorySink
from tests.support.sshd import Relay, Sshd, sshd, throwaway_user

PART = Part("web", "site")
ODD_NAMES = [
    b"\xff\xfe not utf-8",
    b"line\nfeed",
    b"carriage\rreturn",
    b"quote'\"`$(touch x)`;&|",
    b"-rf",
    b"--",
    b"back\\slash",
    b"\\n",
    b" leading and trailing ",
    "日本語のファイル.txt".encode(),
    "日本語.txt".encode("cp932"),
    b"*?[a]",
    b"a" * 255,
    b".hidden",
    b"\x01\x1b[31m",
]


@pytest.fixture(scope="module")
def with_shell() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture(scope="module")
def sftp_only() -> Iterator[Sshd]:
    with sshd(shell=False) as running:
        yield running


@pytest.fixture(params=["shell", "sftp only"])
def server(request: pytest.FixtureRequest, with_shell: Sshd, sftp_only: Sshd) -> Sshd:
    return with_shell if request.param == "shell" else sftp_only


Opener = Callable[..., SftpTree]


@pytest.fixture
def open_tree() -> Iterator[Opener]:
    trees: list[SftpTree] = []

    def make(server: Sshd, root: Path | str | bytes, *, target: dict[str, object] | None = None, **options: object) -> SftpTree:
        told = str(root) if isinstance(root, Path) else root
        facts = server.target(**(target or {}))
        tree = SftpTree(lambda: ssh.connect(facts), told, side="old", part=PART, pause=lambda _: None, **options)  # type: ignore[arg-type]
        trees.append(tree)
        return tree

    yield make
    for tree in trees:
        tree.close()
        tree.close()


def entries(tree: SftpTree) -> dict[bytes, Entry]:
    listings = list(tree.scan())
    assert all(listing.failure is None for listing in listings), [listing.failure for listing in listings]
    assert listings[0].container == b""
    assert len({listing.container for listing in listings}) == len(listings)
    seen: dict[bytes, Entry] = {}
    for listing in listings:
        assert listing.container == b"" or seen[listing.container].kind is Kind.DIR
        assert [item.path for item in listing.items] == sorted(item.path for item in listing.items)
        seen.update((item.path, item) for item in listing.items)
    return seen


def files(tree: SftpTree) -> list[Entry]:
    return [entry for entry in entries(tree).values() if entry.kind is Kind.FILE]


def path_of(root: Path, name: bytes) -> Path:
    return root / os.fsdecode(name)


def put(root: Path, name: bytes, data: bytes, mtime: int = 1_700_000_000) -> None:
    path = path_of(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))


def file(path: bytes, data: bytes, *, replace: bool = False, mode: int = 0o644, mtime: int = 1_600_000_000) -> Write[Entry]:
    item = Entry(path, Kind.FILE, len(data), mtime * 1_000_000_000, mode)
    return Write(item, hashlib.sha256(data).hexdigest(), len(data), lambda: io.BytesIO(data), replace)


def folder(path: bytes, mode: int = 0o755, mtime: int = 1_600_000_000) -> Write[Entry]:
    return Write(Entry(path, Kind.DIR, 0, mtime * 1_000_000_000, mode))


def link(path: bytes, target: bytes, *, replace: bool = False) -> Write[Entry]:
    return Write(Entry(path, Kind.LINK, mode=0o777, target=target), replace=replace)


def by_path(outcomes: list[Written[Entry]]) -> dict[bytes, Written[Entry]]:
    found = {outcome.asked.item.path: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


# -- scan


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


# -- read


def test_files_of_every_size_come_whole(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    sizes = [0, 1, 32767, 32768, 32769, 255 * 1024 - 1, 255 * 1024, 255 * 1024 + 1, 1 << 20, (9 << 20) + 17]
    contents = {b"f%d" % size: os.urandom(size) for size in sizes}
    for name, data in contents.items():
        put(tmp_path, name, data)
    tree = open_tree(server, tmp_path)
    sink = MemorySink()
    reads = list(tree.read(files(tree), sink))
    assert {read.asked.path: sink.contents[read.digest] for read in reads} == contents
    assert all(read.size == read.item.size == len(contents[read.asked.path]) for read in reads)
    assert sink.open_now == 0


def test_a_file_that_went_and_one_that_became_something_else_are_told(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for name in (b"gone", b"linked", b"folder", b"fine"):
        put(tmp_path, name, b"12345")
    tree = open_tree(server, tmp_path)
    found = files(tree)
    for went in ("gone", "linked", "folder"):
        (tmp_path / went).unlink()
    put(tmp_path, b"elsewhere", b"12345")
    (tmp_path / "linked").symlink_to("elsewhere")
    (tmp_path / "folder").mkdir()
    sink = HashSink()
    reads = {read.asked.path: read for read in tree.read(found, sink)}
    codes = {path: read.failure and read.failure.code for path, read in reads.items()}
    assert codes == {b"gone": "vanished", b"linked": "changed-kind", b"folder": "changed-kind", b"fine": None}
    assert (sink.commits, sink.open_now) == (1, 0)


def test_a_file_changed_since_the_scan_comes_with_what_it_is_now(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"grown", b"short")
    put(tmp_path, b"cut", b"x" * 100_000)
    tree = open_tree(server, tmp_path)
    found = files(tree)
    put(tmp_path, b"grown", b"y" * 1_000_000, 1_700_000_500)
    put(tmp_path, b"cut", b"z", 1_700_000_500)
    sink = MemorySink()
    reads = {read.asked.path: read for read in tree.read(found, sink)}
    assert sink.contents[reads[b"grown"].digest] == b"y" * 1_000_000
    assert sink.contents[reads[b"cut"].digest] == b"z"
    assert reads[b"grown"].item == Entry(b"grown", Kind.FILE, 1_000_000, 1_700_000_500 * 10**9, 0o644)
    assert reads[b"grown"].failure is reads[b"cut"].failure is None


class Meddling(MemorySink):
    """Changes the file each time some of it has come, so many times."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__()
        self.path, self.times, self.opened = path, times, 0

    def open(self, size_hint: int = 0):  # type: ignore[no-untyped-def]
        receiver = super().open(size_hint)
        self.opened += 1
        if self.times:
            self.times -= 1
            meddle, write = self, receiver.write

            def changing(data: bytes | bytearray | memoryview) -> object:
                meddle.path.write_bytes(bytes([meddle.opened]) * (5 << 20))
                os.utime(meddle.path, (1_700_000_000 + meddle.opened,) * 2)
                receiver.write = write  # type: ignore[method-assign]
                return write(data)

            receiver.write = changing  # type: ignore[method-assign]
        return receiver


def test_a_file_written_to_while_it_is_read_is_read_again(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"\0" * (5 << 20))
    tree = open_tree(server, tmp_path)
    sink = Meddling(tmp_path / "f", 2)
    (read,) = tree.read(files(tree), sink)
    assert read.failure is None
    assert sink.contents[read.digest] == b"\2" * (5 << 20)
    assert (sink.opened, sink.aborts, sink.commits) == (3, 2, 1)
    assert read.item.mtime_ns == 1_700_000_002 * 10**9


def test_a_file_that_never_stands_still_is_kept_and_told(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"\0" * (5 << 20))
    tree = open_tree(server, tmp_path)
    sink = Meddling(tmp_path / "f", 100)
    (read,) = tree.read(files(tree), sink)
    assert read.failure is not None
    assert (read.failure.code, sink.opened) == ("changing", 4)
    assert read.digest in sink.contents


def test_a_volatile_file_is_read_once_only(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"logs/f", b"\0" * (5 << 20))
    tree = open_tree(with_shell, tmp_path, volatile=["logs/"])
    sink = Meddling(tmp_path / "logs/f", 100)
    (read,) = tree.read(files(tree), sink)
    assert read.failure is not None
    assert (read.failure.code, sink.opened) == ("changing", 1)


class Full(HashSink):
    def open(self, size_hint: int = 0):  # type: ignore[no-untyped-def]
        if self.commits >= 3:
            raise OSError(28, "no space left")
        return super().open(size_hint)


def test_a_sink_that_fails_ends_the_read_and_frees_what_was_open(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for number in range(500):
        put(tmp_path, b"f%d" % number, b"1")
    tree = open_tree(with_shell, tmp_path)
    found = files(tree)
    sink = Full()
    with pytest.raises(OSError, match="no space"):
        list(tree.read(found, sink))
    assert sink.open_now == 0
    assert len(list(tree.read(found, HashSink()))) == 500


def test_a_read_that_is_not_finished_leaves_nothing_open(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for number in range(500):
        put(tmp_path, b"f%d" % number, b"1")
    tree = open_tree(with_shell, tmp_path)
    sink = HashSink()
    reading = tree.read(files(tree), sink)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert sink.open_now == 0
    assert len(entries(tree)) == 500


def test_a_read_may_draw_its_wishes_from_a_scan_under_way(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for number in range(400):
        put(tmp_path, b"d%d/f" % number, b"%d" % number)
    tree = open_tree(with_shell, tmp_path)
    wanted = (item for listing in tree.scan() for item in listing.items if item.kind is Kind.FILE)
    assert len(list(tree.read(wanted, HashSink()))) == 400


# -- lines that break


def test_a_line_cut_in_mid_work_is_made_anew_and_nothing_comes_twice(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    contents = {b"d%d/f%d" % (n % 20, n): os.urandom(20_000) for n in range(300)}
    for name, data in contents.items():
        put(tmp_path, name, data)
    with Relay(with_shell.port, cut_after=1_000_000, cuts=3) as relay:
        tree = open_tree(with_shell, tmp_path, target={"port": relay.port, "host_key": with_shell.host_key_fingerprint})
        sink = MemorySink()
        reads = list(tree.read(files(tree), sink))
        assert relay.cuts_left == 0
    assert len(reads) == 300
    assert {read.asked.path: sink.contents[read.digest] for read in reads} == contents
    assert sink.open_now == 0


def test_a_line_cut_while_scanning_loses_no_folder(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for number in range(600):
        put(tmp_path, b"folder%d/%s" % (number, b"n" * 200), b"")
    with Relay(with_shell.port, cut_after=60_000, cuts=2) as relay:
        tree = open_tree(with_shell, tmp_path, target={"port": relay.port, "host_key": with_shell.host_key_fingerprint})
        assert len(entries(tree)) == 1200
        assert relay.cuts_left == 0


def test_a_line_that_stays_cut_is_raised_after_what_came(with_shell: Sshd, tmp_path: Path) -> None:
    for number in range(300):
        put(tmp_path, b"f%d" % number, os.urandom(20_000))
    pauses: list[float] = []
    with Relay(with_shell.port, cut_after=1_500_000) as relay:
        target = with_shell.target(port=relay.port, host_key=with_shell.host_key_fingerprint)
        tree = SftpTree(lambda: ssh.connect(target), str(tmp_path), side="old", part=PART, pause=pauses.append)
        found = files(tree)
        sink, reads = HashSink(), []
        with pytest.raises((LineCut, Unreachable)):
            for read in tree.read(found, sink):
                reads.append(read)
                if len(reads) == 1:
                    relay.refuse()
        tree.close()
    assert 0 < len(reads) < 300
    assert pauses == [1.0, 2.0, 4.0]
    assert sink.open_now == 0


def test_a_refused_login_is_never_repeated(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    logins: list[int] = []

    def refused() -> SshSession:
        logins.append(1)
        raise LoginRefused("no")

    tree = SftpTree(refused, str(tmp_path), side="old", part=PART, pause=lambda _: None)
    with pytest.raises(LoginRefused):
        list(tree.scan())
    with pytest.raises(LoginRefused):
        list(tree.read([], HashSink()))
    assert len(logins) == 1
    with pytest.raises(HostKeyUnknown):
        list(open_tree(with_shell, tmp_path, target={"known_hosts": tmp_path / "none"}).scan())


def test_a_frozen_line_is_noticed(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for number in range(2000):
        put(tmp_path, b"f%d" % number, b"1")
    relays: list[Relay] = []

    def through_a_new_relay() -> SshSession:
        relays.append(Relay(with_shell.port))
        return ssh.connect(with_shell.target(port=relays[-1].port, host_key=with_shell.host_key_fingerprint))

    tree = SftpTree(through_a_new_relay, str(tmp_path), side="old", part=PART, silence=1.0, pause=lambda _: None)
    found = files(tree)
    reads: list[Read[Entry]] = []
    for read in tree.read(found, HashSink()):
        reads.append(read)
        if len(reads) == 10:
            relays[0].freeze()
    assert len(reads) == 2000
    assert len(relays) == 2
    tree.close()
    for relay in relays:
        relay.close()


def test_a_server_that_allows_one_channel_is_served_by_one(tmp_path: Path, open_tree: Opener) -> None:
    for number in range(100):
        put(tmp_path, b"f%d" % number, b"1")
    with sshd(options=("MaxSessions 1",)) as server:
        tree = open_tree(server, tmp_path)
        assert len(list(tree.read(files(tree), HashSink()))) == 100


# -- write


def test_a_tree_is_written_with_modes_times_and_links(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    tree = open_tree(server, tmp_path)
    big = os.urandom(3 << 20)
    items = [
        folder(b"a", 0o750),
        folder(b"a/shut", 0o500, 1_500_000_000),
        file(b"a/shut/f", b"inside", mode=0o604),
        link(b"a/l", b"../\xff nowhere"),
        file(b"top", big),
        file(b"empty", b""),
        *(file(name, b"odd " + name) for name in ODD_NAMES),
    ]
    outcomes = by_path(list(tree.write(items)))
    assert all(outcome.failure is None for outcome in outcomes.values()), [o.failure for o in outcomes.values()]
    assert len(outcomes) == len(items)
    assert (tmp_path / "top").read_bytes() == big
    assert (tmp_path / "a/shut/f").read_bytes() == b"inside"
    shut = (tmp_path / "a/shut").stat()
    assert (stat.S_IMODE(shut.st_mode), shut.st_mtime) == (0o500, 1_500_000_000)
    inside = (tmp_path / "a/shut/f").stat()
    assert (stat.S_IMODE(inside.st_mode), inside.st_mtime) == (0o604, 1_600_000_000)
    assert os.fsencode(path_of(tmp_path, b"a/l").readlink()) == b"../\xff nowhere"
    for name in ODD_NAMES:
        assert path_of(tmp_path, name).read_bytes() == b"odd " + name
    seen = entries(tree)
    for path, outcome in outcomes.items():
        assert outcome.item == seen[path]
    assert not any(b".hostbackup" in path for path in seen)


def test_what_is_there_is_replaced_only_if_that_is_allowed(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"kept", b"theirs")
    put(tmp_path, b"equal", b"same")
    put(tmp_path, b"replaced", b"old")
    put(tmp_path, b"folder/x", b"1")
    (tmp_path / "wrong").symlink_to("kept")
    (tmp_path / "right").symlink_to("kept")
    (tmp_path / "moved").symlink_to("kept")
    (tmp_path / "was-link").symlink_to("kept")
    tree = open_tree(server, tmp_path)
    items = [
        file(b"kept", b"ours!!"),
        file(b"equal", b"same"),
        file(b"replaced", b"new", replace=True),
        file(b"folder", b"file", replace=True),
        link(b"wrong", b"elsewhere"),
        link(b"right", b"kept"),
        link(b"moved", b"elsewhere", replace=True),
        file(b"was-link", b"file now", replace=True),
    ]
    outcomes = by_path(list(tree.write(items)))
    codes = {path: outcome.failure and outcome.failure.code for path, outcome in outcomes.items()}
    assert {path for path, code in codes.items() if code == "exists"} == {b"kept", b"folder", b"wrong"}
    assert {path for path, code in codes.items() if code is None} == {b"equal", b"replaced", b"right", b"moved", b"was-link"}
    assert (tmp_path / "kept").read_bytes() == b"theirs"
    assert (tmp_path / "replaced").read_bytes() == b"new"
    assert (tmp_path / "folder/x").exists()
    assert [str((tmp_path / name).readlink()) for name in ("wrong", "right", "moved")] == ["kept", "kept", "elsewhere"]
    assert not (tmp_path / "was-link").is_symlink()
    assert not list(tmp_path.rglob(".hostbackup*"))


def test_writing_twice_leaves_one(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    tree = open_tree(server, tmp_path)
    items = [folder(b"d"), file(b"d/f", b"x" * 100_000), link(b"d/l", b"f")]
    for _ in range(2):
        assert all(outcome.failure is None for outcome in tree.write(items))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "f", "l"]


def test_a_folder_in_place_of_which_something_else_stands_takes_its_contents_along(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    put(root, b"file", b"1")
    tree = open_tree(server, root)
    items = [folder(b"link"), file(b"link/a", b"1"), folder(b"file"), file(b"file/b", b"1"), folder(b"file/c"), file(b"file/c/d", b"1")]
    outcomes = by_path(list(tree.write(items)))
    assert all(outcome.failure is not None for outcome in outcomes.values())
    assert [outcomes[path].failure.code for path in (b"link", b"file")] == ["exists", "exists"]  # type: ignore[union-attr]
    assert not list(outside.iterdir())


def test_nothing_is_written_through_a_planted_symlink(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "sub").mkdir(parents=True)
    root.mkdir()
    (root / "planted").symlink_to(outside)
    tree = open_tree(server, root)
    outcomes = by_path(list(tree.write([file(b"planted/f", b"1"), file(b"planted/sub/f", b"1"), file(b"missing/f", b"1")])))
    assert all(outcome.failure is not None for outcome in outcomes.values())
    assert [path.name for path in outside.rglob("*")] == ["sub"]


@pytest.mark.parametrize("path", [b"../out", b"a/../../out", b"/out", b"a//b", b".", b"a\0b"])
def test_a_path_that_leads_out_is_refused_everywhere(with_shell: Sshd, tmp_path: Path, open_tree: Opener, path: bytes) -> None:
    root = tmp_path / "root"
    root.mkdir()
    put(tmp_path, b"out", b"theirs")
    tree = open_tree(with_shell, root)
    (written,) = tree.write([file(path, b"ours", replace=True)])
    (read,) = tree.read([Entry(path, Kind.FILE, 6)], HashSink())
    (proof,) = tree.prove([Claim(Entry(path, Kind.FILE, 6), "0" * 64, 6)])
    assert written.failure is not None
    assert read.failure is not None
    assert proof.status is Status.FAILED
    assert (tmp_path / "out").read_bytes() == b"theirs"
    assert not list(root.iterdir())


def test_bytes_that_are_not_those_on_record_are_not_placed(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    tree = open_tree(server, tmp_path)
    good = file(b"f", b"right")
    (written,) = tree.write([dataclasses.replace(good, open=lambda: io.BytesIO(b"wrong"))])
    assert written.failure is not None
    assert written.failure.code == "damaged"

    def broken() -> io.BytesIO:
        raise OSError(5, "i/o error")

    (written,) = tree.write([dataclasses.replace(good, open=broken)])
    assert written.failure is not None
    assert written.failure.code == "io"
    assert not list(tmp_path.iterdir())


def test_the_root_is_made_only_if_it_is_asked_for(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    root = tmp_path / "not" / "yet"
    tree = open_tree(server, root)
    with pytest.raises(PlaceMissing):
        list(tree.write([file(b"f", b"1")]))
    assert not root.exists()
    outcomes = list(tree.write([folder(b""), file(b"f", b"1")]))
    assert all(outcome.failure is None for outcome in outcomes)
    assert (root / "f").read_bytes() == b"1"


def test_what_a_login_may_not_write_is_told(open_tree: Opener) -> None:
    with throwaway_user() as user, sshd(user=user.name) as server:
        root = user.home / "site"
        (root / "theirs").mkdir(parents=True)
        (root / "ours").mkdir()
        os.chown(root / "ours", user.uid, -1)
        outcomes = by_path(list(open_tree(server, "site").write([file(b"theirs/f", b"1"), file(b"ours/f", b"1"), folder(b"d"), file(b"d/f", b"1")])))
        codes = {path: outcome.failure and outcome.failure.code for path, outcome in outcomes.items()}
        assert codes == {b"theirs/f": "permission", b"ours/f": None, b"d": "permission", b"d/f": "permission"}


def test_a_cut_line_while_writing_leaves_every_file_whole_and_no_leftovers(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    contents = {b"d%d/f%d" % (n % 10, n): os.urandom(30_000) for n in range(300)}
    with Relay(with_shell.port, cut_after=60_000, cuts=3) as relay:
        tree = open_tree(with_shell, tmp_path, target={"port": relay.port, "host_key": with_shell.host_key_fingerprint})
        items = [*(folder(b"d%d" % n) for n in range(10)), *(file(name, data) for name, data in contents.items())]
        outcomes = list(tree.write(items))
        assert relay.cuts_left == 0
    assert [outcome.failure for outcome in outcomes if outcome.failure] == []
    assert len(outcomes) == len(items)
    for name, data in contents.items():
        assert (tmp_path / name.decode()).read_bytes() == data
    assert not list(tmp_path.rglob(".hostbackup*"))


def test_leftovers_of_a_killed_write_are_tidied_and_nothing_else(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    tree = open_tree(with_shell, tmp_path)
    prefix = tree.temporary_prefix
    put(tmp_path, b"d/" + prefix + b"-1f.part", b"half")
    put(tmp_path, b"d/" + prefix + b".old-lost.html", b"the only copy")
    put(tmp_path, b"d/" + prefix + b".old-there.html", b"replaced")
    put(tmp_path, b"d/there.html", b"new")
    put(tmp_path, b"d/.hostbackup-ffffffff-1.part", b"another run's")
    put(tmp_path, prefix + b"-user-file", b"theirs")
    assert tree.remove_temporaries([prefix, b"", b".hostbackup-"]) == 3
    left = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "lost.html": b"the only copy",
        "there.html": b"new",
        ".hostbackup-ffffffff-1.part": b"another run's",
        (prefix + b"-user-file").decode(): b"theirs",
    }


def test_without_posix_rename_files_and_links_are_replaced_all_the_same(tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"old")
    put(tmp_path, b"kept", b"theirs")
    (tmp_path / "l").symlink_to("old")
    with sshd(sftp="internal-sftp -P posix-rename,fsync,limits,lsetstat,hardlink") as server:
        tree = open_tree(server, tmp_path)
        items = [file(b"f", b"new", replace=True), link(b"l", b"new", replace=True), file(b"n", b"1", replace=True), file(b"kept", b"ours")]
        outcomes = by_path(list(tree.write(items)))
        codes = {path: outcome.failure and outcome.failure.code for path, outcome in outcomes.items()}
    assert codes == {b"f": None, b"l": None, b"n": None, b"kept": "exists"}
    assert {path.name for path in tmp_path.iterdir()} == {"f", "l", "n", "kept"}
    assert ((tmp_path / "f").read_bytes(), str((tmp_path / "l").readlink())) == (b"new", "new")


class Swapped(SocketChannel):
    """Turns SYMLINK's arguments round on their way: so the server takes them as the draft says, not as OpenSSH does."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._framer, self._greeted = Framer(), False

    def send(self, data: bytes, /) -> int:
        for body in self._framer.feed(data):
            packet = bytes(body)
            if packet[0] == Type.SYMLINK:
                (length,) = struct.unpack_from(">I", packet, 5)
                packet = packet[:5] + packet[9 + length :] + packet[5 : 9 + length]
            self._socket.setblocking(True)
            self._socket.sendall(struct.pack(">I", len(packet)) + packet)
            self._socket.setblocking(False)
        return len(data)


class Foreign:
    """A session with a server that is not called OpenSSH and has no shell."""

    alive = True
    server_version = "SSH-2.0-other"

    def __init__(self, channel: type[SocketChannel]) -> None:
        self._channel = channel
        self._ends: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []

    def open_sftp_channel(self) -> SocketChannel:
        near, far = socket.socketpair()
        with far:
            self._ends.append((near, subprocess.Popen(["/usr/lib/openssh/sftp-server"], stdin=far.fileno(), stdout=far.fileno())))
        return self._channel(near)

    def has_shell(self) -> bool:
        return False

    def close(self) -> None:
        for near, process in self._ends:
            near.close()
            process.wait(10)
        self._ends.clear()


@pytest.mark.parametrize("channel", [SocketChannel, Swapped])
def test_links_are_made_the_right_way_round_whichever_order_the_server_takes(channel: type[SocketChannel], tmp_path: Path) -> None:
    tree = SftpTree(lambda: Foreign(channel), str(tmp_path), side="new", part=PART)  # type: ignore[arg-type, return-value]
    outcomes = list(tree.write([link(b"l%d" % number, b"some/where") for number in range(20)]))
    tree.close()
    assert all(outcome.failure is None for outcome in outcomes)
    assert {path.name for path in tmp_path.iterdir()} == {f"l{number}" for number in range(20)}
    assert {str(path.readlink()) for path in tmp_path.iterdir()} == {"some/where"}


def test_a_server_that_freezes_while_it_is_written_to_is_noticed(with_shell: Sshd, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    relays: list[Relay] = []

    def through_a_new_relay() -> SshSession:
        relays.append(Relay(with_shell.port))
        return ssh.connect(with_shell.target(port=relays[-1].port, host_key=with_shell.host_key_fingerprint, timeout=1))

    def items() -> Iterator[Write[Entry]]:
        for number in range(60):
            if number == 20:
                relays[0].freeze()
            yield file(b"f%d" % number, data)

    tree = SftpTree(through_a_new_relay, str(tmp_path), side="new", part=PART, silence=1.0, pause=lambda _: None)
    outcomes = list(tree.write(items()))
    assert len(outcomes) == 60
    assert all(outcome.failure is None for outcome in outcomes)
    assert len(relays) == 2
    assert not list(tmp_path.rglob(".hostbackup*"))
    tree.close()
    for relay in relays:
        relay.close()


# -- prove


def claims(tree: SftpTree) -> dict[bytes, Claim[Entry]]:
    seen = entries(tree)
    reads = tree.read([entry for entry in seen.values() if entry.kind is Kind.FILE], HashSink())
    found = {read.item.path: Claim(read.item, read.digest, read.size) for read in reads}
    others = {path: Claim(entry, "", 0) for path, entry in seen.items() if entry.kind in (Kind.DIR, Kind.LINK)}
    return found | others


def proofs(tree: SftpTree, claimed: dict[bytes, Claim[Entry]]) -> dict[bytes, Proof[Entry]]:
    found = list(tree.prove(claimed.values()))
    assert len(found) == len(claimed)
    return {proof.claim.item.path: proof for proof in found}


def test_the_method_is_the_strongest_the_server_allows(with_shell: Sshd, sftp_only: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"1")
    for running, options, method in (
        (with_shell, {}, Method.SERVER_SHA256),
        (with_shell, {"shell": "never"}, Method.SFTP_SECOND_READ),
        (sftp_only, {}, Method.SFTP_SECOND_READ),
    ):
        tree = open_tree(running, tmp_path, target=options)
        assert {(proof.status, proof.method) for proof in proofs(tree, claims(tree)).values()} == {(Status.VERIFIED, method)}


def test_every_way_to_be_wrong_has_its_status(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    names = (b"fine", b"flipped", b"grown", b"touched", b"gone", b"kind")
    for name in names:
        put(tmp_path, name, b"12345")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "relinked").symlink_to("a")
    tree = open_tree(server, tmp_path)
    claimed = claims(tree)
    put(tmp_path, b"flipped", b"12344")
    put(tmp_path, b"grown", b"123456")
    put(tmp_path, b"touched", b"12345", 1_700_000_009)
    (tmp_path / "gone").unlink()
    (tmp_path / "kind").unlink()
    (tmp_path / "kind").mkdir()
    (tmp_path / "relinked").unlink()
    (tmp_path / "relinked").symlink_to("b")
    found = proofs(tree, claimed)
    assert {path: proof.status for path, proof in found.items()} == {
        b"fine": Status.VERIFIED,
        b"dir": Status.VERIFIED,
        b"link": Status.VERIFIED,
        b"flipped": Status.DIFFERENT,
        b"grown": Status.CHANGED,
        b"touched": Status.CHANGED,
        b"gone": Status.MISSING,
        b"kind": Status.CHANGED,
        b"relinked": Status.CHANGED,
    }
    for proof in found.values():
        assert (proof.failure is None) == (proof.status is Status.VERIFIED)


def test_a_second_read_uses_a_login_of_its_own(sftp_only: Sshd, tmp_path: Path) -> None:
    put(tmp_path, b"f", b"1")
    sessions: list[SshSession] = []

    def factory() -> SshSession:
        sessions.append(ssh.connect(sftp_only.target()))
        return sessions[-1]

    tree = SftpTree(factory, str(tmp_path), side="old", part=PART)
    claimed = claims(tree)
    assert len(sessions) == 1
    proofs(tree, claimed)
    assert len(sessions) == 2
    assert not sessions[1].alive
    tree.close()
    assert not sessions[0].alive


def test_names_never_reach_the_shell_as_code(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    root = tmp_path / "$(touch planted)'; touch planted; '"
    put(root, b"$(touch planted)", b"1")
    put(root, b"`touch planted`", b"1")
    put(root, b"x\n; touch planted", b"1")
    tree = open_tree(with_shell, root)
    found = proofs(tree, claims(tree))
    assert {(proof.status, proof.method) for proof in found.values()} == {(Status.VERIFIED, Method.SERVER_SHA256)}
    assert not list(Path(with_shell.home).glob("planted"))
    assert not list(tmp_path.rglob("planted"))


def test_free_space_is_told(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    free = open_tree(server, tmp_path).free()
    assert free is not None
    assert 0 < free < 1 << 60


def test_no_server_process_is_left_when_trees_are_closed(tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"1")
    with sshd() as server:
        tree = open_tree(server, tmp_path)
        proofs(tree, claims(tree))
        tree.close()
        for pid in server.connections():
            subprocess.run(["tail", "--pid", str(pid), "-f", "/dev/null"], timeout=10, check=True)


def test_an_empty_tree_is_one_empty_listing(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    assert list(open_tree(with_shell, tmp_path).scan()) == [Listing(b"", [])]
