"""Reading through tar streams gives what SFTP gives, whatever the server's tar does."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostbackup.model import Entry, Kind, Part, Read
from hostbackup.places import stream, stream_pack, stream_read
from hostbackup.places.sftp import SftpTree
from hostbackup.places.stream import Streams
from hostbackup.places.stream_pack import Packing
from hostbackup.protocols import ssh, ssh_session
from hostbackup.protocols.tar import Archive
from tests.support.sink import HashSink, MemorySink, Receiving
from tests.support.sites import ODD_NAMES, files, put
from tests.support.sshd import Relay, Sshd, throwaway_user
from tests.support.tars import BSD, Toolbox, sshd_with_tools

pytest_plugins = ("tests.support.tars",)

PART = Part("web", "site")


@dataclass
class Told:
    """What a read gave, to be compared."""

    reads: dict[bytes, Read[Entry]]
    contents: dict[str, bytes]
    streams: Streams
    notes: list[str]


@contextmanager
def tree_on(server: Sshd, root: Path, streams: Streams, **target: object) -> Iterator[SftpTree]:
    facts = server.target(**target)
    tree = SftpTree(lambda: ssh.connect(facts), os.fsencode(root), side="old", part=PART, pause=lambda _: None, streams=streams)
    try:
        yield tree
    finally:
        tree.close()


def read_all(
    server: Sshd,
    root: Path,
    *,
    least: int = 1,
    change: Callable[[], None] | None = None,
    extra: list[Entry] | None = None,
    packer: Packing | None = None,
    **target: object,
) -> Told:
    """Everything below `root`; `change` happens between scan and read."""
    notes: list[str] = []
    streams = Streams(least=least, note=notes.append, packing=packer or Packing())
    sink = MemorySink()
    with tree_on(server, root, streams, **target) as tree:
        wanted = [*files(tree), *(extra or [])]
        if change is not None:
            change()
        outcomes = list(tree.read(wanted, sink))
    reads = {outcome.asked.path: outcome for outcome in outcomes}
    assert len(reads) == len(outcomes) == len(wanted), "one outcome an entry"
    assert sink.open_now == 0
    return Told(reads, sink.contents, streams, notes)


def by_sftp(server: Sshd, root: Path, **options: object) -> Told:
    told = read_all(server, root, shell="never", **options)  # type: ignore[arg-type]
    assert told.streams.files == 0
    return told


def same(one: Told, other: Told) -> None:
    assert one.reads == other.reads
    assert {read.digest for read in one.reads.values()} <= set(one.contents) | {""}


def awkward(root: Path) -> None:
    """Names, sizes and kinds that programs stumble over."""
    for number, name in enumerate(ODD_NAMES):
        put(root, name, b"in " + name, mtime=1_500_000_000 + number)
        put(root, b"folder " + name[:200] + b"/" + name, b"below")
    put(root, b"\xe3" * 255, b"")
    put(root, b"--checkpoint-action=exec=touch x", b"x")
    put(root, b"./-C".replace(b"./", b""), b"x")
    deep = b"/".join([b"d" * 199] * 5)
    put(root, deep + b"/deep", b"deep")
    for size in (0, 1, 511, 512, 513, 10_239, 10_240, 32_768, 300_001):
        put(root, b"size %d" % size, random.Random(size).randbytes(size))
    put(root, b"old", b"older than the epoch's first second", mtime=1)
    put(root, b"future", b"from the future", mtime=4_000_000_000)
    put(root, b"linked/one", b"hard")
    (root / "linked/two").hardlink_to(root / "linked/one")
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(3_000_000)
        sparse.seek(1_000_000)
        sparse.write(b"an island")
    put(root, b"setuid", b"s")
    (root / "setuid").chmod(0o6755)
    put(root, b"unwritable", b"s")
    (root / "unwritable").chmod(0o444)


def many(root: Path, count: int = 40, size: int = 100) -> None:
    for n in range(count):
        put(root, b"f%04d" % n, (b"%d " % n) * size)


@pytest.mark.parametrize("program", ["/usr/bin/tar", BSD])
def test_a_stream_gives_what_sftp_gives_whatever_the_names_and_kinds(tar_server: Sshd, tools: Toolbox, tmp_path: Path, program: str) -> None:
    tools.real(program)
    awkward(tmp_path)

    def change() -> None:
        for name in ("size 1", "size 511", "linked/two", "old", "size 513"):
            (tmp_path / name).unlink()
        (tmp_path / "size 511").symlink_to("size 0")
        (tmp_path / "linked/two").mkdir()
        put(tmp_path, b"linked/two/not asked for", b"x")
        put(tmp_path, b"old", b"newer than the epoch's first second", mtime=2)
        put(tmp_path, b"size 513", b"another size")

    gone = [Entry(b"never/was", Kind.FILE, 3), Entry(b"../outside", Kind.FILE, 3), Entry(b"linked", Kind.DIR)]
    one = read_all(tar_server, tmp_path, change=change, extra=gone)
    change_back(tmp_path)
    other = by_sftp(tar_server, tmp_path, change=change, extra=gone)
    same(one, other)
    codes = {path: read.failure.code for path, read in one.reads.items() if read.failure}
    assert codes == {
        b"size 1": "vanished",
        b"size 511": "changed-kind",
        b"linked/two": "changed-kind",
        b"never/was": "vanished",
        b"../outside": "unsafe-name",
        b"linked": "unsupported",
    }
    assert one.streams.files > 30, one.notes
    assert one.notes == []


def change_back(root: Path) -> None:
    (root / "linked/two/not asked for").unlink()
    (root / "linked/two").rmdir()
    (root / "linked/two").hardlink_to(root / "linked/one")
    (root / "size 511").unlink()
    for size in (1, 511, 513):
        put(root, b"size %d" % size, random.Random(size).randbytes(size))
    put(root, b"old", b"older than the epoch's first second", mtime=1)


def test_a_fifo_in_a_files_place_blocks_nobody(tar_server: Sshd, tmp_path: Path) -> None:
    many(tmp_path)

    def change() -> None:
        (tmp_path / "f0007").unlink()
        os.mkfifo(tmp_path / "f0007")

    told = read_all(tar_server, tmp_path, change=change)
    assert [(path, read.failure.code) for path, read in told.reads.items() if read.failure] == [(b"f0007", "changed-kind")]
    assert told.streams.files == 39


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Toolbox]]:
    """A server for a user who is not root, and prints things when logging in."""
    folder = tmp_path_factory.mktemp("tools")
    for above in (folder, *folder.parents):
        if above.owner() == "root" and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o055)
    with throwaway_user() as user, sshd_with_tools(folder, user=user.name) as server:
        (user.home / ".bashrc").write_text("echo Welcome to the server; echo mind your step >&2\n" + (user.home / ".bashrc").read_text())
        yield server, Toolbox(folder)


def test_what_may_not_be_read_is_told_and_the_rest_streams_whatever_login_scripts_print(ordinary: tuple[Sshd, Toolbox]) -> None:
    server, _ = ordinary
    root = server.home / "site"
    many(root)
    for n in (3, 17):
        (root / f"f{n:04}").chmod(0)
    os.chown(root / "f0020", 0, 0)
    (root / "f0020").chmod(0o600)
    for path in root.iterdir():
        if path.name != "f0020":
            os.chown(path, server.home.stat().st_uid, -1)
    one = read_all(server, root)
    same(one, by_sftp(server, root))
    assert {path: read.failure.code for path, read in one.reads.items() if read.failure} == dict.fromkeys(
        (b"f0003", b"f0017", b"f0020"), "permission"
    )
    assert one.streams.files == 37
    assert one.notes == []


LIES = {
    "prints text": "cat >/dev/null; echo tar is an alias here",
    "garbage": "cat >/dev/null; head -c 20000 /dev/urandom",
    "nothing at all": "cat >/dev/null",
    "fails at once": "exit 64",
    "killed": "kill -9 $$",
    "not asked for": "cat >/dev/null; echo x >/tmp/not-asked-$$; cd /tmp; /usr/bin/tar -cf - ./not-asked-$$; rm -f /tmp/not-asked-$$",
    "everything twice": "/usr/bin/tar --null -T - --format=gnu -cf - | head -c 5120 >a; cat a a; rm a",
    "leaves some out": "head -z -n 7 | /usr/bin/tar --null -T - --format=gnu -cf -",
    "cuts the end off": "/usr/bin/tar --null -T - --format=gnu -cf - | head -c 30000",
    "cuts the end off, exit 1": "/usr/bin/tar --null -T - --format=gnu -cf - | head -c 30000; exit 1",
    "other times": "/usr/bin/tar --null -T - --format=gnu --mtime=@5 -cf -",
    "other names": "/usr/bin/tar --null -T - --format=gnu --transform=s,f0001,f0002, -cf -",
    "pax headers": "/usr/bin/tar --null -T - --format=pax -cf -",
    "noise in the middle": "/usr/bin/tar --null -T - --format=gnu -cf - | { head -c 5120; echo oops; cat; }",
    "shouts on standard error": "head -c 3000000 /dev/zero >&2; /usr/bin/tar --null -T - --format=gnu -cf -; exit 1",
    "floods first": "head -c 300000 /dev/zero; /usr/bin/tar --null -T - --format=gnu -cf -",
    "does not read its names": "/usr/bin/tar -cf - ./f0001",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tar_that_lies_or_breaks_changes_nothing(tar_server: Sshd, tools: Toolbox, tmp_path: Path, lie: str) -> None:
    root = tmp_path / "site"
    many(root)
    tools.pose(LIES[lie])
    one = read_all(tar_server, root)
    tools.clear()
    same(one, by_sftp(tar_server, root))
    assert all(read.failure is None for read in one.reads.values())
    assert sorted(path.name for path in root.iterdir()) == [f"f{n:04}" for n in range(40)]


@pytest.mark.parametrize("lie", ["prints text", "nothing at all", "not asked for", "leaves some out"])
def test_streams_are_given_up_after_two_that_broke_and_that_is_told(
    tar_server: Sshd, tools: Toolbox, tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_read, "_FILES", (10, 10, 10))
    root = tmp_path / "site"
    many(root, 60)
    count = tmp_path / "count"
    tools.pose(f"echo >>{shlex.quote(str(count))}; " + LIES[lie])
    told = read_all(tar_server, root)
    assert all(read.failure is None for read in told.reads.values())
    assert told.streams.breaks == 2
    assert told.streams.why_not
    assert any("no more tar streams" in note for note in told.notes)
    assert len(count.read_text()) <= 3  # the third was under way when the second broke


@pytest.mark.parametrize("version", ["#!/bin/sh\necho 'tar (some other) 1.0'\n", "#!/bin/sh\nexit 127\n", "#!/bin/sh\necho GNU\n"])
def test_an_unknown_tar_is_not_used(tar_server: Sshd, tools: Toolbox, tmp_path: Path, version: str) -> None:
    many(tmp_path / "site")
    tools.put(version)
    told = read_all(tar_server, tmp_path / "site")
    assert all(read.failure is None for read in told.reads.values())
    assert (told.streams.files, told.streams.breaks) == (0, 0)
    assert told.streams.why_not


def test_few_files_take_no_stream(tar_server: Sshd, tmp_path: Path) -> None:
    many(tmp_path, stream.LEAST - 1)
    assert read_all(tar_server, tmp_path, least=stream.LEAST).streams.files == 0
    many(tmp_path, stream.LEAST)
    assert read_all(tar_server, tmp_path, least=stream.LEAST).streams.files == stream.LEAST


def test_large_files_are_left_to_sftp_and_one_that_grew_large_too(tar_server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_read, "LARGEST", 5000)
    many(tmp_path)
    put(tmp_path, b"large", b"x" * 5001)

    def grow() -> None:
        put(tmp_path, b"f0003", b"y" * 9000)

    one = read_all(tar_server, tmp_path, change=grow)
    assert one.reads[b"f0003"].size == 9000
    assert one.reads[b"large"].size == 5001
    assert all(read.failure is None for read in one.reads.values())
    assert one.streams.files == 39


class Meddling(HashSink):
    """Does something to the server's files when the first bytes come."""

    def __init__(self, deed: Callable[[], None]) -> None:
        super().__init__()
        self.deed: Callable[[], None] | None = deed

    def open(self, size_hint: int = 0) -> Receiving:
        if self.deed is not None:
            deed, self.deed = self.deed, None
            deed()
        return super().open(size_hint)


@pytest.fixture
def short_line(tar_server: Sshd, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """Little is held on the way, so that tar stands in the middle of a large file while a small one before it arrives."""
    monkeypatch.setattr(ssh_session, "_COMMAND_WINDOW", 1 << 18)
    monkeypatch.setattr(stream, "_AHEAD", 1)
    return tar_server


@pytest.mark.parametrize("program", ["/usr/bin/tar", BSD])
@pytest.mark.parametrize("how", ["grows", "shrinks", "is rewritten"])
def test_a_file_that_moves_while_it_streams_is_read_again(short_line: Sshd, tools: Toolbox, tmp_path: Path, program: str, how: str) -> None:
    tools.real(program)
    size = 12_000_000
    put(tmp_path, b"a", b"first")
    put(tmp_path, b"b", b"1" * size)
    put(tmp_path, b"c", b"last")

    def deed() -> None:
        with (tmp_path / "b").open("r+b") as file:
            if how == "grows":
                file.seek(size)
                file.write(b"more")
            elif how == "shrinks":
                file.truncate(size - 5)
            else:
                file.seek(size - 10)
                file.write(b"2")

    sink = Meddling(deed)
    with tree_on(short_line, tmp_path, Streams(least=1)) as tree:
        reads = {read.asked.path: read for read in tree.read(files(tree), sink)}
    put_size = (tmp_path / "b").stat().st_size
    assert all(read.failure is None for read in reads.values())
    assert (reads[b"b"].size, reads[b"b"].item.size) == (put_size, put_size)
    assert reads[b"b"].item.mtime_ns // 1_000_000_000 == int((tmp_path / "b").stat().st_mtime)
    assert sink.sizes[reads[b"b"].digest] == put_size
    assert reads[b"b"].digest == hashlib.sha256((tmp_path / "b").read_bytes()).hexdigest()


@pytest.mark.parametrize("seed", range(6))
def test_a_line_cut_anywhere_loses_nothing(tar_server: Sshd, tmp_path: Path, seed: int) -> None:
    many(tmp_path, 300, size=1000)
    cut_after = random.Random(seed).randrange(20_000, 1_200_000)
    with Relay(tar_server.port, cut_after=cut_after, cuts=2) as relay:
        facts = {"port": relay.port, "known_hosts": None, "host_key": tar_server.host_key_fingerprint}
        notes: list[str] = []
        sink = HashSink()
        with tree_on(tar_server, tmp_path, Streams(least=1)) as scanned:
            wanted = files(scanned)
        with tree_on(tar_server, tmp_path, Streams(least=1, note=notes.append), **facts) as tree:
            reads = list(tree.read(wanted, sink))
    assert sorted(read.asked.path for read in reads) == sorted(entry.path for entry in wanted)
    assert all(read.failure is None and read.item == read.asked for read in reads)
    assert relay.cuts_left < 2
    assert sink.open_now == 0


def test_a_server_that_allows_no_further_channel_is_read_by_sftp(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    many(tmp_path / "site")
    with sshd_with_tools(tmp_path_factory.mktemp("tools"), options=("MaxSessions 2",)) as server:
        told = read_all(server, tmp_path / "site")
    assert all(read.failure is None for read in told.reads.values())


def test_closing_early_ends_the_commands(tar_server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_read, "_FILES", (20, 20, 20))
    many(tmp_path, 200, size=20_000)
    sink = HashSink()
    with tree_on(tar_server, tmp_path, Streams(least=1)) as tree:
        reads = tree.read(files(tree), sink)
        next(reads)
        reads.close()  # type: ignore[attr-defined]
        assert sink.open_now == 0
        assert len(list(tree.read(files(tree), HashSink()))) == 200


def packing(*, sample: bytes, rate: int, waited: float) -> Packing:
    """After a stretch of a plain stream of so many bytes a second, for this share of the time waiting for the line."""
    judged = Packing()
    assert list(judged.taste([sample])) == [sample]
    judged.measured(packed=False, size=10 * rate, seconds=10, waited=10 * waited)
    return judged


TEXT = b"<p>text like that of any page</p>\n" * 1000


def test_a_stream_is_packed_where_the_line_is_what_limits_and_it_helps() -> None:
    assert packing(sample=TEXT, rate=10_000, waited=0.9).on
    assert not packing(sample=TEXT, rate=10_000, waited=0.1).on, "the line is not what limits"
    assert not packing(sample=random.Random(1).randbytes(30_000), rate=10_000, waited=0.9).on, "it does not become smaller"
    assert not packing(sample=TEXT, rate=100_000_000_000, waited=0.9).on, "packing is slower than the line"


def test_packing_that_does_not_help_is_left_off_for_good() -> None:
    judged = packing(sample=TEXT, rate=10_000, waited=0.9)
    assert judged.measured(packed=False, size=1, seconds=100, waited=0) == "", "one that was begun plain tells nothing"
    assert judged.measured(packed=True, size=300_000, seconds=10, waited=5) == ""
    assert judged.on
    assert "left off" in judged.measured(packed=True, size=100_000, seconds=10, waited=5)
    judged.measured(packed=False, size=100_000, seconds=10, waited=9)
    assert not judged.on


@pytest.mark.parametrize("program", ["/usr/bin/tar", BSD])
def test_a_packed_stream_gives_what_sftp_gives(
    tar_server: Sshd, tools: Toolbox, tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_pack, "_STRETCH", 1e9)
    tools.real(program)
    many(tmp_path, 300, size=1000)
    (tmp_path / "f0007").chmod(0o600)

    def change() -> None:
        (tmp_path / "f0008").unlink()

    packer = Packing()
    packer.on = True
    one = read_all(tar_server, tmp_path, change=change, packer=packer)
    many(tmp_path, 300, size=1000)
    same(one, by_sftp(tar_server, tmp_path, change=change))
    assert one.streams.files == 299
    assert one.notes == []


@pytest.mark.parametrize("gzip", ["cat >/dev/null", "head -c 5000", "cat; exit 0", "echo noise; /usr/bin/gzip -1c"])
def test_a_gzip_that_breaks_changes_nothing(tar_server: Sshd, tools: Toolbox, tmp_path: Path, gzip: str) -> None:
    many(tmp_path / "site", size=1000)
    tools.put(f"#!/bin/sh\n{gzip}\n", "gzip")
    packer = Packing()
    packer.on = True
    one = read_all(tar_server, tmp_path / "site", packer=packer)
    same(one, by_sftp(tar_server, tmp_path / "site"))
    assert one.streams.files == 0


@pytest.mark.parametrize("gzip", [True, False])
def test_what_is_to_be_packed_comes_plain_where_there_is_no_gzip(tmp_path: Path, gzip: bool) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for program in ("sh", "tar", "date", *(["gzip"] if gzip else [])):
        (tools / program).symlink_to(shutil.which(program) or "")
    put(tmp_path, b"f", b"data")
    command = stream.send_files(os.fsencode(tmp_path), b"token", packed=True)
    done = subprocess.run(["/bin/sh", "-c", command], input=b"./f\0", env={"PATH": str(tools)}, capture_output=True, check=True)
    told, rest = stream.greeting(iter([done.stdout]), b"token")
    assert (told.tar, told.packed) == ("gnu", gzip)
    assert [member.name for member in Archive(stream_pack.unpacked([rest]) if gzip else [rest])] == [b"./f"]
    assert (done.stderr == b"token 0\n") == gzip
