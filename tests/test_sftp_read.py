"""A web tree on a real sshd: read, whatever moves meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostbackup.model import Entry, Kind
from tests.support.faulty_sftp import command
from tests.support.sink import HashSink, MemorySink
from tests.support.sites import Opener, entries, files, put
from tests.support.sshd import Sshd, sshd

pytest_plugins = ["tests.support.sites"]


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


def test_a_server_that_gives_less_than_asked_cuts_no_volatile_file_off(tmp_path: Path, open_tree: Opener) -> None:
    contents = {b"logs/%d" % number: os.urandom(20_000) for number in range(8)}
    for name, data in contents.items():
        put(tmp_path, name, data)
    with sshd(shell=False, sftp=command("short-reads", "seed=1")) as server:
        tree = open_tree(server, tmp_path, volatile=["logs/"])
        sink = MemorySink()
        reads = list(tree.read(files(tree), sink))
    assert {read.asked.path: sink.contents[read.digest] for read in reads} == contents
    assert [read.failure for read in reads] == [None] * 8


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
