"""What is particular to folders of this machine."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import PlaceMissing
from hostbackup.model import Entry, Kind, Part, Status
from hostbackup.places import local, local_fs
from hostbackup.places.local import LocalTree
from tests.support.memory import NOON, digest_of
from tests.support.processes import descriptors
from tests.support.sink import HashSink, MemorySink
from tests.support.users import as_nobody
from tests.support.worlds import DiskWorld, claim, close, folder_at, link_to, listings, prove, read, scanned, upload, write, written

PART = Part("local", "by-hand")


def tree(root: Path, exclude: Sequence[str] = ()) -> LocalTree:
    return LocalTree(root, side="old", part=PART, exclude=exclude)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def world(tmp_path: Path) -> DiskWorld:
    return DiskWorld(tmp_path / "tree", tree)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tree"


# -- change during the read ---------------------------------------------------------------------------------------------------------------


def meddle(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[int]:
    """Calls `act` with the number of the try right after a file was read, before anybody looks whether it stood still."""
    tries: list[int] = []
    real = local_fs.pump

    def pump(fd: int, expected: int, take: Callable[[bytes], object]) -> int:
        received = real(fd, expected, take)
        tries.append(len(tries) + 1)
        act(tries[-1])
        return received

    monkeypatch.setattr("hostbackup.places.local.pump", pump)
    return tries


def test_a_file_written_to_during_the_read_is_read_again(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = world.file(b"log", b"one\n")

    def grow(number: int) -> None:
        if number <= 2:
            with (root / "log").open("ab") as log:
                log.write(b"more\n")

    tries = meddle(monkeypatch, grow)
    sink = MemorySink()
    outcome = read(world.place, [entry], sink)[b"log"]
    assert tries == [1, 2, 3]
    assert outcome.failure is None
    assert sink.contents[outcome.digest] == b"one\nmore\nmore\n"
    assert (outcome.item.size, sink.commits, sink.aborts) == (14, 1, 2)


def test_same_size_and_another_time_is_a_change_too(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = world.file(b"db", b"aaaa")

    def rewrite(number: int) -> None:
        if number == 1:
            world.file(b"db", b"bbbb", mtime_ns=NOON + 1)

    meddle(monkeypatch, rewrite)
    outcome = read(world.place, [entry], HashSink())[b"db"]
    assert (outcome.failure, outcome.digest) == (None, digest_of(b"bbbb"))


def test_a_file_that_never_stands_still_is_kept_and_told(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, calm = world.file(b"log", b""), world.file(b"calm", b"calm")

    def grow(_: int) -> None:
        with (root / "log").open("ab") as log:
            log.write(b"x")

    tries = meddle(monkeypatch, grow)
    sink = MemorySink()
    outcome = read(world.place, [entry], sink)[b"log"]
    assert len(tries) == 1 + local.REREADS
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.name, outcome.failure.part) == ("changing", b"log", PART.id)
    assert sink.contents[outcome.digest] == b"xxx"
    assert outcome.size == 3
    monkeypatch.undo()
    assert read(world.place, [calm], HashSink())[b"calm"].failure is None


def test_a_file_cut_short_during_the_read_is_seen(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = world.file(b"f", b"0123456789")
    meddle(monkeypatch, lambda number: os.truncate(root / "f", 4) if number == 1 else None)
    outcome = read(world.place, [entry], HashSink())[b"f"]
    assert (outcome.failure, outcome.digest, outcome.item.size) == (None, digest_of(b"0123"), 4)


def test_a_file_that_grows_without_end_does_not_hold_the_read(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = world.file(b"log", b"x" * 10)
    real = os.read

    def endless(fd: int, count: int, /) -> bytes:
        with (root / "log").open("ab") as log:
            log.write(b"y" * 10)
        return real(fd, 10)

    monkeypatch.setattr(os, "read", endless)
    outcome = read(world.place, [entry], HashSink())[b"log"]
    assert outcome.failure is not None
    assert outcome.failure.code == "changing"


def test_what_cannot_be_read_is_told_with_the_systems_words(world: DiskWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [world.file(b"bad", b"1"), world.file(b"good", b"2")]
    real = os.read
    calls: list[int] = []

    def broken(fd: int, count: int, /) -> bytes:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count)

    monkeypatch.setattr(os, "read", broken)
    outcomes = read(world.place, entries, HashSink())
    failure = outcomes[b"bad"].failure
    assert failure is not None
    assert (failure.code, failure.reason) == ("io", os.strerror(errno.EIO))
    assert outcomes[b"good"].digest == digest_of(b"2")


def test_a_file_written_to_while_it_is_proven_is_changed_not_damaged(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = world.file(b"f", b"data")

    def rewrite(_: int) -> None:
        world.file(b"f", b"atad", mtime_ns=NOON)

    world.tamper(entry)
    meddle(monkeypatch, rewrite)
    assert prove(world.place, claim(entry, b"data"))[b"f"].status is Status.CHANGED


# -- what others put in our way -----------------------------------------------------------------------------------------------------------


def test_a_folder_replaced_by_a_link_leads_nowhere(world: DiskWorld, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    entry = world.file(b"a/b/f", b"public")
    shutil.rmtree(root / "a" / "b")
    (root / "a" / "b").symlink_to(outside)
    sink = MemorySink()
    failure = read(world.place, [entry], sink)[b"a/b/f"].failure
    assert failure is not None
    assert failure.code == "changed-kind"
    assert sink.contents == {}
    assert prove(world.place, claim(entry, b"secret"))[b"a/b/f"].status is Status.CHANGED
    outcomes = write(world.place, upload(b"a/b/f", b"planted", replace=True), link_to(b"a/b/l", b"x"), folder_at(b"a/b/d"), folder_at(b"a/b"))
    assert all(outcome.failure is not None for outcome in outcomes.values())
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("f", b"secret")]


def test_a_link_planted_during_a_scan_is_not_entered(world: DiskWorld, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    world.folder(b"d")
    scan = world.place.scan()
    assert [entry.path for entry in next(scan).items] == [b"d"]
    (root / "d").rmdir()
    (root / "d").symlink_to(tmp_path / "outside")
    (listing,) = list(scan)
    assert list(listing.items) == []
    assert listing.failure is not None
    assert listing.failure.code == "changed-kind"


def test_a_folder_gone_during_a_scan_is_told(world: DiskWorld, root: Path) -> None:
    world.folder(b"d")
    scan = world.place.scan()
    next(scan)
    (root / "d").rmdir()
    (listing,) = list(scan)
    assert listing.failure is not None
    assert (listing.container, listing.failure.code) == (b"d", "vanished")


def test_a_file_gone_while_its_folder_is_listed_was_never_there(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.file(b"a", b"1")
    world.file(b"b", b"2")
    real = local_fs.describe

    def describe(path: bytes, known: os.stat_result, target: bytes = b"") -> Entry:
        if path == b"b":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path, known, target)

    monkeypatch.setattr("hostbackup.places.local.describe", describe)
    assert list(scanned(world.place)) == [b"a"]


def test_a_name_that_leads_out_is_not_even_read(world: DiskWorld, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    sink = MemorySink()
    planted = [Entry(path, Kind.FILE, 6, NOON, 0o644) for path in (b"../outside", b"./x/../../outside", os.fsencode(tmp_path / "outside"))]
    outcomes = read(world.place, planted, sink)
    assert [outcome.failure.code for outcome in outcomes.values() if outcome.failure] == ["name-refused"] * 3
    assert sink.contents == {}


def test_devices_sockets_and_fifos_are_listed_and_never_opened(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "fifo", 0o640)
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    found = scanned(world.place)
    assert {path: entry.kind for path, entry in found.items()} == {b"fifo": Kind.OTHER, b"socket": Kind.OTHER}
    planted = [Entry(path, Kind.FILE, 1, NOON, 0o644) for path in found]
    for outcome in read(world.place, planted, HashSink()).values():
        assert outcome.failure is not None
        assert outcome.failure.code == "changed-kind"


def test_what_this_user_may_not_see_is_told_and_the_rest_arrives(public: Path) -> None:
    world = DiskWorld(public / "tree", tree)
    world.file(b"closed/inside", b"1")
    world.file(b"names only/inside", b"2")
    world.folder(b"names only/below")
    secret = world.file(b"secret", b"3", mode=0o000)
    world.file(b"open", b"4")
    world.folder(b"closed", mode=0o000)
    world.folder(b"names only", mode=0o444)
    try:
        with as_nobody():
            found = listings(world.place)
            codes = {name: listing.failure.code for name, listing in found.items() if listing.failure is not None}
            assert codes == {b"closed": "permission", b"names only": "permission", b"names only/below": "permission"}
            assert [entry.path for entry in found[b""].items] == [b"closed", b"names only", b"open", b"secret"]
            assert [(entry.path, entry.kind) for entry in found[b"names only"].items] == [
                (b"names only/below", Kind.DIR),
                (b"names only/inside", Kind.FILE),
            ]
            asked = [entry for listing in found.values() for entry in listing.items if entry.kind is Kind.FILE]
            outcomes = read(world.place, asked, HashSink())
            told = {path: outcome.failure.code for path, outcome in outcomes.items() if outcome.failure is not None}
            assert told == {b"secret": "permission", b"names only/inside": "permission"}
            assert outcomes[b"open"].digest == digest_of(b"4")
            assert prove(world.place, claim(secret, b"3"))[b"secret"].status is Status.FAILED
    finally:
        world.folder(b"closed", mode=0o755)
        world.folder(b"names only", mode=0o755)


# -- the root -----------------------------------------------------------------------------------------------------------------------------


def test_the_root_may_be_a_symlink(world: DiskWorld, root: Path, tmp_path: Path) -> None:
    entry = world.file(b"d/f", b"data")
    (tmp_path / "by another name").symlink_to(root)
    place = tree(tmp_path / "by another name")
    assert sorted(scanned(place)) == [b"d", b"d/f"]
    assert read(place, [entry], HashSink())[b"d/f"].digest == digest_of(b"data")
    assert place.root_entry.kind is Kind.DIR


def test_the_roots_own_mode_and_time_are_told(world: DiskWorld) -> None:
    world.folder(b"", mode=0o711, mtime_ns=NOON + 1)
    assert isinstance(world.place, LocalTree)
    list(world.place.scan())
    assert world.place.root_entry == Entry(b"", Kind.DIR, 0, NOON + 1, 0o711)


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b""), lambda path: path.symlink_to("nowhere"), lambda path: None])
def test_a_root_that_is_no_folder_is_missing(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "root")
    with pytest.raises(PlaceMissing) as told:
        list(tree(tmp_path / "root").scan())
    assert told.value.where == str(tmp_path / "root")


# -- names and depths ---------------------------------------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map(tuple), st.binary(max_size=20), max_size=6))
def test_any_name_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, wanted: dict[tuple[bytes, ...], bytes]) -> None:
    folders = {path[:depth] for path in wanted for depth in range(1, len(path))}
    contents = {b"/".join(path): data for path, data in wanted.items() if path not in folders}
    place = tree(tmp_path_factory.mktemp("names"))
    written(place, *(folder_at(b"/".join(path)) for path in sorted(folders)), *(upload(path, data) for path, data in contents.items()))
    found = scanned(place)
    assert found.keys() == {b"/".join(path) for path in folders} | contents.keys()
    sink = MemorySink()
    outcomes = read(place, [found[path] for path in contents], sink)
    assert {path: sink.contents[outcome.digest] for path, outcome in outcomes.items()} == contents


def test_paths_longer_than_the_system_takes_in_one_piece(world: DiskWorld) -> None:
    steps = [b"%03d" % n * 60 for n in range(40)]
    folders = [b"/".join(steps[: n + 1]) for n in range(len(steps))]
    assert len(folders[-1]) > 7000
    written(world.place, *(folder_at(path) for path in folders), upload(folders[-1] + b"/f", b"deep"))
    found = scanned(world.place)
    assert len(found) == 41
    assert read(world.place, [found[folders[-1] + b"/f"]], HashSink())[folders[-1] + b"/f"].digest == digest_of(b"deep")
    assert prove(world.place, claim(found[folders[-1] + b"/f"], b"deep"))[folders[-1] + b"/f"].status is Status.VERIFIED


def test_no_descriptor_stays_open(world: DiskWorld) -> None:
    entries = [world.file(b"d%03d/e/f" % n, b"x") for n in range(150)]
    before = descriptors()
    for _ in world.place.scan():
        assert len(descriptors() - before) < 80
    scan = world.place.scan()
    next(scan)
    close(scan)
    outcomes = world.place.read(entries, HashSink())
    next(outcomes)
    close(outcomes)
    read(world.place, entries, HashSink())
    prove(world.place, *(claim(entry, b"x") for entry in entries))
    write(world.place, *(upload(b"d%03d/e/g" % n, b"y") for n in range(150)))
    assert descriptors() <= before  # what others left behind may be closed at any time


# -- portability --------------------------------------------------------------------------------------------------------------------------

_IMPORT = """
import sys
sys.platform = "win32"
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
import hostbackup.places.local, hostbackup.places.local_write, hostbackup.places.exclude, hostbackup.places.base
heavy = {"paramiko", "fabric", "imapclient", "boto3", "pathspec"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""


def test_importing_needs_no_posix_module_and_no_protocol_library() -> None:
    ran = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
