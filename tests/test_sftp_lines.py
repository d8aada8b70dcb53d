"""A web tree on a real sshd: lines that are cut, freeze or are refused."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hostbackup.errors import HostKeyUnknown, LineCut, LoginRefused, ProtocolBroken, Unreachable
from hostbackup.model import Entry, Read
from hostbackup.places import sftp_tree
from hostbackup.places.sftp import SftpTree
from hostbackup.places.sftp_tree import Lines, resolve_root
from hostbackup.protocols import ssh
from hostbackup.protocols.limits import Limits
from hostbackup.protocols.sftp.client import SocketChannel
from hostbackup.protocols.sftp.packets import Attrs
from hostbackup.protocols.sftp.pump import Work
from hostbackup.protocols.ssh_session import SshSession
from tests.support.sftp_server import Scripted
from tests.support.sink import HashSink, MemorySink
from tests.support.sites import PART, Opener, entries, files, put
from tests.support.sshd import Relay, Sshd, sshd

pytest_plugins = ["tests.support.sites"]


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
    for number in range(300):  # more than can be under way at once, so that the end cannot have come before the cut
        put(tmp_path, b"f%d" % number, os.urandom(200_000))
    pauses: list[float] = []
    with Relay(with_shell.port) as relay:
        target = with_shell.target(port=relay.port, host_key=with_shell.host_key_fingerprint)
        tree = SftpTree(lambda: ssh.connect(target), str(tmp_path), side="old", part=PART, pause=pauses.append)
        found = files(tree)
        sink, reads = HashSink(), []
        with pytest.raises((LineCut, Unreachable)):
            for read in tree.read(found, sink):
                reads.append(read)
                if len(reads) == 1:
                    relay.refuse()
                    relay.drop()
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

    tree = SftpTree(through_a_new_relay, str(tmp_path), side="old", part=PART, limits=Limits(stall=1.0), pause=lambda _: None)
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


def test_a_line_that_never_lasts_long_enough_for_one_result_is_given_up(tmp_path: Path, with_shell: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_tree, "RECONNECTS", 4)
    put(tmp_path, b"large", bytes(30_000_000))  # more than one line brings, to a sink that cannot go on where it was
    with Relay(with_shell.port, cut_after=12_000_000, cuts=1000) as relay:
        target = with_shell.target(port=relay.port, host_key=with_shell.host_key_fingerprint)
        tree = SftpTree(lambda: ssh.connect(target), str(tmp_path), side="old", part=PART, pause=lambda _: None)
        with pytest.raises((LineCut, Unreachable)):
            list(tree.read(files(tree), HashSink()))
        tree.close()
        assert relay.accepted <= 6


class Opening:
    """Stands for a login that opens channels as `opens` does, which is told how many came before."""

    server_version = "SSH-2.0-Scripted"

    def __init__(self, opens: Callable[[int], SocketChannel]) -> None:
        self._opens = opens
        self._count = 0
        self._lock = threading.Lock()
        self.alive = True
        self.aborted = threading.Event()

    def open_sftp_channel(self) -> SocketChannel:
        with self._lock:
            number, self._count = self._count, self._count + 1
        return self._opens(number)

    def abort(self) -> None:
        self.alive = False
        self.aborted.set()

    close = abort


def lines_on(login: Opening) -> Lines:
    return Lines(lambda: login, 4)  # type: ignore[arg-type, return-value]


def test_channels_open_all_at_once_and_those_refused_are_done_without() -> None:
    together = threading.Barrier(4, timeout=20)  # breaks unless all four are being opened
    servers: list[Scripted] = []

    def opens(number: int) -> SocketChannel:
        together.wait()
        if number < 2:
            raise ProtocolBroken("refused")
        servers.append(Scripted(lambda *_: []))
        return servers[-1].channel()

    lines = lines_on(Opening(opens))
    try:
        assert len(lines.take()) == 2
        assert lines.channels == 2
    finally:
        lines.close()
        for server in servers:
            server.close()


def test_where_no_channel_opens_the_reason_is_told() -> None:
    def opens(number: int) -> SocketChannel:
        raise LineCut("cut while opening")

    with pytest.raises(LineCut, match="cut while opening"):
        lines_on(Opening(opens)).take()


def test_an_interrupt_does_not_wait_for_channels_that_never_open() -> None:
    def opens(number: int) -> SocketChannel:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if not login.aborted.wait(20):
            raise AssertionError("nobody dropped the line")
        raise LineCut("dropped")

    login = Opening(opens)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            lines_on(login).take()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_line_cut_while_channels_open_is_made_anew(with_shell: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"folder/file", b"1")
    logins: list[SshSession] = []

    def login() -> SshSession:
        session = ssh.connect(with_shell.target())
        logins.append(session)
        if len(logins) == 1:
            opens = session.open_sftp_channel

            def cut() -> object:
                opens()
                session.abort()
                return opens()

            session.open_sftp_channel = cut  # type: ignore[method-assign, assignment]
        return session

    tree = SftpTree(login, str(tmp_path), side="old", part=PART, pause=lambda _: None)
    try:
        assert set(entries(tree)) == {b"folder", b"folder/file"}
    finally:
        tree.close()
    assert len(logins) == 2


def test_what_is_given_back_of_a_line_that_was_cut_is_not_handed_out_again() -> None:
    servers: list[Scripted] = []

    def opens(number: int) -> SocketChannel:
        servers.append(Scripted(lambda *_: []))
        return servers[-1].channel()

    logins = [Opening(opens), Opening(opens)]
    coming = iter(logins)
    lines = Lines(lambda: next(coming), 4)  # type: ignore[arg-type, return-value]
    try:
        stale = lines.take()
        logins[0].alive = False
        fresh = lines.take()
        lines.give_back(stale)
        lines.give_back(fresh)
        assert {id(connection) for connection in lines.take()} == {id(connection) for connection in fresh}
    finally:
        lines.close()
        for server in servers:
            server.close()


def test_channels_that_a_cut_kept_from_opening_are_asked_for_again() -> None:
    servers: list[Scripted] = []

    def opens(number: int) -> SocketChannel:
        if number == 2 and login is logins[0]:
            login.alive = False
        if number and not login.alive:
            raise LineCut("cut while opening")
        servers.append(Scripted(lambda *_: []))
        return servers[-1].channel()

    logins = [Opening(opens), Opening(opens)]
    login = logins[0]
    lines = Lines(lambda: login, 4)  # type: ignore[arg-type, return-value]
    try:
        lines.take()
        login = logins[1]
        assert len(lines.take()) == 4
    finally:
        lines.close()
        for server in servers:
            server.close()


def test_who_finds_a_line_gone_that_was_made_anew_leaves_the_new_one(with_shell: Sshd, tmp_path: Path) -> None:
    logins: list[SshSession] = []

    def login() -> SshSession:
        logins.append(ssh.connect(with_shell.target()))
        return logins[-1]

    put(tmp_path, b"file", b"1")
    lines = Lines(login, 1, pause=lambda _: None)
    tree = sftp_tree.Tree(os.fsencode(tmp_path), "old", PART)
    asked = 0

    def source() -> Work[Attrs] | None:
        nonlocal asked
        asked += 1
        if asked == 2:
            logins[0].abort()
            lines.one(resolve_root(tree))  # logs in anew while the first works are under way
        return Work(resolve_root(tree)) if asked <= 3 else None

    try:
        assert len(list(lines.carry_out(source))) == 3
    finally:
        lines.close()
    assert len(logins) == 2


def test_a_server_that_drops_who_asks_for_several_channels_is_served_by_one() -> None:
    servers: list[Scripted] = []
    logins: list[Opening] = []

    def login() -> Opening:
        made = Opening(lambda number: opens(made, number))
        logins.append(made)
        return made

    def opens(made: Opening, number: int) -> SocketChannel:
        if number:
            made.alive = False
            raise LineCut("dropped")
        servers.append(Scripted(lambda *_: []))
        return servers[-1].channel()

    lines = Lines(login, 4)  # type: ignore[arg-type]
    try:
        for _ in range(2):
            lines.take()
            assert not logins[-1].alive
        assert len(lines.take()) == 1
        assert logins[-1].alive
    finally:
        lines.close()
        for server in servers:
            server.close()
