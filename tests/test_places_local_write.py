"""Writing into folders of this machine, and doing without what not every system has."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hostbackup.model import Part
from hostbackup.places import local_fs, local_write
from hostbackup.places.local import LocalTree
from tests.contract import TreeContract
from tests.support.memory import NOON
from tests.support.sink import HashSink
from tests.support.users import as_nobody
from tests.support.worlds import DiskWorld, folder_at, link_to, read, scanned, upload, write, written

PART = Part("local", "by-hand")


def tree(root: Path, exclude: Sequence[str] = ()) -> LocalTree:
    return LocalTree(root, side="old", part=PART, exclude=exclude)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWithoutDirectoryDescriptors(TreeContract):
    """As on a system that has none: everything by path, and no O_NOFOLLOW."""

    @pytest.fixture
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskWorld:
        monkeypatch.setattr(local_fs, "DIR_FDS", False)
        monkeypatch.setattr(local_fs, "NO_FOLLOW", 0)
        monkeypatch.setattr(local_fs, "_READ_FILE", os.O_RDONLY)
        monkeypatch.setattr(local_write, "DIR_FDS", False)
        monkeypatch.setattr(local_write, "_LINK_AT", False)
        monkeypatch.setattr(local_write, "sync_tree", lambda root: False)
        return DiskWorld(tmp_path / "tree", tree)

    def test_a_link_in_a_folders_place_is_not_read_through(self, world: DiskWorld) -> None:
        entry = world.file(b"d/secret", b"public")
        world.file(b"private/secret", b"secret")
        world.remove(b"d")
        world.link(b"d", b"private")
        failure = read(world.place, [entry], HashSink())[b"d/secret"].failure
        assert failure is not None
        assert failure.code == "changed-kind"


@pytest.fixture
def world(tmp_path: Path) -> DiskWorld:
    return DiskWorld(tmp_path / "tree", tree)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tree"


# -- writing ------------------------------------------------------------------------------------------------------------------------------


def test_times_are_kept_to_the_nanosecond_before_1970_too(world: DiskWorld) -> None:
    items = [upload(b"f", b"1", mtime_ns=NOON + 123_456_789), upload(b"old", b"2", mtime_ns=-86_400_000_000_001), folder_at(b"d", mtime_ns=NOON + 7)]
    written(world.place, *items)
    found = scanned(world.place)
    assert all(found[item.item.path].mtime_ns == item.item.mtime_ns for item in items)


def test_a_write_without_replace_is_content_with_the_same_bytes(world: DiskWorld) -> None:
    there = world.file(b"f", b"the same", mtime_ns=NOON - 5)
    assert written(world.place, upload(b"f", b"the same"))[b"f"] == there


def test_a_full_disk_is_told_per_entry_and_leaves_nothing(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.file(b"theirs", b"theirs")
    real = os.write

    def full(fd: int, data: bytes, /) -> int:
        if len(data) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    outcomes = write(world.place, upload(b"large", b"x" * 100), upload(b"small", b"x"), upload(b"theirs", b"x" * 100, replace=True))
    assert {path: outcome.failure.code for path, outcome in outcomes.items() if outcome.failure} == {b"large": "disk-full", b"theirs": "disk-full"}
    assert names_in(root) == ["small", "theirs"]
    assert world.contents(b"theirs") == b"theirs"


def test_bytes_that_could_not_be_synced_get_no_name(world: DiskWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(local_write, "sync_tree", broken)
    outcomes = write(world.place, *(upload(b"f%d" % n, b"x") for n in range(10)))
    assert {outcome.failure.code for outcome in outcomes.values() if outcome.failure} == {"io"}
    assert len(outcomes) == 10
    assert names_in(root) == []


def test_folders_are_usable_at_once_and_get_their_modes_last(world: DiskWorld, root: Path) -> None:
    outcomes = world.place.write(iter([folder_at(b"d", mode=0o555), upload(b"d/f", b"1"), link_to(b"l", b"x")]))
    next(outcomes)
    assert (root / "d").stat().st_mode & 0o777 == 0o755, "open to whom its mode says, should the run end here"
    list(outcomes)
    assert (root / "d").stat().st_mode & 0o777 == 0o555


def test_writing_where_this_user_may_not_is_told(public: Path) -> None:
    world = DiskWorld(public / "tree", tree)
    world.folder(b"theirs", mode=0o555)
    with as_nobody():
        outcomes = write(world.place, upload(b"theirs/f", b"1"), folder_at(b"theirs/d"), link_to(b"theirs/l", b"x"))
    assert {outcome.failure.code for outcome in outcomes.values() if outcome.failure} == {"permission"}
    assert len(outcomes) == 3


def test_an_ordinary_user_can_write_folders_that_shut_even_him_out(public: Path) -> None:
    public.chmod(0o777)
    items = [
        folder_at(b"", mode=0o755),
        folder_at(b"shut", mode=0o000),
        folder_at(b"shut/in", mode=0o500),
        upload(b"shut/in/f", b"1", mode=0o000, replace=True),
    ]
    with as_nobody():
        place = tree(public / "mine")
        written(place, *items)
        (public / "mine" / "shut").chmod(0o500)
        written(place, items[0], folder_at(b"shut", mode=0o700), *items[2:], upload(b"shut/in/g", b"2"))
    assert sorted(scanned(tree(public / "mine"))) == [b"shut", b"shut/in", b"shut/in/f", b"shut/in/g"]
