"""A web tree on a real sshd: written, each entry whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import select
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import PlaceMissing
from hostbackup.model import Claim, Entry, Kind, Status, Write
from hostbackup.places import sftp_tree
from hostbackup.places.sftp import SftpTree
from hostbackup.places.sftp_put import Put
from hostbackup.places.sftp_rename import keeps
from hostbackup.places.sftp_tree import Lines, Tree
from hostbackup.protocols import ssh
from hostbackup.protocols.limits import Limits
from hostbackup.protocols.sftp.client import Connection, SocketChannel, Steps
from hostbackup.protocols.sftp.packets import Framer, Type
from hostbackup.protocols.ssh_session import SshSession
from tests.support.faulty_login import faulty_tree
from tests.support.sftp_server import openssh
from tests.support.sink import HashSink
from tests.support.sites import ODD_NAMES, PART, Opener, by_path, entries, file, folder, link, path_of, put
from tests.support.sshd import Relay, Sshd, sshd, throwaway_user

pytest_plugins = ["tests.support.sites"]


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
    with Relay(with_shell.port, cut_after=15_000, cuts=3) as relay:
        tree = open_tree(with_shell, tmp_path, target={"port": relay.port, "host_key": with_shell.host_key_fingerprint, "shell": "never"})
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


def test_a_time_before_1970_becomes_the_nearest_that_can_be_sent(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    tree = open_tree(server, tmp_path)
    before = {b"f": file(b"f", b"x", mtime=-32400), b"d": folder(b"d", mtime=-32400)}
    outcomes = by_path(list(tree.write(before.values())))
    assert [outcomes[path].failure for path in before] == [None, None]
    assert [(tmp_path / name).stat().st_mtime for name in ("f", "d")] == [0, 0]
    assert {outcome.item for outcome in outcomes.values()} == set(entries(tree).values())


def test_a_time_before_1970_is_told_as_it_is(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"x", mtime=-32400)
    assert entries(open_tree(server, tmp_path))[b"f"].mtime_ns == -32400 * 10**9


def test_mode_and_time_of_a_file_that_keeps_its_contents(server: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for name in (b"f", b"edited", b"gone"):
        put(tmp_path, name, b"kept")
    tree = open_tree(server, tmp_path)
    seen = entries(tree)
    (tmp_path / "edited").write_bytes(b"theirs!")
    (tmp_path / "gone").unlink()
    inode = (tmp_path / "f").stat().st_ino
    items = [
        Write(dataclasses.replace(there, mode=0o600, mtime_ns=1_500_000_000 * 10**9), replace=True, expected=there, size=there.size)
        for there in seen.values()
    ]
    outcomes = by_path(list(tree.write(items)))
    assert {path: outcome.failure and outcome.failure.code for path, outcome in outcomes.items()} == {
        b"f": None,
        b"edited": "exists",
        b"gone": "vanished",
    }
    now = (tmp_path / "f").stat()
    assert ((tmp_path / "f").read_bytes(), stat.S_IMODE(now.st_mode), now.st_mtime, now.st_ino) == (b"kept", 0o600, 1_500_000_000, inode)
    assert outcomes[b"f"].item == entries(tree)[b"f"]
    assert (tmp_path / "edited").read_bytes() == b"theirs!"


class Disobedient(SocketChannel):
    """Fails each WRITE that holds `poison` on its way back, and keeps what the client asked for afterwards."""

    poison = b"poison"

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._framer = Framer()
        self._poisoned: set[bytes] = set()
        asked.clear()

    def send(self, data: bytes, /) -> int:
        for body in self._framer.feed(data):
            packet = bytes(body)
            asked.append(packet)
            if packet[0] == Type.WRITE and self.poison in packet:
                (length,) = struct.unpack_from(">I", packet, 5)
                packet = packet[:5] + struct.pack(">I", 3) + b"bad" + packet[9 + length :]  # a handle that the server never gave
            self._socket.setblocking(True)
            self._socket.sendall(struct.pack(">I", len(packet)) + packet)
            self._socket.setblocking(False)
        return len(data)


asked: list[bytes] = []


def test_nothing_is_renamed_before_the_server_said_that_all_of_it_is_written(tmp_path: Path) -> None:
    put(tmp_path, b"old", b"theirs")
    tree = SftpTree(lambda: Foreign(Disobedient), str(tmp_path), side="new", part=PART, channels=1)  # type: ignore[arg-type, return-value]
    writes = [file(b"new", b"poison"), file(b"old", b"poison", replace=True), file(b"good", b"fine"), file(b"empty", b"")]
    outcomes = by_path(list(tree.write(writes)))
    tree.close()
    assert {path for path, outcome in outcomes.items() if outcome.failure is not None} == {b"new", b"old"}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"theirs", "good": b"fine", "empty": b""}
    renames = [packet for packet in asked if packet[0] == Type.RENAME or (packet[0] == Type.EXTENDED and b"posix-rename" in packet)]
    assert len(renames) == 2, "only what the server took whole"


def test_a_small_file_costs_three_round_trips(tmp_path: Path) -> None:
    tree = Tree(os.fsencode(tmp_path), "new", PART, os.fsencode(tmp_path))
    put_ = Put(tree, b".hostbackup-1", lambda: Foreign(SocketChannel))  # type: ignore[arg-type, return-value]
    with openssh() as connection:
        steps = put_.file(connection, file(b"f", b"x" * 100_000))
        assert turns(connection, steps) == 3
    assert (tmp_path / "f").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("size", [4, 3 << 20])
def test_nothing_is_replaced_unasked_where_the_servers_rename_would(tmp_path: Path, size: int) -> None:
    put(tmp_path, b"f", b"made after the plan")
    with faulty_tree(tmp_path, "rename-replaces") as tree:
        assert "OpenSSH" in tree.session.server_version, "whatever it calls itself"
        (written,) = tree.write([file(b"f", b"x" * size)])
    assert written.failure is not None
    assert written.failure.code == "exists"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"made after the plan"}


@pytest.mark.parametrize("words", [(), ("rename-replaces",)], ids=["keeps", "replaces"])
def test_nothing_is_replaced_unasked_among_many_files_however_the_server_renames(tmp_path: Path, words: tuple[str, ...]) -> None:
    there = [b"%03d" % number for number in range(0, 600, 50)]
    for name in there:
        put(tmp_path, name, b"made after the plan")
    with faulty_tree(tmp_path, *words) as tree:
        outcomes = by_path(list(tree.write(file(b"%03d" % number, b"ours") for number in range(600))))
        assert not tree.untidy
    refused = {path: outcome.failure.code for path, outcome in outcomes.items() if outcome.failure is not None}
    assert refused == dict.fromkeys(there, "exists")
    found = {os.fsencode(path.name): path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {b"%03d" % number: b"ours" for number in range(600)} | dict.fromkeys(there, b"made after the plan")


@pytest.mark.parametrize(("words", "seen"), [((), True), (("rename-replaces",), False), (("broken=1",), False)], ids=str)
def test_whether_rename_keeps_what_is_there_is_seen_and_not_taken_on_trust(tmp_path: Path, words: tuple[str, ...], seen: bool) -> None:
    with faulty_tree(tmp_path, *words) as tree:
        put_ = Put(Tree(os.fsencode(tmp_path), "new", PART, os.fsencode(tmp_path)), b".hostbackup-1", lambda: tree.session)
        assert Lines(lambda: tree.session).one(lambda _: keeps(put_)) is seen
    assert not put_.orphans
    assert not list(tmp_path.iterdir())


def turns(connection: Connection, steps: Steps[Entry]) -> int:
    """How often a work, run to its end, had to wait for answers before it could ask anything more."""
    count, requests = 0, list(next(steps))
    while True:
        count += 1
        due = len(requests)
        for request in requests:
            connection.post(steps, request)
        requests = []
        while due:
            connection.flush()
            select.select([connection.channel.fileno()], [], [], 10)
            for _, reply in connection.receive():
                due -= 1
                try:
                    requests += steps.send(reply)
                except StopIteration:
                    return count


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

    def __init__(self, channel: type[SocketChannel], *options: str) -> None:
        self._channel = channel
        self._options = options
        self._ends: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []

    def open_sftp_channel(self) -> SocketChannel:
        near, far = socket.socketpair()
        with far:
            self._ends.append((near, subprocess.Popen(["/usr/lib/openssh/sftp-server", *self._options], stdin=far.fileno(), stdout=far.fileno())))
        return self._channel(near)

    def has_shell(self) -> bool:
        return False

    def close(self) -> None:
        for near, process in self._ends:
            near.close()
            process.wait(10)
        self._ends.clear()


class Filtered(SocketChannel):
    """Hands on what `change` makes of each packet."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._framer = Framer()

    def change(self, packet: bytes) -> bytes:
        return packet

    def send(self, data: bytes, /) -> int:
        self._socket.setblocking(True)
        for body in self._framer.feed(data):
            packet = self.change(bytes(body))
            with contextlib.suppress(OSError):
                self._socket.sendall(struct.pack(">I", len(packet)) + packet)
            self.sent(packet)
        self._socket.setblocking(False)
        return len(data)

    def sent(self, packet: bytes) -> None:
        pass


class CutInSwap(Filtered):
    """The line is cut once a file has stepped aside; from then on no file can be made."""

    cuts = 0

    def change(self, packet: bytes) -> bytes:
        return packet.replace(b".hostbackup", b"no/ostbacku") if CutInSwap.cuts and packet[0] == Type.OPEN else packet

    def sent(self, packet: bytes) -> None:
        if packet[0] == Type.RENAME and b".old-" in packet and not CutInSwap.cuts:
            CutInSwap.cuts += 1
            self._socket.recv(1 << 16)
            self._socket.shutdown(socket.SHUT_RDWR)


def test_a_swap_that_is_cut_and_then_refused_leaves_the_file_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CutInSwap, "cuts", 0)
    put(tmp_path, b"f", b"theirs")
    tree = SftpTree(functools.partial(Foreign, CutInSwap, "-P", "posix-rename"), str(tmp_path), side="new", part=PART, channels=1)  # type: ignore[arg-type]
    monkeypatch.setattr(sftp_tree, "BACK_OFF", (0.0, 0.0, 0.0))
    (written,) = tree.write([file(b"f", b"ours", replace=True)])
    tree.close()
    assert CutInSwap.cuts == 1
    assert written.failure is not None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"theirs"}
    assert not tree.untidy


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

    tree = SftpTree(through_a_new_relay, str(tmp_path), side="new", part=PART, limits=Limits(stall=1.0), pause=lambda _: None)
    outcomes = list(tree.write(items()))
    assert len(outcomes) == 60
    assert all(outcome.failure is None for outcome in outcomes)
    assert len(relays) == 2
    assert not list(tmp_path.rglob(".hostbackup*"))
    tree.close()
    for relay in relays:
        relay.close()
