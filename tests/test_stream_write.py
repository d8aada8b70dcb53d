"""Writing through tar streams leaves what SFTP leaves, whatever the server's tar does, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from hostbackup.model import Entry, Part, Write, Written
from hostbackup.places import stream_write
from hostbackup.places.sftp import SftpTree
from hostbackup.places.stream import Streams, take_files
from hostbackup.protocols import ssh
from tests.support.sites import ODD_NAMES, by_path, entries, file, folder, link
from tests.support.sshd import Relay, Sshd
from tests.support.tars import BSD, Toolbox

pytest_plugins = ("tests.support.tars",)

State = dict[str, tuple[object, ...]]


@contextmanager
def tree_on(server: Sshd, root: Path, streams: Streams, **target: object) -> Iterator[SftpTree]:
    facts = server.target(**target)
    part = Part("web", "site")
    tree = SftpTree(lambda: ssh.connect(facts), os.fsencode(root), side="new", part=part, pause=lambda _: None, streams=streams)
    try:
        yield tree
    finally:
        tree.close()


def state(root: Path) -> State:
    """All that can be seen below the root, but for inode numbers, change times and the times of links."""
    found: State = {}
    for path in root.rglob("*"):
        known = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        when = 0 if path.is_symlink() else known.st_mtime
        found[str(path.relative_to(root))] = (known.st_mode, when, known.st_uid, known.st_gid, known.st_nlink, data)
    return found


def dated(item: Write[Entry]) -> Write[Entry]:
    return dataclasses.replace(item, item=dataclasses.replace(item.item, mtime_ns=1_500_000_000_000_000_000))


def awkward() -> list[Write[Entry]]:
    items = [folder(b"shut", mode=0o500, mtime=1_500_000_000), folder(b"d"), file(b"shut/in", b"inside", mode=0o400), dated(link(b"d/l", b"../x"))]
    items += [file(name, b"in " + name, mtime=1_500_000_000 + n) for n, name in enumerate(ODD_NAMES)]
    items += [file(b"size %d" % size, random.Random(size).randbytes(size), mode=0o604) for size in (0, 1, 511, 512, 513, 10_240, 300_001, 2_000_000)]
    items += [
        file(b"setuid", b"s", mode=0o6755),
        file(b"none", b"s", mode=0),
        file(b"epoch", b"s", mtime=0),
        file(b"future", b"s", mtime=4_000_000_000),
    ]
    items += [file(b"ancient", b"s", mtime=-1000), file(b"no/folder", b"s"), file(b"../out", b"s")]
    wrong = file(b"wrong", b"not what was promised")
    return [*items, dataclasses.replace(wrong, digest="0" * 64)]


def plain(count: int = 60, size: int = 50, folders: int = 4) -> list[Write[Entry]]:
    names = [b"d%d" % n for n in range(folders)]
    return [*map(folder, names), *(file(names[n % folders] + b"/f%03d" % n, b"%d " % n * size) for n in range(count))]


def write_all(server: Sshd, root: Path, items: Sequence[Write[Entry]], **target: object) -> tuple[dict[bytes, Written[Entry]], Streams]:
    root.mkdir(exist_ok=True)
    streams = Streams(least=1)
    with tree_on(server, root, streams, **target) as tree:
        outcomes = by_path(list(tree.write(items)))
        assert len(outcomes) == len(items), "one outcome an item"
        there = entries(tree)
    for path, outcome in outcomes.items():
        if outcome.failure is None:
            assert outcome.item == there[path]
    return outcomes, streams


def alike(one: dict[bytes, Written[Entry]], other: dict[bytes, Written[Entry]]) -> None:
    assert {path: (told.item, told.failure) for path, told in one.items()} == {path: (told.item, told.failure) for path, told in other.items()}


@pytest.mark.parametrize("program", ["/usr/bin/tar", BSD])
def test_a_stream_leaves_what_sftp_leaves_whatever_names_modes_and_times(tar_server: Sshd, tools: Toolbox, tmp_path: Path, program: str) -> None:
    tools.real(program)
    one, streams = write_all(tar_server, tmp_path / "one", awkward())
    other, none = write_all(tar_server, tmp_path / "other", awkward(), shell="never")
    alike(one, other)
    assert state(tmp_path / "one") == state(tmp_path / "other")
    assert {path for path, told in one.items() if told.failure} == {b"no/folder", b"../out", b"wrong"}
    assert streams.files > 25
    assert (streams.breaks, none.files) == (0, 0)


def test_what_is_there_decides_as_over_sftp(tar_server: Sshd, tmp_path: Path) -> None:
    def prepare(root: Path) -> None:
        root.mkdir()
        for name in ("left alone", "replaced", "changed meanwhile", "same bytes"):
            (root / name).write_bytes(b"theirs")
            os.utime(root / name, (5, 5))
        (root / "a folder").mkdir()
        os.utime(root / "a folder", (5, 5))
        (root / "a link").symlink_to("left alone")

    def items() -> list[Write[Entry]]:
        expected = dataclasses.replace(file(b"changed meanwhile", b"theirs").item, mtime_ns=4_000_000_000)
        return [
            file(b"first", b"1"),
            file(b"left alone", b"ours"),
            file(b"replaced", b"ours", replace=True),
            dataclasses.replace(file(b"changed meanwhile", b"ours", replace=True), expected=expected),
            file(b"same bytes", b"theirs"),
            file(b"a folder", b"ours", replace=True),
            file(b"a link", b"ours"),
            file(b"a link/below", b"ours"),
        ]

    told = []
    for name, shell in (("one", "auto"), ("other", "never")):
        prepare(tmp_path / name)
        told.append(write_all(tar_server, tmp_path / name, items(), shell=shell))
    (one, streams), (other, _) = told
    alike(one, other)
    assert state(tmp_path / "one") == state(tmp_path / "other")
    assert {path for path, outcome in one.items() if outcome.failure is None} == {b"first", b"replaced", b"same bytes"}
    assert streams.files == 7


ILL = {
    "does nothing, and says so": "cat >/dev/null; exit 2",
    "does nothing, and says all is well": "cat >/dev/null",
    "breaks off in the middle": "head -c 40000 | /usr/bin/tar -xpof - 2>/dev/null; exit 2",
    "breaks off in the middle, and says all is well": "head -c 40000 | /usr/bin/tar -xpof - 2>/dev/null; exit 0",
    "never reads": "exit 0",
    "killed": "kill -9 $$",
    "shortens files": "/usr/bin/tar -xpof -; for f in *; do head -c 3 $f >t; touch -r $f t; chmod 644 t; mv t $f; done",
    "forgets modes": "/usr/bin/tar -xof - --no-same-permissions --mode=600; chmod 600 *",
    "forgets times": "/usr/bin/tar -xpomf -",
    "leaves other things": "/usr/bin/tar -xpof -; rm -f 1; mkdir 1; ln -sf /etc/passwd 2",
    "shouts": "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; /usr/bin/tar -xpof -",
    "is another tar": "",
}


@pytest.mark.parametrize("ill", ILL)
def test_a_tar_that_fails_or_lies_leaves_every_file_whole(tar_server: Sshd, tools: Toolbox, tmp_path: Path, ill: str) -> None:
    tools.pose(ILL[ill])
    if ill == "is another tar":
        tools.put("#!/bin/sh\necho another tar\n")
    outcomes, _ = write_all(tar_server, tmp_path / "one", plain(size=400))
    tools.clear()
    write_all(tar_server, tmp_path / "other", plain(size=400), shell="never")
    assert all(outcome.failure is None for outcome in outcomes.values())
    found = state(tmp_path / "one")
    if ill == "leaves other things":
        found = {name: facts for name, facts in found.items() if not name.startswith(".hostbackup-")}
    assert found == state(tmp_path / "other")


def test_streams_are_given_up_after_two_that_failed(tar_server: Sshd, tools: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_write, "_FILES", (10, 10))
    tools.pose("cat >/dev/null; echo no space >&2; exit 2")
    outcomes, streams = write_all(tar_server, tmp_path / "one", plain())
    assert all(outcome.failure is None for outcome in outcomes.values())
    assert streams.breaks == 2
    assert "no space" in streams.why_not


def test_a_server_that_cannot_bring_a_stream_to_its_disk_gets_files_one_by_one(tar_server: Sshd, tools: Toolbox, tmp_path: Path) -> None:
    tools.put("#!/bin/sh\nexit 1\n", "sync")
    outcomes, streams = write_all(tar_server, tmp_path / "one", plain())
    assert all(outcome.failure is None for outcome in outcomes.values())
    assert streams.files == 0


def cutting(item: Write[Entry], relay: Relay) -> Write[Entry]:
    """The line is cut when the contents are first asked for."""
    cuts = [relay.drop]

    def open_it() -> BinaryIO:
        if cuts:
            cuts.pop()()
        return io.BytesIO(b"cut" * 10)

    return dataclasses.replace(item, open=open_it)


@pytest.mark.parametrize("place", [4, 15, 33, 63])
def test_a_line_cut_while_a_stream_is_sent_loses_nothing(tar_server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(stream_write, "_FILES", (10, 20))
    with Relay(tar_server.port) as relay:
        items = plain(size=4000)
        items[place] = cutting(file(items[place].item.path, b"cut" * 10), relay)
        facts = {"port": relay.port, "known_hosts": None, "host_key": tar_server.host_key_fingerprint}
        outcomes, _ = write_all(tar_server, tmp_path / "one", items, **facts)
        assert relay.accepted > 1
    assert {path: outcome.failure for path, outcome in outcomes.items() if outcome.failure} == {}
    assert not [name for name in state(tmp_path / "one") if ".hostbackup-" in name]
    for item in items:
        if item.open is not None and b"d" in item.item.path:
            assert (tmp_path / "one" / os.fsdecode(item.item.path)).stat().st_size == item.size


def test_ended_early_nothing_half_done_stays(tar_server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_write, "_FILES", (20, 20))
    items = plain(200, size=20_000)
    with tree_on(tar_server, tmp_path, Streams(least=1)) as tree:
        outcomes = tree.write(items)
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]
    found = state(tmp_path)
    assert not [name for name in found if ".hostbackup-" in name]
    sizes = {os.fsdecode(item.item.path): item.size for item in items if item.open}
    assert all((tmp_path / name).stat().st_size == sizes[name] for name in found if name in sizes)


def test_what_a_killed_run_left_is_tidied_and_nothing_else(tar_server: Sshd, tmp_path: Path) -> None:
    with tree_on(tar_server, tmp_path, Streams()) as tree:
        prefix = tree.temporary_prefix
        ours = tmp_path / f"{prefix.decode()}-s0.part"
        ours.mkdir(mode=0o700)
        (ours / "0").write_bytes(b"half")
        (ours / "1a").write_bytes(b"whole")
        theirs = tmp_path / ".hostbackup-of another run-s0.part"
        theirs.mkdir()
        (theirs / "0").write_bytes(b"theirs")
        (tmp_path / "0").write_bytes(b"a file like any other")
        assert tree.remove_temporaries([prefix]) == 3
    assert sorted(state(tmp_path)) == sorted(["0", theirs.name, f"{theirs.name}/0"])


def test_a_shell_that_sees_another_tree_writes_nothing_there(tar_server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(stream_write, "take_files", lambda _, folder: take_files(os.fsencode(elsewhere), folder))
    outcomes, streams = write_all(tar_server, tmp_path / "one", plain())
    assert all(outcome.failure is None for outcome in outcomes.values())
    assert not list(elsewhere.iterdir())
    assert not [name for name in state(tmp_path / "one") if ".hostbackup-" in name]
    assert (streams.files, bool(streams.why_not)) == (0, True)


def test_the_root_is_made_before_anything_streams_into_it(tar_server: Sshd, tmp_path: Path) -> None:
    streams = Streams(least=1)
    with tree_on(tar_server, tmp_path / "not/yet", streams) as tree:
        outcomes = list(tree.write([folder(b"", mtime=1_400_000_000), *plain()]))
    assert all(outcome.failure is None for outcome in outcomes)
    assert streams.files == 60
    assert (tmp_path / "not/yet").stat().st_mtime == 1_400_000_000
